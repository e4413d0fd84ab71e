"""Submits the missing cells of a sweep to SLURM, as arrays, each recorded in the ledger before.

Killed at any time and called again, `submit` submits exactly what is missing (see send.py).
"""

from __future__ import annotations

import enum
import os
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import checkout, paths, store
from pipeline.errors import UserError
from pipeline.orchestrate import (
    batch_cost,
    images,
    ledger,
    measure_jobs,
    plan,
    put_off,
    report_job,
    settle,
    slurm,
    snapshot,
    state,
    submitted,
)
from pipeline.orchestrate.batch import (
    FOLLOW_UP,
    REPORTS_AGAIN,
    Batch,
    choose,
    durations,
    is_missing,
    make,
    unknown_jobs,
)
from pipeline.orchestrate.graph import Array, Request
from pipeline.orchestrate.profile import Cluster
from pipeline.orchestrate.send import JobFunctions, Sent, reason, send
from pipeline.sweep import Cell, Sweep
from pipeline.terminal import tell

if TYPE_CHECKING:
    from pipeline.orchestrate.room import Limit


class Kind(enum.Enum):
    """What a line about a submission is for."""

    RESULT = enum.auto()
    RESUME_HINT = enum.auto()  # which command resumes the cells that ended


@dataclass(frozen=True)
class Line:
    """One line for the user."""

    text: str
    kind: Kind = Kind.RESULT


@dataclass(frozen=True)
class Picked:
    """Which cells to submit, and the request of each; None: of cells that have not failed."""

    wanted: Callable[[state.CellState], bool]
    request: Callable[[Cell], Request] | None = None
    reports_again: Container[str] = REPORTS_AGAIN
    # The same of trained cells, to jobs that measure; None: as `wanted`.
    wanted_measured: Callable[[state.CellState], bool] | None = None
    measure_request: Callable[[Cell], Request] | None = None


def run(
    sweep: Sweep,
    work: paths.Work,
    data_root: Path,
    cluster: Cluster,
    functions: JobFunctions,
    *,
    pick: Callable[[state.SweepState], Picked] | None = None,
    live: bool = False,
    reports: Path | None = None,
) -> tuple[Batch, state.SweepState, Sent]:
    """Submit the missing cells of the sweep, or those that are picked; returns (the batch, the
    states before, what was submitted).

    Raises UserError before anything is submitted where data is missing, or where images changed
    since results were made; Unreachable where the queue cannot be read, since it is then not known
    what is in it. `live`: jobs run the code of the checkout, not a snapshot of it.
    """
    from pipeline.orchestrate import local  # here, since `plan` needs no workers

    if reports is not None:  # in a job, which runs what its own submission chose
        live = live or checkout.snapshot_id() is None
    _require(sweep, work, cluster, in_job=reports is not None)
    _share(cluster, work)
    cluster = replace(cluster, code=snapshot.of(work, live))
    with ledger.locked(work.sweep(sweep.name)) as known:
        if any(entry.open for entry in known.entries.values()):
            settle.settle(known, slurm.squeue(_owners(known), patient=True))
        states = state.find(sweep, work, patient=True, known=known)
        picked = pick(states) if pick else Picked(is_missing)
        cells, measures = _chosen(sweep, states, cluster, picked)
        images.check(states.done, work, data_root, local.say, decode=False)
        local.require_data([*cells, *measures], data_root)
        batch = make(
            sweep,
            work,
            data_root,
            cluster,
            states,
            known,
            cells,
            picked.request,
            picked.reports_again,
            _room(cluster) if cells or measures else None,
            reports,
            measures,
            picked.measure_request,
        )
        if batch.prepared:
            _require_known(sweep, work, known, states)
            report_job.require_writable(batch.reports, sweep.name)
            snapshot.make(cluster.code)
            if reports is None:  # not in a job, which has no home of its own
                submitted.remember(sweep, work)
        sent = send(batch, known, functions)
    return batch, states, sent


