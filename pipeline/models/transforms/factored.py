"""Convolutions that are several smaller ones, one after the other.

weight [K, C, h, w].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from pipeline.models.transforms import Transform

if TYPE_CHECKING:
    from pipeline.models.spec import Graph


@dataclass(frozen=True)
class Factored(Transform):
    """``layers[i]`` becomes a 1x1 convolution to ``inputs[i]`` channels, the h x w convolution from
    these to ``outputs[i]``, and a 1x1 convolution to its own K; without the first where
    ``inputs[i]`` is 0."""

    name: ClassVar[str] = "factored"
    structural: ClassVar[bool] = True

    layers: tuple[str, ...] = ()
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("layers", "inputs", "outputs"):  # lists, where they come from a file
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def insert(self, module: nn.Module, graph: Graph) -> None:
        for name, inputs, outputs in zip(self.layers, self.inputs, self.outputs, strict=True):
            conv = module.get_submodule(name)
            assert isinstance(conv, nn.Conv2d)
            parent, _, child = name.rpartition(".")
            setattr(module.get_submodule(parent), child, _chain(conv, inputs, outputs))

    def graph(self, graph: Graph) -> Graph:
        first = {name: f"{name}.0" for name in self.layers}
        pairs = zip(self.layers, self.inputs, strict=True)
        return graph.parted(first, {name: f"{name}.{2 if inputs else 1}" for name, inputs in pairs})


def _chain(conv: nn.Conv2d, inputs: int, outputs: int) -> nn.Sequential:
    """Bias, if any, at its end."""
    where: dict[str, Any] = {"device": conv.weight.device}
    names = ("stride", "padding", "dilation", "padding_mode")
    how: dict[str, Any] = {name: getattr(conv, name) for name in names}
    size: Any = conv.kernel_size
    reduced = [nn.Conv2d(conv.in_channels, inputs, 1, bias=False, **where)] if inputs else []
    core = nn.Conv2d(inputs or conv.in_channels, outputs, size, bias=False, **how, **where)
    restored = nn.Conv2d(outputs, conv.out_channels, 1, bias=conv.bias is not None, **where)
    return nn.Sequential(*reduced, core, restored)
