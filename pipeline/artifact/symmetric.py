"""The same quantized network with activations that are symmetric around zero.

An artifact's activations are uint8 with a zero point; some runtimes, TensorRT among them, have
integer kernels for int8 without one alone (Wu et al. 2020, arXiv:2004.09602, section 3). Here each
scale s with zero point z becomes the least symmetric one that holds the same range, s max(z, 255 -
z) / 127; for what follows a ReLU (z = 0) that is 7 bits for the numbers that had 8. Saturation at
either end of the range stays where it was, as an operator on floats, and so does every weight.
Three things are floats: the image and the layer that reads it, biases, and logits.

This is another model than the artifact, with an accuracy of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from pipeline.artifact import convolutions
from pipeline.artifact.clipping import LEAST, MOST
from pipeline.artifact.values import constant, dequantizer, take_place

LARGEST = 127  # of int8, in both directions
MIDDLE = 128  # a zero point that is symmetric already: -128..127 at the same scale
# These give numbers that they get.
PASSING = {"MaxPool", "Reshape", "Flatten", "Transpose"}
PRODUCTS = ("Conv", "Gemm", "MatMul")


class _Rounded(NamedTuple):
    """int8 [...] in place of uint8, with its scale; ``before`` is the scale and zero point that
    the uint8 has."""

    value: ir.Value
    scale: ir.Value
    before: tuple[float, int]


def symmetric(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with int8 activations, its convolutions restored. Raises ValueError where it has
    an operator on integers that artifacts of netpress have not."""
    whole = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    convolutions.restore(whole)
    whole.graph.sort()
    _Rewriting(whole.graph).run()
    passes.RemoveUnusedNodesPass()(whole)
    result = ir.to_proto(whole)
    del result.graph.value_info[:]  # types that changed, and that a reader infers again
    onnx.checker.check_model(result)
    return result


class _Rewriting:
    """Of one graph, node after node."""

    def __init__(self, graph: ir.Graph):
        self.graph = graph
        self.rounded: dict[ir.Value, _Rounded] = {}  # uint8 -> its int8
        self.floats: dict[ir.Value, tuple[float, int]] = {}  # -> what its uint8 had

    def run(self) -> None:
        for node in list(self.graph):
            if node.op_type == "QuantizeLinear":
                self._quantize(node)
            elif node.op_type == "DequantizeLinear":
                self._dequantize(node)
            elif node.op_type != "Clip" and any(value in self.rounded for value in node.inputs):
                raise ValueError(f"it has the operator {node.op_type} on integers")
        for node in list(self.graph):
            if node.op_type in PRODUCTS and dequantizer(node.inputs[0]) is None:
                self._floats(node)

    def _quantize(self, node: ir.Node) -> None:
        given, rounded = node.inputs[0], node.outputs[0]
        assert given is not None
        scale, zero = _parameters(node)
        low, high, last = LEAST, MOST, rounded
        readers = rounded.consumers()
        if [reader.op_type for reader in readers] == ["Clip"]:
            low, high = _ends(readers[0])
            last = readers[0].outputs[0]
        step = scale if zero == MIDDLE else scale * max(zero - LEAST, MOST - zero) / LARGEST
        tape = ir.tape.Tape()
        if not self._has_range(given, (scale, zero)):
            given = self._limited(tape, given, (scale, zero), (low, high))
        by = self._constant(tape, rounded, "scale", np.float32(step))
        nothing = self._constant(tape, rounded, "zero", np.int8(0))
        value = tape.op("QuantizeLinear", [given, by, nothing])
        self._insert(node, tape)
        self.rounded[rounded] = self.rounded[last] = _Rounded(value, by, (scale, zero))

    def _limited(
        self, tape: ir.tape.Tape, given: ir.Value, by: tuple[float, int], ends: tuple[int, int]
    ) -> ir.Value:
        """``given`` as it is between these integers; where rounding to int8 ends as well, that is
        left to it."""
        scale, zero = by
        if (zero, ends) == (MIDDLE, (LEAST, MOST)):
            return given
        if (zero, ends) == (LEAST, (LEAST, MOST)):
            return tape.op("Relu", [given])
        limits = [
            self._constant(tape, given, f"limit_{end}", np.float32((end - zero) * scale))
            for end in ends
        ]
        return tape.op("Clip", [given, *limits])

    def _has_range(self, given: ir.Value, parameters: tuple[float, int]) -> bool:
        """Whether its numbers are those of a tensor that was rounded by the same parameters."""
        while given not in self.floats:
            maker = given.producer()
            if maker is None or maker.op_type not in PASSING:
                return False
            source = maker.inputs[0]
            assert source is not None
            given = source
        return self.floats[given] == parameters

    def _dequantize(self, node: ir.Node) -> None:
        given, values = node.inputs[0], node.outputs[0]
        assert given is not None
        tape = ir.tape.Tape()
        if given in self.rounded:
            one = self.rounded[given]
            if _parameters(node) != one.before:
                raise ValueError("it reads integers by another scale than they have")
            nothing = self._constant(tape, values, "zero", np.int8(0))
            made = tape.op("DequantizeLinear", [one.value, one.scale, nothing])
            self.floats[made] = one.before
        elif given in self.graph.inputs:
            scale, zero = _parameters(node)
            pixels = tape.op("Cast", [given], {"to": ir.DataType.FLOAT})
            offset = self._constant(tape, values, "offset", np.float32(zero))
            by = self._constant(tape, values, "by", np.float32(scale))
            made = tape.op("Mul", [tape.op("Sub", [pixels, offset]), by])
        elif given.const_value is not None and given.dtype == ir.DataType.INT32:
            made = self._constant(tape, values, "float", _numbers(node))
        elif given.const_value is not None:
            return  # a weight
        else:
            raise ValueError("it has integers that nothing has rounded")
        self._insert(node, tape)
        take_place(made, values)

    def _floats(self, product: ir.Node) -> None:
        """Gives a product whose input is not rounded weights that are floats."""
        weight = dequantizer(product.inputs[1])
        if weight is not None:
            tape = ir.tape.Tape()
            made = self._constant(tape, weight.outputs[0], "float", _numbers(weight))
            self._insert(product, tape)
            product.replace_input_with(1, made)

    def _constant(
        self, tape: ir.tape.Tape, of: ir.Value, what: str, numbers: np.ndarray | np.generic
    ) -> ir.Value:
        return tape.initializer(ir.tensor(np.asarray(numbers), name=f"{of.name}_{what}"))

    def _insert(self, before: ir.Node, tape: ir.tape.Tape) -> None:
        for value in tape.initializers:
            self.graph.register_initializer(value)
        self.graph.insert_before(before, tape.nodes)


def _parameters(node: ir.Node) -> tuple[float, int]:
    """Scale and zero point of a node on one of each."""
    scale, zero = (constant(value) for value in node.inputs[1:3])
    return float(scale), int(zero)


def _numbers(node: ir.Node) -> np.ndarray:
    """float32: what a DequantizeLinear on a constant gives."""
    values, scale, zero = (constant(value) for value in node.inputs)
    axis = node.attributes.get_int("axis", 1)
    shape = [-1 if place == axis else 1 for place in range(values.ndim)] if scale.ndim else []
    difference = values.astype(np.int64) - zero.astype(np.int64).reshape(shape)
    return difference.astype(np.float32) * scale.astype(np.float32).reshape(shape)


def _ends(clip: ir.Node) -> tuple[int, int]:
    low, high = (constant(value) for value in clip.inputs[1:3])
    return int(low), int(high)
