"""What SLURM knows of a sweep's cells now: one squeue, and at most one sacct for all jobs that left
it.

The ledger records which job a cell is in; the cell's folder shows whether it is done. A job's state
never makes a cell done: only a published, valid result does.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

from pipeline import store
from pipeline.errors import Corrupt, UserError
from pipeline.orchestrate import ledger, report_job, slurm
from pipeline.orchestrate.retry import Cause, cause
from pipeline.paths import AttemptPaths, CellPaths, Work
from pipeline.store import Failure
from pipeline.sweep import Cell, Sweep

CANCELLED = "cancelled by `netpress cancel`"
PENDING = {  # Slurm's reasons in plain words; all others are shown unchanged
    "None": "",
    "Priority": "behind jobs of higher priority",
    "Resources": "waiting for free hardware",
    "JobHeldUser": "held: `scontrol release JOB` lets it run",
    "JobHeldAdmin": "held by an administrator",
    "BeginTime": "requeued a moment ago, or not to begin yet",
    "JobArrayTaskLimit": "waiting for other tasks of its array (at_once)",
    "PartitionDown": "its partition is down",
    "ReqNodeNotAvail": "the nodes it could run on are not available",
}

NAMELESS = "allocation"  # to accounting, a job that has ended before it began
LATE_S = 60.0  # that accounting may be behind the controller

HELD = {  # states in which a job waits for somebody
    "SPECIAL_EXIT": "held after its exit code, which the site lists as special: "
    "`scontrol release JOB` lets it run again",
    "REQUEUE_HOLD": "requeued and held: `scontrol release JOB` lets it run again",
    "RESV_DEL_HOLD": "held, since its reservation was deleted: `scontrol release JOB` lets it run",
}


@dataclass(frozen=True)
class InJob:
    """A cell's attempts in one job: how many there were, how the last one failed, whether
    anything was published since it began, and whether it came to its end."""

    rounds: int = 0
    failure: Failure | None = None
    progress: bool = False
    ended: bool = False


@dataclass
class View:
    """The state of the cluster at one time. `rows` by task (`12_3`); `notes` are lines for the
    user.

    `last`, `measuring`: the task in which each cell was last submitted, to be trained and to be
    measured apart. `shared`: cells that a job of another sweep makes or will make, with that
    sweep's name. `runaway`: tasks that have left the queue though accounting has no end of them,
    with the state that it has.
    """

    known: ledger.Ledger
    work: Work
    rows: dict[str, slurm.Row] = field(default_factory=dict)
    queue: list[slurm.Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reachable: bool = True  # the controller answered
    accounting: bool = True  # sacct answered, or was not needed
    shared: dict[str, str] = field(default_factory=dict)
    runaway: dict[str, str] = field(default_factory=dict)

    def task(self, cell_id: str) -> str | None:
        """The task in which the cell was last submitted, once its job is known."""
        at = self.last.get(cell_id)
        return at.task if at and at.entry.job is not None else None

    def row(self, cell_id: str) -> slurm.Row | None:
        task = self.task(cell_id)
        return self.rows.get(task) if task else None

    def in_queue(self, cell_id: str) -> bool:
        """Whether a job is running the cell, or will run it."""
        row = self.row(cell_id)
        return row is not None and row.state not in slurm.FINAL

    def measured_in(self, cell_id: str) -> ledger.At | None:
        """The last task that was to measure the cell: apart, or in the job that trains it."""
        apart, training = self.measuring.get(cell_id), self.last.get(cell_id)
        if training is None or training.entry.apart:
            return apart
        return apart if apart and self._is_after(apart.entry, training.entry) else training

    def measuring_row(self, cell_id: str) -> slurm.Row | None:
        """Of the job that measures the cell, or did last."""
        return self._row_of(self.measured_in(cell_id))

    def _row_of(self, at: ledger.At | None) -> slurm.Row | None:
        return self.rows.get(at.task) if at and at.entry.job is not None else None

    def will_measure(self, cell_id: str) -> bool:
        """Whether a job in the queue measures the cell; not one that was submitted before the job
        that trains it, for which it does not wait."""
        row = self._row_of(self.measuring.get(cell_id))
        if row is None or row.state in slurm.FINAL:
            return False
        if not self.in_queue(cell_id):
            return True
        return self._is_after(self.measuring[cell_id].entry, self.last[cell_id].entry)

    def _is_after(self, entry: ledger.Entry, other: ledger.Entry) -> bool:
        """Whether `entry` was submitted after `other`; of two sweeps, in its second at least."""
        if {entry.intent, other.intent} <= self.known.entries.keys():
            return entry.number > other.number
        return ledger.when(entry) >= ledger.when(other)

    def in_own_queue(self, cell_id: str) -> bool:
        """The same, but only for a job that was submitted for this sweep."""
        return self.in_queue(cell_id) and cell_id not in self.shared

    @property
    def alive_jobs(self) -> list[int]:
        """Ids of the jobs in the queue that work on this sweep, without report jobs."""
        kinds = (ledger.CELLS, ledger.MEASURE)
        jobs = {e.job for e in self.known.entries.values() if e.kind in kinds}
        jobs |= {self.last[cell].entry.job for cell in self.shared}
        jobs |= {at.entry.job for at in self.measuring.values()}  # of other sweeps, too
        return sorted(self._in_queue & jobs)

    @property
    def alive_reports(self) -> list[int]:
        """Ids of our jobs in the queue that build this sweep's report."""
        alive = [entry for entry in self._alive if entry.kind == "report" and is_ours(entry)]
        return [entry.job for entry in alive if entry.job is not None]

    def has_report(self, sweep: str) -> bool:
        """Whether a job in the queue builds the report for these contents of the sweep file and was
        submitted last, so that it waits for all others."""
        alive = [entry for entry in self._alive if entry.kind != ledger.FOLLOW_UP]
        if any(e.kind == "report" and e.sweep == sweep and self._waits(e) for e in alive):
            return True
        return bool(alive) and alive[-1].kind == "report" and alive[-1].sweep == sweep

    @property
    def follow_ups(self) -> list[ledger.Entry]:
        """Jobs in the queue that submit what there was no room for."""
        return [entry for entry in self._alive if entry.kind == ledger.FOLLOW_UP]

    def _waits(self, report: ledger.Entry) -> bool:
        """Whether a report waits for a follow-up job in the queue, which replaces it in the end."""
        jobs = {str(entry.job) for entry in self.follow_ups}
        return bool(jobs) and (ledger.FOLLOW_UP in report.after or bool(jobs & {*report.after}))

    @property
    def _alive(self) -> list[ledger.Entry]:
        """Entries of this sweep whose jobs are in the queue, in the order of submission."""
        alive = self._in_queue
        return [entry for entry in self.known.entries.values() if entry.job in alive]

    @property
    def _in_queue(self) -> set[int]:
        return {row.job for row in self.rows.values() if row.state not in slurm.FINAL}

    def __post_init__(self) -> None:
        self.last, self.measuring = self.known.last, self.known.measuring

    def cause(self, cell: Cell) -> Cause:
        """Why a cell whose job has left the queue is not done."""
        return self._cause(cell, self.last[cell.id])

    def cause_of_measuring(self, cell: Cell) -> Cause:
        """Why a trained cell is not measured, whose job for that has left the queue."""
        at = self.measured_in(cell.id)
        assert at is not None  # else no job was to measure it
        return self._cause(cell, at)

    def _cause(self, cell: Cell, at: ledger.At) -> Cause:
        task = at.task
        row = self.rows.get(task)
        made = in_job(self.work.cell(cell.id), task)
        ended_itself = made.failure is not None and made.failure.kind != "killed"  # as scancel does
        was_cancelled = cell.id in self.known.cancelled and not ended_itself
        if was_cancelled and (row is None or row.state == "CANCELLED"):
            return Cause("cancelled", CANCELLED)
        job = self.known.paths.job(at.entry.intent)
        result = cause(
            row,
            failure=made.failure,
            setup=report_job.end_of(job.setup(task)),
            log=report_job.end_of(job.err(task)),
            rounds=made.rounds,
            progress=made.progress,
            task=task,
            busy="" if made.failure else _busy(job.out(task), cell.id),
            log_file=job.out(task),
        )
        if result.kind == "lost" and task in self.runaway:
            said = f"accounting still says {self.runaway[task]} of it"
            return Cause("lost", f"job {task} is not in the queue any more, though {said}")
        if row is None and made.failure is None and not self.accounting:
            return Cause(result.kind, f"{result.reason} (accounting is not available)")
        return result