def _chosen(
    sweep: Sweep, states: state.SweepState, cluster: Cluster, picked: Picked
) -> tuple[list[Cell], list[Cell]]:
    """(what is to be trained, what is to be measured by jobs of its own)."""
    apart = cluster.profile.measure_job is not None
    cells = choose(sweep, states, picked.wanted, apart)
    if not apart:
        return cells, []
    wanted = picked.wanted_measured or picked.wanted
    return cells, measure_jobs.choose(sweep, states, cells, wanted)


def _require(sweep: Sweep, work: paths.Work, cluster: Cluster, in_job: bool) -> None:
    """Raises UserError where the roots, the threads or a tracker are not as they have to be; a user
    is told what of their variables is ignored."""
    if not in_job:
        _require_roots(cluster, work)
        for note in cluster.profile.ignored():
            tell(f"note: {note}")
    _require_threads(sweep, cluster)
    if sweep.tracking:
        from pipeline import tracking  # here, since few sweeps have one

        tracking.require(sweep.tracking)


def _room(cluster: Cluster) -> Limit | None:
    if not slurm.available():  # the plan is then only for reading
        return None
    from pipeline.orchestrate import room  # here, since `plan` on another machine needs none

    return room.tightest(cluster.profile)


def go_on(
    sweep: Sweep,
    work: paths.Work,
    data_root: Path,
    cluster: Cluster,
    functions: JobFunctions,
    reports: Path,
) -> Batch:
    """For the follow-up job: submit the cells that there was no room for, with the requests that
    they were to have, as far as there is room now. What still does not fit is the batch's rest."""

    def pick(states: state.SweepState) -> Picked:
        assert states.view is not None  # this job is in the ledger
        known = states.view.known
        put_off, unmeasured = known.put_off, known.measuring_put_off
        standard = durations(sweep, work, cluster).measuring

        def measure_request(cell: Cell) -> Request:
            before = unmeasured.get(cell.id)
            return Request.from_json(before) if before else standard(cell)

        return Picked(
            lambda cell_state: cell_state.cell.id in put_off,
            lambda cell: Request.from_json(put_off[cell.id]),
            wanted_measured=lambda cell_state: cell_state.cell.id in unmeasured,
            measure_request=measure_request,
        )

    batch, _, sent = run(sweep, work, data_root, cluster, functions, pick=pick, reports=reports)
    sent.check()
    return batch


def planned(
    sweep: Sweep, work: paths.Work, data_root: Path, cluster: Cluster, live: bool = False
) -> plan.Plan:
    """What `run` would submit now, with the cost; writes nothing."""
    cluster = replace(cluster, code=snapshot.of(work, live))
    states = state.find(sweep, work)
    known = states.view.known if states.view else ledger.read(work.sweep(sweep.name))
    cells, measures = _chosen(sweep, states, cluster, Picked(is_missing))
    free = _room(cluster) if cells or measures else None
    batch = make(
        sweep, work, data_root, cluster, states, known, cells, room=free, measures=measures
    )
    names = {item.array.name: item.name for item in batch.prepared}
    jobs = tuple(
        plan.Job(
            item.name,
            item.array.cells,
            tuple(_on(names, item.array)),
            item.script,
            len(item.array.tasks),
            item.array.measures,
        )
        for item in batch.prepared
    )
    state_names = {s.cell.id: s.state for s in states.cells}
    return plan.Plan(sweep, jobs, **batch_cost.of(batch, work, cluster), states=state_names)


def _on(names: Mapping[str, str], array: Array) -> Iterator[str]:
    for on in array.after:
        yield names.get(on) or names.get(on.rpartition("_")[0]) or on


