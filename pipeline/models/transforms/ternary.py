"""Weights -1, 0 and 1 with a scale a filter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from pipeline.models.transforms.coarse import Coarse, CoarseQuantizer, by_filter, straight
from pipeline.models.transforms.fakequant import usable

THRESHOLD = 0.7  # of the mean |w|: near the best for Gaussian and for uniform weights


@dataclass(frozen=True)
class Ternary(Coarse):
    """Ternary weight networks (Li et al. 2016, arXiv 1605.04711, section 2.2, equations 3 to 6): 0
    where |w| is at most 0.7 of its mean, a scale that is the mean of the |w| above. Here for each
    filter by itself, as a scale a filter costs nothing where normalization is folded."""

    name: ClassVar[str] = "ternary"

    def quantizer(self, filters: int) -> TernaryQuantizer:
        return TernaryQuantizer(filters, 1)


class TernaryQuantizer(CoarseQuantizer):
    def widest(self, weight: torch.Tensor) -> torch.Tensor:
        """The scale that loses least in squared error: the mean |w| above the threshold."""
        size, above = weight.detach().abs().flatten(1), _above(weight.detach()).flatten(1)
        return usable((size * above).sum(1) / above.sum(1).clamp_min(1))

    def rounded(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        exact = weight.detach()
        return straight(weight, exact.sign() * _above(exact) * by_filter(scale, weight))


def _above(weight: torch.Tensor) -> torch.Tensor:
    size = weight.abs()
    return size > by_filter(THRESHOLD * size.flatten(1).mean(1), weight)
