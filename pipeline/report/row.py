"""One finished cell -> its row: identity, every metric (NaN where it was not measured), facts."""

from __future__ import annotations

import json
from typing import Any

import numpy

from pipeline import store
from pipeline.report.metrics import (
    BATCHES,
    METRICS,
    PERCENTILES,
    THREADS,
    TIMED,
    latency_key,
    speedup_key,
)
from pipeline.sweep import Cell

IDENTITY = ("id", "dataset", "model", "technique", "family", "seed", "is_base")
COLUMNS = (*IDENTITY, *(metric.key for metric in METRICS), "facts")
ALL_TIMED = tuple(
    (*timed, threads, batch) for timed in TIMED for threads in THREADS for batch in BATCHES
)
LATENCY_KEYS = tuple(latency_key(*timed, p) for timed in ALL_TIMED for p in PERCENTILES)


def identity(cell: Cell) -> dict[str, Any]:
    return {
        "id": cell.id,
        "dataset": cell.dataset.name,
        "model": cell.model.label,
        "technique": cell.technique,
        "family": cell.family,
        "seed": cell.seed,
        "is_base": cell.is_base,
    }


def row(named: dict[str, Any], result: store.Result) -> dict[str, Any]:
    """{column: value} of COLUMNS; `named`: the cell's `identity`."""
    row = {**named, "facts": json.dumps(result.facts, sort_keys=True)}
    row |= {m.key: _number(result.measured.get(m.key)) for m in METRICS}
    if named["is_base"]:  # it is its own base
        for key in (
            "accuracy",
            "stored_bytes",
            "runnable_bytes",
            "parameters",
            "macs",
            "test_set_seconds",
        ):
            row[f"base_{key}"] = row[key]
    row["accuracy_drop"] = row["base_accuracy"] - row["accuracy"]
    row["stored_ratio"] = _ratio(row["base_stored_bytes"], row["stored_bytes"])
    row["macs_ratio"] = _ratio(row["base_macs"], row["macs"])
    row |= _latencies(result.measured)
    row |= _speedups(row, named["is_base"])
    for key in ("seconds", "peak_memory_bytes"):
        row[key] = _number(result.facts.get(key))
    took = (stage.columns.get("seconds", ()) for stage in result.history)
    row["training_seconds"] = sum(_number(seconds) for stage in took for seconds in stage)
    return row


def _latencies(measured: dict[str, Any]) -> dict[str, float]:
    """Percentiles in milliseconds; NaN where nothing, or nothing finite, was measured."""
    found = dict.fromkeys(LATENCY_KEYS, float("nan"))
    same_length: dict[int, dict[tuple[str, ...], numpy.ndarray]] = {}
    for timed in ALL_TIMED:
        samples = numpy.asarray(measured.get(f"latency/{'/'.join(timed)}", ()), dtype=float).ravel()
        if samples.size and numpy.isfinite(samples).all():
            same_length.setdefault(samples.size, {})[timed] = samples
    for samples in same_length.values():  # together, since a call costs more than its work
        values = numpy.percentile(list(samples.values()), PERCENTILES, axis=1)
        for timed, ms in zip(samples, values.T.tolist(), strict=True):
            found |= {latency_key(*timed, p): v for p, v in zip(PERCENTILES, ms, strict=True)}
    return found


def _speedups(row: dict[str, Any], is_base: bool) -> dict[str, float]:
    found = {}
    for threads in THREADS:
        for batch in BATCHES:
            median = {timed: row[latency_key(*timed, threads, batch, 50)] for timed in TIMED}
            artifact, base, simulated, eager = (median[timed] for timed in TIMED)
            pairs = {
                "speedup": 1.0 if is_base else _ratio(base, artifact),
                "speedup_over_pytorch": _ratio(simulated if is_base else eager, artifact),
                "simulated_speedup": 1.0 if is_base else _ratio(eager, simulated),
            }
            found |= {speedup_key(kind, threads, batch): v for kind, v in pairs.items()}
    return found


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else float("nan")


def _number(value: Any) -> float:
    """NaN for what was not measured, is no number, or is infinite."""
    if isinstance(value, (bool, int, float)) and numpy.isfinite(value):
        return float(value)
    return float("nan")
