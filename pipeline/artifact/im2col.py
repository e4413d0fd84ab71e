"""Convolutions over small maps as one matrix product each, in the graph that is deployed.

ONNX Runtime divides a quantized convolution among its threads by the pixels of a map; of the 4x4
and 2x2 that VGG's last blocks see, that leaves little to divide, and each thread reads all of the
weights. What a kernel sees of each pixel, gathered side by side (im2col: Chellapilla et al. 2006,
section 4.1), makes it a product that is divided by its filters. The integers are the same, and so
is what comes out, bit for bit.

Measured by tests/benchmarks/bench_products.py on two cores with AMX, VGG-16 on 32x32: 1.2 times as
fast for one image, 1.7 to 1.8 times for 64. Between floats, where the runtime lays channels out in
blocks, maps of at most 4x4 became 1.2 to 1.3 times as fast for 64 images and 0.9 times for one, so
convolutions of floats stay what they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from pipeline.artifact.values import constant_of, dequantizer, size_of

LARGEST = 64  # pixels of a map (8x8): above, copying them costs more than the product saves
LEAST = 2**18  # weights: below, a few more operators cost more than the product saves


def rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    """The QDQ graph of ``model`` with products for those of its convolutions that have at least
    ``LEAST`` weights, and at most ``LARGEST`` pixels in input and output; groups, and sizes that
    are not known, stay convolutions."""
    whole = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    by_pixel: dict[ir.Value, ir.Value] = {}
    for node in [n for n in whole.graph if n.op_type == "Conv"]:
        convolution = _match(node)
        if convolution is not None and _reads_pixels(convolution):
            _replace(whole.graph, convolution, by_pixel)
    passes.RemoveUnusedNodesPass()(whole)
    passes.DeduplicateInitializersPass()(whole)
    result = ir.to_proto(whole)
    del result.graph.value_info[:]  # shapes that a reader infers again
    return result


@dataclass(frozen=True)
class _Convolution:
    """A convolution between integers: image [N, C, H, W], weight [K, C, h, w] -> [N, K, P, Q]."""

    node: ir.Node
    image: ir.Node  # DequantizeLinear
    weight: ir.Node  # DequantizeLinear
    rounding: ir.Node  # QuantizeLinear
    kernel: np.ndarray
    size: tuple[int, int]  # H, W
    output_size: tuple[int, int]  # P, Q


def _match(conv: ir.Node) -> _Convolution | None:
    image, weight = (dequantizer(value) for value in conv.inputs[:2])
    readers = conv.outputs[0].consumers()
    size, output_size = size_of(conv.inputs[0]), size_of(conv.outputs[0])
    if image is None or weight is None or size is None or output_size is None:
        return None
    kernel = constant_of(weight.inputs[0])
    if (
        len(image.inputs) < 3  # without a zero point: what stands outside is not known
        or [n.op_type for n in readers] != ["QuantizeLinear"]
        or conv.outputs[0].is_graph_output()
        or kernel is None
        or kernel.size < LEAST
        or max(math.prod(size), math.prod(output_size)) > LARGEST
        or conv.attributes.get_int("group", 1) != 1
        or conv.attributes.get_string("auto_pad", "NOTSET") != "NOTSET"
    ):
        return None
    return _Convolution(conv, image, weight, readers[0], kernel, size, output_size)


def _reads_pixels(conv: _Convolution) -> bool:
    """Whether it reads any, and not what lies around a map alone, of which nobody could tell the
    convolution again (convolutions.py)."""
    return bool((_table(conv) < math.prod(conv.size)).any())


def _replace(graph: ir.Graph, conv: _Convolution, by_pixel: dict[ir.Value, ir.Value]) -> None:
    """``by_pixel`` holds, for each tensor of integers [N, C, H, W], the same as [N, H W, C] where
    that is at hand: between two products nothing is moved."""
    tape, name = ir.tape.Tape(), conv.rounding.outputs[0].name
    filters, channels = conv.kernel.shape[:2]
    image, scale, zero_point = conv.image.inputs
    assert image is not None
    table = _table(conv)
    taps = table.shape[1] * channels

    def constant(values: np.ndarray, what: str) -> ir.Value:
        return tape.initializer(ir.tensor(values, name=f"{name}_{what}"))

    def reshaped(value: ir.Value, *shape: int) -> ir.Value:
        return tape.op("Reshape", [value, constant(np.array(shape), f"shape_{len(tape.nodes)}")])

    pixels = by_pixel.get(image)
    if pixels is None:
        last = tape.op("Transpose", [image], {"perm": [0, 2, 3, 1]})
        pixels = reshaped(last, 0, -1, channels)
    outside = conv.size[0] * conv.size[1]
    if (table == outside).any():  # one more pixel for all that lies outside, which is zero there
        more = constant(np.array([0, 0, 0, 0, 1, 0]), "more")
        pixels = tape.op("Pad", [pixels, more, zero_point])
    columns = tape.op("Gather", [pixels, constant(table.reshape(-1), "table")], {"axis": 1})
    columns = reshaped(columns, -1, taps)  # [N P Q, taps]
    matrix = constant(conv.kernel.transpose(2, 3, 1, 0).reshape(taps, filters), "matrix")
    product = tape.op(
        "Gemm",
        [
            tape.op("DequantizeLinear", [columns, scale, zero_point]),
            tape.op("DequantizeLinear", [matrix, *conv.weight.inputs[1:]], {"axis": 1}),
            *conv.node.inputs[2:],
        ],
    )
    rounded = tape.op("QuantizeLinear", [product, *conv.rounding.inputs[1:]])
    of_output = reshaped(rounded, -1, len(table), filters)
    last = reshaped(rounded, -1, *conv.output_size, filters)
    maps = tape.op("Transpose", [last], {"perm": [0, 3, 1, 2]})
    for value in tape.initializers:
        graph.register_initializer(value)
    ir.convenience.replace_nodes_and_values(
        graph, conv.rounding, [conv.node, conv.rounding], tape.nodes, conv.rounding.outputs, [maps]
    )
    by_pixel[maps] = of_output


def _table(conv: _Convolution) -> np.ndarray:
    attributes = conv.node.attributes
    return table_of(
        conv.size,
        conv.output_size,
        conv.kernel.shape[2:],
        attributes.get_ints("strides", (1, 1)),
        attributes.get_ints("dilations", (1, 1)),
        attributes.get_ints("pads", (0, 0, 0, 0))[:2],
    )


def table_of(
    size: Sequence[int],
    output_size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    before: Sequence[int],
) -> np.ndarray:
    """int32 [P Q, h w] -> which pixel of the input each tap of each output sees; H W: outside.
    (rows, columns) of each: `size` H, W, `output_size` P, Q, `kernel` h, w, padding `before`."""
    height, width = size
    rows, columns = (
        np.arange(n)[:, None] * stride + np.arange(taps) * dilation - pad
        for n, taps, stride, dilation, pad in zip(
            output_size, kernel, strides, dilations, before, strict=True
        )
    )
    rows, columns = rows[:, None, :, None], columns[None, :, None, :]  # [P, Q, h, w]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    seen = np.where(inside, rows * width + columns, height * width)
    return seen.reshape(len(rows) * columns.shape[1], -1).astype(np.int32)
