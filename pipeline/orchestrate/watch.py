"""Looks at a sweep again and again: often at files, and less and less often at a cluster."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline import streams
from pipeline.orchestrate import images
from pipeline.orchestrate.state import SweepState, everything, find
from pipeline.paths import Work
from pipeline.sweep import Sweep
from pipeline.terminal import printable

WATCH_S = 3.0  # between two looks at files alone
CLEAR = "\033[H\033[2J"  # clears a terminal
# Between two looks at a cluster: each is one squeue, and a sweep takes hours.
WATCH_CLUSTER_S = (5.0, 60.0)
BACK_OFF = 1.5


def pauses(interval_s: float | None, submitted: bool) -> Iterator[float]:
    """Seconds between looks: as the user says, else growing where each look queries Slurm."""
    first, last = WATCH_CLUSTER_S if submitted else (WATCH_S, WATCH_S)
    pause_s = interval_s or first
    while True:
        yield pause_s
        pause_s = interval_s or min(last, pause_s * BACK_OFF)


def is_over(states: SweepState) -> bool:
    """Whether nothing more will happen by itself."""
    if all(s.state in ("done", "failed", "cancelled") for s in states.cells):
        return True
    if states.view is None or states.view.follow_ups:
        return False
    if any(s.state == "trained" and states.view.will_measure(s.cell.id) for s in states.cells):
        return False
    return all(s.state not in ("running", "queued") for s in states.cells)


def watch(sweep: Sweep, work: Work, data_root: Path, interval_s: float | None = None) -> None:
    """Print the states repeatedly, until no cell is running, queued or waiting. Images are checked
    once: there may be a million."""
    changes: list[str] | None = None
    waits: Iterator[float] | None = None
    while True:
        states = find(sweep, work)
        if changes is None:
            changes = images.notes(states.trained, work, data_root)
        every = [*states.notes, *changes, *everything(sweep, states, work)]
        shown = "\n".join(map(printable, every))
        with streams.naming():
            print(f"{CLEAR if sys.stdout.isatty() else ''}{shown}", flush=True)
        if is_over(states):
            return
        waits = waits or pauses(interval_s, submitted=states.view is not None)
        time.sleep(next(waits))
