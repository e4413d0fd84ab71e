"""Gates behind filters, open or closed, whose scores are trained with the weights.

score and open [K] of each group of filters; feature maps [N, K, H, W].
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

GATES = "gates"  # the submodule that has them


@dataclass(frozen=True)
class Gated(Transform):
    """A gate a filter for the groups in ``cut``; ``channels``: of all groups of the network. Behind
    layers whose outputs are summed it is one gate for all of them."""

    name: ClassVar[str] = "gated"

    channels: tuple[int, ...] = ()
    cut: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("channels", "cut"):  # lists, where they come from a file
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def insert(self, module: nn.Module, graph: Graph) -> None:
        gate_of = {i: Gate(self.channels[i]) for i in self.cut}
        module.add_module(GATES, nn.ModuleDict({str(i): gate for i, gate in gate_of.items()}))
        for name in dict.fromkeys(name for i in self.cut for name in graph.ends(i)):
            row = [gate_of.get(i, self.channels[i]) for i in graph.filters[name]]
            module.get_submodule(name).register_forward_hook(_Closing(row))


class Gate(nn.Module):
    """Values [K] that are 1 or 0, with the gradient of the score (straight through: Bengio et al.
    2013, arXiv 1308.3432)."""

    open: torch.Tensor

    def __init__(self, filters: int):
        super().__init__()
        self.score = nn.Parameter(torch.zeros(filters))
        self.register_buffer("open", torch.ones(filters, dtype=torch.bool))

    def forward(self) -> torch.Tensor:
        return self.open.float() + (self.score - self.score.detach())


class _Closing:
    """A hook: the channels of a layer, some of them closed. An object, not a function: a copy of
    the network has gates of its own."""

    def __init__(self, row: Sequence[Gate | int]):
        self.row = row

    def __call__(self, module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        factor = torch.cat(
            [
                each().to(output) if isinstance(each, Gate) else output.new_ones(each)
                for each in self.row
            ]
        )
        if isinstance(module, nn.Linear):  # its outputs are the last dimension, of any number
            return output * factor
        return output * factor.reshape(1, -1, *[1] * (output.dim() - 2))


def gates(module: nn.Module) -> dict[int, Gate]:
    """Number of a group -> its gates."""
    submodule = module.get_submodule(GATES)
    return {int(i): gate for i, gate in submodule.named_children() if isinstance(gate, Gate)}
