"""A network as its user writes it: expressions where netpress has modules, and everything that
makes layers hang together. `factory: nets.py:build` in a sweep file names it."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


class Mixed(nn.Module):
    """A residual sum around a depthwise convolution, a gate on its channels, a concatenation of
    two branches, one of which is chunked; [N, C, H, W] -> [N, classes]."""

    def __init__(self, colours: int, classes: int, width: int, side: int):
        super().__init__()
        double = 2 * width
        self.stem = nn.Conv2d(colours, width, 3, 2, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.widen = nn.Sequential(nn.Conv2d(width, double, 1, bias=False), nn.BatchNorm2d(double))
        self.depthwise = nn.Conv2d(double, double, 3, 1, 1, groups=double, bias=False)
        self.norm = nn.BatchNorm2d(double)
        self.squeeze, self.excite = nn.Conv2d(double, 8, 1), nn.Conv2d(8, double, 1)
        self.narrow = nn.Conv2d(double, width, 1)
        self.left, self.right = nn.Conv2d(width, width, 1, 2), nn.Conv2d(width, double, 3, 2, 1)
        self.head = nn.Linear(2 * width * (side // 4) ** 2, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        y = F.relu6(self.widen(x))
        y = F.relu6(self.norm(self.depthwise(y)))
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1))))
        y = y * F.hardsigmoid(gate)
        x = x + self.narrow(y)
        first, second = self.right(x).chunk(2, dim=1)
        x = torch.cat([F.relu(self.left(x)), F.relu(first + second)], 1)
        x = F.dropout(x.view(x.size(0), -1), 0.1, self.training)
        return self.head(x)


class Attention(nn.Module):
    """Channels that are mixed in a way that nobody follows."""

    def __init__(self, colours: int, classes: int):
        super().__init__()
        self.stem = nn.Conv2d(colours, 16, 4, 4)
        self.seen, self.grouped = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, 1, 1, groups=4)
        self.free, self.last = nn.Conv2d(16, 24, 1), nn.Conv2d(24, 16, 1)
        self.head = nn.Linear(16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.seen(x).flatten(2)
        x = x * torch.softmax(y @ y.transpose(1, 2), 2).mean(2)[:, :, None, None]
        x = self.last(torch.relu(self.free(self.grouped(x))))
        return self.head(x.mean((2, 3)))


class Parted(nn.Module):
    """Channels that are taken by their numbers, blocks of a grouped convolution, and a layer on the
    last dimension; with timm's normalization where ``norm_act`` is its class."""

    def __init__(self, colours: int, classes: int, norm_act: type[nn.Module] | None):
        super().__init__()
        self.stem = nn.Conv2d(colours, 24, 3, 2, 1, bias=False)
        self.norm = norm_act(24) if norm_act else nn.BatchNorm2d(24)
        self.first, self.second = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 1)
        self.grouped = nn.Conv2d(32, 64, 3, 2, 1, groups=4)
        self.inner, self.outer = nn.Linear(64, 40), nn.Linear(40, 12)
        self.head = nn.Linear(12, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(x)))
        few, many = x.split([8, 16], 1)
        x = torch.cat([self.first(few), self.second(many)], 1)
        x = torch.cat([F.relu(x[:, :12]), x[:, 12:] * 2], 1)
        x = F.relu(self.grouped(x)).permute(0, 2, 3, 1)
        return self.head(self.outer(F.gelu(self.inner(x))).mean((1, 2)))


