"""The quantized export: ONNX Runtime's own quantizer around the float network.

QDQ, weights int8 a scale a filter, activations uint8, and the scales that training ended with.
Since normalization is one zero point and one scale, the image itself is the first quantized tensor.
Large convolutions over small maps become matrix products; see ``im2col.py``.
"""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from pipeline.artifact.float import exported, strip_metadata
from pipeline.artifact.format import INPUT
from pipeline.artifact.values import dequantizer, take_place

if TYPE_CHECKING:
    import onnx

    from pipeline.models.network import ModelState
    from pipeline.models.transforms import Integers

QUANTIZED = [
    "Conv",
    "Gemm",
    "MatMul",
    "MaxPool",
    "Relu",
    "Reshape",
    "Flatten",
    "Add",
    "GlobalAveragePool",
    "AveragePool",
    "ReduceMean",
    "Clip",
    "Concat",
]
# These hand on the numbers that they get, so what leaves them has the scale of what entered.
PASSING = {"MaxPool", "Reshape", "Flatten", "Squeeze", "Identity", "Slice", "Pad", "Concat"}
PREFIX = "module."  # of a model's names inside of `Network`


def int8_model(state: ModelState, integers: Integers, calibration: np.ndarray) -> onnx.ModelProto:
    """The model that computes in these integers; `calibration` as in `write`."""
    import onnx
    from onnxruntime import quantization as ort

    from pipeline.artifact import clipping, im2col
    from pipeline.models.network import graph_of, plain

    floats = exported(plain(state))
    parsed = ir.from_proto(floats)
    overrides, limits = _overrides(parsed, integers), clipping.limits(parsed.graph)
    strip_metadata(floats)
    # The exporter has folded constants and inferred shapes already, which is what ONNX Runtime's
    # pre-processing would do; this is its own sign that it need not warn.
    floats.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    with tempfile.TemporaryDirectory() as folder:  # ONNX Runtime's quantizer wants files
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(floats, source)
        ort.quantize_static(
            source,
            target,
            _Reader(calibration),
            quant_format=ort.QuantFormat.QDQ,
            op_types_to_quantize=QUANTIZED,
            per_channel=True,
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
            extra_options={"TensorQuantOverrides": overrides},
        )
        whole = ir.load(target)
    if graph_of(state.spec).image:  # else the network computes with the image before it rounds it
        _feed_integers(whole.graph)
    _leave_as_floats(whole.graph)
    clipping.restore(whole.graph, limits)
    passes.RemoveUnusedNodesPass()(whole)
    model = im2col.rewritten(ir.to_proto(whole))
    strip_metadata(model)
    onnx.checker.check_model(model)
    return model


class _Reader:
    """Calibration images as ONNX Runtime's quantizer asks for them, one batch after the other."""

    def __init__(self, images: np.ndarray):
        self._batches = iter([{INPUT: images[i : i + 16]} for i in range(0, len(images), 16)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


SCOPES = "pkg.torch.onnx.name_scopes"  # where the exporter says which module a node comes from


def _overrides(model: ir.Model, integers: Integers) -> dict[str, list[dict]]:
    """What training decided, in the words of ONNX Runtime: for each weight its filters' scales, for
    each quantization point the scale and zero point of the tensor that it reads, handed back
    through what only passes numbers on."""
    from onnxruntime.quantization import QuantType

    readers = _readers(model.graph, {name.partition(":")[0] for name in integers.inputs})
    overrides: dict[str, list[dict]] = {}
    # The exporter leaves out layers of which the logits do not depend, and computes those that read
    # no image once and for all.
    there = set(model.graph.initializers)
    for name, weight in integers.weights.items():
        if f"{PREFIX}{name}.weight" not in there:
            continue
        assert min(weight.scale) > 0, f"{name}: a weight scale is not positive"
        overrides[f"{PREFIX}{name}.weight"] = [
            {"quant_type": QuantType.QInt8, "axis": 0, "scale": _f32(s), "zero_point": _i8(0)}
            for s in weight.scale
        ]
    for name, point in integers.inputs.items():
        layer, _, operand = name.partition(":")
        if layer not in readers:
            continue
        decided = [
            {
                "quant_type": QuantType.QUInt8,
                "scale": _f32(point.scale[0]),
                "zero_point": _u8(point.zero_point),
            }
        ]
        for tensor in _handed(_input(readers[layer], int(operand or 0))):
            if overrides.setdefault(_named(tensor), decided) != decided:
                raise AssertionError(f"{name}: reads a tensor that another one rounds otherwise")
    for node in model.graph:
        parts = [overrides.get(_named(part)) for part in node.outputs]
        if node.op_type == "Split" and parts[0] and all(part == parts[0] for part in parts):
            for tensor in _handed(_input(node)):  # all are rounded alike, so the whole can be
                overrides.setdefault(_named(tensor), parts[0])
    return overrides


def _handed(tensor: ir.Value) -> Iterator[ir.Value]:
    """The tensor, and all whose numbers it has: through what only passes them on, and out of what
    puts them side by side."""
    yield tensor
    maker = tensor.producer()
    if maker is not None and maker.op_type in PASSING:
        sources = maker.inputs if maker.op_type == "Concat" else maker.inputs[:1]
        for source in sources:
            assert source is not None
            yield from _handed(source)


def _input(node: ir.Node, index: int = 0) -> ir.Value:
    """An input that the node's operator must have; those that it may have can be None."""
    value = node.inputs[index]
    assert value is not None
    return value


def _named(value: ir.Value) -> str:
    assert value.name is not None  # as in every graph that was read from a file
    return value.name


def _readers(graph: ir.Graph, names: set[str]) -> dict[str, ir.Node]:
    """Name of a module -> its node that reads what the module is given: the first one."""
    readers: dict[str, ir.Node] = {}
    for node in graph:
        for scope in ast.literal_eval(node.metadata_props.get(SCOPES, "[]")):
            name = scope.removeprefix(PREFIX)
            if name in names:
                readers.setdefault(name, node)
    return readers


def _f32(value: float) -> np.ndarray:
    return np.array(value, dtype=np.float32)


def _i8(value: int) -> np.ndarray:
    return np.array(value, dtype=np.int8)


def _u8(value: int) -> np.ndarray:
    return np.array(value, dtype=np.uint8)


def _feed_integers(graph: ir.Graph) -> None:
    """Cuts the normalization out of a quantized graph: what it and the quantizer behind it computed
    is the image again, so the image goes straight to where the integers are read."""
    for node in graph:
        if node.op_type != "QuantizeLinear":
            continue
        tensor = _input(node)
        while (maker := tensor.producer()) and maker.op_type in ("Mul", "Sub", "Cast"):
            tensor = _input(maker)
        if tensor is graph.inputs[0]:
            ir.convenience.replace_all_uses_with(node.outputs[0], tensor)
            return
    raise AssertionError("the quantized graph does not begin with a normalization")


def _leave_as_floats(graph: ir.Graph) -> None:
    """Takes the last rounding off the logits: an integer product can give floats as it ends."""
    logits = graph.outputs[0]
    last = dequantizer(logits)
    if last is None:
        return
    rounding = _input(last).producer()
    assert rounding is not None  # QuantizeLinear, which comes in pairs with the other
    take_place(_input(rounding), logits)
