"""1x1 convolutions that a student has only while it learns its teacher's feature maps.

Feature maps [N, K, h, w], the student's K to the teacher's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from pipeline.models.transforms import Transform

if TYPE_CHECKING:
    from pipeline.models.spec import Graph

ADAPTERS = "adapters"  # the submodule that has them


@dataclass(frozen=True)
class Adapted(Transform):
    """``own[i]`` channels of the student become ``others[i]`` of the teacher. The network itself
    computes what it did."""

    name: ClassVar[str] = "adapted"

    own: tuple[int, ...] = ()
    others: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("own", "others"):  # lists, where they come from a file
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def insert(self, module: nn.Module, graph: Graph) -> None:
        pairs = zip(self.own, self.others, strict=True)
        convolutions = (nn.Conv2d(own, others, 1, bias=False) for own, others in pairs)
        module.add_module(ADAPTERS, nn.ModuleList(convolutions))


def adapters(module: nn.Module) -> Sequence[nn.Module]:
    return [*module.get_submodule(ADAPTERS).children()]


@torch.no_grad()
def draw(module: nn.Module, seed: int) -> None:
    """Fresh weights, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for adapter in adapters(module):
        assert isinstance(adapter, nn.Conv2d)
        weight = torch.randn(adapter.weight.shape, generator=generator)
        adapter.weight.copy_(weight / adapter.in_channels**0.5)
