"""What stages leave on a network beside its weights: named, frozen, part of its specification.

A transform is one file and one line in TRANSFORMS, or in the TRANSFORMS of a plug-in. Its class, a
frozen dataclass of plain values, derives from ``Transform`` and overrides what differs.
``NetworkSpec.transforms`` holds those of a network in the order in which ``network.build`` puts
them on it again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline import registry

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.models.spec import Graph

TRANSFORMS: dict[str, str] = {
    # name: "module:class"
    "folded": "pipeline.models.transforms.folded:Folded",
    "factored": "pipeline.models.transforms.factored:Factored",
    "masked": "pipeline.models.transforms.masked:Masked",
    "fake-quantized": "pipeline.models.transforms.fakequant:FakeQuantized",
    "clustered": "pipeline.models.transforms.clustered:Clustered",
    "powers-of-two": "pipeline.models.transforms.powers:PowersOfTwo",
    "low-bits": "pipeline.models.transforms.lowbits:LowBits",
    "ternary": "pipeline.models.transforms.ternary:Ternary",
    "binary": "pipeline.models.transforms.binary:Binary",
    "binary-ternary": "pipeline.models.transforms.binary_ternary:BinaryTernary",
    "gated": "pipeline.models.transforms.gated:Gated",
    "adapted": "pipeline.models.transforms.adapted:Adapted",
    "encoded": "pipeline.models.transforms.encoded:Encoded",
}


@dataclass(frozen=True)
class Point:
    """The affine quantization of one tensor: q = round(x / scale) + zero_point, clipped to uint8
    for activations; of a weight, a scale for each filter, symmetric int8."""

    scale: tuple[float, ...]
    zero_point: int = 0


@dataclass(frozen=True)
class Integers:
    """How an artifact computes in integers: name of a layer -> the quantization of its weight
    [K, ...]; name of a quantization point (see ``Graph.shared``) -> that of the tensor it reads."""

    weights: dict[str, Point]
    inputs: dict[str, Point]


class Transform:
    """``structural``: it changes which layers there are, and so parameters and MACs. ``settles``:
    it gives each weight one of a few values, which later stages can neither move nor remove."""

    name: ClassVar[str]
    structural: ClassVar[bool] = False
    settles: ClassVar[bool] = False

    def insert(self, module: nn.Module, graph: Graph) -> None:
        """Puts itself on a freshly built ``module``; its tensors come from a checkpoint."""
        raise NotImplementedError

    def graph(self, graph: Graph) -> Graph:
        """How the layers hang together once it is on a network, by how they did before."""
        return graph

    def before_step(self, module: nn.Module) -> None:
        """Called before each optimizer step, when gradients are there and not yet clipped: what of
        them counts."""

    def after_step(self, module: nn.Module) -> None:
        """Called after each optimizer step: masks, projections. Without gradients."""

    def plain(self, module: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """``tensors`` (a state dict of ``module``) as those of the network without this transform:
        the weights that are deployed."""
        return tensors

    def scaled(
        self, tensors: dict[str, torch.Tensor], layer: str, factor: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """``tensors`` (a state dict) when the filters of ``layer`` are multiplied by ``factor``
        [K], which may be negative or zero: what of its own goes along. The weight has changed."""
        return tensors

    def integers(self, module: nn.Module) -> Integers | None:
        """How the artifact computes in integers; None where it computes in floats."""
        return None

    def flaw(self, module: nn.Module) -> str | None:
        """What training made of it that no network can be computed with; None: nothing. Asked
        after each epoch."""
        return None

    def codec_of_artifact(self) -> str | None:
        """The codec of the stored form; None where that is the runnable model itself."""
        return None


YOUNG = {"young": True}


def young(default: Any) -> Any:
    """A field that is younger than many artifacts: at its default no description has it, so theirs
    stay byte for byte what they are."""
    return field(default=default, metadata=YOUNG)


def to_json(transform: Transform) -> dict[str, Any]:
    described = asdict(transform)  # type: ignore[call-overload]
    for each in fields(transform):  # type: ignore[arg-type]
        if each.metadata == YOUNG and described[each.name] == each.default:
            del described[each.name]
    return {"name": transform.name, **described}


def from_json(data: dict[str, Any]) -> Transform:
    """UserError for a name that neither TRANSFORMS nor a plug-in has, TypeError for settings that
    it has not."""
    kind = registry.resolved(registry.row("transforms", TRANSFORMS, data["name"]))
    return kind(**{key: value for key, value in data.items() if key != "name"})
