"""Published results -> pandas: one row a cell, and the histories, one row an epoch.

Rows come in the sweep's order (data set, model, technique, seed), whatever the order in which
they were made, so that everything built from them is the same to the byte.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy
import pandas

from pipeline import store
from pipeline.errors import Corrupt
from pipeline.paths import CellPaths, Work
from pipeline.report import gaps
from pipeline.report.evidence import Evidence, evidence, valid_result
from pipeline.report.gaps import Gap
from pipeline.report.metrics import (
    BATCHES,
    METRICS,
    PERCENTILES,
    THREADS,
    TIMED,
    latency_key,
    speedup_key,
)
from pipeline.sweep import Cell, Sweep

__all__ = ["Evidence", "Frames", "evidence", "history", "in_order", "read", "valid_result"]

IDENTITY = ("id", "dataset", "model", "technique", "family", "seed", "is_base")


@dataclass(frozen=True)
class Frames:
    """`cells`: IDENTITY, every metric (NaN where it was not measured) and `facts` (canonical JSON);
    `gaps`: the cells of the sweep that are not in it."""

    cells: pandas.DataFrame
    gaps: tuple[Gap, ...]


def read(sweep: Sweep, work: Work) -> Frames:
    """Everything valid that there is of `sweep`; a damaged result is a gap."""
    rows, missing = [], []
    for cell in in_order(sweep):
        paths = work.cell(cell.id)
        try:
            rows.append(_row(cell, valid_result(cell.id, paths)))
        except FileNotFoundError:
            missing.append(Gap(cell, gaps.reason(cell, work)))
        except Corrupt as error:
            missing.append(Gap(cell, gaps.damaged(error, paths)))
    columns = [*IDENTITY, *(metric.key for metric in METRICS), "facts"]
    return Frames(pandas.DataFrame(rows, columns=columns), tuple(missing))


def history(sweep: Sweep, work: Work) -> pandas.DataFrame:
    """One row an epoch: IDENTITY, stage_index, stage, epoch_index, and what the stage recorded.

    Has unfinished cells too, as far as they came; a damaged history is left out.
    """
    parts = [part for cell in in_order(sweep) for part in _epochs(cell, work.cell(cell.id))]
    if not parts:
        return pandas.DataFrame(columns=[*IDENTITY, "stage_index", "stage", "epoch_index"])
    return pandas.concat(parts, ignore_index=True)


def in_order(sweep: Sweep) -> list[Cell]:
    """By data set, model and technique as the sweep first names them, then by seed."""
    places: dict[tuple[str, str], int] = {}
    for cell in sweep.cells:
        for name in _place_names(cell):
            places.setdefault(name, len(places))
    return sorted(
        sweep.cells, key=lambda c: (*(places[name] for name in _place_names(c)), c.seed, c.id)
    )


def _place_names(cell: Cell) -> tuple[tuple[str, str], ...]:
    return (
        ("dataset", cell.dataset.name),
        ("model", cell.model.label),
        ("technique", cell.technique),
    )


def _row(cell: Cell, result: store.Result) -> dict[str, Any]:
    row = {**identity(cell), "facts": json.dumps(result.facts, sort_keys=True)}
    row |= {m.key: _number(result.measured.get(m.key)) for m in METRICS}
    if cell.is_base:  # it is its own base
        for key in ("accuracy", "stored_bytes", "runnable_bytes", "parameters", "macs",
                    "test_set_seconds"):  # fmt: skip
            row[f"base_{key}"] = row[key]
    row["accuracy_drop"] = row["base_accuracy"] - row["accuracy"]
    row["stored_ratio"] = _ratio(row["base_stored_bytes"], row["stored_bytes"])
    row["macs_ratio"] = _ratio(row["base_macs"], row["macs"])
    row |= _latencies(result.measured)
    row |= _speedups(row, cell.is_base)
    for key in ("seconds", "peak_memory_bytes"):
        row[key] = _number(result.facts.get(key))
    return row


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


def _latencies(measured: dict[str, Any]) -> dict[str, float]:
    found = {}
    for runtime, model in TIMED:
        for threads in THREADS:
            for batch in BATCHES:
                samples = measured.get(f"latency/{runtime}/{model}/{threads}/{batch}")
                for p, value in zip(PERCENTILES, _percentiles(samples), strict=True):
                    found[latency_key(runtime, model, threads, batch, p)] = value
    return found


def _percentiles(samples: Any) -> list[float]:
    """In milliseconds; NaN where nothing, or nothing finite, was measured."""
    values = numpy.asarray([] if samples is None else samples, dtype=float).ravel()
    if not values.size or not numpy.isfinite(values).all():
        return [float("nan")] * len(PERCENTILES)
    return numpy.percentile(values, PERCENTILES).tolist()


def _speedups(row: dict[str, Any], is_base: bool) -> dict[str, float]:
    found = {}
    for threads in THREADS:
        for batch in BATCHES:
            median = {
                timed: row[latency_key(*timed, threads, batch, 50)] for timed in TIMED
            }
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


def _epochs(cell: Cell, paths: CellPaths) -> Iterator[pandas.DataFrame]:
    for stage in _histories(paths):
        frame = pandas.DataFrame(stage.columns)
        lead = {**identity(cell), "stage_index": stage.index, "stage": stage.stage}
        for place, (name, value) in enumerate(lead.items()):
            frame.insert(place, name, value, allow_duplicates=False)
        frame.insert(len(lead), "epoch_index", range(len(frame)))
        yield frame


def _histories(paths: CellPaths) -> list[store.StageHistory]:
    for path in (paths.result, paths.metrics):
        try:
            return store.read_history(path)
        except (Corrupt, FileNotFoundError):
            continue
    return []
