"""Networks, each built from a list of channel counts, so that a pruned one is the same code with a
shorter list.

A model is one file and one line in MODELS. Its module gives three functions:

- ``spec(name, width, shape, classes, zero_point, scale) -> NetworkSpec``
- ``build(spec) -> torch.nn.Module``: normalized float images [N, C, H, W] in, logits [N, classes]
  out; without the spec's transforms, which ``network.build`` puts on it
- ``graph(spec) -> Graph``: how its layers hang together, see ``spec.Graph``

Nothing here imports torch before a network is built: ``netpress plan`` reads this table.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import nn

    from pipeline.models.spec import Graph, NetworkSpec

_VGG = "pipeline.models.vgg"

MODELS: dict[str, tuple[str, str]] = {
    # name: (module, what it is)
    "vgg11_bn": (_VGG, "VGG-11 in the CIFAR form, with batch normalization"),
    "vgg13_bn": (_VGG, "VGG-13 in the CIFAR form, with batch normalization"),
    "vgg16_bn": (_VGG, "VGG-16 in the CIFAR form (13 convolutions, 14.7 M parameters)"),
    "vgg19_bn": (_VGG, "VGG-19 in the CIFAR form, with batch normalization"),
    "vgg11": (_VGG, "VGG-11 without batch normalization"),
    "vgg13": (_VGG, "VGG-13 without batch normalization"),
    "vgg16": (_VGG, "VGG-16 without batch normalization"),
    "vgg19": (_VGG, "VGG-19 without batch normalization"),
}


class ModelModule(Protocol):
    """The module of a model; what its functions do is said above."""

    def spec(
        self,
        name: str,
        width: float,
        shape: tuple[int, int, int],
        classes: int,
        zero_point: int,
        scale: float,
    ) -> NetworkSpec: ...

    def build(self, spec: NetworkSpec) -> nn.Module: ...

    def graph(self, spec: NetworkSpec) -> Graph: ...


def module_of(model: str) -> ModelModule:
    """The module that knows ``model``; KeyError for a name that is not in MODELS."""
    return import_module(MODELS[model][0])
