"""A sweep to SLURM: what is missing of it, as arrays, each in the ledger before it is sent.

Killed at any point and called again, `submit` sends exactly what is missing. What is certain after
a kill, by the last line of the ledger about an array:

    no line       nothing of it was sent
    intent        open: its name is looked for in the queue, and in accounting where it is not there
    submitted     sent
    refused       Slurm said no; nothing of it was sent
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pipeline import paths
from pipeline.errors import UserError
from pipeline.orchestrate import estimate, graph, ledger, local, plan, rehearse, slurm, state
from pipeline.orchestrate.graph import Array, Queued, Request
from pipeline.orchestrate.profile import Cluster
from pipeline.sweep import Cell, Sweep

REPORT = "report"
DEFAULT_MAX_ARRAY_SIZE = 1001
GHOST_S = 3.0  # how long a controller that hung may take to execute what it had received
SEND_PAUSES_S = (2.0, 5.0, 15.0)


@dataclass(frozen=True)
class Prepared:
    """An array as it will be sent. `script` has `@NAME` where a job id is not known before."""

    array: Array
    intent: str
    name: str
    job: paths.JobPaths
    script: str
    minutes: int


@dataclass
class Batch:
    """What one call of submit sends, in this order, and what of it is known in the queue."""

    sweep: Sweep
    work: paths.Work
    data_root: Path
    cluster: Cluster
    prepared: list[Prepared] = field(default_factory=list)

    @property
    def cells(self) -> int:
        return sum(len(item.array.cells) for item in self.prepared)


@dataclass
class Sent:
    """What was sent, job ids by the jobs' names, and what kept the rest from being sent."""

    jobs: dict[str, int] = field(default_factory=dict)
    problem: UserError | None = None

    def check(self) -> None:
        """Raises UserError, of the problem's own kind, where something was not sent."""
        if self.problem:
            jobs = ", ".join(map(str, self.jobs.values())) or "nothing"
            said = f"{self.problem} (submitted: {jobs}; the same command sends the rest)"
            raise type(self.problem)(said) from self.problem


@dataclass(frozen=True)
class Picked:
    """Which cells to submit, and what each asks for."""

    wanted: Callable[[state.CellState], bool]
    request: Callable[[Cell], Request]


def limit(cluster: Cluster) -> int:
    """Tasks that one array may have: the profile's word, the cluster's, or Slurm's default."""
    if cluster.profile.max_array_size:
        return cluster.profile.max_array_size
    if slurm.available():
        try:
            return int(slurm.config().get("MaxArraySize", DEFAULT_MAX_ARRAY_SIZE))
        except (UserError, ValueError):  # no controller: what is said then is for reading only
            return DEFAULT_MAX_ARRAY_SIZE
    return DEFAULT_MAX_ARRAY_SIZE


def standard(cluster: Cluster) -> Callable[[Cell], Request]:
    """The request of a cell that has not failed."""
    asked = Request(cluster.profile.memory_gib, cluster.profile.minutes)
    return lambda cell: asked


def prepare(
    asked: Sweep,
    work: paths.Work,
    data_root: Path,
    cluster: Cluster,
    cells: Sequence[Cell],
    *,
    known: ledger.Ledger,
    request: Callable[[Cell], Request] | None = None,
    queued: Mapping[str, Queued] | None = None,
    waits_for: Iterable[int] = (),
) -> Batch:
    """The arrays for `cells` and the report after them, complete scripts; nothing is touched.

    waits_for: jobs of this sweep that are in the queue already; the report waits for them as well.
    """
    from pipeline.orchestrate import executor  # submitit costs 0.15 s

    request = request or standard(cluster)
    pack = None
    if asked.pack:
        guess = _guess(asked, work, cluster)
        pack = graph.packer(asked.pack.minutes, guess.seconds)
    arrays = graph.arrays(cells, request, limit(cluster), queued=queued, pack=pack)
    batch = Batch(asked, work, data_root, cluster)
    if not arrays:
        return batch
    names: dict[str, str] = {}
    for number, array in enumerate([*arrays, _report(arrays, cluster, waits_for)]):
        intent = _intent(asked, work, len(known.entries) + number, array)
        names[array.name] = name = f"netpress-{intent}-{asked.name}-{array.name}"
        job = work.sweep(asked.name).job(intent)
        wants = ask(array, cluster, name, job, _dependency(array, names))
        text = executor.script(wants)
        batch.prepared.append(Prepared(array, intent, name, job, text, wants.minutes))
    return batch


