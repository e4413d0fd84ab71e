"""Weights -1 and 1, or -1, 0 and 1, with a scale a filter: which of the two, each layer learns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from pipeline.models.transforms.coarse import Coarse, CoarseQuantizer, by_filter, straight
from pipeline.models.transforms.fakequant import layers, usable
from pipeline.models.transforms.ternary import THRESHOLD

LEAST, MOST = math.pi / 4, 1.55
BINARY = 8.0  # tangents from here on: no weight is zero


@dataclass(frozen=True)
class BinaryTernary(Coarse):
    """Adaptive binary-ternary quantization (Razani et al. 2021, arXiv 1909.12205): the slope tan b
    of a layer's regularizer, min(||v| - 1|, tan b |v|) of a weight v in units of its scale, is
    learned, b from pi/4. Its two parts meet at |v| = 1 / (1 + tan b), which is where weights become
    zero: at pi/4 half of the scale, here Li et al.'s threshold (0.7 of the mean |w|), at pi/2
    nowhere, which is Rastegari et al.'s binary. A layer that is near pi/2 is binary exactly."""

    name: ClassVar[str] = "binary-ternary"

    def quantizer(self, filters: int) -> ChoosingQuantizer:
        return ChoosingQuantizer(filters)


class ChoosingQuantizer(CoarseQuantizer):
    """``angle`` []: b."""

    def __init__(self, filters: int):
        super().__init__(filters, 1)
        self.angle = nn.Parameter(torch.tensor(LEAST))

    def widest(self, weight: torch.Tensor) -> torch.Tensor:
        """The scale that loses least in squared error: the mean |w| above the threshold."""
        size, above = weight.detach().abs().flatten(1), self._above(weight.detach()).flatten(1)
        return usable((size * above).sum(1) / above.sum(1).clamp_min(1))

    def rounded(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        exact = weight.detach()
        return straight(weight, exact.sign() * self._above(exact) * by_filter(scale, weight))

    def _above(self, weight: torch.Tensor) -> torch.Tensor:
        size, slope = weight.abs(), self.angle.detach().tan()
        part = torch.where(slope < BINARY, 2 * THRESHOLD / (1 + slope), 0.0)
        return size > by_filter(part * size.flatten(1).mean(1), weight)

    def penalty(self, weight: torch.Tensor, ternary: float) -> tuple[torch.Tensor, torch.Tensor]:
        """([], []): what pulls the weights to their levels, a sum in squares of the scale, and what
        moves the angle: the regularizer's mean and ``1 / (ternary tan b)``."""
        scale = by_filter(self.scale.detach(), weight)
        size = (weight / scale).abs()
        slope, fixed = self.angle.tan(), self.angle.detach().tan()
        pulled = torch.minimum((size - 1).abs(), fixed * size) * scale.square()
        still = size.detach()
        chosen = torch.minimum((still - 1).abs(), slope * still).mean()
        return pulled.sum(), chosen + 1 / (ternary * slope)


def choosing(module: nn.Module) -> dict[str, ChoosingQuantizer]:
    """Name of layer -> what chooses its levels."""
    quantizers = {name: layer.weight_quantizer for name, layer in layers(module).items()}
    return {name: each for name, each in quantizers.items() if isinstance(each, ChoosingQuantizer)}