def is_ours(entry: ledger.Entry) -> bool:
    """Whether this user may cancel its job."""
    return entry.user == slurm.user() or os.geteuid() == 0


def look(
    sweep: Sweep,
    work: Work,
    done: Iterable[str],
    trained: Iterable[str] = (),
    patient: bool = False,
    known: ledger.Ledger | None = None,
) -> View | None:
    """One squeue, and one sacct if the job of an unfinished cell left the queue; None: never
    submitted. `trained`: cells that are not done, but need no other training.

    If the controller does not answer: raises Unreachable if `patient`, else adds a note.
    """
    known = known or ledger.read(work.sweep(sweep.name))
    done, trained = set(done), set(trained)
    left = [cell.id for cell in sweep.cells if cell.id not in done]
    others = ledger.others(work.sweep(sweep.name), left) if left else []
    if not known.entries and not others:
        return None
    view = View(known, work)
    _read_queue(view, others, patient)
    _adopt(known, view.queue)
    view.last, view.measuring = known.last, known.measuring
    view.rows = _rows_of(known, view.queue)
    for other in others:
        _share(view, other, left)
    _account(view, sweep, done, trained)
    return view


def _read_queue(view: View, others: Iterable[ledger.Ledger], patient: bool) -> None:
    entries = [entry for known in (view.known, *others) for entry in known.entries.values()]
    owners = {entry.user for entry in entries}
    try:
        view.queue = slurm.squeue(",".join(sorted(owners)), patient)
    except UserError as error:
        if patient:
            raise
        view.reachable = False
        view.notes.append(f"{error}; the following is known from files alone")
    if view.reachable and not view.queue and owners != {slurm.user()}:
        view.notes.append(
            f"the queue shows no job of {', '.join(sorted(owners))}: there is none, or this "
            "cluster shows jobs only to their owners"
        )


