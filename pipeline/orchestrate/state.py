"""What is true of a sweep now, read from its cells' folders. Looking changes nothing."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pipeline import done as finished
from pipeline import gaps, store, streams, usage
from pipeline.errors import Corrupt
from pipeline.orchestrate import cluster, images, ledger, report_job, slurm
from pipeline.orchestrate.held import is_held
from pipeline.orchestrate.plan import aligned, identity, quoted
from pipeline.paths import Work
from pipeline.sweep import Cell, Sweep
from pipeline.terminal import printable

State = Literal["done", "trained", "running", "queued", "waiting", "failed", "cancelled", "missing"]
OVER = ("failed", "cancelled", "missing")
WATCH_S = 3.0
CLEAR = "\033[H\033[2J"  # of a terminal
WATCH_CLUSTER_S = 15.0


@dataclass(frozen=True)
class CellState:
    """`attempts`: how often it was started; `reason`: why it is not done, None where it is."""

    cell: Cell
    state: State
    attempts: int
    reason: str | None


@dataclass(frozen=True)
class Found:
    """The states of all cells, in the sweep's order; `view`: what the cluster said, None where
    nothing was ever submitted; `hidden`: cells whose folders we may not read; `report`: of the
    report's job, None where none was to be sent."""

    cells: tuple[CellState, ...]
    view: cluster.View | None = None
    hidden: frozenset[str] = frozenset()
    report: report_job.ReportState | None = None

    @cached_property
    def by_id(self) -> dict[str, CellState]:
        return {found.cell.id: found for found in self.cells}

    @property
    def done(self) -> list[Cell]:
        return [found.cell for found in self.cells if found.state == "done"]

    @property
    def notes(self) -> list[str]:
        notes = list(self.view.notes) if self.view else []
        if self.hidden:
            count = len(self.hidden)
            notes.append(
                f"{count} cell{'s are' if count > 1 else ' is'} readable for another user alone: "
                "what is done of them is not known here"
            )
        return notes


def states(sweep: Sweep, work: Work) -> tuple[CellState, ...]:
    """The state of every cell, in the sweep's order."""
    return find(sweep, work).cells


def find(
    sweep: Sweep, work: Work, patient: bool = False, known: ledger.Ledger | None = None
) -> Found:
    """The state of every cell: from its folder, and from SLURM where it was submitted.

    done: its manifest matches its files (by size), and they were made as the sweep wants them now;
    nothing else makes a cell done. trained: all but its measurement, or that was made in another
    way. running: a process holds it, or a job is at it. queued, waiting: its job is in the queue,
    waiting for its base. failed, cancelled: how its job or its last attempt ended. missing: nothing
    stands against it. With `patient`, a controller that does not answer raises Unreachable; else it
    is noted.
    `known`: the ledger, where it was read already. Of a sweep in another user's work root, as much
    as may be read.
    """
    begun = _begun(sweep, work)
    done, outdated, hidden = _published(sweep, work, begun)
    view = cluster.look(sweep, work, done | outdated.keys(), patient, known)
    found: dict[str, CellState] = {}
    for cell in sweep.cells:  # bases come first
        if cell.id in hidden:
            found[cell.id] = _hidden(cell, view)
            continue
        base, is_done = found.get(cell.base_id), cell.id in done
        if view is None and not {cell.id, cell.base_id} & begun:
            found[cell.id] = _or_older(_not_begun(cell, base), work, begun)
            continue
        now = _state(cell, work, is_done, base, view, outdated.get(cell.id))
        if view and now.state in OVER and not is_done and finished.is_done(cell, work):
            # It was published after we had looked, and its job left the queue before we asked.
            now = _state(cell, work, True, base, view)
        found[cell.id] = _or_older(now, work, begun)
    report = report_job.look(view.known, view.rows, view.reachable) if view else None
    return Found(tuple(found.values()), view, hidden, report)


def _begun(sweep: Sweep, work: Work) -> frozenset[str]:
    """Cells that may have a folder: one look for all of them."""
    try:
        return work.begun()
    except FileNotFoundError:
        return frozenset()
    except OSError:  # each has to be looked at for itself
        return frozenset(cell.id for cell in sweep.cells)


def _published(
    sweep: Sweep, work: Work, begun: frozenset[str]
) -> tuple[set[str], dict[str, str], frozenset[str]]:
    """(cells that are done, why those that are finished are to be measured anew, cells that another
    user keeps private)."""
    done: set[str] = set()
    outdated: dict[str, str] = {}
    hidden: set[str] = set()
    for cell in sweep.cells:
        try:
            if cell.id not in begun:
                continue
            manifest = store.verify(work.cell(cell.id), deep=False)
        except PermissionError:
            hidden.add(cell.id)
        except Corrupt:
            continue
        else:
            if why := finished.outdated(manifest, finished.record(cell)):
                outdated[cell.id] = why
            else:
                done.add(cell.id)
    return done, outdated, frozenset(hidden)


