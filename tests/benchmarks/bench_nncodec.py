"""Bytes of integer weights alone, by npk and by NNCodec (ISO/IEC 15938-17, DeepCABAC).

    python3 -m venv V && V/bin/pip install pybind11 "numpy<2" setuptools wheel
    V/bin/pip install --no-deps --no-build-isolation nncodec==2.1.3
    env/run python -m tests.benchmarks.bench_nncodec V/bin/python [ARTIFACT ...]

NNCodec needs a C++ compiler and older libraries, so it has an environment of its own. Here npk has
the same integer tensors and their names in its file, checksums included; NNCodec's figure is its
payload alone. Without artifacts: the synthetic tensors of bench_encoding.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from pipeline import artifact
from pipeline.artifact.coded import CODECS
from tests.benchmarks.bench_encoding import order_0, synthetic
from tests.benchmarks.fuzz_npk import onnx_bytes

SCRIPT = Path(__file__).with_name("nncodec_bytes.py")


def main() -> None:
    python, *given = sys.argv[1:]
    models = [(Path(name).name, artifact.load(Path(name)).model) for name in given]
    print("| weights of | number | order 0 | NNCodec | npk | npk against NNCodec |")
    print("|---|---|---|---|---|---|")
    for name, model in models or synthetic():
        print(_row(python, name, _weights(model)), flush=True)


def _weights(model: bytes) -> dict[str, np.ndarray]:
    """Name -> integers, with their shape; the few that are no weights (zero points) left out."""
    graph = onnx.load_from_string(model).graph
    arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    return {name: a for name, a in arrays.items() if a.dtype == np.int8 and a.ndim > 1}


def _row(python: str, name: str, weights: dict[str, np.ndarray]) -> str:
    alone = onnx_bytes(**weights)
    ours = len(CODECS["npk"].encode(alone))
    number = sum(values.size for values in weights.values())
    entropy = round(order_0(alone)) - (len(alone) - number)
    theirs = _nncodec(python, weights)
    change = f"{100 * ours / theirs - 100:+.1f} %"
    cells = [name, *(f"{size:,}" for size in (number, entropy, theirs, ours)), change]
    return "| " + " | ".join(cells) + " |"


def _nncodec(python: str, weights: dict[str, np.ndarray]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "weights.npz")
        np.savez(path, **{f"w{i}": values for i, values in enumerate(weights.values())})
        ended = subprocess.run(
            [python, "-I", SCRIPT, path], check=True, stdout=subprocess.PIPE, text=True
        )
    return int(ended.stdout)


if __name__ == "__main__":
    main()
