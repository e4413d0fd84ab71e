"""What `report --json` prints: plain data, in which a missing number is null.

The keys are public (DESIGN.md); nothing else in the report reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline import runtimes
from pipeline.measure.series import BATCHES, Model, Series, Threads
from pipeline.report import gpu
from pipeline.report.frames import Frames
from pipeline.report.measured import CLASSIFIED_ON
from pipeline.report.metrics import (
    METRIC,
    OVER_REFERENCE,
    SIMULATED,
    SPEEDUP,
    joules_key,
    speedup_key,
)
from pipeline.report.row import PERCENTILES, Row

# Beside the keys that DESIGN.md promises; all of them are metrics of the one table.
EXTRA = (
    "base_accuracy",
    "agreement",
    "base_stored_bytes",
    "stored_ratio",
    "macs_ratio",
    "integer_share",
    "integer_kernels",
    "subnormals",
    "simulated_accuracy",
    "simulated_agreement",
    "base_test_set_seconds",
    "training_seconds",
    "seconds",
    "peak_memory_bytes",
)


def as_json(frames: Frames) -> dict[str, Any]:
    """{"rows", "machines", "gaps"}, null where nothing was measured."""
    rows = [row_json(row) for row in frames.rows]
    return {"rows": rows, "machines": machines(frames), "gaps": gaps(frames)}


def machines(frames: Frames) -> list[dict[str, Any]]:
    """Those that measured, that of most cells first, each as it was when it measured last."""
    newest: dict[str, Row] = {}
    for row in frames.every:
        best = newest.setdefault(row.machine, row)
        if str(row.facts.get("measured_at") or "") > str(best.facts.get("measured_at") or ""):
            newest[row.machine] = row
    return [machine(name, newest[name].facts) for name in frames.machines]


def machine(name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    described = facts.get("hardware") or {}
    flags = described.get("flags") or []
    return {
        "name": name,
        "cpu": described.get("cpu"),
        "flags": flags.split() if isinstance(flags, str) else flags,
        "gpu": described.get("gpu"),
        "runtimes": facts.get("runtimes") or [runtimes.DEFAULT, runtimes.REFERENCE],
        # From here on: not promised, but useful.
        "cores": described.get("cores"),
        "gpu_driver": described.get("gpu_driver"),
    }


def gaps(frames: Frames) -> list[dict[str, Any]]:
    return [{"id": gap.cell.id, "name": gap.cell.name, "reason": gap.reason} for gap in frames.gaps]


def row_json(row: Row) -> dict[str, Any]:
    return {
        "id": row.id,
        "model": row.model,
        "dataset": row.dataset,
        "technique": row.technique,
        "seed": row.seed,
        "accuracy": row.accuracy,
        "accuracy_drop": row.accuracy_drop,
        "stored_bytes": row.stored_bytes,
        "runnable_bytes": row.runnable_bytes,
        "parameters": row.parameters,
        "macs": row.macs,
        "latency_ms": _latency(row, runtimes.DEFAULT, "artifact", "all"),
        "speedup": _speedup(row, SPEEDUP, "all"),
        "test_set_seconds": row.test_set_seconds,
        # From here on: not promised, but useful.
        "family": row.family,
        "is_base": row.is_base,
        "machine": row.machine,
        "classified_on": row.facts.get(CLASSIFIED_ON) or row.machine,
        "other_images_of": row.other_images_of,
        **{key: METRIC[key].of(row) for key in EXTRA},
        "latency_ms_one_thread": _latency(row, runtimes.DEFAULT, "artifact", "one"),
        "speedup_one_thread": _speedup(row, SPEEDUP, "one"),
        OVER_REFERENCE: _speedup(row, OVER_REFERENCE, "all"),
        "simulated_latency_ms": _latency(row, runtimes.REFERENCE, "simulated", "all"),
        SIMULATED: _speedup(row, SIMULATED, "all"),
        "joules_per_image": {f"batch{b}": METRIC[joules_key(b)].of(row) for b in BATCHES},
        "gpu": gpu.as_json(row),
    }


def _latency(row: Row, runtime: str, model: Model, threads: Threads) -> dict[str, dict]:
    """Of each batch the percentiles, in ms."""
    return {
        f"batch{batch}": {
            f"p{p}": row.latency_ms(Series(runtime, model, threads, batch), p) for p in PERCENTILES
        }
        for batch in BATCHES
    }


def _speedup(row: Row, kind: str, threads: Threads) -> dict[str, float | None]:
    return {f"batch{batch}": METRIC[speedup_key(kind, threads, batch)].of(row) for batch in BATCHES}
