"""Submits a batch, each array recorded in the ledger before, and settles open intents.

The state after a kill, by the last line of the ledger about an array:

    no line       it was not submitted
    intent        open: its name is looked for in the queue
    submitted     it was submitted
    refused       Slurm refused it; it was not submitted
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import paths, plugins, store
from pipeline.errors import UserError
from pipeline.orchestrate import ledger, slurm, submitted
from pipeline.orchestrate.batch import REPORT, Batch, Prepared, dependency, slurm_request, text_id
from pipeline.orchestrate.executor import without_nodes
from pipeline.orchestrate.graph import Array
from pipeline.sweep import own
from pipeline.terminal import tell

GHOST_S = 3.0  # how long a hung controller may take to process earlier requests
SEND_PAUSES_S = (2.0, 5.0, 15.0)

FunctionOf = Callable[[Prepared], Any]  # what the jobs of an array call


@dataclass(frozen=True)
class JobFunctions:
    """What jobs call, passed in from above: `cells` makes the function of an array of cells,
    `report` that of the report. Importable by name, so that the pickle contains nothing else.
    """

    cells: Callable[..., Any]
    report: Callable[..., Any]


@dataclass
class Sent:
    """The submitted jobs, ids by name, and the error that prevented the rest."""

    jobs: dict[str, int] = field(default_factory=dict)
    problem: UserError | None = None

    def check(self) -> None:
        """Raises UserError, of the problem's own type, where something was not submitted."""
        if self.problem:
            jobs = ", ".join(map(str, self.jobs.values())) or "nothing"
            message = f"{self.problem} (submitted: {jobs}; the same command submits the rest)"
            raise type(self.problem)(message) from self.problem


def send(batch: Batch, known: ledger.Ledger, functions: JobFunctions) -> Sent:
    """Submit every array of the batch, with the ledger's lock held.

    Arrays that Slurm refuses, and those that depend on them, are skipped; the report waits for the
    others. If Slurm does not answer, nothing more is submitted.
    """
    sent = Sent()
    lacking: set[str] = set()
    function_of = partial(_function, batch, functions)
    for item in batch.prepared:
        if item.array.name == REPORT and lacking:
            item = _after_others(batch, item, lacking)
            if not item.array.after:
                continue
        elif lacking & _waits_for(item.array):
            lacking.add(item.array.name)
            continue
        try:
            sent.jobs[item.name] = _send_somewhere(batch, item, sent.jobs, known, function_of)
        except slurm.Refused as refused:
            lacking.add(item.array.name)
            sent.problem = sent.problem or _with_remedy(refused, item.array)
        except UserError as error:
            sent.problem = error
            break
    return sent


def _with_remedy(refused: slurm.Refused, array: Array) -> slurm.Refused:
    """Where a cluster refuses arrays, which its configuration does not tell."""
    if array.single or "array" not in str(refused):
        return refused
    return slurm.Refused(f"{refused}; `--set max_array_size=0` submits single jobs instead")


def _waits_for(array: Array) -> set[str]:
    """Names of arrays and ids of jobs that it depends on, completely or by one task."""
    return {*array.after, *(on.rpartition("_")[0] for on in array.after)}


def _after_others(batch: Batch, report: Prepared, lacking: set[str]) -> Prepared:
    """The report's job without its dependency on the arrays that were not submitted."""
    from pipeline.orchestrate import executor

    after = tuple(on for on in report.array.after if on not in lacking)
    array = replace(report.array, after=after)
    names = {item.array.name: item.name for item in batch.prepared}
    job_request = slurm_request(
        array, batch.cluster, report.name, report.job, dependency(array, names)
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
    script = without_nodes(item.script, batch.cluster.profile, exclude)
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
        kind=REPORT if item.array.name == REPORT else "cells",
        tasks={str(index): list(ids) for index, ids in item.array.tasks.items()},
        request=asdict(item.array.request),
        after=list(item.array.after),
        user=slurm.user(),
        sweep=text_id(batch.sweep),
        reports=str(batch.reports),
        profile=submitted.profile_json(batch.cluster),
        single=item.array.single,
        code=batch.cluster.code.to_json(),
    )
    cells = {i: batch.sweep.by_id[i].to_json() for i in item.array.cells}
    plugins.keep(batch.sweep.plugins, batch.work)
    plugins.keep_own([cell.model for cell in batch.sweep.cells], batch.work)
    executor.write(item.job, script, function_of(item), item.minutes, cells)
    try:
        job = _submitted(item, known)
    except slurm.Refused as refused:
        known.append("refused", intent=item.intent, reason=str(refused))
        raise
    known.append("submitted", intent=item.intent, job=job)
    return job


def _function(batch: Batch, functions: JobFunctions, item: Prepared) -> Any:
    """What the job calls."""
    root, data_root = str(batch.work.root), str(batch.data_root)
    folder = str(item.job.folder)
    if item.array.name == REPORT:
        path, text = str(_as_jobs_see(batch)), batch.sweep.text
        plugged = {plugin.source: plugin.sha256 for plugin in batch.sweep.plugins}
        for cell in batch.sweep.cells:
            plugged |= own.files(cell.model) if cell.is_base else {}
        umask = store.users_umask()
        return functions.report(path, text, root, str(batch.reports), folder, plugged, umask)
    lead_s = batch.cluster.profile.signal_s
    return functions.cells(
        folder,
        root,
        data_root,
        dict(item.array.tasks),
        item.array.shares,
        lead_s,
        (batch.sweep.name, batch.sweep.tracking),
    )


def _as_jobs_see(batch: Batch) -> Path:
    """The sweep's file; of one that ships, that of the code which they run."""
    path = batch.sweep.path.absolute()
    if path.parent != paths.shipped_sweeps():
        return path
    return batch.cluster.code.folder / path.relative_to(paths.CODE)


def _submitted(item: Prepared, known: ledger.Ledger) -> int:
    """Call sbatch until the outcome is known: a call that timed out may have created the job."""
    since = known.entries[item.intent].at
    for pause_s in (*SEND_PAUSES_S, None):
        try:
            return slurm.sbatch(item.job.script)
        except slurm.Unreachable as error:
            tell(f"{error}; checking whether the job was submitted")
            job = _look(item.name, since)
            if job is not None:
                return job
            if pause_s is None:
                raise
        time.sleep(pause_s)
    raise AssertionError("the last pass either returned or raised")


def _look(name: str, since: str) -> int | None:
    """The job of this name, submitted since then. Looks twice: a hung controller may process
    earlier requests only after it has answered."""
    for pause_s in (GHOST_S, 0):
        job = slurm.find(slurm.squeue(patient=True), name, since)
        if job is not None:
            return job
        time.sleep(pause_s)
    return None


def settle(known: ledger.Ledger, rows: Sequence[slurm.Row]) -> None:
    """Close every open intent: submitted, where a job has its name; void, where none has.

    Only with the lock held, so that the submitter of an open intent is dead, and only with rows
    from a controller that answered. An intent whose job has left the queue is closed, too: it does
    not run any more, and its cells' folders show whether they are done.
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
