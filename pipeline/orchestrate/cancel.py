"""Cancels a sweep's jobs: all of them, or those of some cells."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pipeline.orchestrate import elsewhere, graph, ledger, slurm, state, withdrawn
from pipeline.orchestrate.cluster import View
from pipeline.orchestrate.plan import called
from pipeline.orchestrate.state import CellState
from pipeline.paths import Work
from pipeline.sweep import Cell, Sweep


def run(sweep: Sweep, work: Work, cells: Sequence[Cell] = ()) -> Iterator[str]:
    """Cancel the jobs of `cells`, or of the whole sweep; yields lines for the user.

    The ledger records it before scancel is called: SLURM keeps no record of a pending array task
    that was cancelled.
    """
    with ledger.locked(work.sweep(sweep.name)) as known:
        here = slurm.cluster_name() if known.entries else ""
        elsewhere.refuse_intents(known, here)
        states = state.find(sweep, work, patient=True, known=known)
        elsewhere.refuse_jobs(states, here)
        view = states.view
        if view is None:
            yield f"Nothing of {sweep.name} was ever submitted."
            return
        measuring = view.known.measuring  # of all cells, made when asked for
        places = {s.cell.id: _places(s, view, measuring) for s in states.cells}
        ending = {s.cell.id: _places(s, view, measuring, bool(cells)) for s in states.cells}
        queued = [cell for cell in cells or sweep.cells if ending[cell.id]]
        ours = {c.id: [at for at in ending[c.id] if slurm.is_ours(at.entry.user)] for c in queued}
        chosen = [cell for cell in queued if ours[cell.id]]
        left = _put_off(known)
        waited = [c for c in cells or sweep.cells if c.id in left and not ending[c.id]]
        waited = [cell for cell in waited if states.by_id[cell.id].state != "done"]
        yield from _of_others(c for c in queued if len(ours[c.id]) < len(ending[c.id]))
        places_of = {at.task: at for cell in chosen for at in ours[cell.id]}
        gone = [] if cells else withdrawn.alone(sweep, view)
        places_of |= {at.task: at for at in gone if slurm.is_ours(at.entry.user)}
        tasks = places_of.keys()
        old = {cell for at in places_of.values() for cell in withdrawn.ids(sweep, at)}
        shared = [c for c in sweep.cells if tasks & {at.task for at in places[c.id]}]
        reports = [] if cells else view.alive_reports
        follow_ups = [] if cells else view.follow_ups
        reports += [e.job for e in follow_ups if e.job is not None and slurm.is_ours(e.user)]
        old |= set() if cells else left - sweep.by_id.keys()
        ids = [*(cell.id for cell in (*shared, *waited)), *sorted(old)]
        if ids or reports:
            known.append("cancelled", cells=ids, reports=reports)
        slurm.scancel([*_grouped(tasks), *map(str, reports)])
    others, count = len(shared) - len(chosen), len(chosen) + len(waited)
    yield (
        f"{count} cell{'s' * (count != 1)} cancelled"
        + (f", {len(waited)} of them not submitted yet" if waited else "")
        + (f", and {others} more that shared their jobs" if others else "")
    )
    if old:
        yield f"{len(old)} cell{'s' * (len(old) != 1)} no longer in {called(sweep)} cancelled"
    for entry in follow_ups:
        if not slurm.is_ours(entry.user):
            yield (
                f"job {entry.job}, which submits what there was no room for, is of user "
                f"{entry.user}, who alone can cancel it"
            )
    idle = [cell for cell in cells if cell not in queued and cell not in waited]
    for cell in idle:
        other = view.shared.get(cell.id)
        yield f"{cell.name} was in no job" + (f" of this sweep, but of sweep {other}" * bool(other))


def _put_off(known: ledger.Ledger) -> set[str]:
    """Those for which there was no room, and which the follow-up job would submit."""
    return {*known.put_off, *known.measuring_put_off}


def _places(
    now: CellState, view: View, measuring: Mapping[str, ledger.At], named: bool = False
) -> list[ledger.At]:
    """The tasks in the queue of which its training or its measurement is part. With `named`, what
    to cancel for this cell alone: the task that trains it, since one that measures others of its
    base then leaves it out; once it is trained, the one that measures it; nothing once it is done,
    while these tasks go on with others."""
    cell = now.cell
    if named and now.state == "done":
        return []
    training = [view.last[cell.id]] if view.in_own_queue(cell.id) else []
    if named and training and not now.trained:
        return training
    at = measuring.get(cell.id)
    row = view.rows.get(at.task) if at and at.entry.job is not None else None
    measured_by = [at] if at and row and row.state not in slurm.FINAL else []
    return measured_by if named else [*training, *measured_by]


def _of_others(cells: Iterable[Cell]) -> Iterator[str]:
    """In a work root that a group shares, only who submitted a job can cancel it."""
    for cell in cells:
        yield f"{cell.name} is in a job of another user, who alone can cancel it"


def _grouped(tasks: Iterable[str]) -> list[str]:
    """`12_3 12_4 12_9` as `12_[3-4,9]`: one argument per job, however many tasks it has."""
    jobs: dict[str, list[int]] = defaultdict(list)
    for task in tasks:
        job, array, index = task.partition("_")
        jobs[job] += [int(index)] if array else []
    return [f"{job}_[{graph.ranges(i)}]" if i else job for job, i in jobs.items()]