def report_only(batch: Batch, known: ledger.Ledger, waits_for: Sequence[int]) -> Batch:
    """A batch of the report alone, for jobs that are in the queue without one after them."""
    from pipeline.orchestrate import executor

    array = _report([], batch.cluster, waits_for)
    intent = _intent(batch.sweep, batch.work, len(known.entries), array)
    name = f"netpress-{intent}-{batch.sweep.name}-{array.name}"
    job = batch.work.sweep(batch.sweep.name).job(intent)
    wants = ask(array, batch.cluster, name, job, _dependency(array, {}))
    text = executor.script(wants)
    batch.prepared.append(Prepared(array, intent, name, job, text, wants.minutes))
    return batch


def _report(arrays: Sequence[Array], cluster: Cluster, waits_for: Iterable[int]) -> Array:
    asked = Request(cluster.profile.report.memory_gib, cluster.profile.report.minutes)
    after = (*map(str, sorted(waits_for)), *(array.name for array in arrays))
    return Array(REPORT, {0: ()}, asked, "afterany", after)


def _intent(asked: Sweep, work: paths.Work, number: int, array: Array) -> str:
    """The id of an array in the ledger: known before it is sent, so that plan can show the name."""
    said = [
        str(work.root),
        slurm.user(),
        asked.name,
        number,
        array.name,
        *map(str, array.tasks),
        *array.cells,
    ]
    return hashlib.sha256("\n".join(map(str, said)).encode()).hexdigest()[:10]


def _dependency(array: Array, names: Mapping[str, str]) -> str | None:
    """`aftercorr:@NAME`, with the names of this batch's jobs where their ids will stand."""
    if not array.after:
        return None
    return f"{array.kind}:" + ":".join(_placed(on, names) for on in array.after)


def _placed(on: str, names: Mapping[str, str]) -> str:
    name, _, index = on.rpartition("_")
    if name in names:
        return f"@{names[name]}@_{index}"
    return f"@{names[on]}@" if on in names else on


def ask(array: Array, cluster: Cluster, name: str, job: paths.JobPaths, dependency: str | None):
    from pipeline.orchestrate.executor import Ask

    profile, asked = cluster.profile, array.request
    common = dict(
        profile=profile,
        name=name,
        job=job,
        indices=tuple(array.tasks),
        memory_gib=asked.memory_gib,
        minutes=asked.minutes,
        dependency=dependency,
    )
    if array.name == REPORT:
        report = profile.report
        return Ask(
            **common,
            cores=report.cores,
            mail=profile.mail,
            partition=report.partition,
            qos=report.qos,
        )
    return Ask(**common, cores=profile.cores, gres=profile.gres, exclude=asked.exclude)


def choose(
    asked: Sweep, found: state.Found, wanted: Callable[[state.CellState], bool]
) -> list[Cell]:
    """The cells to submit: wanted, in no job, and with a base that is done, in the queue or among
    them. One whose base a process outside of SLURM works on has nothing that it could wait for."""
    view = found.view
    free = [
        s.cell
        for s in found.cells
        if s.state not in ("done", "running")
        and wanted(s)
        and not (view and view.in_queue(s.cell.id))
    ]
    made = {cell.id for cell in free} | {
        s.cell.id for s in found.cells if s.state == "done" or (view and view.in_queue(s.cell.id))
    }
    return [cell for cell in free if cell.base_id in made]


def is_missing(found: state.CellState) -> bool:
    """What `submit` sends; what failed or was cancelled is for `resume`."""
    return found.state in ("missing", "waiting")


