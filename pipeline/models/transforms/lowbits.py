"""Weights of 4 or 2 bits, with scales that are learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from pipeline.models.transforms.coarse import Coarse, CoarseQuantizer, by_filter
from pipeline.models.transforms.fakequant import usable
from pipeline.models.transforms.lsq import learned_step


@dataclass(frozen=True)
class LowBits(Coarse):
    """LSQ (Esser et al. 2020, arXiv 1902.08153, sections 2 and 2.1): of b bits the integers
    -2^(b-1) to 2^(b-1) - 1, here with a scale a filter."""

    name: ClassVar[str] = "low-bits"

    bits: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in (2, 4):
            raise ValueError(f"bits: expected 2 or 4, got {self.bits!r}")

    def quantizer(self, filters: int) -> StepQuantizer:
        return StepQuantizer(filters, self.bits)

    def scaled(
        self, tensors: dict[str, torch.Tensor], layer: str, factor: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        name = f"{layer}.weight_quantizer.mirror"
        if name not in tensors:  # a layer that keeps its 8 bits
            return tensors
        return {**tensors, name: torch.where(factor < 0, -tensors[name], tensors[name])}


class StepQuantizer(CoarseQuantizer):
    """``mirror`` [K], 1 or -1: a filter that was multiplied by something negative has its integers
    from -2^(b-1) + 1 to 2^(b-1)."""

    mirror: torch.Tensor

    def __init__(self, filters: int, bits: int):
        super().__init__(filters, 2 ** (bits - 1) - 1, learned=True)
        self.register_buffer("mirror", torch.ones(filters))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        scale, mirror = by_filter(self.scale, weight), by_filter(self.mirror, weight)
        low, high, values = -self.limit - 1, self.limit, weight[0].numel()
        return learned_step(weight * mirror, scale, low, high, high, values) * mirror

    def widest(self, weight: torch.Tensor) -> torch.Tensor:
        """Where learning begins: 2 mean|w| / sqrt(Q_P) (section 2.1)."""
        return usable(2 * weight.detach().abs().flatten(1).mean(1) / self.limit**0.5)