def lines(
    batch: Batch, states: state.SweepState, sent: Sent, command: str = "submit"
) -> Iterator[Line]:
    """What was submitted by `command`, as lines for the user."""
    called = plan.quoted(batch.sweep)
    for item in batch.prepared:
        cells, job = len(item.array.cells), sent.jobs.get(item.name)
        if job is None or item.array.name == FOLLOW_UP:
            continue
        if not cells:
            again = states.report and states.report.reason
            why = "after all others" if item.array.after or not again else f"again: {again}"
            yield Line(f"job {job}: the report, {why}")
            continue
        counted = f"{cells} cell{'s' if cells != 1 else ''}"
        if item.array.measures:
            waits = ", when the jobs that train them have ended" if item.array.after else ""
            yield Line(f"job {job}: measures {counted}{waits}")
            continue
        waits = f", waits for {item.array.after[0]}" if item.array.after else ""
        yield Line(f"job {job}: {counted}{waits}")
    if batch.left_over:
        again = f"{command} {called}"
        yield Line(put_off.line(batch.left_over, reason(batch, sent), sent.follow_up, again))
    elif not batch.prepared:
        yield Line("Nothing to submit.")
    yield from map(Line, batch.notes)
    if waiting := _held_back(batch, states):
        yield Line(
            f"{waiting} cell{'s' * (waiting != 1)} not submitted: the base is being made outside "
            f"of SLURM now; `netpress submit {called}` submits them when it is done"
        )
    left = Counter(s.state for s in states.cells if s.state in ("failed", "cancelled"))
    if left:
        counts = ", ".join(f"{count} {name}" for name, count in left.items())
        text = f"{counts}: `netpress resume {called}` submits them again"
        yield Line(text, Kind.RESUME_HINT)
    if sent.jobs:
        yield Line(f"`netpress status {called}` shows the progress; you may log out")


def _held_back(batch: Batch, states: state.SweepState) -> int:
    """How many cells were not submitted because a process outside of SLURM makes their base."""
    sent = {cell for item in batch.prepared for cell in item.array.cells}
    return sum(
        states.by_id[s.cell.stands_on].state == "running"
        for s in states.cells
        if is_missing(s)
        and not s.trained
        and s.cell.id not in sent
        and s.cell.stands_on is not None
        and not (states.view and states.view.in_queue(s.cell.id))
    )


def _require_known(
    sweep: Sweep, work: paths.Work, known: ledger.Ledger, states: state.SweepState
) -> None:
    """Raises UserError where jobs in the queue work for this sweep and its ledger is gone: they
    would be sent a second time."""
    rows = states.view.queue if states.view else slurm.squeue(patient=True)
    jobs = " ".join(map(str, unknown_jobs(sweep, work, known, rows)))
    if jobs:
        raise UserError(
            f"{work.root}: has no record of jobs {jobs} in the queue, which were sent from there "
            f"for sweep {sweep.name}; was it deleted or moved? Put it back, or end them with "
            f"`scancel {jobs}`; nothing was submitted"
        )


def _require_roots(cluster: Cluster, work: paths.Work) -> None:
    """Raises UserError where the profile's work root, which compute nodes see, is not used here,
    unless the user chose another one."""
    root = cluster.profile.work
    if root and not os.environ.get("NETPRESS_WORK") and paths.work_root(root) != work.root:
        raise UserError(
            f"profile {cluster.name}: work: {root} cannot be created on this machine; run this on "
            "the cluster's login node, or give another one with --set work=FOLDER"
        )


def _share(cluster: Cluster, work: paths.Work) -> None:
    """Open the work root to its group where the profile says so, and it is not open yet."""
    if cluster.profile.share is None or store.enter(work):
        return
    store.share_with_group(work)
    store.publish_json(work.share, {"share": cluster.profile.share})
    if (closed := store.closed_to_group(work.root)) is not None:
        tell(f"{work.root} is shared with its group, but only its owner can pass {closed}")


def _require_threads(sweep: Sweep, cluster: Cluster) -> None:
    """Raises UserError where jobs would have fewer cores than threads to measure with."""
    own = cluster.profile.measure_job
    cores, key = (own.cores, "measure.cores") if own else (cluster.profile.cores, "cores")
    threads = max(cell.measure.threads or 1 for cell in sweep.cells)
    if threads > cores:
        raise UserError(
            f"{sweep.path}: measure.threads: {threads} are more than the {cores} cores of a job "
            f"(profile {cluster.name}); expected at most {cores}, or --set {key}={threads}"
        )


def _owners(known: ledger.Ledger) -> str:
    return ",".join(sorted({entry.user for entry in known.entries.values()}))
