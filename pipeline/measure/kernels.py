"""Which kernels ONNX Runtime really ran, read from its own profile of a run.

A graph may hold integers and still be computed in floats; the profile shows what was executed.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.artifact import INPUT, OUTPUT, Artifact

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


class Kernels(NamedTuple):
    """Convolutions and matrix products of one run: how many on integers, and their part of all
    multiply-accumulates (0..1)."""

    integer: int
    total: int
    integer_share: float


def executed(artifact: Artifact) -> Kernels:
    """Runs one image with the runtime's profiler on."""
    with tempfile.TemporaryDirectory() as folder:
        session = artifact.session(threads=1, profile=Path(folder) / "profile")
        session.run([OUTPUT], {INPUT: np.zeros((1, *artifact.shape), np.uint8)})
        events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [e["args"] for e in events if e.get("cat") == "Node" and "op_name" in e["args"]]
    products = [k for k in kernels if k["op_name"] in PRODUCTS and k.get("output_type_shape")]
    macs = {True: 0, False: 0}
    for kernel in products:
        macs[PRODUCTS[kernel["op_name"]][1]] += _macs(kernel)
    integer = sum(PRODUCTS[k["op_name"]][1] for k in products)
    return Kernels(integer, len(products), macs[True] / max(1, sum(macs.values())))


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
