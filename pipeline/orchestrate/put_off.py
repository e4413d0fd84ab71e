"""What the user is told of cells for which there was no room among the submitted jobs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pipeline.orchestrate import report_job

if TYPE_CHECKING:
    from pipeline.orchestrate.state import SweepState

WITHOUT_JOB = ("failed", "cancelled", "missing")


def line(count: int, reason: str, follow_up: int | None, command: str) -> str:
    """What becomes of cells for which there was no room; `command`: of the user's."""
    by = f"job {follow_up}" if follow_up else f"`netpress {command}`"
    return (
        f"{count} cell{'s' * (count != 1)} not submitted yet ({reason}): {by} submits "
        f"{'them' if count != 1 else 'it'} when there is room"
    )


def lines(states: SweepState, called: str) -> Iterable[str]:
    """The line above where it is so, and how the job ended that was to submit the rest."""
    view = states.view
    if view is None:
        return
    known = view.known
    left = [c for c in states.cells if c.cell.id in known.put_off and c.state in WITHOUT_JOB]
    unmeasured = [
        c
        for c in states.cells
        if c.cell.id in known.measuring_put_off and c.trained and c.state != "done"
    ]
    follow_ups = view.follow_ups
    if left or unmeasured:
        reason = (
            known.not_submitted[left[-1].cell.id]
            if left
            else known.not_measured[unmeasured[-1].cell.id]
        )
        job = follow_ups[-1].job if follow_ups else None
        every = {c.cell.id: c for c in (*left, *unmeasured)}
        fresh = all(c.state in ("missing", "trained") for c in every.values())
        again = "submit" if fresh else "resume"
        yield line(len(every), reason, job, f"{again} {called}")
        if not follow_ups and (failure := report_job.follow_up_failure(view.known)):
            yield failure
