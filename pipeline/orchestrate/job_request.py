"""What an array requests of Slurm, complete: the profile's values, and its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import paths
from pipeline.orchestrate import ledger, report_job
from pipeline.orchestrate.graph import Array
from pipeline.orchestrate.profile import Cluster, Profile

if TYPE_CHECKING:
    from pipeline.orchestrate.executor import JobRequest

REPORT = report_job.KIND
FOLLOW_UP = ledger.FOLLOW_UP


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


def gres(array: Array, profile: Profile) -> str | None:
    """What an array requests of GPUs; None: its jobs run without one."""
    if array.name in (FOLLOW_UP, REPORT) or (array.measures and not array.on_gpu):
        return None
    return profile.gres


def slurm_request(
    array: Array,
    cluster: Cluster,
    name: str,
    job: paths.JobPaths,
    dependency: str | None,
    places: Sequence[Path] = (),
) -> JobRequest:
    """The complete request of an array; the report's job has its own part of the profile.
    `places`: what is read or written outside of the work root, and there already."""
    from pipeline.orchestrate.executor import JobRequest

    profile, request = cluster.profile, array.request
    for_cells = JobRequest(
        profile=profile,
        name=name,
        job=job,
        indices=tuple(array.tasks),
        memory_gib=request.memory_gib,
        minutes=request.minutes,
        dependency=dependency or (profile.dependency if array.cells else None),
        exclude=request.exclude,
        cores=profile.cores,
        gres=gres(array, profile),
        single=array.single,
        code=cluster.code.folder,
        at_once=array.at_once,
        places=tuple(places),
    )
    if array.name == FOLLOW_UP and profile.follow_up is not None:
        return replace(
            for_cells,
            cores=profile.follow_up.cores,
            part=profile.report,
            begin=f"now+{profile.follow_up.every_s}",
        )
    if array.measures and profile.measure_job is not None:
        own = profile.measure_job
        if array.on_gpu:  # which is where the jobs that train are, not where `measure:` says
            there = {"partition": None, "qos": None, "constraint": profile.constraint}
            own = own.model_copy(update=there)
        return replace(for_cells, cores=own.cores, part=own)
    if array.name != REPORT:
        return for_cells
    cores, report = profile.report.cores, profile.report
    return replace(for_cells, cores=cores, part=report, mail_on="END,FAIL")
