"""What coders make of weights: bytes, and MB of the model decoded in a second.

    env/run python -m tests.benchmarks.bench_encoding [ARTIFACT ...]

Without artifacts: a network that is trained on the digits and quantized after training on the spot.
Always: synthetic tensors, sparse and ternary. The order-0 entropy is that of each integer tensor
by itself, without saying how often which value occurs, and the other bytes as they are; no file
has it. Times are of one core, the best of three.
"""

from __future__ import annotations

import lzma
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import zstandard

from pipeline import artifact, hardware
from pipeline.artifact.coded import CODECS
from pipeline.artifact.npk.spans import INT8, UINT8, initializers
from tests.benchmarks.fuzz_npk import onnx_bytes


def main() -> None:
    given = [(Path(name).name, artifact.load(Path(name)).model) for name in sys.argv[1:]]
    print(f"{hardware.cpu_name()}\n")
    print("| model | raw | xz | zstd -19 | order 0 | npk | smaller than raw | than xz | MB/s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, model in [*(given or _trained()), *synthetic()]:
        print(_row(name, model), flush=True)


def _row(name: str, model: bytes) -> str:
    coded = CODECS["npk"].encode(model)
    decoded, seconds = _timed(lambda: CODECS["npk"].decode(coded, len(model)))
    assert decoded == model
    xz = len(lzma.compress(model, preset=9 | lzma.PRESET_EXTREME))
    zstd = len(zstandard.ZstdCompressor(19).compress(model))
    sizes = [len(model), xz, zstd, round(order_0(model)), len(coded)]
    smaller = [f"{100 - 100 * len(coded) / size:.1f} %" for size in (len(model), xz)]
    cells = [name, *(f"{size:,}" for size in sizes), *smaller, f"{len(model) / seconds / 1e6:.1f}"]
    return "| " + " | ".join(cells) + " |"


def order_0(model: bytes) -> float:
    """Bytes."""
    total, other = 0.0, len(model)
    for numbers in initializers(model):
        if numbers.kind in (INT8, UINT8):
            values = np.frombuffer(model, np.int8, numbers.count, numbers.start)
            counts = np.unique(values, return_counts=True)[1]
            total += float(counts @ np.log2(values.size / counts)) / 8
            other -= values.size
    return total + other


def _timed(function: Callable[[], bytes]) -> tuple[bytes, float]:
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        result = function()
        best = min(best, time.process_time() - start)
    return result, best


def synthetic() -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(0)
    shape = (256, 256, 3, 3)
    for kept in (0.1, 0.03):
        values = np.clip(np.rint(rng.normal(0, 25, shape)), -127, 127).astype(np.int8)
        used = rng.random(shape) < kept
        # Of some channels more is kept than of others, as magnitude pruning does.
        more = rng.random((1, 256, 1, 1)) < 0.5
        scattered = rng.random(shape) < np.where(more, 1.8, 0.2) * kept
        sparse = f"{100 - 100 * kept:.0f} % zeros"
        yield f"{sparse}, by chance", onnx_bytes(w=(values * used).astype(np.int8))
        yield f"{sparse}, by channel", onnx_bytes(w=(values * scattered).astype(np.int8))
    ternary = rng.choice(np.array([-5, 0, 5], np.int8), shape, p=[0.2, 0.6, 0.2])
    yield "ternary, 60 % zeros", onnx_bytes(w=ternary)


def _trained() -> list[tuple[str, bytes]]:
    from tests import cells

    with tempfile.TemporaryDirectory() as folder:
        bench = cells.Bench.trained(Path(folder))
        cell = bench.cells(["ptq-int8"])["ptq-int8"]
        cells.run(cell, bench.work)
        return [("digits ptq-int8", artifact.load(bench.work.cell(cell.id).artifact).model)]


if __name__ == "__main__":
    main()
