"""What lies in the folders of a sweep's cells, and the states of those that are only trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pipeline import done as finished
from pipeline import store
from pipeline.errors import Corrupt
from pipeline.orchestrate import cluster, in_job, ledger, slurm
from pipeline.orchestrate.held import is_held
from pipeline.paths import AttemptPaths, CellPaths, Work
from pipeline.sweep import Cell, Sweep

State = Literal["done", "trained", "running", "queued", "waiting", "failed", "cancelled", "missing"]


def begun(sweep: Sweep, work: Work) -> frozenset[str]:
    """Cells that may have a folder: one listing for all of them."""
    try:
        return work.begun()
    except FileNotFoundError:
        return frozenset()
    except OSError:  # each has to be checked separately
        return frozenset(cell.id for cell in sweep.cells)


@dataclass(frozen=True)
class Published:
    """Cells that are done; {cell whose artifact or measurement is to be made: reason}, those of
    them that lack a measurement alone, and cells that another user keeps private."""

    done: set[str] = field(default_factory=set)
    outdated: dict[str, str] = field(default_factory=dict)
    trained: set[str] = field(default_factory=set)
    hidden: set[str] = field(default_factory=set)


def published(sweep: Sweep, work: Work, begun: frozenset[str]) -> Published:
    status = Published()
    for cell in sweep.cells:
        try:
            if cell.id not in begun:
                continue
            folder = work.cell(cell.id)
            manifest, wanted = store.verify(folder, deep=False), finished.record(cell)
            why = finished.lacks(folder, manifest, wanted)
        except PermissionError:
            status.hidden.add(cell.id)
        except Corrupt:
            continue
        else:
            if why is None:
                status.done.add(cell.id)
                continue
            status.outdated[cell.id] = why
            if finished.outdated_artifact(manifest, wanted) is None:
                status.trained.add(cell.id)
    return status


def unmeasured(
    cell: Cell,
    folder: CellPaths,
    view: cluster.View | None,
    attempt: AttemptPaths | None,
    lacks: str,
) -> tuple[State, str | None]:
    """State and reason of a cell that lacks a measurement alone, and that no job trains."""
    row = view.measuring_row(cell.id) if view else None
    is_queued = view and row and view.reachable and row.state not in slurm.FINAL
    failure = failed_since_trained(folder, attempt)
    if row and is_queued and attempt and in_job.job_of(attempt) != row.task:
        failure = None  # of an earlier job
    if failure is not None and not is_held(folder):
        return "failed", f"its measurement failed: {failure.line}; its training is kept"
    if row and is_queued:
        return _to_be_measured(folder, row)
    if is_held(folder):
        return "running", None
    never = lacks == finished.NOT_MEASURED  # else a job that left no record may be long forgotten
    at = view.measured_in(cell.id) if view else None
    left = at is not None and at.entry.job is not None
    if view and left and (row or (never and view.reachable)):
        ended = _without_measurement(view, cell)
        if ended is not None:
            return ended
    if view and not left and cell.id in view.known.cancelled:  # before it was in a job
        return _cancelled(cluster.CANCELLED)
    if view and cell.id in view.known.not_measured:
        return "trained", f"its measurement is not submitted: {view.known.not_measured[cell.id]}"
    return "trained", lacks


def _without_measurement(view: cluster.View, cell: Cell) -> tuple[State, str] | None:
    """The same where a job that was to measure it has left the queue; None where it did not come
    to that: `submit` sends another one."""
    row, cause = view.measuring_row(cell.id), view.cause_of_measuring(cell)
    if cause.kind == "lost" or (row and row.state == "COMPLETED") or _did_its_work(view, cell):
        return None
    if cause.kind == "cancelled":
        return _cancelled(cause.reason)
    advice = f"; {cause.rule.advice}" if cause.rule.advice else ""
    return "failed", f"its measurement failed: {cause.reason}{advice}; its training is kept"


def _cancelled(reason: str) -> tuple[State, str]:
    return "cancelled", f"its measurement was {reason}; its training is kept"


def _did_its_work(view: cluster.View, cell: Cell) -> bool:
    """Whether the job that was to measure the cell did: then it ended like this for another one of
    its task, and what is lacking was not requested of it."""
    at, folder = view.measured_in(cell.id), view.work.cell(cell.id)
    assert at is not None  # the job has ended
    made = in_job.attempts(folder, at.task)
    if made.rounds:
        return made.ended and made.failure is None
    try:  # measured by it, or by another one, before the last attempt
        manifest = store.verify(folder, deep=False)
        entries, _ = store.measurements(folder, deep=False)
        measured = finished.of_this_artifact(entries, manifest)
        made_at = [entry.path.stat().st_mtime for entry in measured]
    except (Corrupt, OSError):
        return False
    return any(when > ledger.when(at.entry) for when in made_at)


def _to_be_measured(folder: CellPaths, row: slurm.Row) -> tuple[State, str]:
    """The same of one that a job in the queue measures, after or before others of its base."""
    where = f"job {row.task}" + (f" on {row.nodes}" if row.nodes else "")
    if is_held(folder):
        return "running", f"{where} measures it"
    if slurm.IN_QUEUE.get(row.state) != "queued":
        return "trained", f"{where} measures what stands on its base, one after the other"
    why = "when its base and all that stands on it have ended" if row.after else ""
    why = why or cluster.pending(row)
    return "trained", f"{where} will measure it" + (f": {why}" if why else "")


def failed_since_trained(folder: CellPaths, attempt: AttemptPaths | None) -> store.Failure | None:
    """How the last attempt failed at a measurement."""
    if attempt is None:
        return None
    try:
        since_ns = folder.manifest.stat().st_mtime_ns
        failed = attempt.failure.stat().st_mtime_ns > since_ns
        return store.read_failure(attempt) if failed else None
    except (FileNotFoundError, Corrupt):
        return None
