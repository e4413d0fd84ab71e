"""Whether a job was submitted: as sbatch says; where that is unclear, as the queue shows."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pipeline.orchestrate import ledger, slurm
from pipeline.orchestrate.batch import Prepared
from pipeline.terminal import tell

GHOST_S = 3.0  # how long a hung controller may take to process earlier requests
SEND_PAUSES_S = (2.0, 5.0, 15.0)


def submitted(item: Prepared, known: ledger.Ledger) -> int:
    """Call sbatch until the outcome is known: a call that timed out may have created the job."""
    since = ledger.when(known.entries[item.intent])
    for pause_s in (*SEND_PAUSES_S, None):
        try:
            return slurm.sbatch(item.job.script)
        except slurm.Unreachable as error:
            tell(f"{error}; checking whether the job was submitted")
            job = _look(item.name, since)
            if job is not None:
                return job
            if pause_s is None:
                raise
        except slurm.NoRoom as full:
            rows = slurm.squeue(patient=True) if full.repeated else []
            job = slurm.find(rows, item.name, since)
            if job is None:
                raise
            return job
        time.sleep(pause_s)
    raise AssertionError("the last pass either returned or raised")


def _look(name: str, since: float) -> int | None:
    """The job of this name, submitted since then. Looks twice: a hung controller may process
    earlier requests only after it has answered."""
    for pause_s in (GHOST_S, 0):
        job = slurm.find(slurm.squeue(patient=True), name, since)
        if job is not None:
            return job
        time.sleep(pause_s)
    return None


def settle(known: ledger.Ledger, rows: Sequence[slurm.Row]) -> None:
    """Close every open intent: submitted, where a job has its name; void, where none has.

    Only with the lock held, so that the submitter of an open intent is dead, and only with rows
    from a controller that answered. An intent whose job has left the queue is closed, too: it does
    not run any more, and its cells' folders show whether they are done.
    """
    for entry in [entry for entry in known.entries.values() if entry.open]:
        since = ledger.when(entry)
        job = slurm.find(rows, entry.name, since)
        if job is None:
            time.sleep(GHOST_S)
            job = slurm.find(slurm.squeue(entry.user, patient=True), entry.name, since)
        if job is None:
            known.append("void", intent=entry.intent, reason="no job of this name in the queue")
        else:
            known.append("submitted", intent=entry.intent, job=job)
