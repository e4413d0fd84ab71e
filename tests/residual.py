"""A small residual network, as a model of one's own would be: what VGG, a chain, cannot show.

The input of the block is read by a convolution and by the sum, so it is quantized once; the stem
and the second convolution of the block are summed, so their filters are pruned together.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.models.layers import Sum
from pipeline.models.spec import Graph, Group, NetworkSpec

NAME = "residual"
ENTRY = (__name__, "one residual block, for tests")
SHARED = ("inner", "sum:1")


def spec(name, width, shape, classes, zero_point, scale) -> NetworkSpec:
    """``channels``: those of the sum, and those between the two convolutions of the block."""
    channels = round(16 * width), round(24 * width)
    return NetworkSpec(name, channels, tuple(shape), classes, zero_point, scale)


def graph(spec: NetworkSpec) -> Graph:
    return Graph(
        groups=(
            Group(("stem", "outer"), ("stem_norm", "outer_norm"), ("inner", "head")),
            Group(("inner",), ("inner_norm",), ("outer",)),
        ),
        norms=tuple((name, f"{name}_norm") for name in ("stem", "inner", "outer")),
        image=("stem",),
        maps=("stem_norm", "sum"),
        shared=(SHARED,),
    )


def build(spec: NetworkSpec) -> nn.Module:
    return Residual(spec)


class Residual(nn.Module):
    def __init__(self, spec: NetworkSpec):
        super().__init__()
        summed, between = spec.channels
        self.stem, self.stem_norm = _conv(spec.shape[0], summed), nn.BatchNorm2d(summed)
        self.inner, self.inner_norm = _conv(summed, between), nn.BatchNorm2d(between)
        self.outer, self.outer_norm = _conv(between, summed), nn.BatchNorm2d(summed)
        self.sum, self.pool = Sum(), nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(summed, spec.classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        y = F.relu(self.inner_norm(self.inner(x)))
        x = F.relu(self.sum(self.outer_norm(self.outer(y)), x))
        return self.head(torch.flatten(self.pool(x), 1))


def _conv(inputs: int, filters: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, filters, 3, padding=1, bias=False)
