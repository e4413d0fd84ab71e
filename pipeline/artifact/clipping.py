"""Activations that saturate: their limits, kept in integers.

ONNX Runtime's quantizer takes a Relu or Clip out of the graph where a QuantizeLinear follows, since
rounding to uint8 saturates as well. It does not look whether it saturates at the same numbers: with
a learned scale the integers reach beyond the 6 of a ReLU6, and where tensors that are concatenated
share a zero point, below the 0 of a ReLU. Here the limits come back, as a Clip of the integers
themselves: rounding is monotonic, so that this gives the integers of the clipped numbers. Logits
are not rounded, so theirs come back as a Clip of floats.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from pipeline.artifact.values import constant

SATURATING = ("Relu", "Clip")
LEAST, MOST = 0, 255  # of uint8


class Limits(NamedTuple):
    """Of what an activation gives."""

    low: float
    high: float

    def of(self, other: Limits) -> Limits:
        """Of this activation after one with these limits."""
        low, high = (min(max(value, self.low), self.high) for value in other)
        return Limits(low, high)


def limits(graph: ir.Graph) -> dict[str, Limits]:
    """Name of each tensor that a Relu or Clip of this float graph gives -> its limits."""
    by_name: dict[str, Limits] = {}
    for node in graph:
        if node.op_type not in SATURATING:
            continue
        before, after = node.inputs[0], node.outputs[0]
        assert before is not None and before.name is not None and after.name is not None
        low, high = (0.0, np.inf) if node.op_type == "Relu" else _bounds(node)
        one = Limits(low, high)
        by_name[after.name] = one.of(by_name[before.name]) if before.name in by_name else one
    return by_name


def _bounds(clip: ir.Node) -> tuple[float, float]:
    low, high = ([*clip.inputs, None, None])[1:3]
    return _number(low, -np.inf), _number(high, np.inf)


def _number(value: ir.Value | None, otherwise: float) -> float:
    # What is no constant the exporter writes as other operators.
    return otherwise if value is None else float(constant(value))


def restore(graph: ir.Graph, by_name: dict[str, Limits]) -> None:
    """Clips each rounded tensor [N, ...] of a quantized graph whose limits are narrower than those
    of uint8 at its scale and zero point, and its output."""
    for rounding in [node for node in graph if node.op_type == "QuantizeLinear"]:
        tensor, scale, zero_point = rounding.inputs
        if tensor is None or tensor.name not in by_name:
            continue
        integers = [
            _rounded(limit, constant(scale), constant(zero_point)) for limit in by_name[tensor.name]
        ]
        if integers != [LEAST, MOST]:
            _clip(graph, rounding, integers)
    name = graph.outputs[0].name
    if name in by_name:
        _clip_output(graph, by_name[name])


def _rounded(limit: float, scale: np.ndarray, zero_point: np.ndarray) -> int:
    steps = np.rint(np.float32(limit) / scale.astype(np.float32)) + float(zero_point)
    return int(np.clip(steps, LEAST, MOST))


def _clip(graph: ir.Graph, rounding: ir.Node, integers: list[int]) -> None:
    rounded = rounding.outputs[0]
    uses = list(rounded.uses())
    clip = _node(graph, rounded, [np.array(value, np.uint8) for value in integers])
    for node, index in uses:
        node.replace_input_with(index, clip.outputs[0])
    graph.insert_after(rounding, clip)


def _clip_output(graph: ir.Graph, limits: Limits) -> None:
    """The same numbers where the activation is still there."""
    whole = graph.outputs[0]
    name, whole.name = whole.name, f"{whole.name}_whole"
    clip = _node(graph, whole, [None if np.isinf(v) else np.array(v, np.float32) for v in limits])
    clipped = clip.outputs[0]
    clipped.name, clipped.shape, clipped.type = name, whole.shape, whole.type
    graph.append(clip)
    graph.outputs[0] = clipped


def _node(graph: ir.Graph, value: ir.Value, ends: list[np.ndarray | None]) -> ir.Node:
    """A Clip of the value, not yet in the graph; None: no limit."""
    tape = ir.tape.Tape()
    limits = [
        None if end is None else tape.initializer(ir.tensor(end, name=f"{value.name}_{which}"))
        for which, end in zip(("least", "most"), ends, strict=True)
    ]
    tape.op("Clip", [value, *limits])
    for limit in tape.initializers:
        graph.register_initializer(limit)
    [clip] = tape.nodes
    return clip