def _share(view: View, other: ledger.Ledger, cells: Iterable[str]) -> None:
    """Adds cells that are in no job of this sweep but in one of another sweep, mostly bases."""
    _adopt(other, view.queue)
    last, measuring = other.last, other.measuring
    rows = {
        task: row
        for task, row in _rows_of(other, view.queue).items()
        if row.state not in slurm.FINAL
    }
    for cell in cells:
        at = last.get(cell)
        if at is not None and at.task in rows and not view.in_queue(cell):
            view.last[cell], view.rows[at.task] = at, rows[at.task]
            view.shared[cell] = other.paths.folder.name
        at = measuring.get(cell)
        if at is not None and at.task in rows and not view.will_measure(cell):
            view.measuring[cell], view.rows[at.task] = at, rows[at.task]


def _rows_of(known: ledger.Ledger, rows: Iterable[slurm.Row]) -> dict[str, slurm.Row]:
    """By task, those of the ledger's jobs. Another cluster counts from one, too, as this one does
    where it lost its state, so ids alone would take a stranger's job for ours."""
    ours = {(entry.job, entry.name) for entry in known.entries.values()}
    return {row.task: row for row in rows if (row.job, row.name) in ours}


def _adopt(known: ledger.Ledger, rows: Sequence[slurm.Row]) -> None:
    """In memory only: an intent whose job is in the queue was submitted, even if the ledger does
    not record it."""
    for entry in known.entries.values():
        if entry.open:
            entry.job = slurm.find(rows, entry.name, ledger.when(entry))


def _account(view: View, sweep: Sweep, done: set[str], trained: set[str]) -> None:
    """Call sacct, once, for the jobs of cells that are neither done nor in the queue."""
    gone: dict[int, ledger.Entry] = {}
    for cell in sweep.cells:
        if cell.id in done:
            continue
        at = view.measured_in(cell.id) if cell.id in trained else view.last.get(cell.id)
        if at is None or at.entry.job is None:
            continue
        row = view.rows.get(at.task)
        # A job that has just ended is still in the queue, but only sacct reports its memory.
        if row is None or row.state in slurm.FINAL:
            gone[at.entry.job] = at.entry
    report = report_job.unsettled(view.known)
    if report is not None and report.job is not None:
        row = view.rows.get(report.task(0))
        if row is None or row.state in slurm.FINAL - {"COMPLETED"}:
            gone[report.job] = report
    if not gone:
        return
    try:
        rows = slurm.sacct(gone)
    except UserError as error:
        view.accounting = False
        view.notes.append(f"{error}; how jobs ended is taken from their logs")
        return
    for row in rows:
        if row.job not in gone or row.name not in (gone[row.job].name, NAMELESS):
            continue
        now = view.rows.get(row.task)
        if now is None and row.state not in slurm.FINAL and _is_over(view, gone[row.job], row.task):
            view.runaway[row.task] = row.state
        elif now is None:
            view.rows[row.task] = row
        elif now.state in slurm.FINAL and row.state in slurm.FINAL:
            view.rows[row.task] = replace(row, reason=row.reason or now.reason)


def _is_over(view: View, entry: ledger.Entry, task: str) -> bool:
    """Whether a job of which squeue has no row will have no end in accounting, either, where that
    is late: not soon after it has written its last line. Jobs of others, squeue may hide."""
    if not view.reachable or not is_ours(entry):
        return False
    try:
        log = view.known.paths.job(entry.intent).out(task)
        return time.time() - log.stat().st_mtime > LATE_S
    except OSError:  # it has written nothing
        return True


def in_job(folder: CellPaths, task: str) -> InJob:
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
    return in_job(work.cell(cell.id), task).rounds > 0


def failed_in(work: Work, cell: Cell, task: str) -> Failure | None:
    """The recorded failure of the cell's last attempt in this task."""
    return in_job(work.cell(cell.id), task).failure


def pending(row: slurm.Row) -> str:
    """Why a job in the queue does not run, in plain words for known states and reasons."""
    if row.state in HELD:
        return HELD[row.state].replace("JOB", row.task)
    return PENDING.get(row.reason, row.reason).replace("JOB", row.task)


def _busy(events: Path, cell_id: str) -> str:
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
