"""Submits the missing cells of a sweep to SLURM, as arrays, each recorded in the ledger before.

Killed at any time and called again, `submit` submits exactly what is missing (see send.py).
"""

from __future__ import annotations

import enum
import os
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline import checkout, paths, store
from pipeline.errors import UserError
from pipeline.orchestrate import (
    batch_cost,
    elsewhere,
    images,
    ledger,
    measure_jobs,
    plan,
    put_off,
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
    Chosen,
    Target,
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


@dataclass(frozen=True)
class Submitted:
    """The batch, the states before, and what of the batch was submitted."""

    batch: Batch
    states: state.SweepState
    sent: Sent


def run(
    target: Target,
    functions: JobFunctions,
    *,
    pick: Callable[[state.SweepState], Picked] | None = None,
    live: bool = False,
    in_job: bool = False,
) -> Submitted:
    """Submit the missing cells of the sweep, or those that are picked.

    Raises UserError before anything is submitted where data is missing, or where images changed
    since results were made; Unreachable where the queue cannot be read, since it is then not known
    what is in it. `live`: jobs run the code of the checkout, not a snapshot of it; those that a job
    submits run what its own submission chose.
    """
    from pipeline.orchestrate import writable  # here, since `plan` writes nothing

    sweep, work = target.sweep, target.work
    live = live or (in_job and checkout.snapshot_id() is None)
    _require(target, in_job)
    _share(target.cluster, work)
    code, here = snapshot.of(work, live), slurm.cluster_name()
    target = replace(target, cluster=replace(target.cluster, code=code, slurm_name=here))
    with ledger.locked(work.sweep(sweep.name)) as known:
        elsewhere.refuse_intents(known, here)
        if any(entry.open for entry in known.entries.values()):
            settle.settle(known, slurm.squeue(_owners(known), patient=True))
        states = state.find(sweep, work, patient=True, known=known)
        elsewhere.refuse_jobs(states, here)
        picked = pick(states) if pick else Picked(is_missing)
        chosen = _chosen(target, states, picked)
        _require_images(target, chosen)
        room = _room(target.cluster, chosen)
        batch = make(target, states, known, chosen, room, picked.reports_again)
        if batch.prepared:
            _require_known(sweep, work, known, states)
            writable.require_report(batch.reports, sweep.name)
            snapshot.make(target.cluster.code)
            if not in_job:  # which has no home of its own
                submitted.remember(sweep, work)
        return Submitted(batch, states, send(batch, known, functions))


def _chosen(target: Target, states: state.SweepState, picked: Picked) -> Chosen:
    """What is to be trained, and what is to be measured by jobs of its own."""
    apart = target.cluster.profile.measure_job is not None
    cells = choose(target.sweep, states, picked.wanted, apart)
    measured: list[Cell] = []
    if apart:
        wanted = picked.wanted_measured or picked.wanted
        measured = measure_jobs.choose(target.sweep, states, cells, wanted)
    return Chosen(cells, measured, picked.request, picked.measure_request)


def _require_images(target: Target, chosen: Chosen) -> None:
    """Raises UserError where images of what is made changed, or data of what is chosen lacks."""
    from pipeline.orchestrate import local  # here, since `plan` needs no workers

    images.check(target.sweep.cells, target.work, target.data_root, local.say, decode=False)
    with plan.naming(target.sweep):
        local.require_data([*chosen.cells, *chosen.measured], target.data_root)
    local.require_channels(target.sweep, chosen.cells, target.data_root)


def _require(target: Target, in_job: bool) -> None:
    """Raises UserError where the roots, the threads or a tracker are not as they have to be; a user
    is told what of their variables is ignored."""
    from pipeline.orchestrate import writable

    sweep, cluster = target.sweep, target.cluster
    if not in_job:
        _require_roots(cluster, target.work)
        if not _is_of_another(target.work):  # whose it is, and what that allows, the ledger says
            writable.require_work(target.work)
        for note in cluster.profile.ignored():
            tell(f"note: {note}")
    _require_threads(sweep, cluster)
    if sweep.tracking:
        from pipeline import tracking  # here, since few sweeps have one

        tracking.require(sweep.tracking)


def _room(cluster: Cluster, chosen: Chosen) -> Limit | None:
    if not (chosen.cells or chosen.measured):
        return None
    if not slurm.available():  # the plan is then only for reading
        return None
    from pipeline.orchestrate import room  # here, since `plan` on another machine needs none

    return room.tightest(cluster.profile)


class Superseded(Exception):
    """Another submission has left cells over meanwhile, with another sweep or profile."""


class Cancelled(Exception):
    """`netpress cancel` has cancelled the follow-up job that submits; Slurm ends it soon."""


def go_on(
    target: Target, functions: JobFunctions, by: Mapping[str, Any] | None, intent: str
) -> Batch:
    """For the follow-up job: submit the cells that there was no room for, with the requests that
    they were to have, as far as there is room now. What still does not fit is the batch's rest.
    `by`: the record of the submission that left them over, of which the target was made; `intent`:
    of the job itself. Raises Superseded where that submission is no longer the last one, Cancelled
    where the job was cancelled: it may have waited for the lock of `netpress cancel`."""

    def pick(states: state.SweepState) -> Picked:
        assert states.view is not None  # this job is in the ledger
        known = states.view.known
        if known.entries[intent].job in known.cancelled_jobs:
            raise Cancelled
        if known.put_off_by != by:
            raise Superseded
        put_off, unmeasured = known.put_off, known.measuring_put_off
        standard = durations(target.sweep, target.work, target.cluster).measuring

        def measure_request(cell: Cell) -> Request:
            before = unmeasured.get(cell.id)
            return Request.from_json(before) if before else standard(cell)

        return Picked(
            lambda cell_state: cell_state.cell.id in put_off,
            lambda cell: Request.from_json(put_off[cell.id]),
            wanted_measured=lambda cell_state: cell_state.cell.id in unmeasured,
            measure_request=measure_request,
        )

    done = run(target, functions, pick=pick, in_job=True)
    done.sent.check()
    return done.batch


def planned(target: Target, live: bool = False) -> plan.Plan:
    """What `run` would submit now, with the cost; writes nothing."""
    sweep, work = target.sweep, target.work
    target = replace(target, cluster=replace(target.cluster, code=snapshot.of(work, live)))
    states = state.find(sweep, work)
    known = states.view.known if states.view else ledger.read(work.sweep(sweep.name))
    chosen = _chosen(target, states, Picked(is_missing))
    batch = make(target, states, known, chosen, _room(target.cluster, chosen))
    return plan_of(target, batch, states)


def plan_of(target: Target, batch: Batch, states: state.SweepState) -> plan.Plan:
    """A batch with its cost; `states`: those before it."""
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
    cost = batch_cost.of(batch, target.work, target.cluster)
    return plan.Plan(target.sweep, jobs, **cost, states=state_names)


def _on(names: Mapping[str, str], array: Array) -> Iterator[str]:
    for on in array.after:
        yield names.get(on) or names.get(on.rpartition("_")[0]) or on


def lines(submitted: Submitted, command: str = "submit") -> Iterator[Line]:
    """What was submitted by `command`, as lines for the user."""
    batch, states, sent = submitted.batch, submitted.states, submitted.sent
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
        any(states.by_id[on].state == "running" for _, on in s.cell.grounds)
        for s in states.cells
        if is_missing(s)
        and not s.trained
        and s.cell.id not in sent
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


def _is_of_another(work: paths.Work) -> bool:
    try:
        return work.root.stat().st_uid != os.geteuid()
    except OSError:  # there is none
        return False


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
