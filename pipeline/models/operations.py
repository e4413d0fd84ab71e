"""Operations of traced networks, by what they do to the channels of a tensor, and their operands.

Tensors are [N, C, H, W], or [N, K] where maps are flattened.
"""

from __future__ import annotations

import inspect
import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from pipeline.models.layers import UnevenAverage

Shape = tuple[int, ...]

# One tensor in, one out, number by number, or channel by channel.
POINTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Identity),
    *(nn.Dropout, nn.AlphaDropout),
)
UNARY_MODULES = (
    *POINTWISE,
    *(nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    *(nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad2d, UnevenAverage),
)
POINTWISE_CALLS: tuple[Any, ...] = (
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, F.sigmoid, F.tanh, F.hardswish),
    *(F.hardsigmoid, F.hardtanh, F.softplus, torch.relu, torch.sigmoid, torch.tanh, torch.clamp),
)
UNARY_CALLS: tuple[Any, ...] = (
    *POINTWISE_CALLS,
    *(F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate),
    *("relu", "relu_", "sigmoid", "tanh", "clamp", "contiguous", "float", "clone", "neg"),
)
BINARY: tuple[Any, ...] = (
    *(operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul),
    *(operator.truediv, torch.add, torch.sub, torch.mul, torch.div),
    *("add", "add_", "sub", "mul", "mul_", "div"),
)
SUMS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")

CONCATENATIONS: tuple[Any, ...] = (torch.cat, torch.concat)
SPLITS: tuple[Any, ...] = ("chunk", "split", torch.chunk, torch.split)
RESHAPES: tuple[Any, ...] = ("view", "reshape", torch.reshape)


def calls(node: fx.Node, targets: tuple[Any, ...]) -> bool:
    """Whether a node calls one of these functions or methods."""
    return node.op in ("call_function", "call_method") and node.target in targets


# --- operands ------------------------------------------------------------------------------------

# What PyTorch calls the tensors that a function or method is given, in order.
OPERANDS: tuple[tuple[tuple[Any, ...], tuple[str, ...]], ...] = (
    (CONCATENATIONS, ("tensors",)),
    (BINARY, ("input", "other")),
    ((torch.split,), ("tensor",)),
    (
        (*UNARY_CALLS, *SPLITS, *RESHAPES, torch.flatten, torch.mean, torch.squeeze, F.dropout),
        ("input",),
    ),
)


def positional(whole: fx.GraphModule) -> None:
    """Operands that are given by keyword stand in their places from now on, as they do in most
    calls: who reads the graph need not look for them."""
    for node in whole.graph.nodes:
        args, kwargs = [*node.args], dict(node.kwargs)
        names = _names(whole, node) if kwargs else ()
        for name in names[len(args) :]:
            if name not in kwargs:
                break
            args.append(kwargs.pop(name))
        node.args, node.kwargs = tuple(args), kwargs


def _names(whole: fx.GraphModule, node: fx.Node) -> tuple[str, ...]:
    if node.op == "call_module":
        forward = inspect.signature(whole.get_submodule(str(node.target)).forward)
        given = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return tuple(p.name for p in forward.parameters.values() if p.kind in given)
    if node.op not in ("call_function", "call_method"):
        return ()
    return next((names for targets, names in OPERANDS if node.target in targets), ())


def shape_of(node: Any) -> Shape | None:
    """Of the tensor that a node gives; None where it gives something else."""
    meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    shape = getattr(meta, "shape", None)
    return None if shape is None else tuple(shape)


def operands(node: fx.Node) -> list[fx.Node]:
    """The tensors that a call is given one by one, by place or by keyword."""
    given = (*node.args, *node.kwargs.values())
    return [arg for arg in given if isinstance(arg, fx.Node) and shape_of(arg)]


def is_one(node: fx.Node) -> bool:
    """Whether all channels of another tensor would meet the same number here."""
    shape = shape_of(node) or ()
    return math.prod(shape) == 1 or len(shape) == 4 and shape[1] == 1


def span(index: Any, shape: Shape) -> tuple[int, int] | None:
    """First channel and the one after the last of an index that takes channels alone."""
    whole = (slice(None), Ellipsis)
    if not isinstance(index, tuple) or len(index) < 2 or index[0] != slice(None):
        return None
    if not isinstance(index[1], slice) or any(each not in whole for each in index[2:]):
        return None
    bounds = (index[1].start, index[1].stop)
    if index[1].step not in (None, 1) or any(not isinstance(b, (int, type(None))) for b in bounds):
        return None
    start, end, _ = index[1].indices(shape[1])
    return (start, end) if end > start else None
