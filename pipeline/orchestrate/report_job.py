"""The state of the job that builds a sweep's report; of a failed one, the cause and the log.

The job records it in its folder: made.json when the report is published, failure.json when it
failed. Without either, Slurm's records and the log decide. A report made on the command line
counts, too, where it is newer than the ends of the job and of all cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline import paths, store
from pipeline.errors import Corrupt
from pipeline.orchestrate import ledger, slurm
from pipeline.orchestrate.graph import Request
from pipeline.orchestrate.retry import Cause, cause, escalated

if TYPE_CHECKING:
    from pipeline.orchestrate.profile import Profile

KIND = "report"  # of an entry in the ledger
LOG_TAIL_BYTES = 4000


@dataclass(frozen=True)
class ReportState:
    """`made`, `queued` and `running` need no action; `unknown`: Slurm did not answer. `cancelled`:
    by `netpress cancel`. `missing`: it was never submitted. `request`: that of its job."""

    state: Literal["made", "queued", "running", "failed", "cancelled", "missing", "unknown"]
    cause: Cause | None = None
    log: Path | None = None
    request: Request | None = None

    @property
    def reason(self) -> str | None:
        if self.cause is None:
            return None
        advice = f"; {self.cause.rule.advice}" if self.cause.rule.advice else ""
        return self.cause.reason + advice

    def next_request(self, profile: Profile) -> Request:
        """For its next job: more of what it ran out of, and at least the profile's request."""
        least = Request(profile.report.memory_gib, profile.report.minutes)
        if self.cause is None or self.request is None:
            return least
        larger = escalated(self.cause, self.request, profile.cap_gib, profile.cap_minutes)
        if isinstance(larger, str):
            larger = self.request
        memory_gib = max(larger.memory_gib, least.memory_gib)
        return Request(memory_gib, max(larger.minutes, least.minutes), larger.exclude)


def follow_up_failure(known: ledger.Ledger) -> str | None:
    """How the last job failed that was to submit what there was no room for."""
    jobs = [e for e in known.entries.values() if e.kind == ledger.FOLLOW_UP and e.job is not None]
    failure = _failure(known.paths.job(jobs[-1].intent)) if jobs else None
    return (
        f"Job {jobs[-1].job}, which was to submit them, failed: {failure.line}" if failure else None
    )


def unsettled(known: ledger.Ledger) -> ledger.Entry | None:
    """The last report, where it has a job that has not recorded that the report was made."""
    entry = _last(known)
    if entry is None or entry.kind != KIND or entry.job is None or _has_made(known, entry):
        return None
    return entry


def look(
    known: ledger.Ledger,
    rows: Mapping[str, slurm.Row],
    reachable: bool,
    cells_ended_s: Callable[[], float] = lambda: 0.0,
) -> ReportState | None:
    """The state of the sweep's report; None where nothing of the sweep was submitted.
    `cells_ended_s`: when the last of its cells was done or failed, as time.time() says it."""
    entry = _last(known)
    if entry is None:
        return None
    if _has_made(known, entry):
        return ReportState("made")
    row = rows.get(entry.task(0)) if entry.kind == KIND and entry.job is not None else None
    if row is not None and row.state not in slurm.FINAL:
        waits = slurm.IN_QUEUE.get(row.state) == "queued"
        return ReportState("queued" if waits else "running")
    if _is_made_by_hand(known, entry, cells_ended_s):
        return ReportState("made")
    if entry.kind != KIND:
        if (early := _replaced_later(known, rows)) is not None:
            return early
        return ReportState("missing", Cause("lost", "its job was never submitted"))
    if entry.job is None:
        if entry.ended is None:
            return ReportState("unknown")
        return ReportState("failed", Cause("lost", entry.ended))
    if row is not None and row.state == "COMPLETED":
        return ReportState("made")
    return _ended(known, entry, row, reachable)


def _ended(
    known: ledger.Ledger, entry: ledger.Entry, row: slurm.Row | None, reachable: bool
) -> ReportState:
    task, job = entry.task(0), known.paths.job(entry.intent)
    failure = _failure(job)
    if row is None and failure is None and not reachable:
        return ReportState("unknown")
    if entry.job in known.cancelled_jobs and failure is None:
        return ReportState("cancelled", Cause("cancelled", "cancelled by `netpress cancel`"))
    setup, log = end_of(job.setup(task)), end_of(job.err(task))
    why = cause(row, failure=failure, setup=setup, log=log, task=task, log_file=job.out(task))
    request = Request(
        entry.request["memory_gib"], entry.request["minutes"], tuple(entry.request["exclude"])
    )
    return ReportState("failed", why, job.err(task) if log else None, request)


def _replaced_later(known: ledger.Ledger, rows: Mapping[str, slurm.Row]) -> ReportState | None:
    """The state of a report that was submitted before the last cells, and waits for the follow-up
    job, which replaces it."""
    follow_ups = {ledger.FOLLOW_UP}
    follow_ups |= {str(e.job) for e in known.entries.values() if e.kind == ledger.FOLLOW_UP}
    for entry in reversed(known.entries.values()):
        if entry.kind == KIND and entry.ended is None and follow_ups & {*entry.after}:
            row = rows.get(f"{entry.job}_0")
            alive = row is not None and row.state not in slurm.FINAL
            return ReportState("queued") if alive else None
    return None


def _failure(job: paths.JobPaths) -> store.Failure | None:
    try:
        return store.read_failure(job.report)
    except (Corrupt, OSError):  # then Slurm's records decide
        return None


def _last(known: ledger.Ledger) -> ledger.Entry | None:
    """The last entry that was submitted, or the last report that was refused; None in ledgers of
    old versions, whose report jobs do not record whether the report was made."""
    for entry in reversed(known.entries.values()):
        if entry.kind != ledger.FOLLOW_UP and (entry.ended is None or entry.kind == KIND):
            return entry if entry.reports else None
    return None


def _has_made(known: ledger.Ledger, entry: ledger.Entry) -> bool:
    return entry.kind == KIND and known.paths.job(entry.intent).made.exists()


def _is_made_by_hand(
    known: ledger.Ledger, entry: ledger.Entry, cells_ended_s: Callable[[], float]
) -> bool:
    page = paths.report(known.paths.folder.name, Path(entry.reports)).page
    try:
        made_s = page.stat().st_mtime
    except OSError:
        return False
    return made_s > _ended_s(known.paths.job(entry.intent), entry) and made_s > cells_ended_s()


def _ended_s(job: paths.JobPaths, entry: ledger.Entry) -> float:
    """When the job wrote its last file; when it was submitted, where it wrote none."""
    for path in (job.report.failure, job.err(entry.task(0))):
        try:
            return path.stat().st_mtime
        except OSError:
            continue
    return ledger.when(entry)


def end_of(path: Path) -> str:
    """The end of a small text file; empty where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace").strip()
    except OSError:
        return ""
