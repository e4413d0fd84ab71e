"""A live table of a sweep's running cells: where each is in its training, and how fast it goes.

Everything in it is read from the cells' folders: metrics are published each epoch, usage every half
minute. Only which cells run is requested from Slurm, less and less often.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline import store, streams
from pipeline.errors import Corrupt
from pipeline.orchestrate import estimate, state, watch
from pipeline.orchestrate.display import duration
from pipeline.orchestrate.plan import aligned
from pipeline.paths import CellPaths, Work
from pipeline.sweep import Cell, Sweep
from pipeline.techniques import stage_epochs
from pipeline.terminal import printable

HEAD = (
    "CELL",
    "DATASET/MODEL/TECHNIQUE/SEED",
    "STAGE",
    "EPOCH",
    "LOSS",
    "ACC. %",
    "IMG/S",
    "GPU",
    "LEFT",
)


@dataclass(frozen=True)
class Progress:
    """Of one cell: its stage, epochs of it and of the whole cell, and the last epoch's values; NaN
    and None where there are none yet. `left_s`: of training alone."""

    stage: str
    epoch: int
    epochs: int | None
    loss: float | None
    accuracy: float | None
    images_per_second: float | None
    gpu_busy: float | None
    left_s: float | None


def of(cell: Cell, paths: CellPaths) -> Progress:
    """From what the running attempt has published so far."""
    attempt = store.last_attempt(paths)
    usage = store.read_usage(attempt) if attempt else None
    busy = usage.used.gpu_busy if usage and usage.used else None
    try:
        history = store.read_history(paths.metrics)
    except (OSError, Corrupt):
        history = []
    if not history:
        return Progress("starts", 0, None, None, None, None, busy, None)
    last = history[-1]
    columns = {name: values for name, values in last.columns.items() if len(values)}
    made = sum(len(stage.columns["epoch"]) for stage in history)
    seconds = columns.get("seconds")
    left = estimate.epochs(cell) - made
    epochs = stage_epochs(cell.stages[last.index].settings, cell.recipe) if cell.stages else None
    return Progress(
        f"{last.index}-{last.stage}" if left > 0 else "measures",
        len(last.columns["epoch"]),
        epochs if epochs is not None else cell.recipe.epochs,
        _last(columns.get("loss")),
        _last(columns.get("held_out_accuracy")),
        _last(columns.get("images_per_second")),
        busy,
        None if seconds is None else max(0, left) * float(seconds[-1]),
    )


def _last(values: Sequence[float] | None) -> float | None:
    return None if values is None else float(values[-1])


def lines(states: state.SweepState, work: Work) -> Iterator[str]:
    """The table of running cells, then how many there are of each state."""
    running = [s.cell for s in states.cells if s.state == "running"]
    rows = [_row(cell, of(cell, work.cell(cell.id))) for cell in running]
    yield from aligned(HEAD, rows) if rows else ("Nothing is running.",)
    yield ""
    yield [*state.lines(states.cells)][-1]


def _row(cell: Cell, now: Progress) -> tuple[str, ...]:
    return (
        cell.id[:8],
        cell.name,
        now.stage,
        f"{now.epoch}/{now.epochs}" if now.epochs else "",
        _shown(now.loss, "{:.3f}"),
        _shown(now.accuracy, "{:.1%}").rstrip("%"),
        _shown(now.images_per_second, "{:,.0f}"),
        _shown(now.gpu_busy, "{:.0%}"),
        "" if now.left_s is None else duration(now.left_s),
    )


def _shown(value: float | None, form: str) -> str:
    return "" if value is None or value != value else form.format(value)


def show(sweep: Sweep, work: Work, interval_s: float | None = None) -> None:
    """Until nothing is left to do; once, where standard output is no terminal."""
    waits: Iterator[float] | None = None
    live = sys.stdout.isatty()
    while True:
        states = state.find(sweep, work)
        text = "\n".join(map(printable, [*states.notes, *lines(states, work)]))
        with streams.naming():
            print(f"{watch.CLEAR if live else ''}{text}", flush=True)
        if not live or watch.is_over(states):
            return
        waits = waits or watch.pauses(interval_s, submitted=states.view is not None)
        time.sleep(next(waits))
