"""Convolutions over small maps as one matrix product each, in the graph that is deployed.

ONNX Runtime divides a convolution among its threads by the pixels of a map, and blocks its loops
for many of them; of the 4x4 and 2x2 that VGG's last blocks see, that leaves little to divide, and
each thread reads all of the weights. What a kernel sees of each pixel, gathered side by side
(im2col: Chellapilla et al. 2006, section 4.1), makes it a product that is divided by its filters.
Between integers the result is the same, bit for bit; between floats, but for the order of its sums.

On two cores with AMX and VGG-16 on 32x32, int8 becomes 1.3 times as fast for one image, and 1.7
for 64; float32 stays as it is for one image, and becomes 1.2 times as fast for 64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

# Pixels of a map: above, copying them costs more than the product saves.
LARGEST = {"int8": 64, "float32": 16}
LEAST = 2**18  # weights: below, a few more operators cost more than the product saves


def rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph of ``model``, of floats or QDQ, with products for those of its convolutions that
    have at least ``LEAST`` weights, and at most ``LARGEST`` pixels in input and output; groups, and
    sizes that are not known, stay convolutions."""
    whole = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    by_pixel: dict[ir.Value, ir.Value] = {}
    for node in [n for n in whole.graph if n.op_type == "Conv"]:
        found = _match(node)
        if found is not None:
            _replace(whole.graph, found, by_pixel)
    passes.RemoveUnusedNodesPass()(whole)
    passes.DeduplicateInitializersPass()(whole)
    result = ir.to_proto(whole)
    del result.graph.value_info[:]  # shapes that a reader infers again
    return result


@dataclass(frozen=True)
class _Convolution:
    """A convolution of ``image`` [N, C, H, W] with ``kernel`` [K, C, h, w] into [N, K, P, Q].

    Between integers, ``image`` is what ``before`` dequantizes, and ``after`` ends with rounding.
    """

    node: ir.Node
    image: ir.Value
    kernel: np.ndarray
    before: tuple[ir.Node, ir.Node] | None  # DequantizeLinear of the image, and of the kernel
    after: tuple[ir.Node, ...]  # Relu, QuantizeLinear, both or none
    size: tuple[int, int]  # H, W
    output_size: tuple[int, int]  # P, Q


def _match(conv: ir.Node) -> _Convolution | None:
    image, kernel = conv.inputs[:2]
    after = tuple(_after(conv))
    before = _dequantizing(image), _dequantizing(kernel)
    rounded = bool(after) and after[-1].op_type == "QuantizeLinear"
    if rounded != (None not in before):
        return None  # neither of floats nor of integers
    if rounded:
        image, kernel = (node.inputs[0] for node in before)
    sizes = [_pixels(value) for value in (conv.inputs[0], conv.outputs[0])]
    largest = LARGEST["int8" if rounded else "float32"]
    if (
        kernel.const_value is None
        or kernel.const_value.size < LEAST
        or any(size is None or size[0] * size[1] > largest for size in sizes)
        or _attribute(conv, "group", 1) != 1
        or _attribute(conv, "auto_pad", "NOTSET") != "NOTSET"
    ):
        return None
    weights = kernel.const_value.numpy()
    return _Convolution(conv, image, weights, before if rounded else None, after, *sizes)


def _after(node: ir.Node) -> Iterator[ir.Node]:
    """What reads a node's output, and nothing else does, for as long as it only looks at each
    number by itself."""
    for kind in ("Relu", "QuantizeLinear"):
        readers = node.outputs[0].consumers()
        if [n.op_type for n in readers] == [kind] and not node.outputs[0].is_graph_output():
            node = readers[0]
            yield node


def _dequantizing(value: ir.Value) -> ir.Node | None:
    node = value.producer()
    return node if node and node.op_type == "DequantizeLinear" and len(node.inputs) == 3 else None


