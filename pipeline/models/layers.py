"""Modules that the networks share, and the one that all of them are wrapped in.

N images, C colour channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


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
        if not maps:
            return self.module(x)
        ends: list[torch.Tensor] = []
        self._ends = ends
        logits = self.module(x)
        self._ends = None
        return logits, ends
