"""Weights that are zero or powers of two, frozen at these values little by little.

weight and levels [K, C, h, w] or [K, C], scale [K].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from pipeline.models.transforms import Transform, fakequant

if TYPE_CHECKING:
    from pipeline.models.spec import Graph

LARGEST = 64  # twice that is the most that a pair may add up to; see pairs.py
FREE = -128  # no level: a weight that is still trained
MAGNITUDES = {5: 7, 3: 2}  # bits: powers of two there are beside zero


@dataclass(frozen=True)
class PowersOfTwo(Transform):
    """Incremental network quantization (INQ, Zhou et al. 2017, arXiv 1702.03044), on int8.

    A weight is ``level x scale``, the scale being a power of two as well, ``2^(n1 - 6)`` with ``n1
    = floor(log2(4 max|W| / 3))``, the exponent of the largest level (section 2.2): one for the
    whole layer, as there, or one a filter, since with batch normalization folded into them filters
    differ in size. Levels are 0, +-1, +-2, ... +-64 with 5 bits, and 0, +-32, +-64 with 3. The
    paper's 5 bits have one power of two more, n1 - 7, which int8 has no integer for without 128;
    what would be that level is 0 or the next one here. 3 bits are the paper's.

    Lies on a network that is ``fake-quantized``, whose activations stay as they are.
    """

    name: ClassVar[str] = "powers-of-two"
    settles: ClassVar[bool] = True

    bits: int

    def __post_init__(self) -> None:
        if self.bits not in MAGNITUDES:
            raise ValueError(f"bits: expected 3 or 5, got {self.bits!r}")

    def insert(self, module: nn.Module, graph: Graph) -> None:
        for layer in fakequant.layers(module).values():
            layer.weight_quantizer = PowerQuantizer(layer.weight, MAGNITUDES[self.bits])

    def after_step(self, module: nn.Module) -> None:
        """Momentum and weight decay move what has no gradient, too: frozen weights are put back."""
        for layer in fakequant.layers(module).values():
            if isinstance(layer.weight_quantizer, PowerQuantizer):
                layer.weight.copy_(layer.weight_quantizer(layer.weight))


class PowerQuantizer(fakequant.WeightQuantizer):
    """Weights that are frozen have a level; the others are what they are."""

    levels: torch.Tensor

    def __init__(self, weight: torch.Tensor, magnitudes: int):
        super().__init__(len(weight), fakequant.FakeQuantized())
        self.smallest = LARGEST >> (magnitudes - 1)
        self.register_buffer("levels", torch.full_like(weight, FREE, dtype=torch.int8))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        frozen = self.levels * self.scale.reshape(-1, *[1] * (weight.dim() - 1))
        return torch.where(self.levels == FREE, weight, frozen)

    @torch.no_grad()
    def place(self, weight: torch.Tensor, integers: torch.Tensor) -> None:
        self.levels.copy_(integers)
        super().place(weight, integers)

    @torch.no_grad()
    def fit(self, weight: torch.Tensor, by_filter: bool = False) -> None:
        """Chooses the scale, of the layer or of each filter; nothing is frozen by that. A filter of
        zeros has the layer's."""
        each = weight.abs().flatten(1).amax(1)
        largest = torch.where((each > 0) & by_filter, each, each.max())
        exponent = torch.frexp(4 * largest / 3).exponent - 1  # floor of the logarithm
        # The scale itself stays far from subnormal numbers.
        exponent = torch.where(largest > 0, exponent.clamp_min(-64), 0)
        self.scale.copy_(torch.ldexp(torch.ones_like(largest), exponent - 6))

    @torch.no_grad()
    def freeze(self, weight: torch.Tensor, portion: float) -> None:
        """The largest ``portion`` of the weights that are free get their levels (section 2.2). What
        is zero has its level at once."""
        self.levels.masked_fill_((self.levels == FREE) & (weight == 0), 0)
        free = self.levels == FREE
        missing = round(portion * int(free.sum()))
        size = torch.where(free, weight.abs(), -1).flatten()
        chosen = torch.zeros_like(size, dtype=torch.bool)
        chosen[size.sort(descending=True, stable=True).indices[:missing]] = True
        chosen = chosen.reshape(weight.shape)
        self.levels.copy_(torch.where(chosen, self.nearest(weight), self.levels))
        weight.copy_(self(weight))

    def nearest(self, weight: torch.Tensor) -> torch.Tensor:
        """int8: between neighbouring levels a < b the magnitude of a weight becomes b from
        (a + b) / 2 to 3b / 2 (eq. 4)."""
        levels = [0, *(2**i for i in range(int(math.log2(self.smallest)), 7))]
        bounds = [(a + b) / 2 for a, b in zip(levels, levels[1:], strict=False)]
        scale = self.scale.reshape(-1, *[1] * (weight.dim() - 1))
        size = (weight / scale).abs().contiguous()
        index = torch.bucketize(size, weight.new_tensor(bounds), right=True)
        return (weight.new_tensor(levels)[index] * weight.sign()).to(torch.int8)


def quantizers(module: nn.Module) -> dict[str, PowerQuantizer]:
    """Name of layer -> what freezes its weights."""
    by_layer = {n: layer.weight_quantizer for n, layer in fakequant.layers(module).items()}
    return {name: each for name, each in by_layer.items() if isinstance(each, PowerQuantizer)}
