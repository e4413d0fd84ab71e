"""How much faster the finished cells of a sweep answer than their base, in one process.

    env/run python tests/benchmarks/bench_latency.py SWEEP [--repeats 100] [--seconds 20]

For each data set and model: the base's artifact, the base in PyTorch eager (float32), and every
technique's artifact take turns, round after round; batch 1 and 64, one thread and all. Prints
medians in ms and the ratios. The results themselves hold such figures too, one base at a time; this
measures them again, all beside each other.
"""

from __future__ import annotations

import argparse
import sys
from itertools import groupby

import numpy as np
import torch

from pipeline import artifact, hardware, paths, runtimes
from pipeline.measure import latency
from pipeline.orchestrate.plan import load_sweep
from pipeline.paths import Work
from pipeline.training.checkpoint import read_model

EAGER = "base in PyTorch eager"


def main() -> int:
    arguments = _parser().parse_args()
    sweep, work = load_sweep(arguments.sweep), Work(paths.work_root())
    flags = " ".join(hardware.cpu_flags())
    print(f"{hardware.describe()['cpu']}, {hardware.cores()} cores, {flags}")
    done = [c for c in sweep.cells if work.cell(c.id).manifest.exists()]
    for base_id, cells in groupby(sorted(done, key=lambda c: (c.base_id, c.technique)), _base):
        _race(work, base_id, list(cells), arguments)
    return 0


def _base(cell) -> str:
    return cell.base_id


def _race(work, base_id, cells, arguments) -> None:
    base = work.cell(base_id)
    network = read_model(base.model).network.eval()
    artifacts = {c.technique: artifact.load(work.cell(c.id).artifact) for c in cells}
    print(f"\n{cells[0].dataset.name}, {cells[0].model.label}, seed {cells[0].seed}")
    print(f"{'':24}{'threads':>8}{'batch':>6}{'ms':>10}{'x base':>9}{'x PyTorch':>11}{'rounds':>8}")
    for threads in sorted({1, hardware.cores()}):
        torch.set_num_threads(threads)
        for batch in (1, 64):
            images = images_of(artifacts["base"].shape, batch)
            contenders = {n: session_of(a, threads, images) for n, a in artifacts.items()}
            contenders[EAGER] = _eager(network, torch.from_numpy(images))
            with torch.inference_mode():
                timed = latency.interleaved(
                    contenders, arguments.repeats, arguments.seconds, [EAGER]
                )
            _print(timed, threads, batch)


def _print(timed, threads, batch) -> None:
    ms = {name: float(np.median(samples)) for name, samples in timed.items()}
    for name, own in ms.items():
        ratios = ms["base"] / own, ms[EAGER] / own
        print(
            f"{name:24}{threads:8}{batch:6}{own:10.3f}{ratios[0]:9.2f}{ratios[1]:11.2f}"
            f"{len(timed[name]):8}"
        )


def session_of(loaded, threads: int, images: np.ndarray):
    session = runtimes.session(loaded, threads)
    return lambda: session.run(images)


def _eager(network, images: torch.Tensor):
    return lambda: network(images)


def images_of(shape, batch: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (batch, *shape), np.uint8)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20.0, help="a series, at most")
    return parser


if __name__ == "__main__":
    sys.exit(main())
