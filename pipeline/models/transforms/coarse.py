"""Weights of fewer integers than int8 has, on a network that is fake-quantized already.

Each kind is a file of its own, with what rounds a weight [K, ...] in it; in an artifact they are
int8 like all others, so integer kernels run them, and none of their pairs can overflow. Sums are
exact, and activations stay uint8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from pipeline.models.transforms import Transform
from pipeline.models.transforms.fakequant import (
    FakeQuantConv2d,
    FakeQuantized,
    FakeQuantLinear,
    WeightQuantizer,
    layers,
)

if TYPE_CHECKING:
    from pipeline.models.spec import Graph

EIGHT_BITS = ("first-and-last", "first", "last", "none")


@dataclass(frozen=True)
class Coarse(Transform):
    """``eight_bits``: which layers keep their 8 bits. The first reads the image, the last gives the
    logits; both are small, and lose most by rounding (Esser et al. 2020, section 3)."""

    settles: ClassVar[bool] = True

    eight_bits: str = "first-and-last"

    def __post_init__(self) -> None:
        if self.eight_bits not in EIGHT_BITS:
            valid = ", ".join(EIGHT_BITS)
            raise ValueError(f"eight_bits: expected one of {valid}, got {self.eight_bits!r}")

    def quantizer(self, filters: int) -> WeightQuantizer:
        """What rounds the weight of a layer."""
        raise NotImplementedError

    def insert(self, module: nn.Module, graph: Graph) -> None:
        for layer in self.layers(module, graph).values():
            layer.weight_quantizer = self.quantizer(len(layer.weight))

    @torch.no_grad()
    def begin(self, module: nn.Module, graph: Graph) -> None:
        """Sets every scale of its own to what the weights require."""
        for layer in self.layers(module, graph).values():
            layer.weight_quantizer.scale.copy_(layer.weight_quantizer.widest(layer.weight))

    def layers(
        self, module: nn.Module, graph: Graph
    ) -> dict[str, FakeQuantConv2d | FakeQuantLinear]:
        """Those that it rounds."""
        quantized_layers = layers(module)
        first, last = graph.first_and_last(quantized_layers)
        kept = set(first) if self.eight_bits in ("first-and-last", "first") else set()
        if self.eight_bits in ("first-and-last", "last"):
            kept.add(last)
        return {name: layer for name, layer in quantized_layers.items() if name not in kept}


class CoarseQuantizer(WeightQuantizer):
    """Integers of at most ``limit``; a scale a filter, ``learned`` or what ``widest`` gives."""

    def __init__(self, filters: int, limit: int, learned: bool = False):
        super().__init__(filters, FakeQuantized(learned=learned))
        self.limit = limit


def straight(weight: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """``rounded``, whose gradient goes to ``weight`` as it is (Bengio et al. 2013, section 4)."""
    return weight + (rounded - weight).detach() if weight.requires_grad else rounded


def by_filter(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[K] -> [K, 1, ...], as many dimensions as ``weight`` has."""
    return values.reshape(-1, *[1] * (weight.dim() - 1))
