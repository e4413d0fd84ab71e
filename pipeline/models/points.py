"""Which tensors of a network that was taken apart are quantized, and what else is read from its
operations: the order of its layers, and what a batch normalization belongs to."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from pipeline.models.layers import Parts, Sum
from pipeline.models.operations import CONCATENATIONS, calls

PASSING_MODULES = (nn.MaxPool2d, nn.Flatten, nn.Identity, nn.Dropout)
PASSING_CALLS: tuple[Any, ...] = (F.max_pool2d, torch.flatten, "flatten", "contiguous")
POINTS = (nn.Conv2d, nn.Linear, nn.AdaptiveAvgPool2d)


@dataclass(frozen=True)
class Points:
    """``shared`` and ``image`` as in ``Graph``."""

    shared: tuple[tuple[str, ...], ...]
    image: tuple[str, ...]


def read(whole: fx.GraphModule) -> Points:
    """Which quantization points read the same numbers: those of one tensor, those that are handed
    them by a maximum or a reshape, those that read parts of one tensor, and those of a
    concatenation, whose parts are rounded alike."""
    same: dict[fx.Node, fx.Node] = {}
    spread: set[fx.Node] = set()

    def found(node: fx.Node) -> fx.Node:
        while node in same:
            node = same[node]
        return node

    def over_parts(node: fx.Node) -> None:
        if node in spread:
            return
        spread.add(node)
        for part in _parts(node):
            first, second = found(source := _source(whole, part)), found(node)
            if first is not second:
                same[second] = first
            over_parts(source)

    readers: dict[fx.Node, list[str]] = {}
    for name, node in _reads(whole):
        readers.setdefault(_source(whole, node), []).append(name)
    for node in readers:
        over_parts(node)
    merged: dict[fx.Node, list[str]] = {}
    for node, names in readers.items():
        merged.setdefault(found(node), []).extend(names)
    image = [name for node, names in merged.items() if node.op == "placeholder" for name in names]
    shared = [tuple(names) for names in merged.values() if len(names) > 1]
    return Points(tuple(shared), tuple(image))


def weighted(whole: fx.GraphModule) -> list[str]:
    """Names of the convolutions and linear layers, in the order in which they run."""
    called = [str(node.target) for node in whole.graph.nodes if node.op == "call_module"]
    return [n for n in called if isinstance(whole.get_submodule(n), (nn.Conv2d, nn.Linear))]


def _reads(whole: fx.GraphModule) -> Iterator[tuple[str, fx.Node]]:
    """Name of each quantization point, and the node that it reads."""
    for node in whole.graph.nodes:
        if node.op != "call_module":
            continue
        module = whole.get_submodule(str(node.target))
        if isinstance(module, Sum):
            yield from ((f"{node.target}:{i}", source) for i, source in enumerate(node.args))
        elif isinstance(module, POINTS) and isinstance(node.args[0], fx.Node):
            yield str(node.target), node.args[0]


def _source(whole: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The node that made the numbers of this one, which are handed on as they are."""
    while True:
        node = _whole(whole, node)
        passes = calls(node, PASSING_CALLS)
        if node.op == "call_module":
            passes = isinstance(whole.get_submodule(str(node.target)), PASSING_MODULES)
        before = node.args[0] if node.args else None
        if not passes or not isinstance(before, fx.Node):
            return node
        node = before


def _whole(whole: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The tensor that this one is a part of; itself where it is none."""
    parts = node.args[0] if node.target is operator.getitem else None
    if not isinstance(parts, fx.Node) or parts.op != "call_module":
        return node
    source = parts.args[0]
    is_parts = isinstance(whole.get_submodule(str(parts.target)), Parts)
    return source if is_parts and isinstance(source, fx.Node) else node


def _parts(node: fx.Node) -> list[fx.Node]:
    """What a concatenation is made of."""
    if not calls(node, CONCATENATIONS) or not isinstance(node.args[0], (list, tuple)):
        return []
    return [part for part in node.args[0] if isinstance(part, fx.Node)]


def pairs(whole: fx.GraphModule) -> Iterator[tuple[str, str]]:
    """(convolution, the batch normalization that alone reads it)."""
    times = Counter(str(node.target) for node in whole.graph.nodes)
    for node in whole.graph.nodes:
        source = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(source, fx.Node):
            continue
        norm = whole.get_submodule(str(node.target))
        if type(norm) is not nn.BatchNorm2d or source.op != "call_module":
            continue
        once = times[str(node.target)] == times[str(source.target)] == 1
        alone = len(source.users) == 1 and norm.affine and norm.track_running_stats
        if type(whole.get_submodule(str(source.target))) is nn.Conv2d and once and alone:
            yield str(source.target), str(node.target)
