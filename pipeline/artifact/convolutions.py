"""Convolutions again, where ``im2col.py`` made matrix products of them.

For runtimes that have integer convolutions of their own and lose time with what is gathered: the
integers are the same. A product keeps a table of the pixels that each of its taps reads; the
attributes of the convolution are those that give this table.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from pipeline.artifact import im2col
from pipeline.artifact.values import (
    constant,
    constant_of,
    dequantizer,
    made_by,
    size_of,
    take_place,
)


@dataclass(frozen=True)
class _Product:
    """``gemm`` on integers: columns [N P Q, taps C] that are gathered from pixels [N, H W (+ 1),
    C], by a matrix [taps C, K]; ``rounding`` gives its integers."""

    gemm: ir.Node
    columns: ir.Node  # DequantizeLinear
    weight: ir.Node  # DequantizeLinear
    rounding: ir.Node  # QuantizeLinear
    pixels: ir.Value
    table: np.ndarray  # [P Q taps]


def restore(whole: ir.Model) -> None:
    """In place. Sizes of tensors have to be inferred already. Raises ValueError where the
    convolution that a table came from cannot be determined."""
    maps: dict[ir.Value, tuple[ir.Value, tuple[int, int]]] = {}
    for node in [n for n in whole.graph if n.op_type == "Gemm"]:
        product = _match(node)
        if product is not None:
            _replace(whole.graph, product, maps)
    passes.RemoveUnusedNodesPass()(whole)


def _match(gemm: ir.Node) -> _Product | None:
    columns, weight = (dequantizer(value) for value in gemm.inputs[:2])
    readers = gemm.outputs[0].consumers()
    if columns is None or weight is None or [n.op_type for n in readers] != ["QuantizeLinear"]:
        return None
    reshaped = made_by(columns.inputs[0], "Reshape")
    gathered = None if reshaped is None else made_by(reshaped.inputs[0], "Gather")
    table = None if gathered is None else constant_of(gathered.inputs[1])
    if gathered is None or table is None:
        return None
    pixels = gathered.inputs[0]
    assert pixels is not None
    if (padded := made_by(pixels, "Pad")) is not None:
        pixels = padded.inputs[0]
        assert pixels is not None
    return _Product(gemm, columns, weight, readers[0], pixels, table)


def _replace(
    graph: ir.Graph,
    product: _Product,
    maps: dict[ir.Value, tuple[ir.Value, tuple[int, int]]],
) -> None:
    """``maps``: what a product gave as integers [N P Q, K] -> the same [N, K, P, Q], and P, Q."""
    image, size, channels = _image(product.pixels, maps)
    matrix = constant(product.weight.inputs[0])
    taps = len(matrix) // channels
    table = product.table.reshape(-1, taps)
    last = _maps(product.rounding.outputs[0])
    found = _attributes(table, size, None if last is None else last[1])
    if found is None:
        raise ValueError("a matrix product in it reads pixels as no convolution does")
    kernel_shape, output_size, attributes = found
    kernel = matrix.reshape(*kernel_shape, channels, -1).transpose(3, 2, 0, 1)
    tape, name = ir.tape.Tape(), product.rounding.outputs[0].name
    weight = tape.initializer(ir.tensor(np.ascontiguousarray(kernel), name=f"{name}_kernel"))
    convolved = tape.op(
        "Conv",
        [
            tape.op("DequantizeLinear", [image, *product.columns.inputs[1:]]),
            tape.op("DequantizeLinear", [weight, *product.weight.inputs[1:]], {"axis": 0}),
            *product.gemm.inputs[2:],
        ],
        attributes,
    )
    rounded = tape.op("QuantizeLinear", [convolved, *product.rounding.inputs[1:]])
    for value in tape.initializers:
        graph.register_initializer(value)
    graph.insert_before(product.gemm, tape.nodes)
    maps[product.rounding.outputs[0]] = rounded, output_size
    if last is not None:
        take_place(rounded, last[0])


def _image(
    pixels: ir.Value, maps: dict[ir.Value, tuple[ir.Value, tuple[int, int]]]
) -> tuple[ir.Value, tuple[int, int], int]:
    """The integers [N, C, H, W] that pixels [N, H W, C] come from, their (H, W), and C."""
    reshaped = pixels.producer()
    source = None if reshaped is None else reshaped.inputs[0]
    assert source is not None, "pixels that nothing gives"
    shape = constant_of(reshaped.inputs[1]) if reshaped is not None else None
    assert shape is not None, "pixels of no known shape"
    if source in maps:
        return *maps[source], int(shape[-1])
    moved = made_by(source, "Transpose")
    image = None if moved is None else moved.inputs[0]
    size = size_of(image)
    if image is None or size is None:
        raise ValueError("the size of a map in it is not known")
    return image, size, int(shape[-1])


def _maps(rounded: ir.Value) -> tuple[ir.Value, tuple[int, int]] | None:
    """The tensor [N, K, P, Q] that integers [N P Q, K] become, and its (P, Q); None where only
    other products read them."""
    for reshaped in rounded.consumers():
        shape = constant_of(reshaped.inputs[1])
        if shape is not None and len(shape) == 4:
            [moved] = reshaped.outputs[0].consumers()
            return moved.outputs[0], (int(shape[1]), int(shape[2]))
    return None


def _attributes(
    table: np.ndarray, size: tuple[int, int], output_size: tuple[int, int] | None
) -> tuple[tuple[int, int], tuple[int, int], dict[str, list[int]]] | None:
    """(h, w), (P, Q) and the attributes of the convolution over maps of ``size`` whose taps read
    what ``table`` [P Q, h w] says; None where there is none."""
    places, taps = table.shape
    outputs = [output_size] if output_size else _factors(places)
    for kernel, output in itertools.product(_factors(taps), outputs):
        axes = [
            next(_along(read, length), None)
            for read, length in zip(_read(table, size, output, kernel), size, strict=True)
        ]
        if None in axes:
            continue
        strides, dilations, before, after = zip(*filter(None, axes), strict=True)
        read = im2col.table_of(size, output, kernel, strides, dilations, before)
        if np.array_equal(read, table):
            attributes = {
                "kernel_shape": [*kernel],
                "strides": [*strides],
                "dilations": [*dilations],
                "pads": [*before, *after],
            }
            return kernel, output, attributes
    return None


def _read(
    table: np.ndarray, size: tuple[int, int], output: tuple[int, int], kernel: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Of a table, the row that each output and tap reads, [P, h], and the column, [Q, w]; -1 where
    that is outside."""
    height, width = size
    pixels = table.reshape(*output, *kernel)
    inside = pixels < height * width
    rows = np.where(inside, pixels // width, -1).max((1, 3))
    return rows, np.where(inside, pixels % width, -1).max((0, 2))


def _factors(number: int) -> list[tuple[int, int]]:
    """Pairs with this product, the most similar ones first."""
    pairs = [(n, number // n) for n in range(1, number + 1) if number % n == 0]
    return sorted(pairs, key=lambda pair: abs(pair[0] - pair[1]))


def _along(read: np.ndarray, size: int) -> Iterator[tuple[int, int, int, int]]:
    """(stride, dilation, padding before, padding after) by which the outputs and taps of one axis
    ``read`` these of ``size`` pixels, [outputs, taps]; the smallest ones first."""
    outputs, taps = read.shape
    at, tap = np.arange(outputs)[:, None], np.arange(taps)
    dilations = _steps(read.T, size) if taps > 1 else (1,)
    for stride, dilation in itertools.product(_steps(read, size), dilations):
        reach = (outputs - 1) * stride + (taps - 1) * dilation + 1
        for before in range(max(0, reach - size + stride)):  # beyond, there is one output more
            position = at * stride + tap * dilation - before
            inside = (position >= 0) & (position < size)
            if np.array_equal(np.where(inside, position, -1), read):
                yield stride, dilation, before, max(0, reach - size - before)


def _steps(read: np.ndarray, size: int) -> Iterable[int]:
    """By how many pixels the first axis can go on, as far as two neighbours tell."""
    steps = np.unique(np.diff(read, axis=0)[(read[1:] >= 0) & (read[:-1] >= 0)])
    if len(steps):
        return [int(step) for step in steps if step > 0 and len(steps) == 1]
    return range(1, 2 * size + 2)
