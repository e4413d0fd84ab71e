"""Which channels of a traced network are cut together.

Channels are followed from the layers that make them through the operations to the layers that read
them. A *run* is a row of channels that are cut as one. What sums, scales or filters two tensors
channel by channel makes one run of two; a concatenation puts runs side by side; a chunk parts them.
Whatever is not known here makes the runs that it reads whole: they are not cut, and the reason is
reported.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from pipeline.models.layers import Parts, Sum
from pipeline.models.operations import (
    BINARY,
    CONCATENATIONS,
    POINTWISE,
    POINTWISE_CALLS,
    SUMS,
    UNARY_CALLS,
    UNARY_MODULES,
    is_one,
    operands,
    shape_of,
)
from pipeline.models.spec import Group
from pipeline.models.tracing import BY_CHANCE


@dataclass(eq=False)
class Run:
    """``size`` channels. ``whole``: why they are not cut. ``joined``: the run that it is one with;
    ``parts``: those that it was parted into."""

    size: int
    whole: str | None = None
    summed: bool = False
    joined: Run | None = None
    parts: tuple[Run, ...] = ()


@dataclass
class Axis:
    """The channels of a tensor: runs side by side, each channel ``repeat`` times, where maps were
    flattened. ``last``: they are the last dimension of three or more, not the second."""

    runs: list[Run]
    repeat: int = 1
    last: bool = False

    def now(self) -> list[Run]:
        """The runs as they are by now, joined and parted."""
        return [each for run in self.runs for each in _now(run)]


def _now(run: Run) -> list[Run]:
    while run.joined is not None:
        run = run.joined
    return [each for part in run.parts for each in _now(part)] if run.parts else [run]


@dataclass(frozen=True)
class Coupling:
    """``groups``, ``outputs``, ``inputs`` and ``left`` as in ``Graph``; ``channels``: of each.
    ``parts``: of modules that split their input, the groups of each part, where they can be cut."""

    groups: tuple[Group, ...]
    channels: tuple[int, ...]
    outputs: dict[str, tuple[int, ...]]
    inputs: dict[str, tuple[int, ...]]
    left: tuple[str, ...]
    parts: dict[str, tuple[tuple[int, ...], ...]]


def coupled(whole: fx.GraphModule) -> Coupling:
    """Of a network whose nodes know the shapes of their tensors."""
    return _Follower(whole).follow()


@dataclass
class _Follower:
    whole: fx.GraphModule
    axes: dict[fx.Node, Any] = field(default_factory=dict)  # Axis, a list of them, or None
    outputs: dict[str, Axis] = field(default_factory=dict)
    inputs: dict[str, Axis] = field(default_factory=dict)
    parts: dict[str, list[Axis]] = field(default_factory=dict)

    def follow(self) -> Coupling:
        calls: dict[str, int] = {}
        for node in self.whole.graph.nodes:
            if node.op == "call_module":
                calls[str(node.target)] = calls.get(str(node.target), 0) + 1
        for node in self.whole.graph.nodes:
            self.axes[node] = self.step(node, calls)
        return _numbered(self)

    def step(self, node: fx.Node, calls: dict[str, int]) -> Any:
        """The channels of what the node gives; None where they are not followed."""
        shape = shape_of(node)
        if node.op == "placeholder":
            return Axis([Run(shape[1], "the image")]) if shape else None
        if node.op == "output":
            self.keep_whole(node, "the classes")
            return None
        if node.op == "call_module":
            module, name = self.whole.get_submodule(str(node.target)), str(node.target)
            if calls[name] > 1 and [*module.parameters(), *module.buffers()]:
                return self.unknown(node, f"{name} is called more than once")
            return self.of_module(node, name, module)
        return self.of_call(node)

    # --- modules -------------------------------------------------------------------------------

    def of_module(self, node: fx.Node, name: str, module: nn.Module) -> Any:
        axis = self.axis(node.args[0] if node.args else None)
        if isinstance(module, Sum):
            return self.together(node, summed=True)
        if isinstance(module, Parts):
            return self.parted(node, name, module, axis)
        if type(module) is nn.Conv2d:
            return self.of_convolution(node, name, module, axis)
        if type(module) is nn.Linear:
            return self.of_linear(node, name, module, axis)
        if type(module) in (nn.BatchNorm2d, nn.BatchNorm1d) and axis and axis.repeat == 1:
            self.outputs[name] = axis
            return axis
        last = self.last(node)
        if last and isinstance(module, POINTWISE):
            return last
        one = not isinstance(module, nn.PReLU) or module.num_parameters == 1
        passes = isinstance(module, (*UNARY_MODULES, nn.PReLU)) and one
        if axis and (passes or type(module).__name__ in BY_CHANCE):
            return axis
        if isinstance(module, nn.Flatten) and module.start_dim == 1 and axis:
            return self.flattened(node, axis)
        if isinstance(module, (nn.GroupNorm, nn.InstanceNorm2d, nn.PReLU)) and axis:
            self.keep_whole(node, f"{name} ({type(module).__name__})")
            return axis
        return self.unknown(node, f"{name} ({type(module).__name__})")

    def of_convolution(self, node: fx.Node, name: str, conv: nn.Conv2d, axis: Axis | None) -> Axis:
        if conv.groups == 1:
            return self.of_product(node, name, conv.out_channels, axis)
        if conv.groups == conv.in_channels == conv.out_channels and axis:
            self.outputs[name] = axis  # it filters each channel by itself
            return axis
        if min(conv.in_channels, conv.out_channels) > conv.groups and axis and axis.repeat == 1:
            return self.of_blocks(name, conv, axis)
        why = f"{name} has {conv.groups} groups of channels"
        if not axis:
            why += ", and what it reads is not followed"
        self.keep_whole(node, why)
        self.outputs[name] = made = Axis([Run(conv.out_channels, why)])
        return made

    def of_blocks(self, name: str, conv: nn.Conv2d, axis: Axis) -> Axis:
        """A grouped convolution: as many channels stay in each of its blocks, so the same channel
        of every block is cut with the others; the weight has the inputs of one block."""
        size, rest = conv.in_channels // conv.groups, axis.now()
        first, rest = _taken(rest, size)
        for _ in range(conv.groups - 1):
            block, rest = _taken(rest, size)
            _join(Axis(first), Axis(block), summed=False)
        self.inputs[name] = Axis(first)
        self.outputs[name] = made = Axis([Run(conv.out_channels // conv.groups)] * conv.groups)
        return made

    def of_linear(self, node: fx.Node, name: str, layer: nn.Linear, axis: Axis | None) -> Axis:
        """It reads the last dimension, which of two is that of the channels."""
        last = len(shape_of(node) or ()) > 2
        source = self.last(node) if last else axis
        made = self.of_product(node, name, layer.out_features, source)
        return Axis(made.runs, last=last)

    def of_product(self, node: fx.Node, name: str, filters: int, axis: Axis | None) -> Axis:
        if axis:
            self.inputs[name] = axis
        else:
            self.keep_whole(node, f"{name} reads what is not followed")
        self.outputs[name] = made = Axis([Run(filters)])
        return made

    # --- calls ---------------------------------------------------------------------------------

    def of_call(self, node: fx.Node) -> Any:
        target, shape = node.target, shape_of(node)
        axis = self.axis(node.args[0] if node.args else None)
        if target is operator.getitem:
            return self.of_item(node)
        if shape is None:
            return self.unless_size(node, str(getattr(target, "__name__", target)))
        if target in CONCATENATIONS:
            return self.beside(node)
        if target in BINARY:
            return self.together(node, summed=target in SUMS)
        if len(operands(node)) > 1:  # e.g. a limit for each channel
            return self.unknown(node, str(getattr(target, "__name__", target)))
        if target in POINTWISE_CALLS and self.last(node):
            return self.last(node)
        if axis and (target in UNARY_CALLS or target is F.pad and self.beside_maps(node)):
            return axis
        if axis and target in (torch.flatten, "flatten"):
            return self.flattened(node, axis)
        if axis and target in ("mean", torch.mean, "squeeze", torch.squeeze) and self.small(node):
            return axis
        return self.unknown(node, str(getattr(target, "__name__", target)))

    def unless_size(self, node: fx.Node, why: str) -> Any:
        """Sizes, and what is computed with them, are no tensors: nothing is cut by them."""
        return self.unknown(node, why) if node.meta.get("tensor_meta") is not None else None

    def beside_maps(self, node: fx.Node) -> bool:
        """Whether a padding leaves images and channels as many as they are."""
        before, after = shape_of(node.args[0]), shape_of(node)
        return before is not None and after is not None and before[:2] == after[:2]

    def small(self, node: fx.Node) -> bool:
        """Whether maps became single values, and nothing else happened."""
        before, after = shape_of(node.args[0]), shape_of(node)
        return before is not None and after in (before[:2], (*before[:2], 1, 1))

    def of_item(self, node: fx.Node) -> Any:
        parts, index = self.axes.get(node.args[0]), node.args[1]  # type: ignore[arg-type]
        if isinstance(parts, list) and isinstance(index, int):
            return parts[index]
        return self.unless_size(node, "an index")

    def parted(self, node: fx.Node, name: str, module: Parts, axis: Axis | None) -> Any:
        """An axis for each part of the channels."""
        if not axis or axis.repeat > 1:
            return self.unknown(node, "a split of what is not followed")
        part_axes, rest = [], axis.now()
        for size in module.sizes:
            taken, rest = _taken(rest, size)
            part_axes.append(Axis(taken))
        self.parts[name] = part_axes
        return part_axes

    def beside(self, node: fx.Node) -> Axis | None:
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        listed = node.args[0]
        axes = [self.axis(part) for part in listed] if isinstance(listed, (list, tuple)) else []
        rank = len(shape_of(node) or ())
        if not axes or dim not in (1, 1 - rank) or len({a.repeat for a in axes if a}) > 1:
            return self.unknown(node, "a concatenation")
        if None in axes:
            return self.unknown(node, "a concatenation with what is not followed")
        return Axis([run for a in axes if a for run in a.now()], axes[0].repeat if axes[0] else 1)

    def flattened(self, node: fx.Node, axis: Axis) -> Axis | None:
        before, after = shape_of(node.args[0]), shape_of(node)
        if before is None or after is None or after != (before[0], math.prod(before[1:])):
            return self.unknown(node, "a flattening")
        return Axis(axis.runs, axis.repeat * math.prod(before[2:]))

    def together(self, node: fx.Node, summed: bool) -> Axis | None:
        """Two tensors of the same channels, element by element, or one and a number."""
        tensors = operands(node)
        many = [arg for arg in tensors if not is_one(arg)] or tensors
        axes = [self.axis(arg) for arg in many]
        if len(many) == 1 and axes[0] and shape_of(many[0]) == shape_of(node):
            return axes[0]
        shapes = [shape_of(arg) or () for arg in many]
        alike = len({len(s) for s in shapes}) == 1 and len({s[1:2] for s in shapes}) == 1
        first, second = axes if len(axes) == 2 else (None, None)
        if first is None or second is None or not alike or first.repeat != second.repeat:
            return self.unknown(node, "a product or sum of tensors of different shapes")
        _join(first, second, summed)
        return first

    # --- what is not followed ------------------------------------------------------------------

    def axis(self, value: Any) -> Axis | None:
        """The channels of a tensor whose second dimension they are."""
        axis = self.axes.get(value) if isinstance(value, fx.Node) else None
        return axis if isinstance(axis, Axis) and not axis.last else None

    def last(self, node: fx.Node) -> Axis | None:
        """The channels of what the node reads, where they are the last dimension of several."""
        axis = self.axes.get(node.args[0]) if node.args else None  # type: ignore[arg-type]
        return axis if isinstance(axis, Axis) and axis.last else None

    def unknown(self, node: fx.Node, why: str) -> Any:
        """None: the channels of what the node gives are not followed either."""
        self.keep_whole(node, why)
        return None

    def keep_whole(self, node: fx.Node, why: str) -> None:
        for source in node.all_input_nodes:
            axes = self.axes.get(source)
            for axis in axes if isinstance(axes, list) else [axes]:
                for run in axis.now() if isinstance(axis, Axis) else ():
                    run.whole = run.whole or why


def _taken(runs: Sequence[Run], size: int) -> tuple[list[Run], list[Run]]:
    """The first ``size`` channels, and the rest; a run that the border is in is parted."""
    taken: list[Run] = []
    rest = list(runs)
    while size:
        run, *rest = _again(rest)  # the same run may stand there again, and was parted just now
        if run.size > size:
            run.parts = tuple(Run(part, run.whole, run.summed) for part in (size, run.size - size))
            run, other = run.parts
            rest.insert(0, other)
        taken.append(run)
        size -= run.size
    return taken, rest


def _join(first: Axis, second: Axis, summed: bool) -> None:
    one, other = first.now(), second.now()
    while one and other:
        size = min(one[0].size, other[0].size)
        [[a], one], [[b], other] = _taken(one, size), _taken(other, size)
        if a is not b:
            a.joined, b.whole = b, b.whole or a.whole
        b.summed = b.summed or a.summed or summed
        # What was parted or joined may stand further on, too.
        one, other = _again(one), _again(other)


def _again(runs: Iterable[Run]) -> list[Run]:
    return [each for run in runs for each in _now(run)]


def _numbered(follower: _Follower) -> Coupling:
    """Groups of the runs that can be cut, and of those that stand beside them on an axis."""
    axes = [*follower.outputs.values(), *follower.inputs.values()]
    rows = [axis.now() for axis in axes]
    rows += [[run for axis in parts for run in axis.now()] for parts in follower.parts.values()]
    kept = list(dict.fromkeys(run for row in rows if any(not r.whole for r in row) for run in row))
    number = {run: i for i, run in enumerate(kept)}
    outputs = {n: _numbers(axis, number) for n, axis in follower.outputs.items()}
    inputs = {n: _numbers(axis, number) for n, axis in follower.inputs.items()}
    layers, norms = _kinds(follower.whole, outputs)
    groups = tuple(
        Group(
            tuple(n for n in layers if i in outputs[n]),
            tuple(n for n in norms if i in outputs[n]),
            tuple(n for n, numbers in inputs.items() if i in numbers),
            summed=run.summed,
            whole=run.whole is not None,
        )
        for run, i in number.items()
    )
    return Coupling(
        groups,
        tuple(run.size for run in kept),
        {name: numbers for name, numbers in outputs.items() if len(numbers) > 1},
        {name: numbers for name, numbers in inputs.items() if len(numbers) > 1},
        _left(follower),
        {
            n: tuple(_numbers(axis, number) for axis in axes)
            for n, axes in follower.parts.items()
            if all(run in number for axis in axes for run in axis.now())
        },
    )


def _numbers(axis: Axis, number: dict[Run, int]) -> tuple[int, ...]:
    """Empty where none of the axis can be cut."""
    runs = axis.now()
    return tuple(number[run] for run in runs) if all(run in number for run in runs) else ()


def _kinds(whole: fx.GraphModule, names: Iterable[str]) -> tuple[list[str], list[str]]:
    norms = [
        n for n in names if isinstance(whole.get_submodule(n), nn.modules.batchnorm._BatchNorm)
    ]
    return [n for n in names if n not in norms], norms


def _left(follower: _Follower) -> tuple[str, ...]:
    """A line for each reason why layers stay whole, the classes themselves aside."""
    by_reason: dict[str, list[str]] = {}
    layers, _ = _kinds(follower.whole, follower.outputs)
    for name in layers:
        reasons = [run.whole for run in follower.outputs[name].now() if run.whole]
        if reasons and reasons[0] not in ("the classes", "the image"):
            by_reason.setdefault(reasons[0], []).append(name)
    return tuple(
        f"{', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}: {reason}"
        for reason, names in by_reason.items()
    )
