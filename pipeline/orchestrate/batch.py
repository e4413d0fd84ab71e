"""What one call of `submit` sends: which cells, in which arrays and packs, after which jobs."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import paths
from pipeline.errors import UserError
from pipeline.orchestrate import (
    estimate,
    graph,
    ledger,
    measure_jobs,
    rehearse,
    slurm,
    state,
)
from pipeline.orchestrate.durations import Durations
from pipeline.orchestrate.graph import Array, Request
from pipeline.orchestrate.in_queue import InQueue, in_queue
from pipeline.orchestrate.job_request import FOLLOW_UP, REPORT, dependency, slurm_request
from pipeline.orchestrate.profile import Cluster
from pipeline.orchestrate.report_job import ReportState
from pipeline.sweep import Cell, Sweep

if TYPE_CHECKING:
    from pipeline.orchestrate.room import Limit

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
class Target:
    """Of which sweep jobs are sent, to which cluster, and where they find and put what there is."""

    sweep: Sweep
    work: paths.Work
    data_root: Path
    cluster: Cluster
    reports: Path = field(default_factory=paths.reports_root)

    @property
    def places(self) -> list[Path]:
        """What jobs in a container read and write outside of the work root, as far as it is there:
        of the reports, the folder in which theirs will be."""
        if self.cluster.profile.container is None:
            return []
        over = (self.reports, *self.reports.parents[:-1])  # all but the root
        wanted = (self.data_root, *map(Path, self.sweep.read_in_place))
        there = [folder for folder in over if os.path.exists(folder)][:1]
        return there + [place for place in wanted if os.path.exists(place)]


@dataclass(frozen=True)
class Chosen:
    """Cells to submit: `cells` to jobs that train, `measured` to jobs that only measure, where the
    profile has them. The request of each; None: as the profile and the estimates have it."""

    cells: Sequence[Cell] = ()
    measured: Sequence[Cell] = ()
    request: Callable[[Cell], Request] | None = None
    measure_request: Callable[[Cell], Request] | None = None

    @classmethod
    def all_of(cls, cells: Sequence[Cell]) -> Chosen:
        """To train these, and to measure them."""
        return cls(cells, cells)


@dataclass(kw_only=True)
class Batch(Target):
    """What one call of `submit` sends, in this order. `rest`: cells for which `limit` leaves no
    room now, with their requests; `unmeasured`: the same of what jobs that measure would do.
    `report`: what a job for the report requests and waits for."""

    prepared: list[Prepared] = field(default_factory=list)
    rest: dict[str, Request] = field(default_factory=dict)
    unmeasured: dict[str, Request] = field(default_factory=dict)
    limit: Limit | None = None
    request: Callable[[Cell], Request] | None = None
    measure_request: Callable[[Cell], Request] | None = None
    report: Array = field(default_factory=lambda: _report([], Request(1, 1), ()))
    in_queue: InQueue = field(default_factory=lambda: InQueue())
    times: Durations | None = None
    single: bool = False  # the cluster has no arrays, so each task is a job

    @property
    def notes(self) -> Iterator[str]:
        if any(item.array.single for item in self.prepared):
            yield NO_ARRAYS

    @property
    def left_over(self) -> int:
        """How many cells are not in a job yet that there has to be for them."""
        return len(self.rest.keys() | self.unmeasured.keys())

    def put_off(self, array: Array, cells: Iterable[str] | None = None) -> None:
        """Leave over the cells of an array for which there is no room, or these of them."""
        request = self.measure_request if array.measures else self.request
        assert request is not None
        rest = self.unmeasured if array.measures else self.rest
        for cell in array.cells if cells is None else cells:
            rest[cell] = request(self.sweep.by_id[cell])


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


def is_missing(cell_state: state.CellState) -> bool:
    """Whether `submit` sends the cell; `resume` sends those that failed or were cancelled."""
    return cell_state.state in ("missing", "waiting", "trained")


def choose(
    sweep: Sweep,
    states: state.SweepState,
    wanted: Callable[[state.CellState], bool],
    apart: bool = False,
) -> list[Cell]:
    """The cells to submit to jobs that train: wanted, in no job, and with a base that is trained,
    in the queue or also submitted. A cell whose base is being made outside of SLURM has no job to
    wait for. `apart`: what is trained goes to jobs that measure (measure_jobs.choose)."""
    view = states.view
    free = [
        s.cell
        for s in states.cells
        if s.state not in ("done", "running")
        and wanted(s)
        and not (apart and s.trained)
        and not (
            view and (view.in_queue(s.cell.id) or (s.trained and view.will_measure(s.cell.id)))
        )
    ]
    there = {s.cell.id for s in states.cells if s.trained or (view and view.in_queue(s.cell.id))}
    chosen: list[Cell] = []
    for cell in free:  # what others stand on comes first; a trained base needs its start no more
        made = cell.is_base and cell.id in there
        if made or cell.stands_on is None or cell.stands_on in there:
            there.add(cell.id)
            chosen.append(cell)
    return chosen


def make(
    target: Target,
    states: state.SweepState,
    known: ledger.Ledger,
    chosen: Chosen,
    room: Limit | None = None,
    reports_again: Container[str] = REPORTS_AGAIN,
) -> Batch:
    """The batch for these cells, given the current queue and the room in it; or the report alone,
    if no job builds it or its last job is in one of the states `reports_again`."""
    last_report = states.report or ReportState("missing")
    now = in_queue(target.sweep, states.view)
    report_request = last_report.next_request(target.cluster.profile)
    batch = prepare(target, chosen, known, now=now, report_request=report_request, room=room)
    if batch.prepared or batch.left_over or states.view is None or now.has_report:
        return batch
    if now.jobs or (states.report and states.report.state in reports_again):
        add(batch, known, batch.report)
    return batch


def prepare(
    target: Target,
    chosen: Chosen,
    known: ledger.Ledger,
    *,
    now: InQueue | None = None,
    report_request: Request | None = None,
    room: Limit | None = None,
) -> Batch:
    """The arrays for the chosen cells and the report after them, with complete scripts; writes
    nothing.

    now: jobs of this sweep that are already in the queue; the report waits for them, too. room: the
    limit on submitted jobs; what does not fit is left over.
    """
    profile, now = target.cluster.profile, now or InQueue()
    times = durations(target.sweep, target.work, target.cluster)
    report_request = report_request or ReportState("missing").next_request(profile)
    most_tasks = limit(target.cluster)
    batch = Batch(
        **vars(target),
        request=chosen.request or times.standard,
        measure_request=chosen.measure_request or times.measuring,
        limit=room,
        report=_report([], report_request, now.jobs),
        in_queue=now,
        times=times,
        single=most_tasks <= 1,
    )
    arrays = _arrays(batch, chosen, times, most_tasks)
    for array in _fitted(batch, arrays, _report(arrays, report_request, now.jobs)):
        add(batch, known, array)
    return batch


def _arrays(batch: Batch, chosen: Chosen, times: Durations, most_tasks: int) -> list[Array]:
    """Those that train, then those that only measure, with the time that each requests."""
    sweep, profile, now = batch.sweep, batch.cluster.profile, batch.in_queue
    wanted, to_measure = batch.request, batch.measure_request
    assert wanted is not None and to_measure is not None
    arrays = graph.arrays(
        chosen.cells,
        lambda cell: times.alike(wanted(cell)),
        most_tasks,
        queued=now.bases,
        pack=times.pack(sweep, chosen.cells),
    )
    arrays = [times.timed(array, sweep, wanted) for array in arrays]
    if profile.measure_job is not None:
        places = now.places.beside(arrays, single=batch.single)
        most, pack = measure_jobs.most_arrays(profile.at_once), times.pack_measuring
        own = measure_jobs.arrays(chosen.measured, places, to_measure, most_tasks, pack, most)
        arrays += [times.timed(array, sweep, to_measure) for array in own]
    return times.shared(arrays, sweep)


def _fitted(batch: Batch, arrays: Sequence[Array], report: Array) -> Iterator[Array]:
    """The arrays and the report, as far as there is room: then a follow-up job is first, so that
    it and the report are in the queue whatever comes after. Sets the rest of the batch."""
    now, replaced = batch.in_queue, len(batch.in_queue.reports)
    if not arrays:
        return
    free = None if batch.limit is None else batch.limit.room
    if free is None or sum(len(array.tasks) for array in arrays) + 1 <= free + replaced:
        yield from (*arrays, report)
        return
    ahead = follow_up_and_report(batch)
    last = [] if may_follow_up(batch) else [report]
    if any(array.name == REPORT for array in (*ahead, *last)):
        free += replaced
    ahead = ahead[:free]
    kept, others = graph.cut(arrays, free - len(ahead) - len(last))
    for array, left in others:
        batch.put_off(array, left)
    yield from (*ahead, *kept)
    if last and kept:
        yield _report(kept, report.request, now.jobs)


def may_follow_up(batch: Batch) -> bool:
    """Whether a job may submit the rest, by the profile and by the limit."""
    if batch.in_queue.follow_up is not None:
        return True
    allowed = batch.cluster.profile.follow_up is not None
    return allowed and (batch.limit is None or batch.limit.allows_follow_up)


def follow_up_and_report(batch: Batch) -> list[Array]:
    """Those of the two that are not in the queue. This report waits for the follow-up job, which
    replaces it by one that waits for all others."""
    if not may_follow_up(batch):
        return []
    profile, now = batch.cluster.profile, batch.in_queue
    made = []
    if now.follow_up is None:
        assert profile.follow_up is not None  # else there would be one in the queue
        request = Request(profile.follow_up.memory_gib, profile.follow_up.minutes)
        made.append(Array(FOLLOW_UP, {0: ()}, request))
    if not now.has_report or now.follow_up is None:
        waits_for = FOLLOW_UP if now.follow_up is None else str(now.follow_up)
        after = (*batch.report.after, waits_for)
        made.append(replace(batch.report, after=after))
    return made


def add(batch: Batch, known: ledger.Ledger, array: Array) -> Prepared:
    """Add an array to what is sent, with its complete script; writes nothing."""
    from pipeline.orchestrate import executor

    array = replace(array, single=batch.single)
    names = {item.array.name: item.name for item in batch.prepared}
    intent = _intent(batch.sweep, batch.work, len(known.entries) + len(batch.prepared), array)
    name = f"netpress-{intent}-{batch.sweep.name}-{array.name}"
    job = batch.work.sweep(batch.sweep.name).job(intent)
    job_request = slurm_request(
        array, batch.cluster, name, job, dependency(array, names), batch.places
    )
    text = executor.script(job_request)
    item = Prepared(array, intent, name, job, text, job_request.minutes)
    batch.prepared.append(item)
    return item


def _report(arrays: Sequence[Array], request: Request, waits_for: Iterable[int]) -> Array:
    after = (*map(str, sorted(waits_for)), *(array.name for array in arrays))
    return Array(REPORT, {0: ()}, request, "afterany", after)


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
    return _tag(sweep, work) + hashlib.sha256("\n".join(map(str, facts)).encode()).hexdigest()[:10]


def _tag(sweep: Sweep, work: paths.Work) -> str:
    """How the names of all jobs begin that were sent for a sweep from this work root."""
    facts = (str(work.root), slurm.user(), sweep.name)
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:4]


def unknown_jobs(
    sweep: Sweep, work: paths.Work, known: ledger.Ledger, rows: Iterable[slurm.Row]
) -> list[int]:
    """Jobs in the queue that were sent for this sweep from this work root, and of which the ledger
    knows nothing, or that there was none: the work root was deleted, or is another one under the
    same name, or the queue was not shown in full when the intent was settled."""
    named = re.compile(rf"netpress-({_tag(sweep, work)}[0-9a-f]{{10}})-{re.escape(sweep.name)}-")
    there = {entry.intent for entry in known.entries.values() if entry.ended is None}
    return sorted(
        {
            row.job
            for row in rows
            if row.state not in slurm.FINAL
            and (match := named.match(row.name))
            and match[1] not in there
        }
    )


def estimated(sweep: Sweep, work: paths.Work, cluster: Cluster) -> estimate.Estimate:
    """From finished cells of the sweep, else from its rehearsal, else computed."""
    rehearsal = rehearse.root(work)
    if not rehearsal.root.is_dir():
        return estimate.best(sweep, work, cluster.profile.gpu)
    return estimate.best(sweep, work, cluster.profile.gpu, rehearse.sliver(sweep), rehearsal)


def durations(sweep: Sweep, work: paths.Work, cluster: Cluster) -> Durations:
    return Durations(cluster.profile, estimated(sweep, work, cluster))


def cells_of(batch: Batch) -> Iterator[Cell]:
    """What its jobs train."""
    for item in batch.prepared:
        for cell_id in () if item.array.measures else item.array.cells:
            yield batch.sweep.by_id[cell_id]
