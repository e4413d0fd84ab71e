"""What is written as an expression becomes a module in a network that was taken apart.

One rule a kind of expression; the modules' names begin with ``netpress_``.
"""

from __future__ import annotations

import copy
import operator
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from pipeline.models.layers import Parts, Sum, UnevenAverage
from pipeline.models.operations import (
    RESHAPES,
    SPLITS,
    SUMS,
    Shape,
    calls,
    positional,
    shape_of,
    span,
)

MOST_MAPS = 4
DROPOUTS: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout2d: nn.Dropout2d,
    F.alpha_dropout: nn.AlphaDropout,
}


class Rewriter:
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


def _sum(made: Rewriter, node: fx.Node) -> fx.Node | None:
    if not calls(node, SUMS) or len(node.args) != 2 or node.kwargs:
        return None
    first, second = node.args
    if not (isinstance(first, fx.Node) and isinstance(second, fx.Node)):
        return None
    shapes = {shape_of(first), shape_of(second), shape_of(node)}
    if len(shapes) != 1 or len(shape_of(node) or ()) != 4:
        return None
    return made.put(node, "sum", Sum(), (first, second))


def _average(made: Rewriter, node: fx.Node) -> fx.Node | None:
    """The mean over a whole map, however it is written."""
    source = node.args[0] if node.args else None
    before, after = shape_of(source), shape_of(node)
    if before is None or after is None or len(before) != 4 or not isinstance(source, fx.Node):
        return None
    module = made.module(node)
    pooled = isinstance(module, nn.AdaptiveAvgPool2d) or calls(node, (F.adaptive_avg_pool2d,))
    if isinstance(module, nn.AvgPool2d) or calls(node, (F.avg_pool2d,)):
        pooled = _covers(module, node, before[2:])
    if calls(node, ("mean", torch.mean)):
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


def _flat(made: Rewriter, node: fx.Node) -> fx.Node | None:
    """A reshape that flattens, perhaps to a number of channels that pruning changes."""
    source = node.args[0] if node.args else None
    before, after = shape_of(source), shape_of(node)
    if not calls(node, RESHAPES) or before is None or after is None or len(before) != 4:
        return None
    if after != (before[0], before[1] * before[2] * before[3]):
        return None
    with made.graph.inserting_after(node):
        return made.graph.call_function(torch.flatten, (source, 1))


def _dropout(made: Rewriter, node: fx.Node) -> fx.Node | None:
    """As a module it knows whether the network is in training; a traced call does not."""
    if not calls(node, tuple(DROPOUTS)) or not isinstance(node.args[0], fx.Node):
        return None
    part = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
    if not isinstance(part, (int, float)):
        return None
    return made.put(node, "dropout", DROPOUTS[node.target](part), (node.args[0],))


def _pool(made: Rewriter, node: fx.Node) -> fx.Node | None:
    """An adaptive average that changes nothing, which exporters and integers need not know."""
    source = node.args[0] if node.args else None
    changes = shape_of(source) is None or shape_of(source) != shape_of(node)
    if not isinstance(made.module(node), nn.AdaptiveAvgPool2d) or changes:
        return None
    assert isinstance(source, fx.Node)
    return made.put(node, "same", nn.Identity(), (source,))


def _uneven(made: Rewriter, node: fx.Node) -> fx.Node | None:
    """An adaptive average whose windows overlap, or are of several sizes."""
    source = node.args[0] if node.args else None
    before, after = shape_of(source), shape_of(node)
    adaptive = isinstance(made.module(node), nn.AdaptiveAvgPool2d)
    if not (adaptive or calls(node, (F.adaptive_avg_pool2d,))) or before is None or after is None:
        return None
    if len(before) != 4 or (before[2] % after[2], before[3] % after[3]) == (0, 0):
        return None
    assert isinstance(source, fx.Node)
    sides = (before[2], before[3]), (after[2], after[3])
    return made.put(node, "uneven", UnevenAverage(*sides), (source,))


def _behind_norm(made: Rewriter, node: fx.Node) -> fx.Node | None:
    """A part of a normalization, which stands for itself: the normalization may be folded."""
    module, source = made.module(node), node.args[0] if node.args else None
    if module is None or id(module) not in made.inner or not isinstance(source, fx.Node):
        return None
    if isinstance(module, nn.Identity):
        return source
    return made.put(node, "inner", copy.deepcopy(module), (source,))


def _split(made: Rewriter, node: fx.Node) -> fx.Node | None:
    """A split of the channels, into parts whose sizes pruning changes."""
    source = node.args[0] if node.args else None
    before, metas = shape_of(source), node.meta.get("tensor_meta")
    if not calls(node, SPLITS) or before is None or not isinstance(metas, (tuple, list)):
        return None
    shapes = [tuple(each.shape) for each in metas]
    sizes = [shape[1] for shape in shapes if len(shape) > 1]
    if sum(sizes) != before[1] or any(s != (before[0], s[1], *before[2:]) for s in shapes):
        return None
    assert isinstance(source, fx.Node)
    return made.put(node, "parts", Parts(sizes), (source,))


def _slice(made: Rewriter, node: fx.Node) -> fx.Node | None:
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
