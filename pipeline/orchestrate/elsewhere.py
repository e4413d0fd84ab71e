"""Jobs that were sent to another cluster, from a work root that both see: Slurm tells nothing of
them here, so nothing may be submitted in their place, and none of them be cancelled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pipeline.errors import UserError
from pipeline.orchestrate import cluster, in_job, ledger, report_job
from pipeline.orchestrate.state import SweepState


def refuse_intents(known: ledger.Ledger, here: str) -> None:
    """Raises UserError where it is not known whether another cluster accepted a job."""
    _refuse((entry for entry in known.entries.values() if entry.open), here)


def refuse_jobs(states: SweepState, here: str) -> None:
    """Raises UserError where jobs of another cluster may still work for the sweep."""
    if states.view is not None:
        _refuse((*_of_cells(states, states.view), *_follow_up(states.view.known)), here)


def _refuse(entries: Iterable[ledger.Entry], here: str) -> None:
    """`here`: the name of this cluster; empty where it is not known, as in older ledgers."""
    for entry in entries:
        if here and entry.cluster not in ("", here):
            job = f"job {entry.job}" if entry.job is not None else f"a job named {entry.name}"
            raise UserError(
                f"{job} was sent to cluster {entry.cluster} and may be in its queue, which cannot "
                f"be seen from cluster {here}: continue there, or set NETPRESS_WORK to another "
                "work root; nothing was changed"
            )


def _of_cells(states: SweepState, view: cluster.View) -> Iterator[ledger.Entry]:
    """The submissions that cells were last part of, as far as their end is not known."""
    last, measuring = view.known.last, view.known.measuring  # of all cells, made when asked for
    for now in states.cells:
        training = None if now.trained else last.get(now.cell.id)
        for at in (training, measuring.get(now.cell.id)):
            ended = now.state == "done" or now.cell.id in view.known.cancelled
            if at is None or at.entry.job is None or ended or at.task in view.rows:
                continue
            made = in_job.attempts(view.work.cell(now.cell.id), at.task)
            if made.failure is None and not made.ended:
                yield at.entry


def _follow_up(known: ledger.Ledger) -> Iterator[ledger.Entry]:
    """The one that may still submit what there was no room for."""
    sent = [e for e in known.entries.values() if e.kind == ledger.FOLLOW_UP and e.job is not None]
    failed = report_job.follow_up_failure(known) is not None
    left = known.put_off or known.measuring_put_off
    if sent and left and not failed and sent[-1].job not in known.cancelled_jobs:
        yield sent[-1]
