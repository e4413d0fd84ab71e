"""Weights -1, 0 and 1 with a scale a filter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from pipeline.models.transforms import young
from pipeline.models.transforms.coarse import Coarse, CoarseQuantizer, by_filter, straight
from pipeline.models.transforms.fakequant import usable

THRESHOLD = 0.7  # of the mean |w|: near the best for Gaussian and for uniform weights
MOST_THRESHOLD = 10.0
LARGEST_STAYS = 0.999  # of the largest |w|: above 1 a threshold may be above all of them


@dataclass(frozen=True)
class Ternary(Coarse):
    """Ternary weight networks (Li et al. 2016, arXiv 1605.04711, section 2.2, equations 3 to 6): 0
    where |w| is at most ``threshold`` (0.7) of its mean, a scale that is the mean of the |w| above.
    Here for each filter by itself, as a scale a filter costs nothing where normalization is folded.
    A higher threshold is not nearer to the weights, but has more zeros, which are coded in fewer
    bits."""

    name: ClassVar[str] = "ternary"

    threshold: float = young(THRESHOLD)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.threshold <= MOST_THRESHOLD:
            raise ValueError(f"threshold: from 0 to {MOST_THRESHOLD:g}, not {self.threshold!r}")

    def quantizer(self, filters: int) -> TernaryQuantizer:
        return TernaryQuantizer(filters, self.threshold)


class TernaryQuantizer(CoarseQuantizer):
    def __init__(self, filters: int, threshold: float = THRESHOLD):
        super().__init__(filters, 1)
        self.threshold = threshold

    def widest(self, weight: torch.Tensor) -> torch.Tensor:
        """The scale that loses least in squared error: the mean |w| above the threshold."""
        size, above = weight.detach().abs().flatten(1), self.above(weight.detach()).flatten(1)
        return usable((size * above).sum(1) / above.sum(1).clamp_min(1))

    def rounded(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        exact = weight.detach()
        return straight(weight, exact.sign() * self.above(exact) * by_filter(scale, weight))

    def above(self, weight: torch.Tensor) -> torch.Tensor:
        """bool [K, ...]: those that are not zero; at least the largest of a filter."""
        size = weight.abs()
        each = size.flatten(1)
        limit = torch.minimum(self.threshold * each.mean(1), LARGEST_STAYS * each.amax(1))
        return size > by_filter(limit, weight)
