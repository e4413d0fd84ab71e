"""Networks, each built from a list of channel counts, so that a pruned one is the same code with a
shorter list.

A model is one file and one line in MODELS, or in the MODELS of a plug-in. Its module gives three
functions:

- ``spec(name, width, shape, classes, zero_point, scale) -> NetworkSpec``
- ``build(spec) -> torch.nn.Module``: normalized float images [N, C, H, W] in, logits [N, classes]
  out; without the spec's transforms, which ``network.build`` puts on it
- ``graph(spec) -> Graph``: how its layers hang together, see ``spec.Graph``

Nothing here imports torch before a network is built: ``netpress plan`` reads this table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pipeline import registry

if TYPE_CHECKING:
    from torch import nn

    from pipeline.models.spec import Graph, NetworkSpec

_VGG = "pipeline.models.vgg"
_RESNET = "pipeline.models.resnet"
_MOBILENET = "pipeline.models.mobilenet"


class Entry(NamedTuple):
    """A row of the registry. ``module``: its path, or in a plug-in any object with its functions.
    ``macs``: multiply-accumulates of an image as a multiple of VGG-16's at the same width, from
    which the cost of training is estimated; None: not known."""

    module: Any
    description: str
    macs: float | None = None


MODELS: dict[str, tuple] = {
    "vgg11_bn": Entry(_VGG, "VGG-11 in the CIFAR form, with batch normalization", 0.49),
    "vgg13_bn": Entry(_VGG, "VGG-13 in the CIFAR form, with batch normalization", 0.73),
    "vgg16_bn": Entry(_VGG, "VGG-16 in the CIFAR form (13 convolutions, 14.7 M parameters)", 1.0),
    "vgg19_bn": Entry(_VGG, "VGG-19 in the CIFAR form, with batch normalization", 1.27),
    "vgg11": Entry(_VGG, "VGG-11 without batch normalization", 0.49),
    "vgg13": Entry(_VGG, "VGG-13 without batch normalization", 0.73),
    "vgg16": Entry(_VGG, "VGG-16 without batch normalization", 1.0),
    "vgg19": Entry(_VGG, "VGG-19 without batch normalization", 1.27),
    "resnet18": Entry(_RESNET, "ResNet-18 in the CIFAR form (11.2 M parameters)", 1.77),
    "resnet20": Entry(_RESNET, "ResNet-20 for CIFAR (0.27 M parameters), 1x1 shortcuts", 0.13),
    "resnet56": Entry(_RESNET, "ResNet-56 for CIFAR (0.86 M), 1x1 shortcuts", 0.40),
    "resnet110": Entry(_RESNET, "ResNet-110 for CIFAR (1.7 M), 1x1 shortcuts", 0.81),
    "resnet20_a": Entry(_RESNET, "ResNet-20 with padded shortcuts, as He et al. 2016", 0.13),
    "resnet56_a": Entry(_RESNET, "ResNet-56 with padded shortcuts, as He et al. 2016", 0.40),
    "resnet110_a": Entry(_RESNET, "ResNet-110 with padded shortcuts, as He et al. 2016", 0.81),
    "mobilenetv2": Entry(_MOBILENET, "MobileNetV2 in the CIFAR form (2.24 M parameters)", 0.28),
}


class ModelModule(Protocol):
    """The module of a model; what its functions do is documented above."""

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


def names() -> list[str]:
    return registry.names("models", MODELS)


def entry(model: str) -> Entry:
    """The row of ``model``; UserError for a name that neither MODELS nor a plug-in has."""
    return Entry(*registry.row("models", MODELS, model))


def module_of(model: str) -> ModelModule:
    """The module that knows ``model``; raises as ``entry``."""
    return registry.resolved(entry(model).module)
