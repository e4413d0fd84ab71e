"""The current state of a sweep, read from its cells' folders. Reading changes nothing."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline import done as finished
from pipeline import gaps, store, timeline, usage
from pipeline.orchestrate import (
    cluster,
    in_job,
    ledger,
    put_off,
    report_job,
    slurm,
    snapshot,
    there,
    withdrawn,
)
from pipeline.orchestrate.held import is_held
from pipeline.orchestrate.plan import aligned, identity, quoted
from pipeline.orchestrate.there import State, failed_since_trained, unmeasured
from pipeline.paths import AttemptPaths, CellPaths, Work
from pipeline.sweep import Cell, Sweep

OVER = ("failed", "cancelled", "missing")


@dataclass(frozen=True)
class CellState:
    """`attempts`: how often it was started; `reason`: why it is not done, None where it is.
    `trained`: its weights and its artifact are there, whatever became of its measurement."""

    cell: Cell
    state: State
    attempts: int
    reason: str | None
    trained: bool = False


@dataclass(frozen=True)
class SweepState:
    """The states of all cells, in the sweep's order; `view`: the state of the cluster, None where
    nothing was ever submitted; `hidden`: cells whose folders we may not read; `report`: the state
    of the report's job, None where there is none."""

    cells: tuple[CellState, ...]
    view: cluster.View | None = None
    hidden: frozenset[str] = frozenset()
    report: report_job.ReportState | None = None

    @cached_property
    def by_id(self) -> dict[str, CellState]:
        return {s.cell.id: s for s in self.cells}

    @property
    def trained(self) -> list[Cell]:
        """Those with weights and artifact, measured or not."""
        return [s.cell for s in self.cells if s.trained]

    @property
    def codes(self) -> list[Mapping[str, Any] | None]:
        """What its jobs run, the newest first."""
        entries = self.view.known.entries.values() if self.view else ()
        return [entry.code for entry in reversed(list(entries)) if entry.job is not None]

    @property
    def notes(self) -> list[str]:
        notes = list(self.view.notes) if self.view else []
        if self.hidden:
            count = len(self.hidden)
            notes.append(
                f"{count} cell{'s are' if count > 1 else ' is'} readable only for another user: "
                "their state is not known here"
            )
        return notes


def states(sweep: Sweep, work: Work) -> tuple[CellState, ...]:
    """The state of every cell, in the sweep's order."""
    return find(sweep, work).cells


def find(
    sweep: Sweep, work: Work, patient: bool = False, known: ledger.Ledger | None = None
) -> SweepState:
    """The state of every cell: from its folder, and from SLURM where it was submitted.

    done: its manifest matches its files (by size), and they were made in the way that the sweep
    specifies now; nothing else makes a cell done. trained: only its measurement is missing or
    outdated; a job may be in the queue that measures it. running: a process holds it, or a job runs
    it. queued, waiting: its job is in the queue, waiting for its base. failed, cancelled: how its
    job or its last attempt ended. missing: it was not run, and nothing prevents it.

    If the controller does not answer: raises Unreachable if `patient`, else adds a note. `known`:
    the ledger, if it was already read. In another user's work root, only what is readable counts.
    """
    begun = there.begun(sweep, work)
    now_there = there.published(sweep, work, begun)
    made_again = now_there.outdated.keys() - now_there.trained
    view = cluster.look(sweep, work, now_there.done | made_again, now_there.trained, patient, known)
    states: dict[str, CellState] = {}
    for cell in sweep.cells:  # what others stand on comes first
        if cell.id in now_there.hidden:
            states[cell.id] = _hidden(cell, view)
            continue
        base, is_done = states.get(cell.stands_on or ""), cell.id in now_there.done
        failed = base is not None and base.state == "failed"  # for want of another one, perhaps
        if view is None and not failed and not {cell.id, cell.stands_on} & begun:
            states[cell.id] = _or_older(_not_begun(cell, base), work, begun)
            continue
        lacks, is_trained = now_there.outdated.get(cell.id), cell.id in now_there.trained
        now = _state(cell, work, is_done, base, view, lacks, is_trained)
        if view and now.state in OVER and not is_done and finished.is_done(cell, work):
            # It was published after `published`, and its job left the queue before squeue.
            now = _state(cell, work, True, base, view)
        states[cell.id] = _or_older(now, work, begun)
    report = None
    if view:
        last = partial(_last_end, sweep, work, begun)
        report = report_job.look(view.known, view.rows, view.reachable, last)
        view.notes.extend(withdrawn.note(sweep, view))
    return SweepState(tuple(states.values()), view, frozenset(now_there.hidden), report)


def _last_end(sweep: Sweep, work: Work, begun: frozenset[str]) -> float:
    """When the last of its cells was done, measured or failed, as time.time() says it."""
    folders = [work.cell(cell.id) for cell in sweep.cells if cell.id in begun]
    return max((_written(place) for folder in folders for place in _ends(folder)), default=0.0)


