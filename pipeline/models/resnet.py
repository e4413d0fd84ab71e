"""Residual networks (He et al. 2016, arXiv 1512.03385).

``resnet20``, ``resnet56``, ``resnet110``: the form of section 4.2, for images of 32x32: a 3x3
convolution, three stages of n = 3, 9 or 18 blocks of two 3x3 convolutions with 16, 32 and 64
filters, maps of 32, 16 and 8 pixels a side, a global average. ``resnet18``: table 1's, in the form
that CIFAR work uses, with that stem and without the first pooling; stages of 64 to 512 filters.

Where a stage begins, the shortcut is a 1x1 convolution with its normalization (option B). Section
4.2 pads zero channels instead (option A), as do the models whose names end in ``_a``. B is the
default: the channels of each stage can be cut by themselves, all of it is convolutions and sums to
every runtime, and it is what published controls of this size have (40.8 M MACs for ResNet-20). It
costs 1 % of the parameters or less.

Channel counts: of each stage its sums' channels, then those between the two convolutions of each
block. With padding the first channels of a stage are those of the stage before it, so that its own
entry counts only what it adds.

Images are [N, C, H, W] of any size; what is larger than 1x1 at the end is averaged.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.models.layers import ConvNorm, Sum, multiple_of_eight
from pipeline.models.spec import Graph, Group, NetworkSpec

SMALL, LARGE = (16, 32, 64), (64, 128, 256, 512)  # filters of the stages
STAGES = {  # filters, blocks in each stage
    "resnet18": (LARGE, 2),
    "resnet20": (SMALL, 3),
    "resnet56": (SMALL, 9),
    "resnet110": (SMALL, 18),
}


class _Shape(NamedTuple):
    """``sums``: channels of each stage; ``inner``: of each block, stage after stage."""

    sums: tuple[int, ...]
    inner: tuple[int, ...]
    blocks: int  # of a stage
    padded: bool


def spec(
    name: str,
    width: float,
    shape: tuple[int, int, int],
    classes: int,
    zero_point: int,
    scale: float,
) -> NetworkSpec:
    """``width`` scales every channel count, rounded to multiples of 8 (at least 8)."""
    filters, blocks = STAGES[name.removesuffix("_a")]
    added = filters
    if _padded(name):
        added = (filters[0], *(after - before for before, after in pairwise(filters)))
    sums = [multiple_of_eight(count * width) for count in added]
    inner = accumulate(sums) if _padded(name) else sums
    channels = [c for s, i in zip(sums, inner, strict=True) for c in (s, *[i] * blocks)]
    return NetworkSpec(name, tuple(channels), shape, classes, zero_point, scale)


def build(spec: NetworkSpec) -> nn.Module:
    return ResNet(spec.shape[0], spec.classes, _shape(spec))


def _padded(name: str) -> bool:
    return name.endswith("_a")


def _shape(spec: NetworkSpec) -> _Shape:
    _, blocks = STAGES[spec.model.removesuffix("_a")]
    sums = spec.channels[:: blocks + 1]
    inner = tuple(c for i, c in enumerate(spec.channels) if i % (blocks + 1))
    padded = _padded(spec.model)
    return _Shape(tuple(accumulate(sums)) if padded else sums, inner, blocks, padded)


# --- the module ------------------------------------------------------------------------------


class Padding(nn.Module):
    """Option A: every second pixel, and ``channels`` of zeros; [N, C, H, W] -> half the sides."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.channels))


class Block(nn.Module):
    """Two convolutions and a shortcut around them; [N, C, H, W] -> [N, K, H, W], or half the sides
    where a stage begins."""

    def __init__(self, inputs: int, inner: int, outputs: int, shortcut: nn.Module, stride: int):
        super().__init__()
        self.first = ConvNorm(inputs, inner, 3, stride)
        self.second = ConvNorm(inner, outputs, 3)
        self.shortcut = shortcut
        self.sum = Sum()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(F.relu(self.first(x)))
        return F.relu(self.sum(y, self.shortcut(x)))