class Entangled(nn.Module):
    """Channels that hang together by calls that say less than they do; ``how`` they do."""

    def __init__(self, colours: int, classes: int, how: str):
        super().__init__()
        self.how = how
        self.stem, self.other = (nn.Conv2d(colours, 16, 3, 2, 1) for _ in range(2))
        self.norm = nn.BatchNorm2d(16, affine=False)
        self.next = nn.Conv2d({"cat": 32, "chunk": 4, "chunks": 12}.get(how, 16), 16, 1)
        self.head = nn.Linear(16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.join(self.stem(x), self.other(x))
        x = self.next(input=x) if self.how == "conv" else self.next(x)
        return self.head(F.relu(x).mean((2, 3)))

    def join(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.how == "columns":
            first, second = x.chunk(2, 3)
            return first + second
        if self.how == "unbind":
            columns = x.unbind(3)
            return (columns[0] + columns[1])[:, :, :, None]
        if self.how == "topk":
            return torch.topk(x, 4, 3)[0]
        if self.how == "chunks":
            return torch.cat(x.chunk(4, 1)[1:], 1)
        if self.how == "norm":
            return self.norm(x) * torch.sigmoid(self.norm(y).mean((2, 3), True))
        calls = {
            "conv": lambda: x - y,
            "add": lambda: torch.add(x, other=y),
            "mul": lambda: x.mul(other=torch.sigmoid(input=y)),
            "cat": lambda: torch.cat(tensors=[x, y], dim=1),
            "clamp": lambda: torch.clamp(x, max=y),
        }
        return calls[self.how]()


def entangled(how: str, colours: int = 1, classes: int = 10) -> nn.Module:
    return Entangled(colours, classes, how)


class Blocks(nn.Module):
    """Grouped convolutions with few channels in a block, as ResNeXt's."""

    def __init__(self, colours: int, classes: int, blocks: int, each: int):
        super().__init__()
        self.stem = nn.Conv2d(colours, blocks * each, 3, 2, 1)
        self.grouped = nn.Conv2d(blocks * each, 2 * blocks * each, 3, 2, 1, groups=blocks)
        self.last = nn.Conv2d(2 * blocks * each, 24, 1)
        self.head = nn.Linear(24, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.grouped(F.relu(self.stem(x)))
        return self.head(F.relu(self.last(F.relu(x))).mean((2, 3)))


def blocks(colours: int = 1, classes: int = 10, blocks: int = 8, each: int = 8) -> nn.Module:
    return Blocks(colours, classes, blocks, each)


class Branching(Attention):
    """What it does depends on the values of the image, or, which can be exported, on its size."""

    def __init__(self, colours: int, classes: int, values: bool):
        super().__init__(colours, classes)
        self.values = values

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        positive = x.mean() > 0 if self.values else x.shape[2] > 8
        return super().forward(x if positive else -x)


class Dropping(Attention):
    """All functional dropouts; nothing else depends on training."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.dropout2d(torch.relu(self.stem(x)), 0.25, self.training)
        x = F.alpha_dropout(x.mean((2, 3)), p=0.5, training=self.training)
        return self.head(x)


class Mixer(nn.Module):
    """Linear layers on every pixel, channels last; one is called twice, and so not cut."""

    def __init__(self, colours: int, classes: int, inplace: bool):
        super().__init__()
        self.inplace, self.stem = inplace, nn.Conv2d(colours, 16, 4, 4)
        self.widen, self.narrow = nn.Linear(16, 48), nn.Linear(48, 16)
        self.again, self.head = nn.Linear(16, 16), nn.Linear(16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x), self.inplace).permute(0, 2, 3, 1)
        x = x + self.narrow(F.relu(self.widen(x), self.inplace))
        x = self.again(torch.relu(self.again(x)))
        return self.head(x.mean((1, 2)))


class Tokens(nn.Module):
    """A linear layer on a row of tokens."""

    def __init__(self, colours: int, classes: int):
        super().__init__()
        self.stem, self.widen = nn.Conv2d(colours, 16, 4, 4), nn.Linear(16, 24)
        self.head = nn.Linear(24, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x)).flatten(2).transpose(1, 2)
        return self.head(torch.relu(self.widen(x)).mean(1))


class Separable(nn.Module):
    """A depthwise convolution, and one that reads what a padding of its own kind adds; all have
    biases, none is normalized."""

    def __init__(self, colours: int, classes: int, padding_mode: str, act: str):
        super().__init__()
        self.stem, self.depthwise = (
            nn.Conv2d(colours, 8, 3, 1, 1),
            nn.Conv2d(8, 8, 3, 1, 1, groups=8),
        )
        self.last = nn.Conv2d(8, 8, 3, 1, 1, padding_mode=padding_mode)
        self.act, self.head = getattr(nn, act)(), nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(torch.relu(self.stem(x)))
        return self.head(torch.relu(self.last(self.act(x))).mean((2, 3)))


POOLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "whole": nn.AvgPool2d(8),
    "sides": lambda x: F.avg_pool2d(x, x.size()[2:]),
    "side": lambda x: F.avg_pool2d(x, kernel_size=x.shape[-1], stride=1),
    "beyond": nn.AvgPool2d((8, 9), ceil_mode=True),
    "corner": nn.AvgPool2d(5),
    "rows": lambda x: F.avg_pool2d(x, (8, 6)),
    "padded": nn.AvgPool2d(10, padding=1),
    "sum": nn.AvgPool2d(8, divisor_override=1),
    "overlapping": nn.AdaptiveAvgPool2d((7, 7)),
    "several": lambda x: F.adaptive_avg_pool2d(F.max_pool2d(x, (2, 4)), 7),
    "repeated": nn.Sequential(nn.MaxPool2d(8), nn.AdaptiveAvgPool2d(7)),
    "squeezed": lambda x: F.adaptive_avg_pool2d(x, 1).squeeze()[..., None],
}


class Pooled(nn.Module):
    """Ends with a pool of 8 x 8 pixels to one or ``side`` squared; [N, C, 32, 32] as images."""

    def __init__(self, colours: int, classes: int, pool: str, side: int):
        super().__init__()
        self.stem, self.head = nn.Conv2d(colours, 8, 4, 4), nn.Linear(8 * side**2, classes)
        self.pool = POOLS[pool]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(torch.relu(self.stem(x))).flatten(1))


def pooled(pool: str, colours: int = 1, classes: int = 10, side: int = 1) -> nn.Module:
    return Pooled(colours, classes, pool, side)


class Joined(nn.Module):
    """A small tensor is read by itself, and beside a large one; which of the two first is up to
    ``small_first``."""

    def __init__(self, colours: int, classes: int, small_first: bool):
        super().__init__()
        self.small_first = small_first
        self.stem, self.middle = nn.Conv2d(colours, 8, 4, 4), nn.Conv2d(8, 8, 3, 1, 1)
        self.wide, self.small = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        y = torch.cat([x, 8 * F.relu(self.middle(x))], 1)
        made = [self.small(x), self.wide(y)] if self.small_first else [self.wide(y), self.small(x)]
        return self.head((made[0] + made[1]).mean((2, 3)))


def joined(colours: int = 1, classes: int = 10, small_first: bool = False) -> nn.Module:
    return Joined(colours, classes, small_first)


class Shared(nn.Module):
    """Two convolutions with one weight, and a normalization of each."""

    def __init__(self, colours: int, classes: int):
        super().__init__()
        self.stem = nn.Conv2d(colours, 8, 4, 4)
        self.first, self.second = (nn.Conv2d(8, 8, 3, 1, 1, bias=False) for _ in range(2))
        self.second.weight = self.first.weight
        self.first_norm, self.second_norm = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.first_norm(self.first(self.stem(x))))
        x = F.relu(self.second_norm(self.second(x)))
        return self.head(x.mean((2, 3)))


def shared(colours: int = 1, classes: int = 10) -> nn.Module:
    return Shared(colours, classes)


class Unread(nn.Module):
    """A head beside the other one, whose logits are computed always and given in training alone;
    and a layer that reads a parameter, not the image."""

    def __init__(self, colours: int, classes: int):
        super().__init__()
        self.stem, self.middle = nn.Conv2d(colours, 8, 4, 4), nn.Conv2d(8, 8, 3, 1, 1)
        self.beside, self.head = nn.Linear(8, classes), nn.Linear(8, classes)
        self.query, self.of_query = nn.Parameter(torch.randn(1, 8)), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        x = F.relu(self.stem(x))
        beside = self.beside(x.mean((2, 3)))
        logits = self.head(F.relu(self.middle(x)).mean((2, 3)) * self.of_query(self.query))
        return (logits, beside) if self.training else logits


def unread(colours: int = 1, classes: int = 10) -> nn.Module:
    return Unread(colours, classes)


class Disordered(nn.Module):
    """Normalizes the image itself; what runs last is registered first."""

    def __init__(self, colours: int, classes: int, branches: bool):
        super().__init__()
        self.branches = branches
        self.head, self.middle = nn.Linear(16, classes), nn.Conv2d(16, 16, 3, 1, 1)
        self.stem = nn.Conv2d(colours, 16, 4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x - 0.25) / 0.5
        if self.branches and x.mean() < -100:
            return self.head(x.mean((2, 3)).expand(-1, 16))
        x = torch.relu(self.middle(torch.relu(self.stem(x))))
        return self.head(x.mean((2, 3)))


def disordered(colours: int = 1, classes: int = 10, branches: bool = False) -> nn.Module:
    return Disordered(colours, classes, branches)


def build(width: int = 16, colours: int = 1, classes: int = 10, side: int = 32) -> nn.Module:
    return Mixed(colours, classes, width, side)


def attention(colours: int = 1, classes: int = 10) -> nn.Module:
    return Attention(colours, classes)


def parted(colours: int = 1, classes: int = 10, timm: bool = False) -> nn.Module:
    if not timm:
        return Parted(colours, classes, None)
    from timm.layers import BatchNormAct2d

    return Parted(colours, classes, BatchNormAct2d)


def mixer(colours: int = 1, classes: int = 10, inplace: bool = False) -> nn.Module:
    return Mixer(colours, classes, inplace)


def separable(
    colours: int = 1, classes: int = 10, padding_mode: str = "zeros", act: str = "ReLU"
) -> nn.Module:
    return Separable(colours, classes, padding_mode, act)


def tokens(colours: int = 1, classes: int = 10) -> nn.Module:
    return Tokens(colours, classes)


def branching(colours: int = 1, classes: int = 10, values: bool = True) -> nn.Module:
    return Branching(colours, classes, values)


def dropping(colours: int = 1, classes: int = 10) -> nn.Module:
    return Dropping(colours, classes)


def normalized(colours: int = 1, classes: int = 10, new: bool = True) -> nn.Module:
    net = Attention(colours, classes)
    norm = nn.utils.parametrizations.weight_norm if new else nn.utils.weight_norm
    net.free = norm(net.free)
    return net


def number() -> int:
    return 3


class Leaving(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sys.exit("no such image")


def leaving(when: str, colours: int = 1, classes: int = 10) -> nn.Module:
    """Ends the process, as a script does that is used as a module."""
    return sys.exit("no such option") if when == "built" else Leaving()
