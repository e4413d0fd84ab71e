"""What is true of a sweep now, read from its cells' folders. Looking changes nothing."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline import store
from pipeline.orchestrate.plan import aligned, identity
from pipeline.paths import CellPaths, Work
from pipeline.report import gaps
from pipeline.sweep import Cell, Sweep

State = Literal["done", "running", "queued", "waiting", "failed", "cancelled", "missing"]
WATCH_S = 3.0
HOLDER = re.compile(r"process (\d+) on (.+)\n")  # what store.lock_cell writes into the lock file


@dataclass(frozen=True)
class CellState:
    """`attempts`: how often it was started; `reason`: why it is not done, None where it is."""

    cell: Cell
    state: State
    attempts: int
    reason: str | None


def states(sweep: Sweep, work: Work) -> tuple[CellState, ...]:
    """The state of every cell, in the sweep's order.

    done: its manifest matches its files (by size). running: a process holds it. failed: its last
    attempt, or its base's, says why. waiting: for its base. missing: nothing stands against it.
    """
    found: dict[str, CellState] = {}
    for cell in sweep.cells:  # bases come first
        found[cell.id] = _state(cell, work, found.get(cell.base_id))
    return tuple(found.values())


def _state(cell: Cell, work: Work, base: CellState | None) -> CellState:
    folder = work.cell(cell.id)
    attempt = store.last_attempt(folder)
    attempts = attempt.number if attempt else 0
    if store.is_done(folder):
        return CellState(cell, "done", attempts, None)
    if is_held(folder):
        return CellState(cell, "running", attempts, None)
    reason = gaps.reason(cell, work)
    if attempt and attempt.failure.exists():
        return CellState(cell, "failed", attempts, reason)
    if base and base.state == "failed":
        return CellState(cell, "failed", attempts, f"its base failed: {base.reason}")
    if base and base.state != "done":
        return CellState(cell, "waiting", attempts, f"its base {base.cell.id} is {base.state}")
    return CellState(cell, "missing", attempts, reason)


def is_held(folder: CellPaths) -> bool:
    """Whether a process works on the cell now.

    Asking the lock means taking it for a moment, in which a worker that starts would find it
    taken. So it is asked only where the process that took it last may be alive.
    """
    try:
        with open(folder.lock, encoding="utf-8", errors="replace") as file:
            return _may_live(file.read(200)) and not _could_lock(file.fileno())
    except OSError:
        return False


def _may_live(holder: str) -> bool:
    match = HOLDER.fullmatch(holder)
    if match is None or match[2] != socket.gethostname():
        return match is not None
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it lives, and is another user's
    return True


def _could_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return True


def to_json(found: Sequence[CellState]) -> dict[str, Any]:
    return {
        "cells": [
            {**identity(s.cell), "state": s.state, "attempts": s.attempts, "reason": s.reason}
            for s in found
        ],
        "counts": dict(Counter(s.state for s in found)),
    }


def lines(found: Sequence[CellState]) -> Iterable[str]:
    """The states for people: a line a cell, then the counts."""
    rows = [(s.cell.id, s.cell.name, s.state, s.reason or "") for s in found]
    yield from aligned(("CELL", "DATASET/MODEL/TECHNIQUE/SEED", "STATE", ""), rows)
    yield ""
    counts = Counter(s.state for s in found)
    yield ", ".join(f"{count} {state}" for state, count in counts.most_common())


def watch(sweep: Sweep, work: Work) -> None:
    """Print the states again and again, until every cell is done or failed."""
    while True:
        found = states(sweep, work)
        if sys.stdout.isatty():
            print("\033[H\033[2J", end="")
        print("\n".join(lines(found)), flush=True)
        if all(s.state in ("done", "failed", "cancelled") for s in found):
            return
        time.sleep(WATCH_S)
