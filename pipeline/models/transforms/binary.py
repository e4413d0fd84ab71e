"""Weights -1 and 1 with a scale a filter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from pipeline.models.transforms.coarse import Coarse, CoarseQuantizer, by_filter, straight
from pipeline.models.transforms.fakequant import usable


@dataclass(frozen=True)
class Binary(Coarse):
    """Binary weight networks (Rastegari et al. 2016, arXiv 1603.05279, section 3.1, equations 4 to
    6): the sign of each weight, times the mean |w| of its filter. A weight that is exactly zero, as
    masks leave them, stays zero."""

    name: ClassVar[str] = "binary"

    def quantizer(self, filters: int) -> BinaryQuantizer:
        return BinaryQuantizer(filters, 1)


class BinaryQuantizer(CoarseQuantizer):
    def widest(self, weight: torch.Tensor) -> torch.Tensor:
        """The scale that loses least in squared error: the mean |w| of those that are not zero."""
        size = weight.detach().abs().flatten(1)
        return usable(size.sum(1) / (size > 0).sum(1).clamp_min(1))

    def rounded(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return straight(weight, weight.detach().sign() * by_filter(scale, weight))
