"""Batch normalization moved into the convolutions before it: the layers that are left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from pipeline.models.transforms import Transform

if TYPE_CHECKING:
    from pipeline.models.spec import Graph


@dataclass(frozen=True)
class Folded(Transform):
    """Jacob et al. 2018, section 3.2. The weights are folded by ``network.fold``; this makes the
    module that holds them: every convolution of ``Graph.norms`` with a bias, its normalization
    gone."""

    name: ClassVar[str] = "folded"
    structural: ClassVar[bool] = True

    def insert(self, module: nn.Module, graph: Graph) -> None:
        for layer_name, norm_name in graph.norms:
            layer = module.get_submodule(layer_name)
            assert isinstance(layer, nn.Conv2d)
            if layer.bias is None:
                layer.bias = nn.Parameter(torch.zeros(len(layer.weight)))
            parent, _, child = norm_name.rpartition(".")
            setattr(module.get_submodule(parent), child, nn.Identity())
