"""Measures the models in this folder on this machine, with ONNX Runtime and NumPy alone.

    python bench.py [--out FILE] [--name NAME] [--seconds S]

Each model is timed in turns with its base, in one process: batches of 1 and of 64 images, one
thread and all of them. The results are in one file, which `netpress measure SWEEP --add FILE` takes
into the report of the sweep that the models are of: measured.json or FILE, which must not exist
yet, so that another run in the same folder needs --out. The file is written after each model; one
that cannot run here is left out, and the exit status is then 1. Needs Python 3.9 or later and
`pip install onnxruntime numpy`; nothing is sent anywhere.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
FORMAT = 1
THREADS, BATCHES = ("one", "all"), (1, 64)
WARM_UP, UNTIMED, UNTIMED_S, LEAST_ROUNDS, REST_S = 3, 5, 0.04, 10, 0.03
# As in netpress: the flags that decide which kernels run.
FLAGS = (
    "avx2",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)


def main() -> int:
    options = _options()
    if os.path.lexists(options.out):
        _tell(f"{options.out}: exists already; give another file with --out, or remove this one")
        return 2
    sys.path.insert(0, str(FOLDER))  # where an isolated interpreter does not look
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # some builds of ONNX Runtime send it
    request = json.loads((FOLDER / "bench.json").read_text(encoding="utf-8"))
    measured: list[dict[str, Any]] = []
    for number, cell in enumerate(request["cells"], 1):
        _tell(f"[{number}/{len(request['cells'])}] {cell['name']}")
        try:
            one = _cell(cell, request["repeats"], options.seconds or request["seconds"])
        except Exception as error:  # a runtime has errors of its own; the others may run
            _tell(f"  not measured: {(str(error).splitlines() or [type(error).__name__])[0]}")
        else:
            measured.append(one)
            _write(options, measured)
    if measured:
        print(options.out)
    return int(len(measured) < len(request["cells"]))


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _write(options: argparse.Namespace, measured: list[dict[str, Any]]) -> None:
    now = datetime.datetime.now(datetime.timezone.utc)
    record = {
        "format": FORMAT,
        "measured_at": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": _machine(options.name),
        "versions": _versions(),
        "cells": measured,
    }
    unfinished = options.out.with_name(f".{options.out.name}.tmp")
    unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(options.out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path("measured.json"), help="new [measured.json]"
    )
    parser.add_argument("--name", help="what to call this machine in the report [after its CPU]")
    parser.add_argument("--seconds", type=float, help="at most so many for each comparison")
    return parser.parse_args()


def _cell(cell: dict[str, Any], repeats: int, seconds: float) -> dict[str, Any]:
    """Milliseconds of each call, by model, threads and batch."""
    import numpy

    models = {"artifact": _model(cell["model"])}
    if cell["base"] != cell["model"]:
        models["base"] = _model(cell["base"])
    latency = {}
    for threads in THREADS:
        number = 1 if threads == "one" else _cores()
        sessions = {name: _session(model, number) for name, model in models.items()}
        for batch in BATCHES:
            shape = (batch, *cell["shape"])
            images = numpy.random.default_rng(0).integers(0, 256, shape, numpy.uint8)
            runs = {name: _run(session, images) for name, session in sessions.items()}
            for name, ms in _interleaved(runs, repeats, seconds).items():
                latency[f"{name}/{threads}/batch{batch}"] = ms
    return {
        "id": cell["id"],
        "model_sha256": cell["model"],
        "base_sha256": cell["base"],
        "latency_ms": latency,
    }


def _model(digest: str) -> bytes:
    """The model of this SHA-256, checked."""
    data = (FOLDER / "models" / f"{digest}.onnx").read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"models/{digest}.onnx: is damaged, copy this folder again")
    return data


def _session(model: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Threads that spin after a run would take the core from the model that is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _run(session: Any, images: Any) -> Callable[[], object]:
    [given], [gives] = session.get_inputs(), session.get_outputs()
    return lambda: session.run([gives.name], {given.name: images})


def _interleaved(
    runs: dict[str, Callable[[], object]], repeats: int, seconds: float
) -> dict[str, list[float]]:
    """As netpress does it: in turns, after runs that are not timed, with a pause before a round."""
    for run in runs.values():
        for _ in range(WARM_UP):
            run()
    samples: dict[str, list[float]] = {name: [] for name in runs}
    order, began = list(runs), time.perf_counter()
    for rounds in range(repeats):
        if rounds >= LEAST_ROUNDS and time.perf_counter() - began > seconds:
            break
        time.sleep(REST_S)
        for name in order:
            _warm(runs[name])
            start = time.perf_counter_ns()
            runs[name]()
            samples[name].append((time.perf_counter_ns() - start) / 1e6)
        order = order[1:] + order[:1]
    return samples


def _warm(run: Callable[[], object]) -> None:
    began = time.perf_counter()
    for _ in range(UNTIMED):
        run()
        if time.perf_counter() - began > UNTIMED_S:
            return


def _machine(name: str | None) -> dict[str, Any]:
    info = _cpuinfo()
    present = set((info.get("flags") or info.get("Features") or "").split())
    return {
        "name": re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:64].strip("-._") or None if name else None,
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in FLAGS if flag in present],
        "cores": _cores(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
    }


def _cpuinfo() -> dict[str, str]:
    """The first processor's entry; empty where there is no /proc."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    lines = path.read_text().split("\n\n")[0].splitlines()
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _cores() -> int:
    """As netpress counts them: what a quota stops in a run would be measured as its latency."""
    import quota  # type: ignore[import-not-found]  # beside this file

    cores: int = quota.usable()
    return cores


def _versions() -> dict[str, str]:
    import numpy
    import onnxruntime

    return {
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


if __name__ == "__main__":
    sys.exit(main())
