"""How the jobs ended that have left the queue, from SLURM's accounting."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.orchestrate import ledger, report_job, slurm
from pipeline.sweep import Sweep

if TYPE_CHECKING:
    from pipeline.orchestrate.cluster import View

NAMELESS = "allocation"  # to accounting, a job that has ended before it began
LATE_S = 60.0  # that accounting may be behind the controller


def complete(view: View, sweep: Sweep, done: set[str], trained: set[str]) -> None:
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
    if not view.reachable or not slurm.is_ours(entry.user):
        return False
    try:
        log = view.known.paths.job(entry.intent).out(task)
        return time.time() - log.stat().st_mtime > LATE_S
    except OSError:  # it has written nothing
        return True
