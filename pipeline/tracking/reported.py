"""What a report has, as runs of MLflow in a folder of its own: `mlflow ui` shows them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import store, tracking
from pipeline.errors import Corrupt
from pipeline.paths import Work
from pipeline.sweep import Sweep
from pipeline.tracking import mlflow

LOCK = ".netpress.lock"  # there only while runs are written


def write(sweep: Sweep, work: Work, rows: Sequence[Mapping[str, Any]], folder: Path) -> int:
    """One run for each row of a report (as in its --json) that `folder` has none of yet; returns
    how many. Raises UserError where MLflow is missing, or another process writes there."""
    tracking.require(["mlflow"])
    made = 0
    with store.lock_folder(folder / LOCK):
        for row in rows:
            cell = sweep.by_id.get(row["id"])
            settings = tracking.settings_of(cell.to_json()) if cell else {}
            label = f"{row['dataset']}-{row['model']}-{row['technique']}-{row['seed']}"
            run = tracking.Run(row["id"], label, sweep.name, folder.absolute(), settings)
            tracker = mlflow.Mlflow(run, mlflow.local_uri(run), of_report=True)
            if tracker.is_new:
                _write(tracker, row, _history(work, row["id"]))
                tracker.complete()
                made += 1
            tracker.close()
    return made


def _write(
    tracker: tracking.Tracker, row: Mapping[str, Any], history: Sequence[store.StageHistory]
) -> None:
    last = tracking.add_new(tracker, history, after=0)
    tracker.add(last, dict(_numbers(row)))


def _history(work: Work, cell_id: str) -> Sequence[store.StageHistory]:
    """None where the report is not of this work root."""
    try:
        return store.read_result(work.cell(cell_id).result).history
    except (OSError, Corrupt):
        return ()


def _numbers(row: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, float]]:
    """`latency_ms/batch1/p50` and all other finite numbers of a row."""
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{at}{key}/")
        elif key != "seed" and type(value) in (int, float) and math.isfinite(value):
            yield f"{at}{key}", float(value)
