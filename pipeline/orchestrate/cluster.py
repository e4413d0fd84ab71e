"""What SLURM knows of a sweep's cells now: one squeue, and at most one sacct for all jobs that left
it.

The ledger records which job a cell is in; the cell's folder shows whether it is done. A job's state
never makes a cell done: only a published, valid result does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pipeline.errors import UserError
from pipeline.orchestrate import accounting, in_job, ledger, report_job, slurm
from pipeline.orchestrate.retry import Cause, cause
from pipeline.paths import Work
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

HELD = {  # states in which a job waits for somebody
    "SPECIAL_EXIT": "held after its exit code, which the site lists as special: "
    "`scontrol release JOB` lets it run again",
    "REQUEUE_HOLD": "requeued and held: `scontrol release JOB` lets it run again",
    "RESV_DEL_HOLD": "held, since its reservation was deleted: `scontrol release JOB` lets it run",
}


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
        alive = (e for e in self._alive if e.kind == "report" and slurm.is_ours(e.user))
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
        made = in_job.attempts(self.work.cell(cell.id), task)
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
            busy="" if made.failure else in_job.busy(job.out(task), cell.id),
            log_file=job.out(task),
        )
        if result.kind == "lost" and task in self.runaway:
            said = f"accounting still says {self.runaway[task]} of it"
            return Cause("lost", f"job {task} is not in the queue any more, though {said}")
        if row is None and made.failure is None and not self.accounting:
            return Cause(result.kind, f"{result.reason} (accounting is not available)")
        return result


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
    accounting.complete(view, sweep, done, trained)
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


def pending(row: slurm.Row) -> str:
    """Why a job in the queue does not run, in plain words for known states and reasons."""
    if row.state in HELD:
        return HELD[row.state].replace("JOB", row.task)
    return PENDING.get(row.reason, row.reason).replace("JOB", row.task)
