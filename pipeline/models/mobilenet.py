"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381, table 2) in the form that CIFAR work uses.

For 32x32 images the first convolution and the stage of 24 channels have stride 1, not 2, so that
the maps are 32, 16, 8 and 4 pixels a side; all else is table 2's. 2.24 M parameters and 88.0 M MACs
at width 1, 0.70 M and 28.0 M at width 0.5.

A block widens its input with a 1x1 convolution, filters each channel by itself (depthwise), and
projects to few channels without an activation; the sum is around blocks that keep the shape.

Channel counts: those of the stem; of each stage its outputs, then the widened ones of its blocks
(none in the first stage, whose block does not widen); those of the last convolution.

Images are [N, C, H, W].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.models.layers import ConvNorm, Sum
from pipeline.models.spec import Graph, Group, NetworkSpec

# Widening, outputs, blocks, stride of the first block: table 2, with the strides documented above.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM, LAST = 32, 1280


class _Block(NamedTuple):
    """``groups``: numbers of those of its input, of its widened channels and of its output."""

    name: str
    inputs: int
    widened: int
    outputs: int
    widens: bool
    stride: int
    summed: bool
    ends: bool  # the last before the maps get smaller, or of all

    @property
    def reader(self) -> str:
        """The convolution that reads the block's input."""
        return f"{self.name}.widen.conv" if self.widens else f"{self.name}.filter.conv"


def spec(
    name: str,
    width: float,
    shape: tuple[int, int, int],
    classes: int,
    zero_point: int,
    scale: float,
) -> NetworkSpec:
    """``width`` scales every channel count, that of the last convolution only above 1 (section 5:
    the width multiplier); rounded to multiples of 8."""
    inputs = _rounded(STEM * width)
    channels = [inputs]
    for widening, filters, blocks, _ in STAGES:
        outputs = _rounded(filters * width)
        channels.append(outputs)
        if widening > 1:
            channels += [widening * count for count in (inputs, *[outputs] * (blocks - 1))]
        inputs = outputs
    channels.append(_rounded(LAST * max(1.0, width)))
    return NetworkSpec(name, tuple(channels), shape, classes, zero_point, scale)


def _rounded(channels: float) -> int:
    """To the nearest multiple of 8, but never by more than a tenth down."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


def _blocks() -> list[_Block]:
    """With numbers of groups in place of channel counts; the stem's is 0."""
    all_blocks: list[_Block] = []
    inputs, group = 0, 1
    for stage, (widening, _, blocks, stride) in enumerate(STAGES):
        outputs, group = group, group + 1
        for i in range(blocks):
            widens = widening > 1
            widened, group = (group, group + 1) if widens else (inputs, group)
            smaller_next = stage == len(STAGES) - 1 or STAGES[stage + 1][3] > 1
            all_blocks.append(
                _Block(
                    f"blocks.{len(all_blocks)}",
                    inputs,
                    widened,
                    outputs,
                    widens,
                    stride if i == 0 else 1,
                    summed=i > 0,
                    ends=i == blocks - 1 and smaller_next,
                )
            )
            inputs = outputs
    return all_blocks


# --- the module ------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, shape: _Block, channels: tuple[int, ...]):
        super().__init__()
        inputs, widened = channels[shape.inputs], channels[shape.widened]
        self.widen = ConvNorm(inputs, widened, 1) if shape.widens else None
        self.filter = ConvNorm(widened, widened, 3, shape.stride, groups=widened)
        self.project = ConvNorm(widened, channels[shape.outputs], 1)
        self.sum = Sum() if shape.summed else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x if self.widen is None else F.relu6(self.widen(x))
        y = self.project(F.relu6(self.filter(y)))
        return y if self.sum is None else self.sum(y, x)


class MobileNetV2(nn.Module):
    def __init__(self, spec: NetworkSpec):
        super().__init__()
        channels = spec.channels
        self.stem = ConvNorm(spec.shape[0], channels[0], 3)
        self.blocks = nn.ModuleList(Block(block, channels) for block in _blocks())
        self.last = ConvNorm(channels[_blocks()[-1].outputs], channels[-1], 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels[-1], spec.classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalized images [N, C, H, W] -> logits [N, classes]."""
        x = F.relu6(self.stem(x))
        for block in self.blocks:
            x = block(x)
        x = F.relu6(self.last(x))
        return self.head(torch.flatten(self.pool(x), 1))


def build(spec: NetworkSpec) -> nn.Module:
    return MobileNetV2(spec)


# --- its graph -------------------------------------------------------------------------------


def graph(spec: NetworkSpec) -> Graph:
    blocks = _blocks()
    convolutions = ["stem"]
    for block in blocks:
        parts = ("widen", "filter", "project") if block.widens else ("filter", "project")
        convolutions += [f"{block.name}.{part}" for part in parts]
    return Graph(
        groups=_groups(blocks),
        norms=tuple((f"{name}.conv", f"{name}.norm") for name in (*convolutions, "last")),
        image=("stem.conv",),
        maps=tuple(block.name for block in blocks if block.ends),
        shared=tuple((block.reader, f"{block.name}.sum:1") for block in blocks if block.summed),
    )


def _groups(blocks: list[_Block]) -> tuple[Group, ...]:
    """In the order of the channel counts."""
    writers: dict[int, list[str]] = {0: ["stem"]}
    readers: dict[int, list[str]] = {}
    for block in blocks:
        if block.widens:
            writers.setdefault(block.widened, []).append(f"{block.name}.widen")
            readers.setdefault(block.inputs, []).append(block.reader)
        writers.setdefault(block.widened, []).append(f"{block.name}.filter")
        readers.setdefault(block.widened, []).append(f"{block.name}.project.conv")
        writers.setdefault(block.outputs, []).append(f"{block.name}.project")
    last = len(writers)
    readers.setdefault(blocks[-1].outputs, []).append("last.conv")
    writers[last], readers[last] = ["last"], ["head"]
    summed = {block.outputs for block in blocks if block.summed}
    return tuple(
        Group(
            tuple(f"{name}.conv" for name in writers[i]),
            tuple(f"{name}.norm" for name in writers[i]),
            tuple(readers[i]),
            summed=i in summed,
        )
        for i in range(last + 1)
    )
