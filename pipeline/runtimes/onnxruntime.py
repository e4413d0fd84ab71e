"""ONNX Runtime on the CPU: what artifacts are made for, and what a report's columns show.

Which kernels ran is read from its own profile of a run: a graph may hold integers and still be
computed in floats.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.artifact.format import INPUT, OUTPUT
from pipeline.runtimes.contract import Kernels, Shape, share, why_not_importable

if TYPE_CHECKING:
    import onnxruntime

LABEL, PACKAGE, READS_ARTIFACTS = "ONNX Runtime", "onnxruntime", True
PROVIDER = "CPUExecutionProvider"
NOTHING = 4  # of its log: its errors are raised as well

# Executed operator -> (position of the weight among its inputs, whether it computes on integers).
PRODUCTS = {
    "QLinearConv": (3, True),
    "QGemm": (3, True),
    "QLinearMatMul": (3, True),
    "ConvInteger": (1, True),
    "MatMulInteger": (1, True),
    "Conv": (1, False),
    "FusedConv": (1, False),
    "Gemm": (1, False),
    "FusedGemm": (1, False),
    "MatMul": (1, False),
    "FusedMatMul": (1, False),
}


def available() -> str | None:
    return why_not_importable(PACKAGE)


@dataclass(frozen=True)
class Loaded:
    session: onnxruntime.InferenceSession

    def run(self, images: np.ndarray) -> np.ndarray:
        return self.session.run([OUTPUT], {INPUT: images})[0]


def load(model: bytes, threads: int, providers: Sequence[Any] = (PROVIDER,)) -> Loaded:
    return Loaded(_session(model, _options(threads), providers))


def kernels(model: bytes, shape: Shape, providers: Sequence[Any] = (PROVIDER,)) -> Kernels:
    """Runs one image with the profiler on. Raises RuntimeError where a product ran on another than
    the first provider: its time would not be that of the device."""
    with tempfile.TemporaryDirectory() as folder:
        options = _options(threads=1)
        # Weights that a kernel has packed for itself would be missing in the profile.
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = _session(model, options, providers)
        session.run([OUTPUT], {INPUT: np.zeros((1, *shape), np.uint8)})
        events = json.loads(Path(session.end_profiling()).read_text())
    ran = [e["args"] for e in events if e.get("cat") == "Node" and "op_name" in e["args"]]
    products = [k for k in ran if k["op_name"] in PRODUCTS and k.get("output_type_shape")]
    elsewhere = [k for k in products if k.get("provider") != name_of(providers[0])]
    if elsewhere:
        raise RuntimeError(
            f"{len(elsewhere)} of its {len(products)} products run on {elsewhere[0]['provider']}"
        )
    return share([(PRODUCTS[k["op_name"]][1], _macs(k)) for k in products])


def name_of(provider: Any) -> str:
    """Of a provider, or of one with its settings."""
    return provider if isinstance(provider, str) else provider[0]


def _options(threads: int) -> onnxruntime.SessionOptions:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin after a run would take the core from the model that is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = NOTHING
    return options


def _session(
    model: bytes, options: onnxruntime.SessionOptions, providers: Sequence[Any]
) -> onnxruntime.InferenceSession:
    import onnxruntime

    return onnxruntime.InferenceSession(model, options, providers=list(providers))


def _macs(kernel: dict) -> int:
    """Of one convolution (weight [K, C, h, w]) or matrix product ([M, taps] times the weight, K
    columns) on one image: positions of the output times the weights. The runtime moves channels to
    where it likes them, so positions are what is left of the output without its K channels."""
    weight = _shape(kernel["input_type_shape"][PRODUCTS[kernel["op_name"]][0]])
    output = _shape(kernel["output_type_shape"][0])
    filters = weight[0] if len(weight) == 4 else output[-1]
    return math.prod(output) // filters * math.prod(weight)


def _shape(entry: dict) -> list[int]:
    return next(iter(entry.values()))