def _or_older(now: CellState, work: Work, begun: frozenset[str]) -> CellState:
    """The state, with what an earlier version made of a cell that is missing in this one."""
    if now.state not in ("missing", "waiting"):
        return now
    older = finished.older(now.cell, work, begun)
    if older is None:
        return now
    said = f"done by an older version: {older.differs_from(now.cell)}; run makes it anew"
    kept = now.reason in (None, gaps.NOT_RUN)
    return replace(now, reason=said if kept else f"{now.reason}; {said}")


def _not_begun(cell: Cell, base: CellState | None) -> CellState:
    """Of a cell without a folder, whose base has none either."""
    if base is None:
        return CellState(cell, "missing", 0, gaps.NOT_RUN)
    return CellState(cell, "waiting", 0, f"its base {base.cell.id} is {base.state}")


def _hidden(cell: Cell, view: cluster.View | None) -> CellState:
    """What SLURM alone knows of a cell."""
    row = view.row(cell.id) if view else None
    if row is not None and row.state not in slurm.FINAL:
        waits = row.after and not cell.is_base
        state = "waiting" if waits else slurm.IN_QUEUE.get(row.state, "running")
        return CellState(cell, state, 0, f"job {row.task}: {row.state.lower()}")
    ended = f"; Slurm says {row.state} of job {row.task}" if row else ""
    return CellState(cell, "missing", 0, f"its folder is another user's, and private{ended}")


def _state(
    cell: Cell,
    work: Work,
    done: bool,
    base: CellState | None,
    view: cluster.View | None,
    outdated: str | None = None,
) -> CellState:
    """`outdated`: why the cell, which is finished, is to be measured anew."""
    folder = work.cell(cell.id)
    attempt = store.last_attempt(folder)

    def made(state: State, reason: str | None = None) -> CellState:
        if state == "missing" and folder.model.exists() and not folder.manifest.exists():
            state, reason = "trained", "all but its measurement"
        return CellState(cell, state, attempt.number if attempt else 0, reason)

    if done:
        return made("done")
    if outdated and not is_held(folder) and not (view and view.in_queue(cell.id)):
        # A new attempt takes the manifest away first: nothing failed since the cell was finished.
        return made("trained" if folder.model.exists() else "missing", outdated)
    if view is None or cell.id not in view.last:
        return (
            made("running") if is_held(folder) else made(*_without_job(cell, work, base, attempt))
        )
    if view.reachable and view.in_queue(cell.id):
        return made(*_queued(cell, work, view.row(cell.id), view))
    if is_held(folder):
        return made("running")
    ended = view.row(cell.id) is not None and not view.in_queue(cell.id)
    if view.task(cell.id) and (view.reachable or ended):
        return made(*_after_job(cell, work, base, view, attempt))
    if not view.reachable:
        return made(*_unreachable(cell, work, view, attempt))
    return made(*_without_job(cell, work, base, attempt))


def _queued(cell: Cell, work: Work, row: slurm.Row, view: cluster.View) -> tuple[State, str]:
    """State and reason of a cell whose job is in the queue."""
    state = slurm.IN_QUEUE.get(row.state)
    if state is None:
        return "running", f"Slurm says {row.state} of job {row.task}, which netpress does not know"
    why = cluster.pending(row)
    job = f"job {row.task}"
    if cell.id in view.shared:
        job += f" of sweep {view.shared[cell.id]}"
    elif cell.id in view.known.cancelled:
        return state, f"{job}: `netpress cancel` was called, and Slurm lists it still"
    if state == "queued":
        if row.reason == "DependencyNeverSatisfied":
            return "waiting", f"{job} can never run, its base failed; cancel it"
        # Not by the reason: before the scheduler has looked at a job, it has none.
        if row.after and not cell.is_base:
            return "waiting", f"its base {cell.base_id} is not done ({job})"
        if row.state != "PENDING":
            job += f": {row.state.lower()}"
        return "queued", job + (f", {why}" if why else "")
    where = job + (f" on {row.nodes}" if row.nodes else "")
    if row.state not in ("RUNNING", "CONFIGURING", "COMPLETING"):
        where = f"{where}: {row.state.lower()}"
    pack = view.last[cell.id].entry.tasks[view.last[cell.id].index]
    if len(pack) > 1 and row.state == "RUNNING" and not is_held(work.cell(cell.id)):
        failure = cluster.failed_in(work, cell, row.task)
        if failure is not None:
            return "failed", failure.line
        if not cluster.started(work, cell, row.task):
            return "queued", f"in {where}, which has {len(pack)} cells one after the other"
    return "running", where


