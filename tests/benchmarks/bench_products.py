"""What matrix products in place of convolutions gain, in one process: artifact/im2col.py.

    env/run python -m tests.benchmarks.bench_products SWEEP [--repeats 100] [--seconds 10]

Every finished cell of a sweep is written twice from its checkpoint, as artifacts are and with its
convolutions as they were, and both take turns, round after round; batch 1 and 64, one thread and
all. Prints medians in ms and the ratio.
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
from pipeline.orchestrate.plan import load_sweep
from pipeline.paths import Work
from pipeline.training.checkpoint import read_model
from tests.benchmarks.bench_latency import images_of, session_of


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10.0, help="a series, at most")
    arguments = parser.parse_args()
    sweep, work = load_sweep(arguments.sweep), Work(paths.work_root())
    print(f"{'':32}{'threads':>8}{'batch':>6}{'without':>10}{'with':>10}{'gain':>7}{'rounds':>8}")
    for cell in sweep.cells:
        if work.cell(cell.id).manifest.exists():
            with tempfile.TemporaryDirectory() as folder:
                _race(cell, read_model(work.cell(cell.id).model), Path(folder), arguments)
    return 0


def _race(cell, state, folder: Path, arguments) -> None:
    least, written = im2col.LEAST, {}
    for name, weights in (("with", least), ("without", float("inf"))):
        im2col.LEAST = weights
        artifact.write(state, folder / name, {}, images_of(state.spec.shape, 64), ("class",) * 10)
        written[name] = artifact.load(folder / name)
    im2col.LEAST = least
    for threads in sorted({1, hardware.cores()}):
        for batch in (1, 64):
            images = images_of(state.spec.shape, batch)
            contenders = {n: session_of(a, threads, images) for n, a in written.items()}
            timed = latency.interleaved(contenders, arguments.repeats, arguments.seconds)
            ms = {name: float(np.median(samples)) for name, samples in timed.items()}
            name = f"{cell.dataset.name} {cell.technique}"
            print(
                f"{name:32}{threads:8}{batch:6}{ms['without']:10.3f}{ms['with']:10.3f}"
                f"{ms['without'] / ms['with']:7.2f}{len(timed['with']):8}"
            )


if __name__ == "__main__":
    sys.exit(main())
