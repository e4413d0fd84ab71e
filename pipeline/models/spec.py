"""What a network is specified by, and how its layers hang together.

N images, C colour channels, H x W pixels, K filters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch

from pipeline.models.transforms import Transform, from_json, to_json

# Below this a float32 is subnormal: x86 computes with it up to a hundred times slower.
SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class NetworkSpec:
    """All that is needed to build the module anew; its weights come from a checkpoint.

    ``channels``: filters of each pruning group, in the order of ``Graph.groups``. ``transforms``:
    what stages left on the network, in the order in which they are put on it. A pixel p (0..255)
    enters as ``(p - zero_point) * scale``: one integer and one factor for all channels, so that a
    uint8 image is a quantized tensor already and loses nothing.
    """

    model: str
    channels: tuple[int, ...]
    shape: tuple[int, int, int]
    classes: int
    zero_point: int
    scale: float
    transforms: tuple[Transform, ...] = ()

    @property
    def structure(self) -> NetworkSpec:
        """The float network of this shape: without what only changes how numbers are computed."""
        return replace(self, transforms=tuple(t for t in self.transforms if t.structural))

    def with_transform(self, transform: Transform) -> NetworkSpec:
        return replace(self, transforms=(*self.transforms, transform))

    def with_other(self, transform: Transform) -> NetworkSpec:
        """With this one in the place of that of its name."""
        return replace(
            self,
            transforms=tuple(transform if t.name == transform.name else t for t in self.transforms),
        )

    def has(self, name: str) -> bool:
        return any(transform.name == name for transform in self.transforms)

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "channels": list(self.channels),
            "shape": list(self.shape),
            "classes": self.classes,
            "zero_point": self.zero_point,
            "scale": self.scale,
            "transforms": [to_json(transform) for transform in self.transforms],
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> NetworkSpec:
        """The spec that ``to_json`` wrote; KeyError, TypeError or ValueError where it is none."""
        return NetworkSpec(
            **{
                **data,
                "channels": tuple(data["channels"]),
                "shape": tuple(data["shape"]),
                "transforms": tuple(from_json(transform) for transform in data["transforms"]),
            }
        )


class Group(NamedTuple):
    """Filters that are removed together (names of layers): those of all ``producers``, which are
    several where their outputs are summed, or where a depthwise convolution filters the channels
    of another one; the channels of their ``norms``; and the inputs of all ``consumers``. Where a
    consumer reads a flattened map, each channel has several inputs.

    ``summed``: it has the channels of a residual sum. ``whole``: none of it can be cut.
    """

    producers: tuple[str, ...]
    norms: tuple[str, ...]
    consumers: tuple[str, ...]
    summed: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Graph:
    """How the layers of a model hang together; names are those of its submodules.

    ``groups``: what pruning may cut, each group as one. ``norms``: (convolution, the batch
    normalization that alone reads its output), whether it can be pruned or not. ``shared``: sets
    of quantization points that read the same tensor, which is quantized once: a layer's name for
    its input, or ``NAME:0`` and ``NAME:1`` for the operands of a ``Sum``. ``image``: layers that
    read the image itself. ``maps``: modules at whose outputs the blocks end, for attention.
    ``outputs`` and ``inputs``: layers whose filters, or input channels, are of several groups (a
    padded shortcut, a concatenation) -> numbers of these groups, in the order of the channels.
    ``run_ends``: of a network that was traced, the layers that run first and last. ``left``: lines
    about what stays whole, and why.
    """

    groups: tuple[Group, ...]
    norms: tuple[tuple[str, str], ...]
    image: tuple[str, ...]
    maps: tuple[str, ...] = ()
    shared: tuple[tuple[str, ...], ...] = ()
    outputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    run_ends: tuple[str, str] | None = None

    def first_and_last(self, layers: Iterable[str]) -> tuple[frozenset[str], str]:
        """Of these weighted layers, in the order in which they were registered: those that read the
        image, or run first where it is computed with before, and the one that gives the logits."""
        ends = self.run_ends or (None, [*layers][-1])
        first = self.image or ((ends[0],) if ends[0] is not None else ())
        return frozenset(first), ends[1]

    def parted(self, first: Mapping[str, str], last: Mapping[str, str]) -> Graph:
        """Where layers became several, one after the other: by their names before, the one that
        reads what the layer did, and the one that writes it."""

        def readers(names: Iterable[str]) -> tuple[str, ...]:
            return tuple(first.get(name, name) for name in names)

        def writers(names: Iterable[str]) -> tuple[str, ...]:
            return tuple(last.get(name, name) for name in names)

        return replace(
            self,
            groups=tuple(
                group._replace(
                    producers=writers(group.producers), consumers=readers(group.consumers)
                )
                for group in self.groups
            ),
            norms=tuple((last.get(layer, layer), norm) for layer, norm in self.norms),
            image=readers(self.image),
            shared=tuple(readers(names) for names in self.shared),
            outputs={last.get(name, name): groups for name, groups in self.outputs.items()},
            inputs={first.get(name, name): groups for name, groups in self.inputs.items()},
            run_ends=self.run_ends
            and (
                first.get(self.run_ends[0], self.run_ends[0]),
                last.get(self.run_ends[1], self.run_ends[1]),
            ),
        )

    @cached_property
    def filters(self) -> dict[str, tuple[int, ...]]:
        """Layer or normalization -> numbers of the groups that its filters are of, in order."""
        numbers = {
            name: (i,)
            for i, group in enumerate(self.groups)
            for name in (*group.producers, *group.norms)
        }
        return {**numbers, **self.outputs}

    def step(self, group: int, multiple: int) -> int:
        """Channels of the group by which all of its layers stay multiples of ``multiple`` filters:
        a layer may make them several times, as a grouped convolution does in each block."""
        members = self.groups[group]
        times = [self.filters[n].count(group) for n in (*members.producers, *members.norms)]
        return math.lcm(*(multiple // math.gcd(multiple, count) for count in times))

    def ends(self, group: int) -> tuple[str, ...]:
        """Modules whose outputs are the channels of the group: of a layer that is normalized, its
        normalization."""
        normalized, members = dict(self.norms), self.groups[group]
        last = (normalized.get(name, name) for name in members.producers)
        return tuple(dict.fromkeys((*last, *members.norms)))

    @cached_property
    def readers(self) -> dict[str, tuple[int, ...]]:
        """Layer -> numbers of the groups that its inputs are of, in order."""
        numbers = {name: (i,) for i, group in enumerate(self.groups) for name in group.consumers}
        return {**numbers, **self.inputs}
