"""Any module as a list of operations (torch.fx), with what netpress works on named in it.

What is written as an expression becomes a module, since these are what is quantized and looked at:
sums of two feature maps, global averages, functional dropout; and at the last tensor of each size
of the maps an ``Identity``, for attention. Weights keep their names.

Tensors are [N, C, H, W], or [N, K] where maps are flattened.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from pipeline.errors import first_line
from pipeline.models import rewriting
from pipeline.models.operations import Shape

# Leaves of their own: what they do depends on whether the network is in training.
BY_CHANCE = {"StochasticDepth", "DropPath", "DropBlock2d"}
# timm's normalization with an activation in it: two operations, of which one is folded.
NORM_ACTS = {"BatchNormAct2d"}
# Its linear layer, which differs from PyTorch's own under TorchScript alone.
LINEAR = "timm.layers.linear.Linear"


class NotTraceable(ValueError):
    """Why a module cannot be taken apart."""


@dataclass(frozen=True)
class Traced:
    """The operations of a module, and the modules that were put in for expressions, by name."""

    graph: fx.Graph
    added: dict[str, nn.Module]
    maps: tuple[str, ...]
    whole: fx.GraphModule = field(repr=False)

    def on(self, module: nn.Module) -> fx.GraphModule:
        """The same operations on another module of the same kind, which becomes part of it."""
        _part(module)
        for name, each in self.added.items():
            module.add_module(name, copy.deepcopy(each))
        return fx.GraphModule(module, copy.deepcopy(self.graph))


class _Tracer(fx.Tracer):
    def __init__(self, parted: list[nn.Module]):
        super().__init__()
        self.parted = {id(norm) for norm in parted}

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        """Normalizations of any kind as well: a traced one would never learn its statistics."""
        whole = isinstance(module, nn.modules.batchnorm._BatchNorm)
        by_chance = type(module).__name__ in BY_CHANCE
        return whole or by_chance or super().is_leaf_module(module, qualified_name)

    def call_module(self, m: Any, forward: Any, args: Any, kwargs: Any) -> Any:
        made = super().call_module(m, forward, args, kwargs)
        return m.act(m.drop(made)) if id(m) in self.parted else made


class _Sizes(ShapeProp):
    """Notes the shapes of tensors, and the numbers that are computed from these."""

    def run_node(self, n: fx.Node) -> Any:
        made = super().run_node(n)
        if isinstance(made, (int, tuple)):
            n.meta["numbers"] = made
        return made


def _part(module: nn.Module) -> list[nn.Module]:
    """Layers that do more than their names become what these denote: normalizations with an
    activation in them only normalize; returns these."""
    for each in module.modules():
        if f"{type(each).__module__}.{type(each).__qualname__}" == LINEAR:
            each.__class__ = nn.Linear
    norms = [each for each in module.modules() if _parts_of(each)]
    for norm in norms:
        norm.__class__ = nn.BatchNorm2d
    return norms


def _parts_of(module: nn.Module) -> bool:
    inner = (getattr(module, "drop", None), getattr(module, "act", None))
    plain = all(isinstance(part, nn.Module) and not [*part.parameters()] for part in inner)
    return type(module).__name__ in NORM_ACTS and isinstance(module, nn.BatchNorm2d) and plain


def traced(module: nn.Module, shape: Shape) -> Traced:
    """``module``, on the device meta, taken apart for images of ``shape`` [C, H, W]; raises
    NotTraceable. It is traced in evaluation: what it does in training alone is no part of it."""
    try:
        parted = _part(module)
        graph = _Tracer(parted).trace(module.eval())
        whole = fx.GraphModule(module, graph)
        with torch.no_grad():
            _Sizes(whole).propagate(torch.zeros((2, *shape), device="meta"))
    except (Exception, SystemExit) as error:  # what a user's code raises without its values
        raise NotTraceable(first_line(error)) from error
    made = rewriting.Rewriter(whole, {id(part) for norm in parted for part in norm.children()})
    made.rewrite()
    return Traced(whole.graph, made.added, made.maps, whole)