def _ends(folder: CellPaths) -> Iterator[Path]:
    """What is written when the cell is done, measured or has failed."""
    yield from (folder.manifest, folder.measurements)
    with contextlib.suppress(PermissionError):  # another user's, and private
        if attempt := store.last_attempt(folder):
            yield attempt.failure


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # not yet, or we may not see it
        return 0.0


def _or_older(now: CellState, work: Work, begun: frozenset[str]) -> CellState:
    """The state, with what an earlier version made of a cell that is missing in this one."""
    if now.state not in ("missing", "waiting"):
        return now
    older = finished.older(now.cell, work, begun)
    if older is None:
        return now
    note = f"done by an older version: {older.differs_from(now.cell)}; run makes it anew"
    alone = now.reason in (None, gaps.NOT_RUN)
    return replace(now, reason=note if alone else f"{now.reason}; {note}")


def _not_begun(cell: Cell, base: CellState | None) -> CellState:
    """The state of a cell without a folder, whose base has none either."""
    if base is None:
        return CellState(cell, "missing", 0, gaps.NOT_RUN)
    return CellState(cell, "waiting", 0, f"{cell.ground} {base.cell.id} is {base.state}")


def _hidden(cell: Cell, view: cluster.View | None) -> CellState:
    """The state of a cell by SLURM's records alone."""
    row = view.row(cell.id) if view else None
    if row is not None and row.state not in slurm.FINAL:
        waits = row.after and cell.stands_on
        state: State = "waiting" if waits else slurm.IN_QUEUE.get(row.state, "running")
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
    is_trained: bool = False,
) -> CellState:
    """`outdated`: why a finished cell has to be measured again; `is_trained`: measured alone."""
    folder = work.cell(cell.id)
    attempt = store.last_attempt(folder)

    def made(state: State, reason: str | None = None) -> CellState:
        if state == "missing" and folder.model.exists() and not folder.manifest.exists():
            reason = "its weights are there, its artifact is not"
        return CellState(cell, state, attempt.number if attempt else 0, reason)

    if done:
        return replace(made("done"), trained=True)
    only_measured = view is None or not view.in_queue(cell.id) or view.last[cell.id].entry.apart
    if outdated and is_trained and only_measured:
        return replace(made(*unmeasured(cell, folder, view, attempt, outdated)), trained=True)
    if outdated and not is_held(folder) and not (view and view.in_queue(cell.id)):
        if failure := failed_since_trained(folder, attempt):
            return made("failed", f"{failure.line}; its training is kept")
        return made("trained" if folder.model.exists() else "missing", outdated)
    if view is None or cell.id not in view.last:
        if is_held(folder):
            return made("running")
        state, reason = _without_job(cell, work, base, attempt)
        if view and state in ("missing", "waiting"):
            if cell.id in view.known.cancelled:
                state, reason = "cancelled", cluster.CANCELLED
            elif cell.id in view.known.not_submitted:
                state, reason = "missing", f"not submitted: {view.known.not_submitted[cell.id]}"
        return made(state, reason)
    row = view.row(cell.id)
    if row is not None and view.reachable and view.in_queue(cell.id):
        return made(*_queued(cell, work, row, view))
    if is_held(folder):
        return made("running")
    ended = row is not None and not view.in_queue(cell.id)
    known_end = ended or cell.id in view.known.cancelled
    if view.task(cell.id) and (view.reachable or known_end):
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
        return state, f"{job}: `netpress cancel` was called, and Slurm still lists it"
    if state == "queued":
        if row.reason == "DependencyNeverSatisfied":
            return "waiting", f"{job} can never run, {cell.ground} failed; cancel it"
        # Not by the reason: a job has none before the scheduler has considered it.
        if row.after and cell.stands_on:
            return "waiting", f"{cell.ground} {cell.stands_on} is not done ({job})"
        if row.state != "PENDING":
            job += f": {row.state.lower()}"
        return "queued", job + (f", {why}" if why else "")
    where = job + (f" on {row.nodes}" if row.nodes else "")
    if row.state not in ("RUNNING", "CONFIGURING", "COMPLETING"):
        where = f"{where}: {row.state.lower()}"
    pack = view.last[cell.id].entry.tasks[view.last[cell.id].index]
    if len(pack) > 1 and row.state == "RUNNING" and not is_held(work.cell(cell.id)):
        failure = in_job.failed_in(work, cell, row.task)
        if failure is not None:
            return "failed", failure.line
        if not in_job.started(work, cell, row.task):
            return "queued", f"in {where}, which runs {len(pack)} cells one after the other"
    return "running", where


