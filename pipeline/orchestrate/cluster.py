"""What SLURM knows of a sweep's cells now: one squeue, and at most one sacct for all that left it.

The ledger says which job a cell is in; the cell's folder says whether it is done. A job's state
never makes a cell done: only a published, valid result does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from pipeline import store
from pipeline.errors import UserError
from pipeline.orchestrate import ledger, slurm
from pipeline.orchestrate.retry import Cause, cause
from pipeline.paths import Work
from pipeline.sweep import Cell, Sweep

LOG_TAIL_BYTES = 4000

# States in which a job is still in the queue, and what they are for a cell. One that is not here is
# shown as it is: its job may come back, so its cell is neither done nor free to be submitted.
IN_QUEUE = {
    "PENDING": "queued",
    "REQUEUED": "queued",
    "REQUEUE_FED": "queued",
    "REQUEUE_HOLD": "queued",
    "RESV_DEL_HOLD": "queued",
    "SPECIAL_EXIT": "queued",
    "CONFIGURING": "running",
    "RUNNING": "running",
    "COMPLETING": "running",
    "SUSPENDED": "running",
    "STOPPED": "running",
    "SIGNALING": "running",
    "STAGE_OUT": "running",
    "RESIZING": "running",
}
FINAL = frozenset(
    ("COMPLETED", "FAILED", "TIMEOUT", "DEADLINE", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL",
     "LAUNCH_FAILED", "RECONFIG_FAIL", "PREEMPTED", "CANCELLED", "REVOKED")
)  # fmt: skip
PENDING = {  # Slurm's reasons in words; others are shown as they are
    "None": "",
    "Priority": "behind jobs of higher priority",
    "Resources": "waiting for free hardware",
    "JobHeldUser": "held: `scontrol release JOB` lets it run",
    "JobHeldAdmin": "held by an administrator",
    "BeginTime": "requeued, starts again in a moment",
    "JobArrayTaskLimit": "waiting for other tasks of its array (at_once)",
    "PartitionDown": "its partition is down",
    "ReqNodeNotAvail": "the nodes it could run on are not available",
}


@dataclass
class View:
    """One look at the cluster. `rows` by task (`12_3`); `notes` are lines for the user."""

    known: ledger.Ledger
    work: Work
    rows: dict[str, slurm.Row] = field(default_factory=dict)
    queue: list[slurm.Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reachable: bool = True  # the controller answered
    accounting: bool = True  # so did sacct, where it was asked

    def task(self, cell_id: str) -> str | None:
        """The task that the cell was submitted in last, once its job is known."""
        at = self.last.get(cell_id)
        return at.task if at and at.entry.job is not None else None

    def row(self, cell_id: str) -> slurm.Row | None:
        task = self.task(cell_id)
        return self.rows.get(task) if task else None

    def in_queue(self, cell_id: str) -> bool:
        """Whether a job is going to work on the cell, or does."""
        row = self.row(cell_id)
        return row is not None and row.state not in FINAL

    @property
    def alive_jobs(self) -> list[int]:
        """Ids of this sweep's jobs that are in the queue, the report's left out."""
        kinds = {e.job: e.kind for e in self.known.entries.values() if e.job is not None}
        return sorted({
            r.job for r in self.rows.values()
            if r.state not in FINAL and kinds.get(r.job) == "cells"
        })  # fmt: skip

    @property
    def alive_report(self) -> int | None:
        for entry in self.known.entries.values():
            row = self.rows.get(f"{entry.job}_0") if entry.kind == "report" else None
            if row is not None and row.state not in FINAL:
                return row.job
        return None

    def __post_init__(self) -> None:
        self.last = self.known.last

    def cause(self, cell: Cell) -> Cause:
        """Why the cell, whose job is not in the queue, is not done."""
        at = self.last[cell.id]
        task, row = at.task, self.row(cell.id)
        folder = self.work.cell(cell.id)
        failure, rounds = _of_job(folder, task)
        if cell.id in self.known.cancelled and (row is None or row.state == "CANCELLED"):
            return Cause("cancelled", "cancelled by `netpress cancel`")
        job = self.known.paths.job(at.entry.intent)
        found = cause(row, failure=failure, setup=_text(job.setup(task)), log=_text(job.err(task)),
                      rounds=rounds, task=task)  # fmt: skip
        if row is None and failure is None and not self.accounting:
            return Cause(found.kind, f"{found.reason} (accounting is not available)")
        return found


def look(
    asked: Sweep, work: Work, done: Iterable[str], patient: bool = False,
    known: ledger.Ledger | None = None,
) -> View | None:  # fmt: skip
    """One squeue, and a sacct if a cell that is not done left the queue; None: never submitted.

    Raises Unreachable if `patient` and the controller does not answer, else notes it.
    """
    known = known or ledger.read(work.sweep(asked.name))
    if not known.entries:
        return None
    view = View(known, work)
    owners = sorted({entry.user for entry in known.entries.values()}) or [slurm.user()]
    try:
        view.queue = slurm.squeue(",".join(owners), patient)
    except UserError as error:
        if patient:
            raise
        view.reachable = False
        view.notes.append(f"{error}; what follows is what the disk knows")
    _adopt(known, view.queue)
    view.last = known.last
    jobs = set(known.jobs)
    view.rows = {row.task: row for row in view.queue if row.job in jobs}
    _account(view, asked, set(done))
    return view


def _adopt(known: ledger.Ledger, rows: Sequence[slurm.Row]) -> None:
    """In memory: an intent whose job is in the queue was submitted, whatever came after."""
    for entry in known.entries.values():
        if entry.open:
            entry.job = slurm.find(rows, entry.name, entry.at)


def _account(view: View, asked: Sweep, done: set[str]) -> None:
    """Ask sacct, once, about the jobs of cells that are neither done nor in the queue."""
    gone = {
        at.entry.job
        for cell in asked.cells
        if cell.id not in done and (at := view.last.get(cell.id)) and at.entry.job is not None
        and at.task not in view.rows
    }  # fmt: skip
    # A job that ended a moment ago is in the queue still, but only sacct knows its memory.
    gone |= {
        row.job for cell in asked.cells
        if cell.id not in done and (row := view.row(cell.id)) and row.state in FINAL
    }  # fmt: skip
    if not gone:
        return
    try:
        rows = slurm.sacct(gone)
    except UserError as error:
        view.accounting = False
        view.notes.append(f"{error}; how jobs ended is told from their logs")
        return
    for row in rows:
        now = view.rows.get(row.task)
        if now is None:
            view.rows[row.task] = row
        elif now.state in FINAL and row.state in FINAL:
            view.rows[row.task] = replace(row, reason=row.reason or now.reason)


def _of_job(folder, task: str) -> tuple[dict | None, int]:
    """(what the last attempt of this job wrote down about its failure, how many it had)."""
    failure, rounds, last = None, 0, store.last_attempt(folder)
    for number in range(last.number if last else 0, 0, -1):
        attempt = folder.attempt(number)
        if _json(attempt.usage).get("job") != task:
            break
        rounds += 1
        if rounds == 1:
            failure = failure_of(attempt)
    return failure, rounds


def failure_of(attempt) -> dict | None:
    """What an attempt wrote down about its failure, or what was written down for it."""
    said = _json(attempt.failure) if attempt else {}
    whole = isinstance(said.get("kind"), str) and isinstance(said.get("reason"), str)
    return said if whole else None


def job_of(attempt) -> str | None:
    """The SLURM job that an attempt was made in; None outside of one."""
    return _json(attempt.usage).get("job")


def started(work: Work, cell: Cell, task: str) -> bool:
    """Whether this task has begun with the cell: of a pack, it begins with one after the other."""
    return _of_job(work.cell(cell.id), task)[1] > 0


def failed_in(work: Work, cell: Cell, task: str) -> dict | None:
    """What the cell's last attempt in this task wrote down about its failure."""
    return _of_job(work.cell(cell.id), task)[0]


def pending(row: slurm.Row) -> str:
    """Why a job that is in the queue does not run, in words where there are some."""
    return PENDING.get(row.reason, row.reason).replace("JOB", row.task)


def _json(path) -> dict:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(path) -> str:
    """The end of a small text file; empty where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace").strip()
    except OSError:
        return ""
