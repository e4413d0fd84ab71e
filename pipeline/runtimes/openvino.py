"""OpenVINO's CPU plugin on the bytes of the same ONNX file.

Nothing is sent anywhere: its package imports a telemetry package, and goes on without one where
that cannot be imported, so this module hides it.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.runtimes.contract import Kernels, Shape, share, why_not_importable

if TYPE_CHECKING:
    import openvino

LABEL, PACKAGE, READS_ARTIFACTS = "OpenVINO", "openvino", True

# Layers of a compiled model that multiply an input (first) by weights (second).
PRODUCTS = {"Convolution", "GroupConvolution", "Deconvolution", "FullyConnected", "MatMul", "Gemm"}
INTEGERS = {"i8", "u8", "i4", "u4"}


def available() -> str | None:
    _hide_telemetry()
    return why_not_importable(PACKAGE)


def _hide_telemetry() -> None:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if missing


@dataclass(frozen=True)
class Loaded:
    model: openvino.CompiledModel
    request: openvino.InferRequest

    def run(self, images: np.ndarray) -> np.ndarray:
        [logits] = self.request.infer([np.ascontiguousarray(images)], share_inputs=True).values()
        return logits


def load(model: bytes, threads: int) -> Loaded:
    compiled = _compiled(model, threads, None)
    return Loaded(compiled, compiled.create_infer_request())


def kernels(model: bytes, shape: Shape) -> Kernels:
    """What the plugin compiled for one image says of itself."""
    layers = _compiled(model, 1, [1, *shape]).get_runtime_model().get_ops()
    products = [layer for layer in layers if _fact(layer, "layerType") in PRODUCTS]
    return share([(_fact(p, "runtimePrecision") in INTEGERS, _macs(p)) for p in products])


def _compiled(model: bytes, threads: int, shape: list[int] | None) -> openvino.CompiledModel:
    """`shape` None: any number of images."""
    _hide_telemetry()
    import openvino

    core = openvino.Core()
    read = core.read_model(model)
    if shape is not None:
        read.reshape(shape)
    return core.compile_model(read, "CPU", _settings(threads))


def _settings(threads: int) -> dict:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_HYPER_THREADING": True,  # as many threads as the other runtimes have
        "ENABLE_CPU_PINNING": False,  # the other runtimes' threads are not pinned either
        "INFERENCE_PRECISION_HINT": "f32",  # by default float models are run in bfloat16 on AMX
    }


def _fact(layer: openvino.Node, name: str) -> str:
    facts = layer.get_rt_info()
    return facts[name].astype(str) if name in facts else ""


def _macs(product: openvino.Node) -> int:
    """Of one image: positions of the output times the weights ([K, ...], K channels)."""
    output = list(product.output(0).shape)
    weight = list(product.input(1).get_source_output().shape)
    channel = 1 if len(weight) >= 4 else -1
    return math.prod(output) // output[channel] * math.prod(weight)
