"""Values of an ONNX graph: what the files that rewrite graphs read of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def constant_of(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of an initializer; None for any other value."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def constant(value: ir.Value | None) -> np.ndarray:
    """The same where nothing else can be."""
    numbers = constant_of(value)
    assert numbers is not None
    return numbers


def dequantizer(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that gives this value; None where something else does."""
    return made_by(value, "DequantizeLinear")


def made_by(value: ir.Value | None, operator: str) -> ir.Node | None:
    """The node of this operator that gives the value; None where something else does."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == operator else None


def size_of(value: ir.Value | None) -> tuple[int, int] | None:
    """(H, W) of a tensor [N, C, H, W]; None where they are not known."""
    if value is None or value.shape is None or len(value.shape) != 4:
        return None
    height, width = value.shape[2:]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def take_place(new: ir.Value, old: ir.Value) -> None:
    """``new`` for all readers of ``old``, and as the output of the graph, by its name, where that
    is one."""
    name, old.name = old.name, None
    new.name, new.shape, new.type = name, old.shape, old.type
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
