"""What matrix products in place of convolutions gain, in one process: artifact/im2col.py.

    env/run python -m tests.benchmarks.bench_products SWEEP [--pixels 16 64 256] [--repeats 100]

Every finished cell of a sweep is written from its checkpoint with convolutions as they were, and
with products for those over maps of at most so many pixels; all take turns with the cell's base,
round after round; batch 1 and 64, one thread and all. Prints medians in ms, and how many times as
fast as the base each is.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from pipeline import artifact, hardware, paths
from pipeline.artifact import im2col
from pipeline.measure import latency
from pipeline.models.network import ModelState
from pipeline.orchestrate.plan import load_sweep
from pipeline.paths import Work
from pipeline.sweep import Cell
from pipeline.training.checkpoint import read_model
from tests.benchmarks.bench_latency import images_of, session_of


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep")
    parser.add_argument("--pixels", type=int, nargs="+", default=[im2col.LARGEST])
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10.0, help="a series, at most")
    arguments = parser.parse_args()
    sweep, work = load_sweep(arguments.sweep), Work(paths.work_root())
    print("cell | threads | batch | rounds | base | convolutions | products of at most N pixels")
    for cell in sweep.cells:
        if not cell.is_base and work.cell(cell.id).manifest.exists():
            with tempfile.TemporaryDirectory() as folder:
                _race(cell, work, Path(folder), arguments)
    return 0


def _race(cell: Cell, work: Work, folder: Path, arguments: argparse.Namespace) -> None:
    assert cell.base_id is not None
    base, state = (read_model(work.cell(each).model) for each in (cell.base_id, cell.id))
    written = {"base": _written(base, folder / "base", 0)}
    for pixels in (0, *arguments.pixels):
        written[str(pixels)] = _written(state, folder / str(pixels), pixels)
    for threads in sorted({1, hardware.cores()}):
        for batch in (1, 64):
            images = images_of(state.spec.shape, batch)
            contenders = {n: session_of(a, threads, images) for n, a in written.items()}
            timed = latency.interleaved(contenders, arguments.repeats, arguments.seconds)
            ms = {name: float(np.median(samples)) for name, samples in timed.items()}
            faster = [f"{n}: {ms[n]:.3f} ({ms['base'] / ms[n]:.2f})" for n in ms if n != "base"]
            name, rounds = f"{cell.dataset.name} {cell.technique}", len(timed["base"])
            print(name, threads, batch, rounds, f"{ms['base']:.3f}", *faster, sep=" | ", flush=True)


def _written(state: ModelState, folder: Path, pixels: int) -> artifact.Artifact:
    """``pixels``: of the largest maps whose convolutions become products."""
    largest, im2col.LARGEST = im2col.LARGEST, pixels
    try:
        artifact.write(state, folder, {}, images_of(state.spec.shape, 64), ("class",) * 10)
    finally:
        im2col.LARGEST = largest
    return artifact.load(folder)


if __name__ == "__main__":
    sys.exit(main())
