"""Weights that are zero and stay zero, whatever trains the others.

weight and mask [K, C, h, w] or [K, C].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from pipeline.models.transforms import Transform

if TYPE_CHECKING:
    from pipeline.models.spec import Graph


@dataclass(frozen=True)
class Masked(Transform):
    """A mask on each convolution and linear layer. The step of an optimizer is projected back onto
    it, so neither momentum nor weight decay can move what is masked; its gradient is no part of the
    norm that gradients are clipped to. Integers are symmetric, so a masked weight is 0 in the
    artifact, whatever quantizes it."""

    name: ClassVar[str] = "masked"

    def insert(self, module: nn.Module, graph: Graph) -> None:
        for layer in layers(module).values():
            layer.register_buffer("mask", torch.ones_like(layer.weight, dtype=torch.bool))

    def before_step(self, module: nn.Module) -> None:
        for layer in layers(module).values():
            if layer.weight.grad is not None:
                layer.weight.grad.masked_fill_(~mask(layer), 0)

    def after_step(self, module: nn.Module) -> None:
        project(module)

    def plain(self, module: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        masks = {f"{name}.mask" for name in layers(module)}
        return {name: tensor for name, tensor in tensors.items() if name not in masks}


def layers(module: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Name -> layer that has a mask, or gets one: every convolution and linear layer, in the order
    in which they were registered."""
    weighted = (nn.Conv2d, nn.Linear)
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, weighted)}


def mask(layer: nn.Module) -> torch.Tensor:
    """Of a layer of a masked network: bool, of its weight's shape; true where a weight is kept."""
    return layer.get_buffer("mask")


@torch.no_grad()
def project(module: nn.Module) -> None:
    """Sets to zero what is masked (not to minus zero, as a product would)."""
    for layer in layers(module).values():
        layer.weight.masked_fill_(~mask(layer), 0)


def kept(module: nn.Module) -> int:
    """Weights that no mask sets to zero."""
    return sum(int(mask(layer).sum()) for layer in layers(module).values())