def batch(
    asked: Sweep,
    work: paths.Work,
    data_root: Path,
    cluster: Cluster,
    found: state.Found,
    known: ledger.Ledger,
    cells: Sequence[Cell],
    request: Callable[[Cell], Request] | None = None,
) -> Batch:
    """What is sent for these cells, the queue as it is; or the report alone, if it is lacking."""
    view = found.view
    alive = view.alive_jobs if view else []
    queued = {}
    for cell in asked.cells:
        if view and cell.is_base and view.in_queue(cell.id):
            at = view.last[cell.id]
            queued[cell.id] = Queued(at.entry.job, at.index)
    made = prepare(
        asked,
        work,
        data_root,
        cluster,
        cells,
        known=known,
        request=request,
        queued=queued,
        waits_for=alive,
    )
    if not made.prepared and alive and view and not view.has_report(text_id(asked)):
        return report_only(made, known, alive)
    return made


def run(
    asked: Sweep,
    work: paths.Work,
    data_root: Path,
    cluster: Cluster,
    *,
    pick: Callable[[state.Found], Picked] | None = None,
) -> tuple[Batch, state.Found, Sent]:
    """Send what is missing of the sweep, or what is picked; (what, the states before, what of it
    was sent).

    Raises UserError before anything is sent where data is missing; Unreachable where the queue
    cannot be seen, since then nobody knows what is in it.
    """
    _require_roots(cluster, work)
    with ledger.locked(work.sweep(asked.name)) as known:
        if any(entry.open for entry in known.entries.values()):
            settle(known, slurm.squeue(_owners(known), patient=True))
        found = state.find(asked, work, patient=True, known=known)
        picked = pick(found) if pick else Picked(is_missing, standard(cluster))
        cells = choose(asked, found, picked.wanted)
        local.require_data(cells, data_root)
        made = batch(asked, work, data_root, cluster, found, known, cells, picked.request)
        sent = send(made, known, paths.reports_root())
        if sent.jobs and found.view:  # they would build the report before the new jobs are done
            slurm.scancel(list(map(str, found.view.alive_reports)))
    return made, found, sent


def planned(asked: Sweep, work: paths.Work, data_root: Path, cluster: Cluster) -> plan.Plan:
    """What `run` would send now, with the cost; touches nothing."""
    found = state.find(asked, work)
    known = found.view.known if found.view else ledger.read(work.sweep(asked.name))
    made = batch(asked, work, data_root, cluster, found, known, choose(asked, found, is_missing))
    names = {item.array.name: item.name for item in made.prepared}
    jobs = tuple(
        plan.Job(
            item.name,
            item.array.cells,
            tuple(_on(names, item.array)),
            item.script,
            len(item.array.tasks),
        )
        for item in made.prepared
    )
    states = {s.cell.id: s.state for s in found.cells}
    return plan.Plan(asked, jobs, **_cost(made, work, cluster), states=states)


def _on(names: Mapping[str, str], array: Array) -> Iterator[str]:
    for on in array.after:
        yield names.get(on) or names.get(on.rpartition("_")[0]) or on


def _guess(asked: Sweep, work: paths.Work, cluster: Cluster) -> estimate.Estimate:
    rehearsal = rehearse.root(work)
    if not rehearsal.root.is_dir():
        return estimate.best(asked, work, cluster.profile.gpu)
    return estimate.best(asked, work, cluster.profile.gpu, rehearse.sliver(asked), rehearsal)


def _cost(made: Batch, work: paths.Work, cluster: Cluster) -> dict:
    """GPU-hours, fair-share charge and wall time of a batch, for plan.Plan."""
    profile = cluster.profile
    guess = _guess(made.sweep, work, cluster)
    seconds = {cell.id: guess.seconds(cell) for cell in _cells(made)}
    total_s = sum(seconds.values())
    chain_s = max(
        (
            s + seconds.get(made.sweep.by_id[i].base_id, 0.0) * (not made.sweep.by_id[i].is_base)
            for i, s in seconds.items()
        ),
        default=0.0,
    )
    an_hour = profile.charge_an_hour()
    return {
        "gpu_hours": total_s * profile.gpus / 3600,
        "gpu_hours_source": guess.source,
        "wall_hours": max(chain_s, total_s / profile.at_once) / 3600,
        "charge": None if an_hour is None else an_hour * total_s / 3600,
        "charge_an_hour": an_hour,
        "profile": cluster.name,
        "notes": tuple(profile.notes()),
    }


