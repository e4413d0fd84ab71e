"""The quantized export: ONNX Runtime's own quantizer around the float network.

QDQ, weights int8 a scale a filter, activations uint8, and the scales that training ended with.
Since normalization is one zero point and one scale, the image itself is the first quantized tensor.
Large convolutions over small maps become matrix products; see ``im2col.py``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.artifact.float import exported, strip_metadata
from pipeline.artifact.format import INPUT, OUTPUT

if TYPE_CHECKING:
    import onnx

    from pipeline.models.network import ModelState

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
]
# These hand on the numbers that they get, so what leaves them has the scale of what entered.
PASSING = {"MaxPool", "Reshape", "Flatten", "Squeeze", "Identity"}


def int8_model(state: ModelState, calibration: np.ndarray) -> onnx.ModelProto:
    """The integer model of a fake-quantized network; `calibration` as in `write`."""
    import onnx
    from onnxruntime import quantization as ort

    from pipeline.artifact import im2col

    plain = exported(_without_simulation(state))
    # The exporter has folded constants and inferred shapes already, which is what ONNX Runtime's
    # pre-processing would do; this is its own sign that it need not warn.
    plain.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    with tempfile.TemporaryDirectory() as folder:  # ONNX Runtime's quantizer wants files
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(plain, source)
        ort.quantize_static(
            source,
            target,
            _Reader(calibration),
            quant_format=ort.QuantFormat.QDQ,
            op_types_to_quantize=QUANTIZED,
            per_channel=True,
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
            reduce_range=state.spec.quantization.weight_bits == 7,
            extra_options={"TensorQuantOverrides": _overrides(plain, state)},
        )
        model = onnx.load(target)
    _feed_integers(model)
    _leave_as_floats(model)
    model = im2col.rewritten(model)
    strip_metadata(model)
    onnx.checker.check_model(model)
    return model


class _Reader:
    """Calibration images as ONNX Runtime's quantizer asks for them, one batch after the other."""

    def __init__(self, images: np.ndarray):
        self._batches = iter([{INPUT: images[i : i + 16]} for i in range(0, len(images), 16)])

    def get_next(self):
        return next(self._batches, None)


def _without_simulation(state: ModelState) -> ModelState:
    """The float network with the rounded weights of a fake-quantized one: rounded again at the same
    scale, as integers, they are the same, also where the simulation cut them off at its range."""
    import copy
    from dataclasses import replace

    from pipeline.models import fakequant
    from pipeline.models.network import restore

    spec = replace(state.spec, quantization=None)
    network = copy.deepcopy(state.network).cpu().eval()
    tensors = network.state_dict()
    for name, layer in fakequant.layers(network).items():
        tensors[f"{name}.weight"] = layer.quantized_weight()
    scales = {n for n in tensors if n.rsplit(".", 1)[1].startswith(("input_", "weight_scale"))}
    return restore(spec, {n: t for n, t in tensors.items() if n not in scales})


def _overrides(model: onnx.ModelProto, state: ModelState) -> dict[str, list[dict]]:
    """What training decided, in the words of ONNX Runtime: for each weight its filters' scales, for
    each layer's input one scale and zero point, handed back through what only passes numbers on."""
    from onnxruntime.quantization import QuantType

    from pipeline.models import fakequant

    makers = {name: node for node in model.graph.node for name in node.output}
    overrides: dict[str, list[dict]] = {}
    for name, layer in fakequant.layers(state.network).items():
        node = next(n for n in model.graph.node if f"{name}.weight" in n.input)
        scales = layer.weight_scale.detach().cpu().numpy()
        assert (scales > 0).all(), f"{name}: a weight scale is not positive"
        overrides[f"{name}.weight"] = [
            {"quant_type": QuantType.QInt8, "axis": 0, "scale": _f32(s), "zero_point": _i8(0)}
            for s in scales
        ]
        tensor = node.input[0]
        while True:
            overrides[tensor] = [
                {
                    "quant_type": QuantType.QUInt8,
                    "scale": _f32(layer.input_scale.item()),
                    "zero_point": _u8(layer.input_zero_point.item()),
                }
            ]
            if tensor not in makers or makers[tensor].op_type not in PASSING:
                break
            tensor = makers[tensor].input[0]
    return overrides


def _f32(value: float) -> np.ndarray:
    return np.array(value, dtype=np.float32)


def _i8(value: int) -> np.ndarray:
    return np.array(value, dtype=np.int8)


def _u8(value: int) -> np.ndarray:
    return np.array(value, dtype=np.uint8)


def _feed_integers(model: onnx.ModelProto) -> None:
    """Cuts the normalization out of a quantized graph: what it and the quantizer behind it computed
    is the image again, so the image goes straight to where the integers are read."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    for node in [n for n in graph.node if n.op_type == "QuantizeLinear"]:
        chain, tensor = [node], node.input[0]
        while tensor in makers and makers[tensor].op_type in ("Mul", "Sub", "Cast"):
            chain.append(makers[tensor])
            tensor = makers[tensor].input[0]
        if tensor != INPUT:
            continue
        for reader in graph.node:
            for i, name in enumerate(reader.input):
                if name == node.output[0]:
                    reader.input[i] = INPUT
        for dead in chain:
            graph.node.remove(dead)
        _drop_unused(graph)
        return
    raise AssertionError("the quantized graph does not begin with a normalization")


def _leave_as_floats(model: onnx.ModelProto) -> None:
    """Takes the last rounding off the logits: an integer product can give floats as it ends."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    last = makers[OUTPUT]
    if last.op_type != "DequantizeLinear":
        return
    rounding = makers[last.input[0]]
    product = makers[rounding.input[0]]
    product.output[0] = OUTPUT
    graph.node.remove(last)
    graph.node.remove(rounding)
    _drop_unused(graph)


def _drop_unused(graph) -> None:
    used = {name for node in graph.node for name in node.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
    made = {name for node in graph.node for name in node.output}
    for value in [v for v in graph.value_info if v.name not in made]:
        graph.value_info.remove(value)
