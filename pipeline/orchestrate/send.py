"""Submits a batch, each array recorded in the ledger before.

The state after a kill, by the last line of the ledger about an array:

    no line       it was not submitted
    intent        open: its name is looked for in the queue
    submitted     it was submitted
    refused       Slurm refused it; it was not submitted
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import paths, plugins, store
from pipeline.errors import UserError
from pipeline.orchestrate import ledger, settle, slurm, submitted
from pipeline.orchestrate.batch import (
    FOLLOW_UP,
    REPORT,
    Batch,
    Prepared,
    add,
    follow_up_and_report,
)
from pipeline.orchestrate.executor import without_nodes
from pipeline.orchestrate.graph import ALL, MEASURE, TRAIN, Array, Request
from pipeline.orchestrate.in_queue import text_id
from pipeline.orchestrate.job_request import dependency, gres, slurm_request
from pipeline.sweep import own
from pipeline.terminal import tell

FunctionOf = Callable[[Prepared], Any]  # what the jobs of an array call


@dataclass(frozen=True)
class JobFunctions:
    """What jobs call, passed in from above: `cells` makes the function of an array of cells,
    `report` that of the report, `follow_up` that of the job that submits what there was no room
    for. Importable by name, so that the pickle contains nothing else.
    """

    cells: Callable[..., Any]
    report: Callable[..., Any]
    follow_up: Callable[..., Any]


@dataclass
class Sent:
    """The submitted jobs, ids by name, and the error that prevented the rest. `full`: Slurm's error
    where it had no more room; `follow_up`: the job that submits what is left then."""

    jobs: dict[str, int] = field(default_factory=dict)
    problem: UserError | None = None
    full: slurm.NoRoom | None = None
    follow_up: int | None = None

    def check(self) -> None:
        """Raises UserError, of the problem's own type, where something was not submitted."""
        if self.problem:
            jobs = ", ".join(map(str, self.jobs.values())) or "nothing"
            message = f"{self.problem} (submitted: {jobs}; the same command submits the rest)"
            raise type(self.problem)(message) from self.problem


def send(batch: Batch, known: ledger.Ledger, functions: JobFunctions) -> Sent:
    """Submit every array of the batch, with the ledger's lock held.

    Arrays that Slurm refuses, and those that depend on them, are skipped; the report waits for the
    others. Where there is no room for more jobs, a follow-up job submits the rest. If Slurm does
    not answer, nothing more is submitted.
    """
    sent = Sent(follow_up=batch.in_queue.follow_up)
    lacking: set[str] = set()
    function_of = partial(_function, batch, functions)
    left = list(batch.prepared)
    if left:
        _put_off(batch, known, sent)  # first, so that the follow-up job has it whatever comes
    while left:
        item = left.pop(0)
        if item.array.name == REPORT:
            if lacking:
                item = _after_others(batch, item, lacking)
                if not item.array.after:
                    continue
            slurm.scancel(list(map(str, batch.in_queue.reports)))  # they would build it too early
        elif item.array.measures:
            item = _after_others(batch, item, lacking) if lacking else item
            if not item.array.tasks:  # nothing of it is trained
                lacking.add(item.array.name)
                continue
        elif lacking & _waits_for(item.array):
            lacking.add(item.array.name)
            continue
        try:
            _send_one(batch, item, known, function_of, sent)
        except slurm.NoRoom as full:
            lacking.add(item.array.name)
            sent.full = full
            left = _without_room(batch, item, left, known, function_of, sent)
        except slurm.Refused as refused:
            lacking.add(item.array.name)
            sent.problem = sent.problem or _with_remedy(refused, item.array)
            if item.array.name == FOLLOW_UP:
                left = _report_last(batch, left, known)
        except UserError as error:
            sent.problem = error
            break
    _put_off(batch, known, sent, last=True)
    if batch.left_over and not sent.follow_up and not sent.jobs and sent.problem is None:
        sent.problem = slurm.NoRoom(reason(batch, sent))
    return sent


def _with_remedy(refused: slurm.Refused, array: Array) -> slurm.Refused:
    """Where a cluster refuses arrays, which its configuration does not report."""
    if array.single or "array" not in str(refused):
        return refused
    return slurm.Refused(f"{refused}; `--set max_array_size=0` submits single jobs instead")


def _send_one(
    batch: Batch, item: Prepared, known: ledger.Ledger, function_of: FunctionOf, sent: Sent
) -> None:
    job = _send_somewhere(batch, item, sent.jobs, known, function_of)
    sent.jobs[item.name] = job
    if item.array.name == FOLLOW_UP:
        sent.follow_up = job


