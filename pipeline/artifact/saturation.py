"""Whether the integer products of a model can overflow 16 bits, proved from its weights.

x86 CPUs without VNNI multiply unsigned activations by signed weights with ``vpmaddubsw``: two
neighbouring products are added into a signed 16-bit integer, and the sum saturates. Activations
are 0..255 whatever the image, so a bound on each pair of weights holds for all inputs; see
``models/transforms/pairs.py`` for which weights are neighbours and how networks keep the bound.

Weights are brought to [K, taps, C]: K filters, positions of the kernel, C input channels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

LARGEST = 2**15 - 1
ACTIVATION = 255
PRODUCTS = {"Conv", "Gemm", "MatMul"}


def largest_sum(model: onnx.ModelProto) -> int:
    """The largest magnitude that a sum of two neighbouring products can have, over all layers and
    all inputs; 0 where nothing is computed in 8 bits."""
    return max((ACTIVATION * _largest_pair(weight) for weight in _weights(model)), default=0)


def overflows(model: onnx.ModelProto) -> bool:
    return largest_sum(model) > LARGEST


def _weights(model: onnx.ModelProto) -> Iterator[np.ndarray]:
    """int64 [K, taps, C] of each product whose weights are int8."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        maker = makers.get(node.input[1]) if node.op_type in PRODUCTS else None
        if maker is None or maker.op_type != "DequantizeLinear":
            continue
        tensor = constants.get(maker.input[0])
        if tensor is not None and tensor.data_type == onnx.TensorProto.INT8:
            yield _by_filter(node, numpy_helper.to_array(tensor).astype(np.int64))


def _by_filter(node: onnx.NodeProto, weight: np.ndarray) -> np.ndarray:
    if node.op_type == "Conv":
        return weight.reshape(*weight.shape[:2], -1).transpose(0, 2, 1)
    attributes = {a.name: a.i for a in node.attribute}
    filters_first = node.op_type == "Gemm" and attributes.get("transB")
    return (weight if filters_first else weight.T)[:, None, :]


def _largest_pair(weight: np.ndarray) -> int:
    """Over both ways in which kernels walk: the channels of each tap by themselves, and all taps
    one after the other. They differ where the number of channels is odd."""
    flat = weight.reshape(len(weight), 1, -1)
    return max(_largest_neighbours(weight), _largest_neighbours(flat))


def _largest_neighbours(weight: np.ndarray) -> int:
    if weight.shape[2] % 2:
        weight = np.pad(weight, ((0, 0), (0, 0), (0, 1)))
    positive, negative = np.maximum(weight, 0), np.maximum(-weight, 0)
    sums = (part[..., 0::2] + part[..., 1::2] for part in (positive, negative))
    return max(int(each.max(initial=0)) for each in sums)
