"""VGG (Simonyan and Zisserman 2015, table 1) in the form that CIFAR work uses: 3x3 convolutions,
five poolings, one linear layer. VGG-16-BN has 14.7 M parameters and 313.2 M MACs at 32x32 (often
given as 313.7 M, with two for each normalized value).

Images are [N, C, H, W]. The five poolings need 32x32: around smaller images the first convolution
pads more zeros, so that no later layer computes on padding alone (28x28 as they come would leave
1x1 to the last block, where eight of nine weights never meet anything but zeros). What is larger
than 1x1 at the end is averaged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.models.layers import multiple_of_eight
from pipeline.models.spec import Graph, Group, NetworkSpec

# Convolutions in each of the five blocks; a pooling ends each block.
BLOCKS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
BLOCK_CHANNELS = (64, 128, 256, 512, 512)
SMALLEST = 2 ** len(BLOCK_CHANNELS)  # pixels a side, so that every pooling halves something


def spec(
    name: str,
    width: float,
    shape: tuple[int, int, int],
    classes: int,
    zero_point: int,
    scale: float,
) -> NetworkSpec:
    """``width`` scales every channel count, rounded to multiples of 8 (at least 8)."""
    per_block = [multiple_of_eight(c * width) for c in BLOCK_CHANNELS]
    channels = [
        c
        for c, n in zip(per_block, BLOCKS[name.removesuffix("_bn")], strict=True)
        for _ in range(n)
    ]
    return NetworkSpec(name, tuple(channels), shape, classes, zero_point, scale)


def graph(spec: NetworkSpec) -> Graph:
    layers = [f"features.{i}" for i in range(len(spec.channels))]
    norms = [f"{layer}.norm" for layer in layers] if _normalized(spec) else []
    readers = [*(f"{layer}.conv" for layer in layers[1:]), "head"]
    return Graph(
        groups=tuple(
            Group((f"{layer}.conv",), tuple(norms[i : i + 1]), (readers[i],))
            for i, layer in enumerate(layers)
        ),
        norms=tuple((f"{layer}.conv", f"{layer}.norm") for layer in layers if norms),
        image=("features.0.conv",),
        maps=tuple(layers[i] for i in _block_ends(spec.model)),
    )


class Layer(nn.Module):
    """3x3 convolution, batch normalization or none, ReLU; [N, C, H, W] -> [N, K, H, W]."""

    def __init__(
        self, inputs: int, filters: int, batch_norm: bool, padding: tuple[int, int] = (1, 1)
    ):
        super().__init__()
        self.conv = nn.Conv2d(inputs, filters, 3, padding=padding, bias=not batch_norm)
        self.norm = nn.BatchNorm2d(filters) if batch_norm else None
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return F.relu(x if self.norm is None else self.norm(x))


class VGG(nn.Module):
    def __init__(self, spec: NetworkSpec):
        super().__init__()
        inputs = (spec.shape[0], *spec.channels[:-1])
        paddings = (_first_padding(spec), *[(1, 1)] * (len(inputs) - 1))
        self.features = nn.ModuleList(
            Layer(i, o, _normalized(spec), p)
            for i, o, p in zip(inputs, spec.channels, paddings, strict=True)
        )
        self.head = nn.Linear(spec.channels[-1], spec.classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.block_ends = _block_ends(spec.model)
        averaged = max(spec.shape[1:]) >= 2 * SMALLEST
        self.pool = nn.AdaptiveAvgPool2d(1) if averaged else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalized images [N, C, H, W] -> logits [N, classes]."""
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.block_ends:
                x = F.max_pool2d(x, 2)
        return self.head(torch.flatten(self.pool(x), 1))


def build(spec: NetworkSpec) -> nn.Module:
    return VGG(spec)


def _normalized(spec: NetworkSpec) -> bool:
    return spec.model.endswith("_bn")


def _block_ends(model: str) -> tuple[int, ...]:
    ends, at = [], -1
    for convolutions in BLOCKS[model.removesuffix("_bn")]:
        at += convolutions
        ends.append(at)
    return tuple(ends)


def _first_padding(spec: NetworkSpec) -> tuple[int, int]:
    _, height, width = spec.shape
    return _padding_of(height), _padding_of(width)


def _padding_of(side: int) -> int:
    return 1 + max(0, -((side - SMALLEST) // 2))
