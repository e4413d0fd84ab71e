"""VGG (Simonyan and Zisserman 2015, table 1) in the form that CIFAR work uses: 3x3 convolutions,
five poolings, one linear layer. VGG-16-BN has 14.7 M parameters and 313.2 M MACs at 32x32 (often
given as 313.7 M, with two for each normalized value).

Images are [N, C, H, W]. Of the five 2x2 poolings, those that would leave nothing of a small image
are left out; what is larger than 1x1 at the end is averaged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.models.spec import Group, NetworkSpec, Normalize

# Convolutions in each of the five blocks; a pooling ends each block.
BLOCKS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
BLOCK_CHANNELS = (64, 128, 256, 512, 512)
MULTIPLE = 8  # channel counts that are no multiple of 8 waste vector lanes


def spec(name, width, shape, classes, zero_point, scale) -> NetworkSpec:
    """``width`` scales every channel count, rounded to multiples of 8 (at least 8)."""
    per_block = [max(MULTIPLE, round(c * width / MULTIPLE) * MULTIPLE) for c in BLOCK_CHANNELS]
    channels = [
        c
        for c, n in zip(per_block, BLOCKS[name.removesuffix("_bn")], strict=True)
        for _ in range(n)
    ]
    return NetworkSpec(
        name, tuple(channels), name.endswith("_bn"), tuple(shape), classes, zero_point, scale
    )


def groups(spec: NetworkSpec) -> tuple[Group, ...]:
    last = len(spec.channels) - 1
    return tuple(
        Group(
            f"features.{i}.conv",
            f"features.{i}.norm" if spec.batch_norm else None,
            ("head",) if i == last else (f"features.{i + 1}.conv",),
        )
        for i in range(last + 1)
    )


class Layer(nn.Module):
    """3x3 convolution, batch normalization or none, ReLU; [N, C, H, W] -> [N, K, H, W]."""

    def __init__(self, inputs: int, filters: int, batch_norm: bool):
        super().__init__()
        self.conv = nn.Conv2d(inputs, filters, 3, padding=1, bias=not batch_norm)
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
        self.normalize = Normalize(spec.zero_point, spec.scale)
        inputs = (spec.shape[0], *spec.channels[:-1])
        self.features = nn.ModuleList(
            Layer(i, o, spec.batch_norm) for i, o in zip(inputs, spec.channels, strict=True)
        )
        self.head = nn.Linear(spec.channels[-1], spec.classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.block_ends = _block_ends(spec.model)
        self.pooled, self.averaged = _poolings(spec)

    def forward(self, images: torch.Tensor, maps: bool = False):
        x, ends = self.normalize(images), []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if maps and i in self.block_ends:
                ends.append(x)
            if i in self.pooled:
                x = F.max_pool2d(x, 2)
        if self.averaged:
            x = F.adaptive_avg_pool2d(x, 1)
        logits = self.head(torch.flatten(x, 1))
        return (logits, ends) if maps else logits


def build(spec: NetworkSpec) -> nn.Module:
    return VGG(spec)


def _block_ends(model: str) -> tuple[int, ...]:
    ends, at = [], -1
    for convolutions in BLOCKS[model.removesuffix("_bn")]:
        at += convolutions
        ends.append(at)
    return tuple(ends)


def _poolings(spec: NetworkSpec) -> tuple[tuple[int, ...], bool]:
    """After which convolutions a pooling follows, and whether more than 1x1 is left at the end."""
    (_, height, width), pooled = spec.shape, []
    for end in _block_ends(spec.model):
        if min(height, width) >= 2:
            pooled.append(end)
            height, width = height // 2, width // 2
    return tuple(pooled), (height, width) != (1, 1)