def lines(made: Batch, found: state.Found, sent: Sent) -> Iterator[str]:
    """What was submitted, for people."""
    called = plan.called(made.sweep)
    for item in made.prepared:
        cells, job = len(item.array.cells), sent.jobs.get(item.name)
        if job is None:
            continue
        if not cells:
            yield f"job {job}: the report, after all others"
            continue
        waits = f", waits for {item.array.after[0]}" if item.array.after else ""
        yield f"job {job}: {cells} cell{'s' if cells != 1 else ''}{waits}"
    if not made.prepared:
        yield "Nothing to submit."
    if waiting := _held_back(made, found):
        yield (
            f"{waiting} cell{'s' * (waiting != 1)} not sent: the base is being made outside of "
            f"SLURM now; `netpress submit {called}` sends them when it is done"
        )
    left = Counter(s.state for s in found.cells if s.state in ("failed", "cancelled"))
    if left:
        counts = ", ".join(f"{count} {name}" for name, count in left.items())
        yield f"{counts}: `netpress resume {called}` takes care of them"
    if sent.jobs:
        yield f"`netpress status {called}` tells how it goes; you may log out"


def _held_back(made: Batch, found: state.Found) -> int:
    """How many cells are left for later, as a process that is no job works on their base."""
    sent = {cell for item in made.prepared for cell in item.array.cells}
    return sum(
        found.by_id[s.cell.base_id].state == "running"
        for s in found.cells
        if is_missing(s)
        and s.cell.id not in sent
        and not s.cell.is_base
        and not (found.view and found.view.in_queue(s.cell.id))
    )


def _require_roots(cluster: Cluster, work: paths.Work) -> None:
    """The profile's own work root, unless the user chose another one: compute nodes see that."""
    asked = cluster.profile.work
    if asked and not os.environ.get("NETPRESS_WORK") and paths.work_root(asked) != work.root:
        raise UserError(
            f"profile {cluster.name}: work: {asked} cannot be made on this machine; run this on "
            "the cluster's login node, or give another one with --set work=FOLDER"
        )


def _owners(known: ledger.Ledger) -> str:
    return ",".join(sorted({entry.user for entry in known.entries.values()}))


# --- sending ---------------------------------------------------------------------------------


def send(batch: Batch, known: ledger.Ledger, reports: Path) -> Sent:
    """Submit every array of the batch, with the ledger's lock held.

    What Slurm refuses, and what would wait for that, is left out, and the report waits for the
    others. Where Slurm does not answer, nothing more is sent.
    """
    sent, lacking = Sent(), set()
    for item in batch.prepared:
        if item.array.name == REPORT and lacking:
            item = _after_others(batch, item, lacking)
            if not item.array.after:
                continue
        elif lacking & _waits_for(item.array):
            lacking.add(item.array.name)
            continue
        try:
            sent.jobs[item.name] = _send_somewhere(batch, item, sent.jobs, known, reports)
        except slurm.Refused as refused:
            lacking.add(item.array.name)
            sent.problem = sent.problem or refused
        except UserError as error:
            sent.problem = error
            break
    return sent


def text_id(asked: Sweep) -> str:
    """Which text of the sweep's file the report is of, in the ledger."""
    return hashlib.sha256(asked.text.encode()).hexdigest()[:10]


def _waits_for(array: Array) -> set[str]:
    """Names of arrays and ids of jobs, whole or by one task of them."""
    return {*array.after, *(on.rpartition("_")[0] for on in array.after)}


def _after_others(batch: Batch, report: Prepared, lacking: set[str]) -> Prepared:
    """The report's job, which does not wait for the arrays that are lacking."""
    from pipeline.orchestrate import executor

    after = tuple(on for on in report.array.after if on not in lacking)
    array = replace(report.array, after=after)
    names = {item.array.name: item.name for item in batch.prepared}
    wants = ask(array, batch.cluster, report.name, report.job, _dependency(array, names))
    return replace(report, array=array, script=executor.script(wants))


def _cells(batch: Batch) -> Iterator[Cell]:
    for item in batch.prepared:
        for cell_id in item.array.cells:
            yield batch.sweep.by_id[cell_id]


