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
from typing import Any

from pipeline import paths, store, usage
from pipeline.errors import UserError
from pipeline.orchestrate import (
    cost,
    estimate,
    images,
    ledger,
    plan,
    report_job,
    slurm,
    snapshot,
    state,
    submitted,
)
from pipeline.orchestrate.batch import (
    REPORTS_AGAIN,
    Batch,
    cells_of,
    choose,
    estimated,
    is_missing,
    make,
    standard,
)
from pipeline.orchestrate.graph import Array, Request
from pipeline.orchestrate.profile import Cluster
from pipeline.orchestrate.send import JobFunctions, Sent, send, settle
from pipeline.sweep import Cell, Sweep
from pipeline.terminal import tell


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
    """Which cells to submit, and the request of each."""

    wanted: Callable[[state.CellState], bool]
    request: Callable[[Cell], Request]
    reports_again: Container[str] = REPORTS_AGAIN


def run(
    sweep: Sweep,
    work: paths.Work,
    data_root: Path,
    cluster: Cluster,
    functions: JobFunctions,
    *,
    pick: Callable[[state.SweepState], Picked] | None = None,
    live: bool = False,
) -> tuple[Batch, state.SweepState, Sent]:
    """Submit the missing cells of the sweep, or those that are picked; returns (the batch, the
    states before, what was submitted).

    Raises UserError before anything is submitted where data is missing, or where images changed
    since results were made; Unreachable where the queue cannot be read, since it is then not known
    what is in it. `live`: jobs run the code of the checkout, not a snapshot of it.
    """
    from pipeline.orchestrate import local  # here, since `plan` needs no workers

    _require_roots(cluster, work)
    _require_threads(sweep, cluster)
    if sweep.tracking:
        from pipeline import tracking  # here, as above

        tracking.require(sweep.tracking)
    _share(cluster, work)
    cluster = replace(cluster, code=snapshot.of(work, live))
    with ledger.locked(work.sweep(sweep.name)) as known:
        if any(entry.open for entry in known.entries.values()):
            settle(known, slurm.squeue(_owners(known), patient=True))
        states = state.find(sweep, work, patient=True, known=known)
        picked = pick(states) if pick else Picked(is_missing, standard(cluster))
        cells = choose(sweep, states, picked.wanted)
        images.check(states.done, work, data_root, local.say, decode=False)
        local.require_data(cells, data_root)
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
        )
        if batch.prepared:
            report_job.require_writable(batch.reports, sweep.name)
            submitted.remember(sweep, work)
            snapshot.make(cluster.code)
        sent = send(batch, known, functions)
        if sent.jobs and states.view:  # they would build the report too early
            slurm.scancel(list(map(str, states.view.alive_reports)))
    return batch, states, sent


def planned(
    sweep: Sweep, work: paths.Work, data_root: Path, cluster: Cluster, live: bool = False
) -> plan.Plan:
    """What `run` would submit now, with the cost; writes nothing."""
    cluster = replace(cluster, code=snapshot.of(work, live))
    states = state.find(sweep, work)
    known = states.view.known if states.view else ledger.read(work.sweep(sweep.name))
    batch = make(sweep, work, data_root, cluster, states, known, choose(sweep, states, is_missing))
    names = {item.array.name: item.name for item in batch.prepared}
    jobs = tuple(
        plan.Job(
            item.name,
            item.array.cells,
            tuple(_on(names, item.array)),
            item.script,
            len(item.array.tasks),
        )
        for item in batch.prepared
    )
    state_names = {s.cell.id: s.state for s in states.cells}
    return plan.Plan(sweep, jobs, **_cost(batch, work, cluster), states=state_names)


def _on(names: Mapping[str, str], array: Array) -> Iterator[str]:
    for on in array.after:
        yield names.get(on) or names.get(on.rpartition("_")[0]) or on


def _cost(batch: Batch, work: paths.Work, cluster: Cluster) -> dict[str, Any]:
    """GPU-hours, fair-share charge and wall time of a batch, for plan.Plan."""
    profile = cluster.profile
    guess = estimated(batch.sweep, work, cluster)
    seconds = {cell.id: guess.seconds(cell) for cell in cells_of(batch)}
    total_s = sum(seconds.values())
    chain_s = max(
        (
            s + seconds.get(batch.sweep.by_id[i].base_id, 0.0) * (not batch.sweep.by_id[i].is_base)
            for i, s in seconds.items()
        ),
        default=0.0,
    )
    an_hour = profile.charge_an_hour()
    share = cost.training_share(cells_of(batch), guess)
    used = usage.read(_done(batch, work), work)
    threads = usage.threads_of(batch.sweep.cells)
    return {
        "gpu_hours": total_s * profile.gpus / 3600,
        "gpu_hours_source": guess.source,
        "wall_hours": max(chain_s, total_s / profile.at_once) / 3600,
        "charge": None if an_hour is None else an_hour * total_s / 3600,
        "charge_an_hour": an_hour,
        "charge_parts": cost.parts(profile) or {},
        "cpu_hours": total_s * profile.cores / 3600,
        "training_share": share,
        "savings": tuple(cost.savings(profile, used, share, threads)),
        "profile": cluster.name,
        "notes": (*profile.notes(), *batch.notes, *estimate.notes(cells_of(batch))),
    }


def _done(batch: Batch, work: paths.Work) -> Iterator[Cell]:
    """Cells of the sweep that may have run: what they used is known."""
    left = {cell.id for cell in cells_of(batch)}
    return (cell for cell in batch.sweep.cells if cell.id not in left)


def lines(batch: Batch, states: state.SweepState, sent: Sent) -> Iterator[Line]:
    """What was submitted, as lines for the user."""
    called = plan.quoted(batch.sweep)
    for item in batch.prepared:
        cells, job = len(item.array.cells), sent.jobs.get(item.name)
        if job is None:
            continue
        if not cells:
            again = states.report and states.report.reason
            why = "after all others" if item.array.after or not again else f"again: {again}"
            yield Line(f"job {job}: the report, {why}")
            continue
        waits = f", waits for {item.array.after[0]}" if item.array.after else ""
        yield Line(f"job {job}: {cells} cell{'s' if cells != 1 else ''}{waits}")
    if not batch.prepared:
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
        states.by_id[s.cell.base_id].state == "running"
        for s in states.cells
        if is_missing(s)
        and s.cell.id not in sent
        and not s.cell.is_base
        and not (states.view and states.view.in_queue(s.cell.id))
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
    threads, cores = max(cell.measure.threads or 1 for cell in sweep.cells), cluster.profile.cores
    if threads > cores:
        raise UserError(
            f"{sweep.path}: measure.threads: {threads} are more than the {cores} cores of a job "
            f"(profile {cluster.name}); expected at most {cores}, or --set cores={threads}"
        )


def _owners(known: ledger.Ledger) -> str:
    return ",".join(sorted({entry.user for entry in known.entries.values()}))
