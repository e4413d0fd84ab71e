"""What the jobs of a batch cost, and how long they take, for `plan`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline import paths, usage
from pipeline.orchestrate import cost, estimate
from pipeline.orchestrate.batch import Batch, cells_of, durations, may_follow_up
from pipeline.orchestrate.durations import Durations
from pipeline.orchestrate.profile import Cluster
from pipeline.orchestrate.send import Sent, reason
from pipeline.sweep import Cell, Sweep


def of(batch: Batch, work: paths.Work, cluster: Cluster) -> dict[str, Any]:
    """GPU-hours, fair-share charge and wall time of a batch, for plan.Plan."""
    profile = cluster.profile
    times = batch.times or durations(batch.sweep, work, cluster)
    cells = [*cells_of(batch), *(batch.sweep.by_id[cell] for cell in batch.rest)]
    seconds = {cell.id: times.seconds(cell) for cell in cells}
    total_s = sum(seconds.values())
    chain_s = max(_chains_s(batch, seconds), default=0.0)
    measuring = _measuring_s(batch, times)
    on_gpu = any(item.array.on_gpu for item in batch.prepared)
    measuring_s = sum(measuring)
    measure_cores = profile.measure_job.cores if profile.measure_job else 0
    measure_cpu_hours = measuring_s * measure_cores / 3600
    gpu_s = (total_s + (measuring_s if on_gpu else 0.0)) * profile.gpus
    an_hour, to_measure = profile.charge_an_hour(), profile.charge_of_measuring(on_gpu)
    charge = None if an_hour is None else an_hour * total_s + (to_measure or 0.0) * measuring_s
    share = cost.training_share(cells, times)
    used = usage.read(_done(batch, work), work)
    threads = usage.threads_of(batch.sweep.cells)
    train_s = max(chain_s, total_s / profile.at_once)
    measure_s = max(max(measuring, default=0.0), measuring_s / profile.at_once)
    return {
        "gpu_hours": gpu_s / 3600,
        "gpu_hours_source": times.guess.source,
        "wall_hours": (train_s + measure_s) / 3600,
        "charge": None if charge is None else charge / 3600,
        "charge_an_hour": an_hour,
        "charge_parts": cost.parts(profile) or {},
        "cpu_hours": total_s * profile.cores / 3600 + measure_cpu_hours,
        "measure_cpu_hours": measure_cpu_hours,
        "training_share": share,
        "savings": tuple(cost.savings(profile, used, share, threads)),
        "profile": cluster.name,
        "notes": (
            *profile.notes(),
            *profile.ignored(),
            *batch.notes,
            *estimate.notes(cells),
            *_left(batch),
        ),
    }


def _done(batch: Batch, work: paths.Work) -> Iterator[Cell]:
    """Cells of the sweep that may have run: what they used is known."""
    left = {cell.id for cell in cells_of(batch)}
    return (cell for cell in batch.sweep.cells if cell.id not in left)


def _chains_s(batch: Batch, seconds: Mapping[str, float]) -> Iterator[float]:
    """Of each task that trains: `_chain_s`."""
    for item in batch.prepared:
        for ids in () if item.array.measures else item.array.tasks.values():
            if ids:
                yield _chain_s(batch.sweep, ids, seconds)


def _measuring_s(batch: Batch, times: Durations) -> list[float]:
    """Seconds of each task that only measures, and of each cell for which there is no room yet."""
    tasks = [ids for i in batch.prepared if i.array.measures for ids in i.array.tasks.values()]
    tasks += [(cell,) for cell in batch.unmeasured]
    return [times.measuring_s([batch.sweep.by_id[i] for i in ids]) for ids in tasks]


def _chain_s(sweep: Sweep, ids: Sequence[str], seconds: Mapping[str, float]) -> float:
    """Seconds from the start of what a task stands on to its own end."""
    before = max((_before_s(sweep, sweep.by_id[i], seconds) for i in ids), default=0.0)
    return sum(seconds[i] for i in ids) + before


def _before_s(sweep: Sweep, cell: Cell, seconds: Mapping[str, float]) -> float:
    on = cell.stands_on
    if on is None:
        return 0.0
    return seconds.get(on, 0.0) + _before_s(sweep, sweep.by_id[on], seconds)


def _left(batch: Batch) -> Iterator[str]:
    if batch.left_over:
        sooner = "a follow-up job" if may_follow_up(batch) else "another `netpress submit`"
        yield (
            f"{batch.left_over} cells are not in these jobs, since {reason(batch, Sent())}; "
            f"{sooner} submits them when there is room"
        )
