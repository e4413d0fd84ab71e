"""How fast networks answer on a GPU, and what an image costs, in bf16, fp16 and fp32.

    env/run python -m tests.benchmarks.bench_gpu [CELL ...] [--seconds 75]

CELL: a cell's folder in a work root, its base first; without any, networks with random weights:
vgg16_bn at full and at half width, and resnet18. They take turns in one process, on the runtime
pytorch-cuda (compiled, channels last, one CUDA graph). `p50` and `p90` are of single calls, host to
host, copies included; `device` is the graph alone; `images/s` and `J/image` are of calls host to
host, back to back (`device images/s`: of graphs back to back). Energy is the card's, as its driver
counts it. What does not begin within --seconds is left out, with a line; compilation takes most of
them, so it is begun in processes of its own, which leave what they made in PyTorch's cache.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from pipeline import hardware, nvml
from pipeline.measure import complexity, energy, inference, latency
from pipeline.models import module_of, network
from pipeline.models.network import ModelState
from pipeline.paths import CellPaths
from pipeline.runtimes.pytorch_cuda import Cuda, Loaded
from pipeline.training.checkpoint import read_model

MADE = {
    "vgg16_bn": ("vgg16_bn", 1.0),
    "vgg16_bn, half width": ("vgg16_bn", 0.5),
    "resnet18": ("resnet18", 1.0),
}
HEAD = ("p50 ms", "p90 ms", "device ms", "images/s", "device images/s", "speedup", "J/image")
BEGAN = time.monotonic()


def main() -> int:
    options = _parser().parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU that CUDA can use; --device cpu tries what this does without one")
        return 1
    if options.prepare:
        _prepare(options)
        return 0
    workers = [] if options.eager or options.device == "cpu" else _workers(options)
    print(_machine(options.device), flush=True)
    states = _states(options)
    for name, state in states.items():
        parameters, macs = complexity.count(state.spec)
        print(f"{name}: {parameters / 1e6:.2f} M parameters, {macs / 1e6:.1f} M MACs")
    for worker in workers:
        worker.wait()
    print(f"compiled after {_elapsed():.0f} s" if workers else "nothing was compiled before")
    for precision in options.precisions:
        _precision(precision, states, options)
    print(f"{_elapsed():.0f} s in all")
    return 0


def _precision(precision: str, states: dict[str, ModelState], options: argparse.Namespace) -> None:
    print("\n" + f"{precision:11}{'network':24}" + "".join(f"{head:>17}" for head in HEAD))
    runtime = _runtime(precision, options)
    loaded = {name: runtime.load(state, 1) for name, state in states.items()}
    for batch in options.batches:
        if _elapsed() > options.seconds:
            print(f"batch {batch}: left out, {options.seconds} s are over")
            continue
        for line in _race(loaded, batch, options):
            print(line, flush=True)
    for name, one in loaded.items():
        if one.note and runtime.backend:
            print(f"{name}: not compiled ({one.not_compiled})")


def _race(loaded: dict[str, Loaded], batch: int, options: argparse.Namespace) -> Iterator[str]:
    images = inference.any_images(next(iter(loaded.values())).shape, batch)
    runs = {name: inference.run_of(one, images) for name, one in loaded.items()}
    timed = latency.interleaved(runs, options.repeats, options.window)
    meter = energy.of_gpu() if options.device == "cuda" else energy.of_cpu()
    base = None
    for name, run in runs.items():
        p50, p90 = np.percentile(timed[name], (50, 90))
        base = base or p50
        device_s = _device_s(loaded[name], batch, options.window)
        steady = energy.steady(run, batch, options.window, meter)
        joules = steady.joules_per_image
        numbers = (
            f"{p50:.3f}",
            f"{p90:.3f}",
            f"{device_s * 1e3:.3f}",
            f"{steady.images_per_s:,.0f}",
            f"{batch / device_s:,.0f}",
            f"{base / p50:.2f}",
            "unknown" if joules is None else f"{joules:.6f}",
        )
        yield f"batch {batch:<5}{name:24}" + "".join(f"{number:>17}" for number in numbers)


def _device_s(loaded: Loaded, batch: int, seconds: float) -> float:
    """Of one graph, of many back to back."""
    call = loaded.calls.of(batch)
    runs, began = 0, time.perf_counter()
    while runs == 0 or time.perf_counter() - began < seconds / 4:
        for _ in range(10):
            call.compute()
        call.wait()
        runs += 10
    return (time.perf_counter() - began) / runs


def _runtime(precision: str, options: argparse.Namespace) -> Cuda:
    backend = None if options.eager or options.device == "cpu" else "inductor"
    return Cuda(precision, backend, options.device)


# --- networks --------------------------------------------------------------------------------


def _states(options: argparse.Namespace) -> dict[str, ModelState]:
    if options.cells:
        folders = {folder.name: CellPaths(folder) for folder in options.cells}
        return {name: read_model(paths.model) for name, paths in folders.items()}
    return {name: _made(*shape, options.width) for name, shape in MADE.items()}


def _made(model: str, width: float, narrower: float) -> ModelState:
    spec = module_of(model).spec(model, width * narrower, (3, 32, 32), 10, 128, 1 / 74)
    return network.new(spec, 0)


# --- compilation, beforehand -------------------------------------------------------------------


def _workers(options: argparse.Namespace) -> list[subprocess.Popen]:
    """One for each network and precision, which compiles by itself."""
    env = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    count = len(options.cells or MADE)
    command = [sys.executable, "-m", "tests.benchmarks.bench_gpu", *sys.argv[1:]]
    jobs = [f"{precision}/{i}" for precision in options.precisions for i in range(count)]
    return [subprocess.Popen([*command, "--prepare", job], env=env) for job in jobs]


def _prepare(options: argparse.Namespace) -> None:
    precision, _, number = options.prepare.partition("/")
    torch.set_num_threads(1)
    state = list(_states(options).values())[int(number)]
    loaded = _runtime(precision, options).load(state, 1)
    for batch in options.batches:
        loaded.calls.of(batch)


# --- words -----------------------------------------------------------------------------------


def _machine(device: str) -> str:
    here = hardware.describe()
    card = f"{here['gpu']}, driver {nvml.driver()}" if device == "cuda" else "no GPU"
    return f"{card}; {here['cpu']}, {here['cores']} cores; torch {torch.__version__}"


def _elapsed() -> float:
    return time.monotonic() - BEGAN


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cells", nargs="*", type=Path)
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp16", "fp32"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64, 1024])
    parser.add_argument("--seconds", type=float, default=75.0, help="nothing begins after these")
    parser.add_argument("--window", type=float, default=0.6, help="seconds of each measurement")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--width", type=float, default=1.0, help="of all made networks, for tests")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--eager", action="store_true", help="no compilation, only graphs")
    parser.add_argument("--prepare", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
