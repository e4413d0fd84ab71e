"""A quantized artifact computed exactly: products of integers in integers, as the QDQ operators
mean them (ONNX 1.16, QuantizeLinear and DequantizeLinear), with nothing that could saturate.

x uint8 [N, C, H, W], weights int8 [K, C, h, w] or [taps, K]. Sums are int64; scales are applied in
float64 and rounded half to even, as QuantizeLinear says.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import numpy_helper


def logits(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """uint8 [N, C, H, W] -> float64 [N, classes]."""
    values: dict[str, np.ndarray] = {model.graph.input[0].name: images}
    values |= {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    integers: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # what DequantizeLinear read
    for node in model.graph.node:
        _run(node, values, integers)
    return values[model.graph.output[0].name]


def _run(node, values, integers) -> None:
    arguments = [values[name] if name else None for name in node.input]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    result = node.output[0]
    if node.op_type == "DequantizeLinear":
        integers[result] = _dequantized(arguments, attributes)
        numbers, scale = integers[result]
        values[result] = numbers * scale
    elif node.op_type == "QuantizeLinear":
        values[result] = _quantized(*arguments)
    elif node.op_type in ("Conv", "Gemm"):
        (x, x_scale), (w, w_scale) = (integers[name] for name in node.input[:2])
        product = _convolved if node.op_type == "Conv" else _multiplied
        sums, scales = product(x, w, attributes), np.atleast_1d(x_scale * w_scale).reshape(-1)
        shape = (1, -1, 1, 1) if node.op_type == "Conv" else (1, -1)
        if len(node.input) > 2:
            sums = sums + integers[node.input[2]][0].reshape(shape)
        values[result] = sums * scales.reshape(shape)
    else:
        values[result] = OTHERS[node.op_type](arguments, attributes)


def _dequantized(arguments, attributes) -> tuple[np.ndarray, np.ndarray]:
    numbers, scale = arguments[0].astype(np.int64), arguments[1].astype(np.float64)
    zero = arguments[2].astype(np.int64) if len(arguments) > 2 else np.int64(0)
    if scale.ndim:
        shape = [1] * numbers.ndim
        shape[attributes.get("axis", 1)] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape) if zero.ndim else zero
    return numbers - zero, scale


def _quantized(x, scale, zero) -> np.ndarray:
    low, high = np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max
    return np.clip(np.rint(x / np.float64(scale)) + zero, low, high).astype(zero.dtype)


def _convolved(x, w, attributes) -> np.ndarray:
    top, left, bottom, right = attributes.get("pads", [0] * 4)
    assert attributes.get("group", 1) == 1
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    strides, (down, right) = attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1])
    reach = [(n - 1) * step + 1 for n, step in zip(w.shape[2:], (down, right), strict=True)]
    windows = sliding_window_view(padded, reach, axis=(2, 3))  # [N, C, P, Q, h, w]
    windows = windows[:, :, :: strides[0], :: strides[1], ::down, ::right]
    columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(*_positions(windows), -1)
    # Exact in float64, whose products of matrices are fast: every sum is far below 2^53.
    sums = columns.astype(np.float64) @ w.reshape(len(w), -1).T.astype(np.float64)
    return sums.astype(np.int64).transpose(0, 3, 1, 2)


def _positions(windows) -> tuple[int, int, int]:
    return windows.shape[0], windows.shape[2], windows.shape[3]


def _multiplied(x, w, attributes) -> np.ndarray:
    matrix = w.T if attributes.get("transB") else w
    return (x.astype(np.float64) @ matrix.astype(np.float64)).astype(np.int64)


def _pooled(arguments, attributes) -> np.ndarray:
    [x], (rows, columns) = arguments, attributes["kernel_shape"]
    assert attributes["strides"] == [rows, columns]
    height, width = x.shape[2] // rows * rows, x.shape[3] // columns * columns
    blocks = x[:, :, :height, :width].reshape(
        *x.shape[:2], height // rows, rows, width // columns, columns
    )
    return blocks.max((3, 5))


def _padded(arguments, attributes) -> np.ndarray:
    x, pads, value = arguments
    before_after = pads.reshape(2, -1).T
    return np.pad(x, before_after, constant_values=value)


def _reshaped(arguments, attributes) -> np.ndarray:
    x, shape = arguments
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(shape)])


OTHERS = {
    "MaxPool": _pooled,
    "Pad": _padded,
    "Reshape": _reshaped,
    "Flatten": lambda arguments, _: arguments[0].reshape(len(arguments[0]), -1),
    "Transpose": lambda arguments, attributes: arguments[0].transpose(attributes["perm"]),
    "Gather": lambda arguments, attributes: np.take(*arguments, axis=attributes.get("axis", 0)),
    "Relu": lambda arguments, _: np.maximum(arguments[0], 0),
}