def _replace(graph: ir.Graph, conv: _Convolution, by_pixel: dict[ir.Value, ir.Value]) -> None:
    """``by_pixel`` holds, for each tensor [N, C, H, W], the same as [N, H W, C] where that is at
    hand: between two products nothing is moved."""
    tape = ir.tape.Tape()
    last = (conv.node, *conv.after)[-1]
    filters, channels = conv.kernel.shape[:2]
    table = _table(conv)
    taps = table.shape[1] * channels

    def constant(values: np.ndarray, what: str) -> ir.Value:
        return tape.initializer(ir.tensor(values, name=f"{last.outputs[0].name}_{what}"))

    def reshaped(value: ir.Value, *shape: int) -> ir.Value:
        return tape.op("Reshape", [value, constant(np.array(shape), f"shape_{len(tape.nodes)}")])

    pixels = by_pixel.get(conv.image)
    if pixels is None:
        moved = tape.op("Transpose", [conv.image], {"perm": [0, 2, 3, 1]})
        pixels = reshaped(moved, 0, -1, channels)
    if (table == conv.size[0] * conv.size[1]).any():  # one more pixel: zero, as outside of the map
        zero = [conv.before[0].inputs[2]] if conv.before else []
        pixels = tape.op("Pad", [pixels, constant(np.array([0, 0, 0, 0, 1, 0]), "more"), *zero])
    columns = tape.op("Gather", [pixels, constant(table.reshape(-1), "table")], {"axis": 1})
    columns = reshaped(columns, -1, taps)  # [N P Q, taps]
    matrix = constant(conv.kernel.transpose(2, 3, 1, 0).reshape(taps, filters), "matrix")
    if conv.before:
        of_image, of_kernel = conv.before
        columns = tape.op("DequantizeLinear", [columns, *of_image.inputs[1:]])
        matrix = tape.op("DequantizeLinear", [matrix, *of_kernel.inputs[1:]], {"axis": 1})
    product = tape.op("Gemm", [columns, matrix, *conv.node.inputs[2:]])
    for node in conv.after:
        product = tape.op(node.op_type, [product, *node.inputs[1:]])
    of_output = reshaped(product, -1, len(table), filters)
    maps = reshaped(product, -1, *conv.output_size, filters)
    maps = tape.op("Transpose", [maps], {"perm": [0, 3, 1, 2]})
    for value in tape.initializers:
        graph.register_initializer(value)
    ir.convenience.replace_nodes_and_values(
        graph, last, [conv.node, *conv.after], tape.nodes, last.outputs, [maps]
    )
    by_pixel[maps] = of_output


def _table(conv: _Convolution) -> np.ndarray:
    """int32 [P Q, h w] -> which pixel of the input each tap of each output sees; H W: outside."""
    strides = _attribute(conv.node, "strides", (1, 1))
    dilations = _attribute(conv.node, "dilations", (1, 1))
    before = _attribute(conv.node, "pads", (0, 0, 0, 0))[:2]
    height, width = conv.size
    rows, columns = (
        np.arange(n)[:, None] * stride + np.arange(taps) * dilation - pad
        for n, taps, stride, dilation, pad in zip(
            conv.output_size, conv.kernel.shape[2:], strides, dilations, before, strict=True
        )
    )
    rows, columns = rows[:, None, :, None], columns[None, :, None, :]  # [P, Q, h, w]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    seen = np.where(inside, rows * width + columns, height * width)
    return seen.reshape(len(rows) * columns.shape[1], -1).astype(np.int32)


def _pixels(value: ir.Value) -> tuple[int, int] | None:
    """(H, W) of a tensor [N, C, H, W]; None where they are not known."""
    shape = value.shape
    if shape is None or len(shape) != 4 or not all(isinstance(n, int) for n in shape[2:]):
        return None
    return tuple(shape[2:])


def _attribute(node: ir.Node, name: str, default):
    return node.attributes[name].value if name in node.attributes else default
