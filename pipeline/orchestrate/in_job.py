"""A cell's attempts in one SLURM job, by what they left in its folder and in the job's log."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from pipeline import store
from pipeline.errors import Corrupt
from pipeline.paths import AttemptPaths, CellPaths, Work
from pipeline.store import Failure
from pipeline.sweep import Cell


@dataclass(frozen=True)
class InJob:
    """A cell's attempts in one job: how many there were, how the last one failed, whether
    anything was published since it began, and whether it came to its end."""

    rounds: int = 0
    failure: Failure | None = None
    progress: bool = False
    ended: bool = False


def attempts(folder: CellPaths, task: str) -> InJob:
    """The last attempts of a cell, as far back as they were made in this job."""
    last, attempts = store.last_attempt(folder), []
    for number in range(last.number if last else 0, 0, -1):
        attempt = folder.attempt(number)
        if job_of(attempt) != task:
            break
        attempts.append(attempt)
    if not attempts:
        return InJob()
    usage = store.read_usage(attempts[0])
    ended = usage is not None and usage.ended is not None
    return InJob(len(attempts), failure_of(attempts[0]), _progress(folder, usage), ended)


def _progress(folder: CellPaths, usage: store.Usage | None) -> bool:
    """Whether the attempt with this usage published something that the next one can continue
    from."""
    if usage is None:
        return False
    if usage.epochs:
        return True
    try:
        began = datetime.strptime(usage.started or "", "%Y-%m-%dT%H:%M:%SZ")
        return folder.metrics.stat().st_mtime >= began.replace(tzinfo=timezone.utc).timestamp()
    except (ValueError, OSError):
        return False


def failure_of(attempt: AttemptPaths) -> Failure | None:
    """The recorded failure of an attempt. None also where it cannot be read: SLURM's records then
    show how the job ended."""
    try:
        return store.read_failure(attempt)
    except (Corrupt, OSError):
        return None


def job_of(attempt: AttemptPaths) -> str | None:
    """The SLURM job that an attempt was made in; None outside of one."""
    usage = store.read_usage(attempt)
    return usage.job if usage else None


def started(work: Work, cell: Cell, task: str) -> bool:
    """Whether this task has started the cell: a task runs the cells of a pack one after the
    other."""
    return attempts(work.cell(cell.id), task).rounds > 0


def failed_in(work: Work, cell: Cell, task: str) -> Failure | None:
    """The recorded failure of the cell's last attempt in this task."""
    return attempts(work.cell(cell.id), task).failure


def busy(events: Path, cell_id: str) -> str:
    """Why the job skipped the cell because another process held it, from the job's events; empty if
    it did not.

    Reads the whole file: in a pack, other cells' events follow."""
    reason = ""
    with contextlib.suppress(FileNotFoundError), open(events, "rb") as lines:
        for line in lines:
            if b'"busy"' not in line:
                continue
            try:
                event = json.loads(line)
                if event["cell"] == cell_id and event["stage"] == "busy":
                    reason = str(event["reason"])
            except (ValueError, KeyError, TypeError, RecursionError):  # not an event
                continue
    return reason
