"""Take a sweep's jobs out of the queue: all of them, or those of some cells."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from pipeline.orchestrate import graph, ledger, slurm, state
from pipeline.paths import Work
from pipeline.sweep import Cell, Sweep


def run(asked: Sweep, work: Work, cells: Sequence[Cell] = ()) -> Iterator[str]:
    """Cancel the jobs of `cells`, or of the whole sweep; yields a line for what was done.

    It is written down before scancel is called: a pending task of an array that is cancelled leaves
    no trace in SLURM.
    """
    with ledger.locked(work.sweep(asked.name)) as known:
        found = state.find(asked, work, patient=True, known=known)
        view = found.view
        if view is None:
            yield f"Nothing of {asked.name} was ever submitted."
            return
        chosen = [cell for cell in cells or asked.cells if view.in_own_queue(cell.id)]
        tasks = {view.task(cell.id) for cell in chosen}
        shared = [cell for cell in asked.cells if view.task(cell.id) in tasks]
        reports = [] if cells else view.alive_reports
        if shared or reports:
            known.append("cancelled", cells=[cell.id for cell in shared], reports=reports)
        slurm.scancel([*_grouped(tasks), *map(str, reports)])
    others = len(shared) - len(chosen)
    yield f"{len(chosen)} cell{'s' * (len(chosen) != 1)} cancelled" + (
        f", and {others} more that shared their jobs" if others else ""
    )
    idle = [cell for cell in cells if cell not in chosen]
    for cell in idle:
        other = view.shared.get(cell.id)
        yield f"{cell.name} was in no job" + (f" of this sweep, but of sweep {other}" * bool(other))


def _grouped(tasks) -> list[str]:
    """`12_3 12_4 12_9` as `12_[3-4,9]`: one argument a job, however many tasks it has."""
    jobs: dict[str, list[int]] = defaultdict(list)
    for task in tasks:
        job, _, index = task.partition("_")
        jobs[job].append(int(index))
    return [f"{job}_[{graph.ranges(indices)}]" for job, indices in jobs.items()]