def _after_job(cell, work, base, view, attempt) -> tuple[State, str]:
    """State and reason of a cell whose job left the queue, and that is not done."""
    cause = view.cause(cell)
    if is_newer(cell, work, view):  # run by hand since
        return _without_job(cell, work, base, attempt)
    row = view.row(cell.id)
    if (
        cause.kind == "cancelled"
        and base
        and base.state == "failed"
        and row
        and not row.by
        and cell.id not in view.known.cancelled
    ):
        # Slurm says first that, then by whom or why: nobody did it, its base had failed.
        cause = replace(cause, kind="base_failed")
    if cause.kind == "base_failed" and base is not None and base.state != "done":
        if base.state in ("cancelled", "failed"):
            return base.state, f"its base is {base.state}: {base.reason}"
        return "missing", f"its base {base.cell.id} is {base.state}"
    if cause.kind in ("base_failed", "lost"):
        return "missing", cause.reason
    advice = f"; {cause.rule.advice}" if cause.rule.advice else ""
    state = "cancelled" if cause.kind == "cancelled" else "failed"
    return state, cause.reason + advice


def is_newer(cell: Cell, work: Work, view: cluster.View) -> bool:
    """Whether the cell failed since its job outside of SLURM, such as in `netpress run`."""
    attempt = store.last_attempt(work.cell(cell.id))
    if attempt is None or cluster.job_of(attempt) is not None or not attempt.failure.exists():
        return False
    submitted = datetime.fromisoformat(view.last[cell.id].entry.at)
    return attempt.failure.stat().st_mtime > submitted.timestamp()


def _unreachable(cell, work, view: cluster.View, attempt) -> tuple[State, str]:
    """What the disk knows of a cell that was submitted."""
    task = view.task(cell.id)
    if attempt and attempt.failure.exists() and cluster.job_of(attempt) in (task, None):
        return "failed", gaps.reason(cell, work)
    where = f"job {task}" if task else "a job whose submission is not settled"
    return "queued", f"{where}, when it was submitted; Slurm does not answer"


def _without_job(cell, work, base, attempt) -> tuple[State, str]:
    reason = gaps.reason(cell, work)
    if attempt and attempt.failure.exists():
        return "failed", reason
    if base and base.state == "failed":
        return "failed", f"its base failed: {base.reason}"
    if base and base.state != "done":
        return "waiting", f"its base {base.cell.id} is {base.state}"
    return "missing", reason


def to_json(
    found: Sequence[CellState], report: report_job.ReportState | None = None
) -> dict[str, Any]:
    return {
        "cells": [
            {**identity(s.cell), "state": s.state, "attempts": s.attempts, "reason": s.reason}
            for s in found
        ],
        "counts": dict(Counter(s.state for s in found)),
        "report": report
        and {
            "state": report.state,
            "reason": report.reason,
            "log": str(report.log) if report.log else None,
        },
    }


def lines(found: Sequence[CellState]) -> Iterable[str]:
    """The states for people: a line a cell, then the counts."""
    rows = [(s.cell.id, s.cell.name, s.state, s.reason or "") for s in found]
    yield from aligned(("CELL", "DATASET/MODEL/TECHNIQUE/SEED", "STATE", ""), rows)
    yield ""
    counts = Counter(s.state for s in found)
    yield ", ".join(f"{count} {state}" for state, count in counts.most_common())


def report_lines(found: Found, called: str) -> Iterable[str]:
    """What became of the report's job, where it needs somebody."""
    report = found.report
    if report is None or report.state not in ("failed", "cancelled", "missing"):
        return
    log = f" (log: {report.log})" if report.log else ""
    command = "resume" if report.state == "cancelled" else "submit"
    yield f"Report: {report.state}: {report.reason}{log}"
    yield f"`netpress {command} {called}` sends it again, `netpress report {called}` makes it here"


def used(found: Found, work: Work) -> Iterable[str]:
    """What the jobs of the cells that are done used, for people; nothing where there were none."""
    measured = usage.read((s.cell for s in found.cells if s.state == "done"), work)
    return usage.lines(measured) if measured else ()


def everything(sweep: Sweep, found: Found, work: Work) -> Iterable[str]:
    """All that `status` says to people."""
    yield from lines(found.cells)
    yield from report_lines(found, quoted(sweep))
    yield from used(found, work)


def watch(sweep: Sweep, work: Work, data_root: Path) -> None:
    """Print the states again and again, until no cell is running, queued or waiting.

    A sweep that was submitted is looked at less often: each look asks the controller. Images are
    looked at once: there may be a million.
    """
    changes: list[str] | None = None
    while True:
        found = find(sweep, work)
        if changes is None:
            changes = images.notes(found.done, work, data_root)
        every = [*found.notes, *changes, *everything(sweep, found, work)]
        shown = "\n".join(map(printable, every))
        with streams.naming():
            print(f"{CLEAR if sys.stdout.isatty() else ''}{shown}", flush=True)
        if all(s.state in ("done", "failed", "cancelled") for s in found.cells):
            return
        if found.view and all(s.state not in ("running", "queued") for s in found.cells):
            return
        time.sleep(WATCH_CLUSTER_S if found.view else WATCH_S)