def _send_somewhere(batch: Batch, item: Prepared, jobs, known, reports: Path) -> int:
    """`_send`; where Slurm has no node but those that are to be left out, on one of them."""
    try:
        return _send(batch, item, jobs, known, reports)
    except slurm.Refused as refused:
        exclude = item.array.request.exclude
        if not exclude or slurm.NO_NODE not in str(refused):
            raise
    nodes = ",".join(exclude)
    print(
        f"netpress: Slurm has no node but {nodes} for {item.array.name}: not left out",
        file=sys.stderr,
    )
    script = item.script.replace(f"#SBATCH --exclude={nodes}\n", "")
    anywhere = replace(item.array, request=replace(item.array.request, exclude=()))
    return _send(batch, replace(item, script=script, array=anywhere), jobs, known, reports)


def _send(batch: Batch, item: Prepared, jobs: Mapping[str, int], known, reports: Path) -> int:
    from pipeline.orchestrate import executor

    script = item.script
    for name, job in jobs.items():
        script = script.replace(f"@{name}@", str(job))
    known.append(
        "intent",
        intent=item.intent,
        name=item.name,
        kind=REPORT if item.array.name == REPORT else "cells",
        tasks={str(index): list(ids) for index, ids in item.array.tasks.items()},
        request=asdict(item.array.request),
        after=list(item.array.after),
        user=slurm.user(),
        sweep=text_id(batch.sweep),
    )
    cells = {i: batch.sweep.by_id[i].to_json() for i in item.array.cells}
    executor.write(item.job, script, _function(batch, item, reports), item.minutes, cells)
    try:
        job = _submitted(item, known)
    except slurm.Refused as refused:
        known.append("refused", intent=item.intent, reason=str(refused))
        raise
    known.append("submitted", intent=item.intent, job=job)
    return job


def _function(batch: Batch, item: Prepared, reports: Path):
    """What the job calls. Importable by name, so that the pickle holds nothing else."""
    from jobs.aggregate import Report
    from jobs.task import Task

    if item.array.name == REPORT:
        path, text = str(batch.sweep.path.absolute()), batch.sweep.text
        return Report(path, text, str(batch.work.root), str(reports))
    root, data_root = str(batch.work.root), str(batch.data_root)
    folder = str(item.job.folder)
    lead_s = batch.cluster.profile.signal_s
    return Task(folder, root, data_root, dict(item.array.tasks), item.array.shares, lead_s)


def _submitted(item: Prepared, known: ledger.Ledger) -> int:
    """sbatch, until it is known what became of it: one that timed out may have made its job."""
    since = known.entries[item.intent].at
    for pause_s in (*SEND_PAUSES_S, None):
        try:
            return slurm.sbatch(item.job.script)
        except slurm.Unreachable as error:
            print(f"netpress: {error}; looking whether the job is there", file=sys.stderr)
            job = _look(item.name, since)
            if job is not None:
                return job
            if pause_s is None:
                raise
        time.sleep(pause_s)
    raise AssertionError("the last pass either returned or raised")


def _look(name: str, since: str) -> int | None:
    """The job of this name, submitted since then. Asked twice: a controller that hung executes
    what it had received when it wakes, maybe after it answers us."""
    for pause_s in (GHOST_S, 0):
        found = slurm.find(slurm.squeue(patient=True), name, since)
        if found is not None:
            return found
        time.sleep(pause_s)
    return None


def settle(known: ledger.Ledger, rows: Sequence[slurm.Row]) -> None:
    """Close every open intent: submitted, where a job has its name; void, where none has.

    Only with the lock held, so that the submitter of an open intent is dead, and only with rows
    from a controller that answered. A job that ended and left the queue is no reason to keep an
    intent open: nothing of it runs any more, and its cells tell by themselves if they are done.
    """
    for entry in [entry for entry in known.entries.values() if entry.open]:
        job = slurm.find(rows, entry.name, entry.at)
        if job is None:
            time.sleep(GHOST_S)
            job = slurm.find(slurm.squeue(entry.user, patient=True), entry.name, entry.at)
        if job is None:
            known.append("void", intent=entry.intent, reason="no job of this name in the queue")
        else:
            known.append("submitted", intent=entry.intent, job=job)