def _after_job(
    cell: Cell,
    work: Work,
    base: CellState | None,
    view: cluster.View,
    attempt: AttemptPaths | None,
) -> tuple[State, str]:
    """State and reason of a cell whose job left the queue, and that is not done."""
    cause = view.cause(cell)
    if is_newer(cell, work, view):  # run on the command line since
        return _without_job(cell, work, base, attempt)
    row = view.row(cell.id)
    if (
        cause.kind == "cancelled"
        and base
        and base.state == "failed"
        and not base.trained
        and row
        and not row.by
        and cell.id not in view.known.cancelled
    ):
        # Slurm records this state before its reason: nobody cancelled it, its base had failed.
        cause = replace(cause, kind="base_failed")
    if cause.kind == "base_failed" and base is not None and not base.trained:
        if base.state in ("cancelled", "failed"):
            return base.state, f"{cell.ground} is {base.state}: {base.reason}"
        return "missing", f"{cell.ground} {base.cell.id} is {base.state}"
    if cause.kind in ("base_failed", "lost"):
        return "missing", cause.reason
    advice = f"; {cause.rule.advice}" if cause.rule.advice else ""
    state: State = "cancelled" if cause.kind == "cancelled" else "failed"
    return state, cause.reason + advice


def is_newer(cell: Cell, work: Work, view: cluster.View) -> bool:
    """Whether the cell failed after it was submitted, but not in a job that trains or measures it:
    in `netpress run`, which may be called in another job (salloc)."""
    attempt, at = store.last_attempt(work.cell(cell.id)), view.last[cell.id]
    if attempt is None or not attempt.failure.exists():
        return False
    measuring = view.measuring.get(cell.id)
    if in_job.job_of(attempt) in (at.task, *([measuring.task] if measuring else [])):
        return False
    return attempt.failure.stat().st_mtime > ledger.when(at.entry)


def _unreachable(
    cell: Cell, work: Work, view: cluster.View, attempt: AttemptPaths | None
) -> tuple[State, str]:
    """The state of a submitted cell by its files alone."""
    task = view.task(cell.id)
    in_its_job = attempt is not None and in_job.job_of(attempt) == view.last[cell.id].task
    if is_newer(cell, work, view) or (in_its_job and attempt and attempt.failure.exists()):
        return "failed", gaps.reason(cell, work)
    where = f"job {task}" if task else "a job whose submission is not settled"
    return "queued", f"{where}, when it was submitted; Slurm does not answer"


def _without_job(
    cell: Cell, work: Work, base: CellState | None, attempt: AttemptPaths | None
) -> tuple[State, str]:
    reason = gaps.reason(cell, work)
    if attempt and attempt.failure.exists():
        return "failed", reason
    if base and base.trained:
        return "missing", reason
    if base and base.state == "failed":
        return "failed", f"{cell.ground} failed: {base.reason}"
    if base:
        return "waiting", f"{cell.ground} {base.cell.id} is {base.state}"
    return "missing", reason


def to_json(
    states: Sequence[CellState], report: report_job.ReportState | None = None
) -> dict[str, Any]:
    return {
        "cells": [
            {**identity(s.cell), "state": s.state, "attempts": s.attempts, "reason": s.reason}
            for s in states
        ],
        "counts": dict(Counter(s.state for s in states)),
        "report": report
        and {
            "state": report.state,
            "reason": report.reason,
            "log": str(report.log) if report.log else None,
        },
    }


def lines(states: Sequence[CellState]) -> Iterable[str]:
    """The states as text: one line per cell, then the counts."""
    rows = [(s.cell.id, s.cell.name, s.state, s.reason or "") for s in states]
    yield from aligned(("CELL", "DATASET/MODEL/TECHNIQUE/SEED", "STATE", ""), rows)
    yield ""
    counts = Counter(s.state for s in states)
    yield ", ".join(f"{count} {state}" for state, count in counts.most_common())


def report_lines(states: SweepState, called: str) -> Iterable[str]:
    """The state of the report's job, where the user has to act."""
    report = states.report
    if report is None or report.state not in ("failed", "cancelled", "missing"):
        return
    log = f" (log: {report.log})" if report.log else ""
    command = "resume" if report.state == "cancelled" else "submit"
    yield f"Report: {report.state}: {report.reason}{log}"
    again = f"`netpress {command} {called}` submits it again"
    yield f"{again}, `netpress report {called}` builds it here"


def used(states: SweepState, work: Work) -> Iterable[str]:
    """The usage of the jobs of finished cells, their cost, and where their time went, as text."""
    done = [s.cell for s in states.cells if s.state == "done"]
    measured, threads = usage.read(done, work), usage.threads_of(s.cell for s in states.cells)
    if measured:
        yield from usage.lines(measured, threads)
        records = (usage.of_cell(work.cell(s.cell.id)) for s in states.cells)
        yield from usage.costs(islice(filter(None, records), usage.MOST_CELLS))
    if spent := timeline.line(usage.timelines(done, work)):
        yield f"Mean time of a cell: {spent}"


def everything(sweep: Sweep, states: SweepState, work: Work) -> Iterable[str]:
    """The whole output of `status` as text."""
    yield from lines(states.cells)
    yield from put_off.lines(states, quoted(sweep))
    yield from report_lines(states, quoted(sweep))
    yield from snapshot.lines(states.codes)
    yield from used(states, work)