class ResNet(nn.Module):
    def __init__(self, colours: int, classes: int, shape: _Shape):
        super().__init__()
        self.stem = ConvNorm(colours, shape.sums[0], 3)
        blocks, inputs = [], shape.sums[0]
        for i, inner in enumerate(shape.inner):
            outputs, begins = shape.sums[i // shape.blocks], i > 0 and i % shape.blocks == 0
            shortcut: nn.Module = nn.Identity()
            if begins:
                added = outputs - inputs
                shortcut = Padding(added) if shape.padded else ConvNorm(inputs, outputs, 1, 2)
            blocks.append(Block(inputs, inner, outputs, shortcut, 2 if begins else 1))
            inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(inputs, classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalized images [N, C, H, W] -> logits [N, classes]."""
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(torch.flatten(self.pool(x), 1))


# --- its graph -------------------------------------------------------------------------------


def graph(spec: NetworkSpec) -> Graph:
    shape = _shape(spec)
    layers = _Layers(shape.blocks, len(shape.sums), shape.padded)
    groups: list[Group] = []
    for stage in range(layers.stages):
        groups.append(layers.summed(stage))
        groups += [layers.between(i) for i in layers.of(stage)]
    outputs, inputs = layers.padded_sums() if shape.padded else ({}, {})
    convolutions = ["stem", *(f"blocks.{i}.{part}" for i in layers.all for part in layers.parts(i))]
    return Graph(
        groups=tuple(groups),
        norms=tuple((f"{name}.conv", f"{name}.norm") for name in convolutions),
        image=("stem.conv",),
        maps=tuple(f"blocks.{layers.of(stage)[-1]}" for stage in range(layers.stages)),
        shared=tuple((f"blocks.{i}.first.conv", layers.other_reader(i)) for i in layers.all),
        outputs=outputs,
        inputs=inputs,
    )


class _Layers(NamedTuple):
    """Which layers write and read the sums of which stage."""

    blocks: int
    stages: int
    padded: bool

    @property
    def all(self) -> range:
        return range(self.blocks * self.stages)

    def of(self, stage: int) -> range:
        return range(stage * self.blocks, (stage + 1) * self.blocks)

    def begins(self, block: int) -> bool:
        """Whether its shortcut changes the shape."""
        return block > 0 and block % self.blocks == 0

    def projects(self, block: int) -> bool:
        return self.begins(block) and not self.padded

    def parts(self, block: int) -> tuple[str, ...]:
        return ("first", "second", "shortcut") if self.projects(block) else ("first", "second")

    def other_reader(self, block: int) -> str:
        """What reads the block's input beside its first convolution."""
        return f"blocks.{block}.shortcut.conv" if self.projects(block) else f"blocks.{block}.sum:1"

    def writers(self, stage: int) -> list[str]:
        """Layers (without ``.conv``) whose outputs are summed in a stage."""
        first = stage * self.blocks
        before = ["stem"] if stage == 0 else []
        shortcut = [f"blocks.{first}.shortcut"] if self.projects(first) else []
        return [*before, *shortcut, *(f"blocks.{i}.second" for i in self.of(stage))]

    def readers(self, stage: int) -> list[str]:
        """Layers that read the sums of a stage."""
        own = [i for i in self.of(stage) if not self.begins(i)]
        convolutions = [f"blocks.{i}.first.conv" for i in own]
        if stage == self.stages - 1:
            return [*convolutions, "head"]
        after = (stage + 1) * self.blocks
        shortcut = [f"blocks.{after}.shortcut.conv"] if self.projects(after) else []
        return [*convolutions, f"blocks.{after}.first.conv", *shortcut]

    def summed(self, stage: int) -> Group:
        """The channels that are summed in a stage; with padding also in those after it."""
        stages = range(stage, self.stages) if self.padded else [stage]
        writers = [name for each in stages for name in self.writers(each)]
        readers = [name for each in stages for name in self.readers(each)]
        return Group(
            tuple(f"{name}.conv" for name in writers),
            tuple(f"{name}.norm" for name in writers),
            tuple(readers),
            summed=True,
        )

    def between(self, block: int) -> Group:
        first, second = f"blocks.{block}.first", f"blocks.{block}.second"
        return Group((f"{first}.conv",), (f"{first}.norm",), (f"{second}.conv",))

    def padded_sums(self) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        """(``outputs``, ``inputs``) of the graph: the channels of a stage are those of all stages
        up to it, side by side."""
        outputs: dict[str, tuple[int, ...]] = {}
        inputs: dict[str, tuple[int, ...]] = {}
        for stage in range(self.stages):
            groups = tuple(each * (self.blocks + 1) for each in range(stage + 1))
            outputs |= {f"{n}.{part}": groups for n in self.writers(stage) for part in PARTS}
            inputs |= {name: groups for name in self.readers(stage)}
        return outputs, inputs


PARTS = ("conv", "norm")
