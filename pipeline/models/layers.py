"""Modules that the networks share, and the one that all of them are wrapped in.

N images, C colour channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pipeline.models import strided


class Sum(nn.Module):
    """a + b, both [N, K, H, W]: a module of its own, since a residual sum is quantized."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b


class Parts(nn.Module):
    """The first ``sizes[0]`` channels, the next ``sizes[1]``, and so on: a module of its own, since
    pruning changes how many these are; [N, K, ...] -> one tensor for each size."""

    def __init__(self, sizes: Sequence[int]):
        super().__init__()
        self.sizes = list(sizes)

    def forward(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        return x.split(self.sizes, 1)


class UnevenAverage(nn.Module):
    """``nn.AdaptiveAvgPool2d`` from maps of one size to sides that do not divide theirs, so that
    windows overlap or differ; [N, K, *before] -> [N, K, *after]. PyTorch's exporter writes that one
    by operators that artifacts do not have."""

    rows: torch.Tensor
    row_shares: torch.Tensor
    columns: torch.Tensor
    column_shares: torch.Tensor

    def __init__(self, before: tuple[int, int], after: tuple[int, int]):
        super().__init__()
        (rows, row_shares), (columns, column_shares) = map(_windows, before, after)
        # Not persistent: a state dict holds what the factory's module has, and nothing else.
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("row_shares", row_shares[..., None], persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        self.register_buffer("column_shares", column_shares, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for dim, at, shares in (
            (2, self.rows, self.row_shares),
            (3, self.columns, self.column_shares),
        ):
            windows = x.index_select(dim, at).unflatten(dim, shares.shape[:2])
            x = (windows * shares).sum(dim + 1)
        return x


def _windows(before: int, after: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For windows of a side that become one number each, all as long as the longest: the pixels
    int64 [after * longest], and what part of its number each is, float32 [after, longest]."""
    starts = [i * before // after for i in range(after)]
    sizes = [-(-(i + 1) * before // after) - start for i, start in enumerate(starts)]
    longest = range(max(sizes))
    pixels = [
        start + min(i, size - 1) for start, size in zip(starts, sizes, strict=True) for i in longest
    ]
    shares = [[1 / size if i < size else 0.0 for i in longest] for size in sizes]
    return torch.tensor(pixels, device="cpu"), torch.tensor(shares, device="cpu")


def multiple_of_eight(channels: float) -> int:
    """To the nearest multiple, at least 8: other counts waste vector lanes."""
    return multiple_of(8, channels)


def multiple_of(step: int, channels: float) -> int:
    """The nearest one, at least ``step`` itself."""
    return max(step, round(channels / step) * step)


class ConvNorm(nn.Module):
    """Convolution that keeps the map's sides (divided by ``stride``), and batch normalization;
    [N, C, H, W] -> [N, K, h, w]. ``groups``: as of the convolution."""

    def __init__(self, inputs: int, filters: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, filters, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(filters)
        # He et al. 2015, equation 14, where each group is a convolution of its own.
        reached = filters // groups * kernel**2
        nn.init.normal_(self.conv.weight, std=math.sqrt(2 / reached))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


class Network(nn.Module):
    """A model with what is the same around all of them: ``module`` takes float images and gives
    logits; this takes uint8 pixels, and can give the feature maps inside as well."""

    def __init__(self, module: nn.Module, zero_point: int, scale: float, maps: Sequence[str] = ()):
        super().__init__()
        self.module = module
        self.zero_point, self.scale = float(zero_point), float(scale)
        self._ends: list[torch.Tensor] | None = None
        for name in maps:
            # A bound method: a copy of the network keeps maps of its own.
            module.get_submodule(name).register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if self._ends is not None:
            self._ends.append(output)

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Pixels 0..255, uint8 or float -> float32 around zero, of the same shape."""
        return (images.float() - self.zero_point) * self.scale

    def forward(self, images: torch.Tensor, maps: bool = False) -> Any:
        """uint8 or float pixels 0..255 [N, C, H, W] -> logits [N, classes]; with ``maps``, (logits,
        [the feature map [N, K, h, w] at the end of each block])."""
        x = self.normalize(images)
        with strided.corrected(x):
            if not maps:
                return self.module(x)
            ends: list[torch.Tensor] = []
            self._ends = ends
            logits = self.module(x)
            self._ends = None
            return logits, ends
