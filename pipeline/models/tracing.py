"""Any module as a list of operations (torch.fx), with what netpress works on named in it.

What is written as an expression becomes a module, since these are what is quantized and looked at:
sums of two feature maps, global averages, functional dropout; and at the last tensor of each size
of the maps an ``Identity``, for attention. Weights keep their names.

Tensors are [N, C, H, W], or [N, K] where maps are flattened.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from pipeline.errors import first_line
from pipeline.models.layers import Parts, Sum, UnevenAverage
from pipeline.models.operations import (
    CONCATENATIONS,
    RESHAPES,
    SPLITS,
    SUMS,
    Shape,
    positional,
    shape_of,
    span,
)

MOST_MAPS = 4
# Leaves of their own: what they do depends on whether the network is in training.
BY_CHANCE = {"StochasticDepth", "DropPath", "DropBlock2d"}
# timm's normalization with an activation in it: two operations, of which one is folded.
NORM_ACTS = {"BatchNormAct2d"}
DROPOUTS: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout2d: nn.Dropout2d,
    F.alpha_dropout: nn.AlphaDropout,
}
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
    made = _Rewriter(whole, {id(part) for norm in parted for part in norm.children()})
    made.rewrite()
    return Traced(whole.graph, made.added, made.maps, whole)


class _Rewriter:
    def __init__(self, whole: fx.GraphModule, inner: set[int]):
        self.whole, self.graph, self.inner = whole, whole.graph, inner
        self.added: dict[str, nn.Module] = {}
        self.maps: tuple[str, ...] = ()

    def rewrite(self) -> None:
        positional(self.whole)
        for node in list(self.graph.nodes):
            for rule in RULES:
                made = rule(self, node)
                if made is not None:
                    made.meta = dict(node.meta)
                    node.replace_all_uses_with(made)
                    self.graph.erase_node(node)
                    break
        self._mark_maps()
        self.graph.lint()
        self.whole.recompile()

    def put(
        self, at: fx.Node, kind: str, module: nn.Module, inputs: tuple[fx.Node, ...]
    ) -> fx.Node:
        """A call of a module of its own in place of the node ``at``."""
        name = f"netpress_{kind}_{sum(n.startswith(f'netpress_{kind}_') for n in self.added)}"
        self.added[name] = module
        self.whole.add_module(name, module)
        with self.graph.inserting_after(at):
            return self.graph.call_module(name, inputs)

    def module(self, node: fx.Node) -> nn.Module | None:
        if node.op != "call_module":
            return None
        return self.whole.get_submodule(str(node.target))

    def _mark_maps(self) -> None:
        """After the last tensor of each size, before the maps get smaller."""
        last: dict[Shape, fx.Node] = {}
        for node in self.graph.nodes:
            shape = shape_of(node)
            if shape and len(shape) == 4 and min(shape[2:]) > 1 and node.op != "placeholder":
                last[shape[2:]] = node
        ends = [node for node in last.values() if _on_the_way(node)][-MOST_MAPS:]
        for node in ends:
            made = self.put(node, "map", nn.Identity(), (node,))
            made.meta = dict(node.meta)
            for user in [user for user in node.users if user is not made]:
                user.replace_input_with(node, made)
            self.maps = (*self.maps, str(made.target))


def _on_the_way(node: fx.Node) -> bool:
    return node.op in ("call_module", "call_function", "call_method")


# --- rules: the node that stands for another one, or None where it stays -------------------------


def _sum(made: _Rewriter, node: fx.Node) -> fx.Node | None:
    if not _calls(node, SUMS) or len(node.args) != 2 or node.kwargs:
        return None
    first, second = node.args
    if not (isinstance(first, fx.Node) and isinstance(second, fx.Node)):
        return None
    shapes = {shape_of(first), shape_of(second), shape_of(node)}
    if len(shapes) != 1 or len(shape_of(node) or ()) != 4:
        return None
    return made.put(node, "sum", Sum(), (first, second))


def _average(made: _Rewriter, node: fx.Node) -> fx.Node | None:
    """The mean over a whole map, however it is written."""
    source = node.args[0] if node.args else None
    before, after = shape_of(source), shape_of(node)
    if before is None or after is None or len(before) != 4 or not isinstance(source, fx.Node):
        return None
    module = made.module(node)
    pooled = isinstance(module, nn.AdaptiveAvgPool2d) or _calls(node, (F.adaptive_avg_pool2d,))
    if isinstance(module, nn.AvgPool2d) or _calls(node, (F.avg_pool2d,)):
        pooled = _covers(module, node, before[2:])
    if _calls(node, ("mean", torch.mean)):
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        dims = dims if isinstance(dims, (list, tuple)) else ()
        pooled = sorted(d % 4 for d in dims if isinstance(d, int)) == [2, 3]
    if not pooled or after not in ((*before[:2], 1, 1), before[:2]):
        return None
    if isinstance(module, nn.AvgPool2d) and before[2:] == (1, 1):
        return None
    average = made.put(node, "average", nn.AdaptiveAvgPool2d(1), (source,))
    if len(after) == 4:
        return average
    average.meta = {"tensor_meta": SimpleNamespace(shape=(*before[:2], 1, 1))}
    with made.graph.inserting_after(average):
        return made.graph.call_function(torch.flatten, (average, 1))


WINDOW = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")


def _covers(module: nn.Module | None, node: fx.Node, sides: Shape) -> bool:
    """Whether a pool's first window averages a whole map [H, W]: nothing is left out, no padding
    is counted, and it is divided by the number of pixels."""
    written = fx.map_arg(node.args[1:], _number), fx.map_arg(node.kwargs, _number)
    given = dict(zip(WINDOW, written[0], strict=False)) | written[1] if module is None else {}
    kernel, padding, divisor = (
        given.get(name, getattr(module, name, None))
        for name in ("kernel_size", "padding", "divisor_override")
    )
    covered = all(k >= side for k, side in zip(_two(kernel), sides, strict=True))
    return covered and _two(padding or 0) == (0, 0) and divisor is None


def _number(node: fx.Node) -> Any:
    return node.meta.get("numbers", node)


def _two(sides: Any) -> tuple[int, int]:
    """Of both sides of a window, which PyTorch takes as one number where they are the same."""
    numbers = tuple(sides) if isinstance(sides, (list, tuple)) else (sides,)
    return (numbers[0], numbers[-1])


def _flat(made: _Rewriter, node: fx.Node) -> fx.Node | None:
    """A reshape that flattens, perhaps to a number of channels that pruning changes."""
    source = node.args[0] if node.args else None
    before, after = shape_of(source), shape_of(node)
    if not _calls(node, RESHAPES) or before is None or after is None or len(before) != 4:
        return None
    if after != (before[0], before[1] * before[2] * before[3]):
        return None
    with made.graph.inserting_after(node):
        return made.graph.call_function(torch.flatten, (source, 1))


def _dropout(made: _Rewriter, node: fx.Node) -> fx.Node | None:
    """As a module it knows whether the network is in training; a traced call does not."""
    if not _calls(node, tuple(DROPOUTS)) or not isinstance(node.args[0], fx.Node):
        return None
    part = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
    if not isinstance(part, (int, float)):
        return None
    return made.put(node, "dropout", DROPOUTS[node.target](part), (node.args[0],))


def _pool(made: _Rewriter, node: fx.Node) -> fx.Node | None:
    """An adaptive average that changes nothing, which exporters and integers need not know."""
    source = node.args[0] if node.args else None
    changes = shape_of(source) is None or shape_of(source) != shape_of(node)
    if not isinstance(made.module(node), nn.AdaptiveAvgPool2d) or changes:
        return None
    assert isinstance(source, fx.Node)
    return made.put(node, "same", nn.Identity(), (source,))


def _uneven(made: _Rewriter, node: fx.Node) -> fx.Node | None:
    """An adaptive average whose windows overlap, or are of several sizes."""
    source = node.args[0] if node.args else None
    before, after = shape_of(source), shape_of(node)
    adaptive = isinstance(made.module(node), nn.AdaptiveAvgPool2d)
    if not (adaptive or _calls(node, (F.adaptive_avg_pool2d,))) or before is None or after is None:
        return None
    if len(before) != 4 or (before[2] % after[2], before[3] % after[3]) == (0, 0):
        return None
    assert isinstance(source, fx.Node)
    sides = (before[2], before[3]), (after[2], after[3])
    return made.put(node, "uneven", UnevenAverage(*sides), (source,))


def _behind_norm(made: _Rewriter, node: fx.Node) -> fx.Node | None:
    """A part of a normalization, which stands for itself: the normalization may be folded."""
    module, source = made.module(node), node.args[0] if node.args else None
    if module is None or id(module) not in made.inner or not isinstance(source, fx.Node):
        return None
    if isinstance(module, nn.Identity):
        return source
    return made.put(node, "inner", copy.deepcopy(module), (source,))


def _split(made: _Rewriter, node: fx.Node) -> fx.Node | None:
    """A split of the channels, into parts whose sizes pruning changes."""
    source = node.args[0] if node.args else None
    before, metas = shape_of(source), node.meta.get("tensor_meta")
    if not _calls(node, SPLITS) or before is None or not isinstance(metas, (tuple, list)):
        return None
    shapes = [tuple(each.shape) for each in metas]
    sizes = [shape[1] for shape in shapes if len(shape) > 1]
    if sum(sizes) != before[1] or any(s != (before[0], s[1], *before[2:]) for s in shapes):
        return None
    assert isinstance(source, fx.Node)
    return made.put(node, "parts", Parts(sizes), (source,))


def _slice(made: _Rewriter, node: fx.Node) -> fx.Node | None:
    """Some of the channels, one beside the other: a part of a split."""
    source = node.args[0] if node.args else None
    before = shape_of(source)
    if node.target is not operator.getitem or before is None or len(before) < 2:
        return None
    bounds = span(node.args[1], before)
    if bounds is None:
        return None
    assert isinstance(source, fx.Node)
    start, end = bounds
    if (start, end) == (0, before[1]):
        return source
    sizes = [start, end - start, before[1] - end]
    parts = made.put(node, "parts", Parts([size for size in sizes if size]), (source,))
    shapes = [(before[0], size, *before[2:]) for size in sizes if size]
    parts.meta = {"tensor_meta": tuple(SimpleNamespace(shape=shape) for shape in shapes)}
    with made.graph.inserting_after(parts):
        return made.graph.call_function(operator.getitem, (parts, 1 if start else 0))


RULES = (_sum, _average, _flat, _dropout, _pool, _uneven, _behind_norm, _split, _slice)


def _calls(node: fx.Node, targets: tuple[Any, ...]) -> bool:
    return node.op in ("call_function", "call_method") and node.target in targets


# --- quantization points -------------------------------------------------------------------------

PASSING_MODULES = (nn.MaxPool2d, nn.Flatten, nn.Identity, nn.Dropout)
PASSING_CALLS: tuple[Any, ...] = (F.max_pool2d, torch.flatten, "flatten", "contiguous")
POINTS = (nn.Conv2d, nn.Linear, nn.AdaptiveAvgPool2d)


@dataclass(frozen=True)
class Points:
    """``shared`` and ``image`` as in ``Graph``."""

    shared: tuple[tuple[str, ...], ...]
    image: tuple[str, ...]


def points(whole: fx.GraphModule) -> Points:
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
        passes = _calls(node, PASSING_CALLS)
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
    if not _calls(node, CONCATENATIONS) or not isinstance(node.args[0], (list, tuple)):
        return []
    return [part for part in node.args[0] if isinstance(part, fx.Node)]


def pairs(whole: fx.GraphModule) -> Iterator[tuple[str, str]]:
    """(convolution, the batch normalization that alone reads it)."""
    calls: dict[str, int] = {}
    for node in whole.graph.nodes:
        calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    for node in whole.graph.nodes:
        source = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(source, fx.Node):
            continue
        norm = whole.get_submodule(str(node.target))
        if type(norm) is not nn.BatchNorm2d or source.op != "call_module":
            continue
        once = calls[str(node.target)] == calls[str(source.target)] == 1
        alone = len(source.users) == 1 and norm.affine and norm.track_running_stats
        if type(whole.get_submodule(str(source.target))) is nn.Conv2d and once and alone:
            yield str(source.target), str(node.target)