def _without_room(
    batch: Batch,
    refused: Prepared,
    left: Sequence[Prepared],
    known: ledger.Ledger,
    function_of: FunctionOf,
    sent: Sent,
) -> list[Prepared]:
    """What is still to be sent when there was no room for an array, in place of `left`.

    A limit that could not be read shows only now: then the follow-up job and its report go out
    first, and of the array as many tasks as there is room for. Those without room are the rest
    of the batch, with all later ones."""
    if refused.array.name == FOLLOW_UP:
        return _report_last(batch, left, known)
    if refused.array.name == REPORT:  # one that follows the rest comes with it
        sent.problem = sent.problem or (None if sent.follow_up else sent.full)
        return list(left)
    for item in left:
        if item.array.cells:
            batch.put_off(item.array)
    for array in [] if sent.follow_up else follow_up_and_report(batch):
        try:
            _send_one(batch, add(batch, known, array), known, function_of, sent)
        except slurm.Refused as none:
            tell(f"the job that submits the rest was refused: {none}")
            break
    batch.put_off(refused.array, _fill(batch, refused.array, known, function_of, sent))
    if sent.follow_up or not sent.jobs:
        return []
    after = (*batch.report.after, *map(str, sent.jobs.values()))
    return [add(batch, known, replace(batch.report, after=after))]


def _report_last(batch: Batch, left: Sequence[Prepared], known: ledger.Ledger) -> list[Prepared]:
    """What is left without a follow-up job: the report waits for the arrays instead of for it."""
    cells = [item for item in left if item.array.cells]
    if not cells or len(cells) == len(left):
        return list(cells)
    after = (*batch.report.after, *(item.array.name for item in cells))
    return [*cells, add(batch, known, replace(batch.report, after=after))]


def _fill(
    batch: Batch, array: Array, known: ledger.Ledger, function_of: FunctionOf, sent: Sent
) -> list[str]:
    """Send as many tasks of an array as there is room for, by halves: at most one call for each
    binary digit of their number. Returns the cells of the others."""
    tasks, size = dict(array.tasks), len(array.tasks)
    while size > 1:
        size = (size + 1) // 2
        part = dict(list(tasks.items())[:size])
        item = add(batch, known, replace(array, tasks=part))
        try:
            _send_one(batch, item, known, function_of, sent)
        except slurm.NoRoom as full:
            sent.full = full
        else:
            tasks = {index: ids for index, ids in tasks.items() if index not in part}
    return [cell for ids in tasks.values() for cell in ids]


def _put_off(batch: Batch, known: ledger.Ledger, sent: Sent, last: bool = False) -> None:
    """Record which cells there was no room for, for `status`, and of which text of the sweep and
    with which profile the follow-up job submits them. `last`: all is sent, so that the reason is
    as `status` is to have it."""
    by = {"about": _about(batch), "profile": submitted.profile_json(batch.cluster)}
    requests = _by_request(batch.rest, known.put_off)
    measures = _by_request(batch.unmeasured, known.measuring_put_off)
    why = reason(batch, sent)
    told = [known.not_submitted.get(cell) for cell in batch.rest]
    told += [known.not_measured.get(cell) for cell in batch.unmeasured]
    is_new = known.put_off_by != by or (last and set(told) != {why})
    if requests or measures or (batch.left_over and is_new):
        known.append("put_off", reason=why, requests=requests, measures=measures, by=by)


def _by_request(
    rest: Mapping[str, Request], before: Mapping[str, Mapping[str, Any]]
) -> list[list[Any]]:
    """[[request, cells], ...] of those whose request is not in the ledger."""
    listed: dict[Request, list[str]] = {}
    for cell, request in rest.items():
        if cell not in before or Request.from_json(before[cell]) != request:
            listed.setdefault(request, []).append(cell)
    return [[asdict(request), cells] for request, cells in listed.items()]


def reason(batch: Batch, sent: Sent) -> str:
    """Why there is no room for more jobs, now that these are in the queue."""
    if sent.full is not None or batch.limit is None:
        return str(sent.full or "no room for more jobs")
    now = [item.array.tasks for item in batch.prepared if item.name in sent.jobs]
    used = min(batch.limit.most, batch.limit.used + sum(map(len, now)))
    return replace(batch.limit, used=used).line


def _waits_for(array: Array) -> set[str]:
    """Names of arrays and ids of jobs that it depends on, completely or by one task."""
    return {*array.after, *(on.rpartition("_")[0] for on in array.after)}


def _after_others(batch: Batch, report: Prepared, lacking: set[str]) -> Prepared:
    """The report, or an array that measures, without its dependency on the arrays that were not
    submitted, and without their cells."""
    from pipeline.orchestrate import executor

    after = tuple(on for on in report.array.after if not {on, on.rpartition("_")[0]} & lacking)
    untrained = {
        cell
        for item in batch.prepared
        if item.array.name in lacking and not item.array.measures
        for cell in item.array.cells
    }
    tasks = {
        index: tuple(cell for cell in ids if cell not in untrained)
        for index, ids in report.array.tasks.items()
    }
    if report.array.measures:
        tasks = {index: ids for index, ids in tasks.items() if ids}
    kind = report.array.kind if after else None
    array = replace(report.array, after=after, tasks=tasks, kind=kind)
    names = {item.array.name: item.name for item in batch.prepared}
    job_request = slurm_request(
        array, batch.cluster, report.name, report.job, dependency(array, names), batch.places
    )
    return replace(report, array=array, script=executor.script(job_request))


