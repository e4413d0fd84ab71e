"""Cells that were submitted and are no longer in the sweep, for its file was changed since then:
their jobs go on, and nothing else about the sweep would show them."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.orchestrate import ledger, slurm
from pipeline.orchestrate.cluster import View
from pipeline.orchestrate.plan import called, quoted
from pipeline.sweep import Sweep


def ids(sweep: Sweep, at: ledger.At) -> list[str]:
    """Of the cells of a task, those that are no longer in the sweep."""
    return [cell for cell in at.entry.tasks[at.index] if cell not in sweep.by_id]


def alone(sweep: Sweep, view: View) -> list[ledger.At]:
    """The tasks in the queue that work on no cell of the sweep any more."""
    every = (at for entry in view.known.entries.values() for at in _tasks(entry))
    return [at for at in every if _is_alive(view, at) and len(ids(sweep, at)) == _cells(at)]


def note(sweep: Sweep, view: View) -> Iterator[str]:
    """A line about them, where there are any."""
    tasks = alone(sweep, view)
    if not tasks:
        return
    count = len({cell for at in tasks for cell in ids(sweep, at)})
    cells = f"{count} cell{'s' * (count != 1)}"
    more = f" and {len(tasks) - 1} more" if len(tasks) > 1 else ""
    yield (
        f"{cells} no longer in {called(sweep)} {'are' if count != 1 else 'is'} in the queue (job "
        f"{tasks[0].task}{more}); `netpress cancel {quoted(sweep)}` cancels them, too"
    )


def _tasks(entry: ledger.Entry) -> Iterator[ledger.At]:
    if entry.kind in (ledger.CELLS, ledger.MEASURE) and entry.job is not None:
        for index in entry.tasks:
            yield ledger.At(entry, index)


def _is_alive(view: View, at: ledger.At) -> bool:
    row = view.rows.get(at.task)
    return row is not None and row.state not in slurm.FINAL


def _cells(at: ledger.At) -> int:
    return len(at.entry.tasks[at.index])
