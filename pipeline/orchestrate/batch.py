"""What one call of `submit` sends: which cells, in which arrays and packs, after which jobs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import paths
from pipeline.errors import UserError
from pipeline.orchestrate import estimate, graph, ledger, rehearse, report_job, slurm, state
from pipeline.orchestrate.graph import Array, Queued, Request
from pipeline.orchestrate.profile import Cluster
from pipeline.orchestrate.report_job import ReportState
from pipeline.sweep import Cell, Sweep

if TYPE_CHECKING:
    from pipeline.orchestrate.executor import JobRequest

REPORT = report_job.KIND
REPORTS_AGAIN = ("failed", "missing")  # states of a report that `submit` sends again
DEFAULT_MAX_ARRAY_SIZE = 1001
NO_ARRAYS = (
    "this cluster has no job arrays (MaxArraySize 0, or max_array_size in the profile): each task "
    "is a single job, and at_once does not limit how many run"
)


@dataclass(frozen=True)
class Prepared:
    """An array as it will be sent. `script` has `@NAME` where a job id is not known yet."""

    array: Array
    intent: str
    name: str
    job: paths.JobPaths
    script: str
    minutes: int


@dataclass
class Batch:
    """What one call of `submit` sends, in this order."""

    sweep: Sweep
    work: paths.Work
    data_root: Path
    cluster: Cluster
    prepared: list[Prepared] = field(default_factory=list)
    reports: Path = field(default_factory=paths.reports_root)

    @property
    def cells(self) -> int:
        return sum(len(item.array.cells) for item in self.prepared)

    @cached_property
    def limit(self) -> int:
        """Tasks that one array may have."""
        return limit(self.cluster)

    @property
    def single(self) -> bool:
        """Whether each task is a job of its own, since the cluster has no arrays."""
        return self.limit <= 1

    @property
    def notes(self) -> Iterator[str]:
        if any(item.array.single for item in self.prepared):
            yield NO_ARRAYS


def limit(cluster: Cluster) -> int:
    """Tasks that one array may have: by the profile, else by the cluster, else Slurm's default; 0
    where there are no arrays."""
    if cluster.profile.max_array_size is not None:
        return cluster.profile.max_array_size
    if slurm.available():
        try:
            return int(slurm.config().get("MaxArraySize", DEFAULT_MAX_ARRAY_SIZE))
        except (UserError, ValueError):  # no controller: the plan is then only for reading
            return DEFAULT_MAX_ARRAY_SIZE
    return DEFAULT_MAX_ARRAY_SIZE


def standard(cluster: Cluster) -> Callable[[Cell], Request]:
    """The request of a cell that has not failed."""
    request = Request(cluster.profile.memory_gib, cluster.profile.minutes)
    return lambda cell: request


def is_missing(cell_state: state.CellState) -> bool:
    """Whether `submit` sends the cell; `resume` sends those that failed or were cancelled."""
    return cell_state.state in ("missing", "waiting", "trained")


def choose(
    sweep: Sweep, states: state.SweepState, wanted: Callable[[state.CellState], bool]
) -> list[Cell]:
    """The cells to submit: wanted, in no job, and with a base that is done, in the queue or also
    submitted. A cell whose base is being made outside of SLURM has no job to wait for."""
    view = states.view
    free = [
        s.cell
        for s in states.cells
        if s.state not in ("done", "running")
        and wanted(s)
        and not (view and view.in_queue(s.cell.id))
    ]
    with_base = {cell.id for cell in free} | {
        s.cell.id for s in states.cells if s.state == "done" or (view and view.in_queue(s.cell.id))
    }
    return [cell for cell in free if cell.base_id in with_base]


def make(
    sweep: Sweep,
    work: paths.Work,
    data_root: Path,
    cluster: Cluster,
    states: state.SweepState,
    known: ledger.Ledger,
    cells: Sequence[Cell],
    request: Callable[[Cell], Request] | None = None,
    reports_again: Container[str] = REPORTS_AGAIN,
) -> Batch:
    """The batch for these cells, given the current queue; or the report alone, if no job builds it
    or its last job is in one of the states `reports_again`."""
    view = states.view
    last_report = states.report or ReportState("missing")
    alive = view.alive_jobs if view else []
    queued = {}
    for cell in sweep.cells:
        if view and cell.is_base and view.in_queue(cell.id):
            at = view.last[cell.id]
            assert at.entry.job is not None  # it is in the queue
            queued[cell.id] = Queued(at.entry.job, at.index, at.entry.single)
    batch = prepare(
        sweep,
        work,
        data_root,
        cluster,
        cells,
        known=known,
        request=request,
        queued=queued,
        waits_for=alive,
        report_request=last_report.next_request(cluster.profile),
    )
    if batch.prepared or view is None or view.has_report(text_id(sweep)):
        return batch
    if alive or (states.report and states.report.state in reports_again):
        return report_only(batch, known, alive, last_report.next_request(cluster.profile))
    return batch


def prepare(
    sweep: Sweep,
    work: paths.Work,
    data_root: Path,
    cluster: Cluster,
    cells: Sequence[Cell],
    *,
    known: ledger.Ledger,
    request: Callable[[Cell], Request] | None = None,
    queued: Mapping[str, Queued] | None = None,
    waits_for: Iterable[int] = (),
    report_request: Request | None = None,
) -> Batch:
    """The arrays for `cells` and the report after them, with complete scripts; writes nothing.

    waits_for: jobs of this sweep that are already in the queue; the report waits for them, too.
    """
    from pipeline.orchestrate import executor

    request = request or standard(cluster)
    pack = None
    if sweep.pack:
        guess = estimated(sweep, work, cluster)
        pack = graph.packer(sweep.pack.minutes, guess.seconds)
    batch = Batch(sweep, work, data_root, cluster)
    if not cells:
        return batch
    arrays = graph.arrays(cells, request, batch.limit, queued=queued, pack=pack)
    if not arrays:
        return batch
    names: dict[str, str] = {}
    report_request = report_request or ReportState("missing").next_request(cluster.profile)
    report = _report(arrays, report_request, waits_for, batch.single)
    for number, array in enumerate([*arrays, report]):
        intent = _intent(sweep, work, len(known.entries) + number, array)
        names[array.name] = name = f"netpress-{intent}-{sweep.name}-{array.name}"
        job = work.sweep(sweep.name).job(intent)
        job_request = slurm_request(array, cluster, name, job, dependency(array, names))
        text = executor.script(job_request)
        batch.prepared.append(Prepared(array, intent, name, job, text, job_request.minutes))
    return batch


def report_only(
    batch: Batch, known: ledger.Ledger, waits_for: Sequence[int], request: Request
) -> Batch:
    """A batch of the report alone: no report job follows the jobs in the queue, or the last report
    job failed."""
    from pipeline.orchestrate import executor

    array = _report([], request, waits_for, batch.single)
    intent = _intent(batch.sweep, batch.work, len(known.entries), array)
    name = f"netpress-{intent}-{batch.sweep.name}-{array.name}"
    job = batch.work.sweep(batch.sweep.name).job(intent)
    job_request = slurm_request(array, batch.cluster, name, job, dependency(array, {}))
    text = executor.script(job_request)
    batch.prepared.append(Prepared(array, intent, name, job, text, job_request.minutes))
    return batch


def _report(
    arrays: Sequence[Array], request: Request, waits_for: Iterable[int], single: bool
) -> Array:
    after = (*map(str, sorted(waits_for)), *(array.name for array in arrays))
    return Array(REPORT, {0: ()}, request, "afterany", after, single=single)


def _intent(sweep: Sweep, work: paths.Work, number: int, array: Array) -> str:
    """The id of an array in the ledger, known before it is sent, so that `plan` can show the
    name."""
    facts = [
        str(work.root),
        slurm.user(),
        sweep.name,
        number,
        array.name,
        *map(str, array.tasks),
        *array.cells,
    ]
    return hashlib.sha256("\n".join(map(str, facts)).encode()).hexdigest()[:10]


def text_id(sweep: Sweep) -> str:
    """Identifies the contents of the sweep file that a report is for, in the ledger."""
    return hashlib.sha256(sweep.text.encode()).hexdigest()[:10]


def dependency(array: Array, names: Mapping[str, str]) -> str | None:
    """`aftercorr:@NAME`: names stand for ids of jobs in this batch, not known yet."""
    if not array.after:
        return None
    return f"{array.kind}:" + ":".join(_placed(on, names) for on in array.after)


def _placed(on: str, names: Mapping[str, str]) -> str:
    name, _, index = on.rpartition("_")
    if name in names:
        return f"@{names[name]}@_{index}"
    return f"@{names[on]}@" if on in names else on


def slurm_request(
    array: Array, cluster: Cluster, name: str, job: paths.JobPaths, dependency: str | None
) -> JobRequest:
    """The complete request of an array; the report's job has its own part of the profile."""
    from pipeline.orchestrate.executor import JobRequest

    profile, request = cluster.profile, array.request
    for_cells = JobRequest(
        profile=profile,
        name=name,
        job=job,
        indices=tuple(array.tasks),
        memory_gib=request.memory_gib,
        minutes=request.minutes,
        dependency=dependency,
        exclude=request.exclude,
        cores=profile.cores,
        gres=profile.gres,
        single=array.single,
        code=cluster.code.folder,
    )
    if array.name != REPORT:
        return for_cells
    report = profile.report
    return replace(
        for_cells,
        cores=report.cores,
        gres=None,
        mail=profile.mail,
        partition=report.partition,
        qos=report.qos,
    )


def estimated(sweep: Sweep, work: paths.Work, cluster: Cluster) -> estimate.Estimate:
    """From finished cells of the sweep, else from its rehearsal, else computed."""
    rehearsal = rehearse.root(work)
    if not rehearsal.root.is_dir():
        return estimate.best(sweep, work, cluster.profile.gpu)
    return estimate.best(sweep, work, cluster.profile.gpu, rehearse.sliver(sweep), rehearsal)


def cells_of(batch: Batch) -> Iterator[Cell]:
    for item in batch.prepared:
        for cell_id in item.array.cells:
            yield batch.sweep.by_id[cell_id]