def _send_somewhere(
    batch: Batch,
    item: Prepared,
    jobs: Mapping[str, int],
    known: ledger.Ledger,
    function_of: FunctionOf,
) -> int:
    """`_send`; without `exclude` where Slurm has no nodes but the excluded ones."""
    try:
        return _send(batch, item, jobs, known, function_of)
    except slurm.Refused as refused:
        exclude = item.array.request.exclude
        if not exclude or slurm.NO_NODE not in str(refused):
            raise
    nodes = ",".join(exclude)
    tell(f"Slurm has no node but {nodes} for {item.array.name}: not excluded")
    options = batch.cluster.profile.options_of(item.array.measures, item.array.on_gpu)
    script = without_nodes(item.script, options, exclude)
    anywhere = replace(item.array, request=replace(item.array.request, exclude=()))
    return _send(batch, replace(item, script=script, array=anywhere), jobs, known, function_of)


def _send(
    batch: Batch,
    item: Prepared,
    jobs: Mapping[str, int],
    known: ledger.Ledger,
    function_of: FunctionOf,
) -> int:
    from pipeline.orchestrate import executor

    script = item.script
    for name, job in jobs.items():
        script = script.replace(f"@{name}@", str(job))
    known.append(
        "intent",
        intent=item.intent,
        name=item.name,
        kind=_kind(item.array),
        tasks={str(index): list(ids) for index, ids in item.array.tasks.items()},
        request=asdict(item.array.request),
        after=list(item.array.after),
        user=slurm.user(),
        sweep=text_id(batch.sweep),
        reports=str(batch.reports),
        profile=submitted.profile_json(batch.cluster),
        single=item.array.single,
        apart=_act(batch, item.array) == TRAIN,
        code=batch.cluster.code.to_json(),
        cluster=batch.cluster.slurm_name,
    )
    cells = {i: batch.sweep.by_id[i].to_json() for i in item.array.cells}
    plugins.keep(batch.sweep.plugins, batch.work)
    plugins.keep_own([cell.model for cell in batch.sweep.cells], batch.work)
    executor.write(item.job, script, function_of(item), item.minutes, cells)
    try:
        job = settle.submitted(item, known)
    except slurm.Refused as refused:
        known.append("refused", intent=item.intent, reason=str(refused))
        raise
    known.append("submitted", intent=item.intent, job=job)
    return job


def _kind(array: Array) -> str:
    """Of its entry in the ledger."""
    if array.name in (REPORT, FOLLOW_UP):
        return array.name
    return ledger.MEASURE if array.measures else ledger.CELLS


def _act(batch: Batch, array: Array) -> str:
    """What its jobs do to their cells."""
    if array.measures:
        return MEASURE
    return ALL if batch.cluster.profile.measure_job is None else TRAIN


def _function(batch: Batch, functions: JobFunctions, item: Prepared) -> Any:
    """What the job calls."""
    root, data_root = str(batch.work.root), str(batch.data_root)
    folder = str(item.job.folder)
    if item.array.name in (REPORT, FOLLOW_UP):
        path, text, reports, plugged = _about(batch)
        about = (path, text, root, reports, folder, plugged, store.users_umask())
        if item.array.name == REPORT:
            return functions.report(*about)
        return functions.follow_up(*about, data_root, submitted.profile_json(batch.cluster))
    profile = batch.cluster.profile
    job = (profile.measure_job if item.array.measures else None) or profile
    return functions.cells(
        folder,
        root,
        data_root,
        dict(item.array.tasks),
        item.array.shares,
        profile.signal_s,
        item.minutes,
        max(item.minutes, job.minutes),
        (batch.sweep.name, batch.sweep.tracking),
        _act(batch, item.array),
        "cuda" if gres(item.array, profile) else "auto",
    )


def _about(batch: Batch) -> list[Any]:
    """What a job needs to load the sweep as it is now, whatever becomes of its files: its path and
    text, the folder of reports, {path: SHA-256} of its plug-ins."""
    plugged = {plugin.source: plugin.sha256 for plugin in batch.sweep.plugins}
    for cell in batch.sweep.cells:
        plugged |= own.files(cell.model) if cell.is_base else {}
    return [str(_as_jobs_see(batch)), batch.sweep.text, str(batch.reports), plugged]


def _as_jobs_see(batch: Batch) -> Path:
    """The sweep's file; of one that ships, that of the code which they run."""
    path = batch.sweep.path.absolute()
    if path.parent != paths.shipped_sweeps():
        return path
    return batch.cluster.code.folder / path.relative_to(paths.CODE)
