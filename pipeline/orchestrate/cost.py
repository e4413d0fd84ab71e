"""What a sweep costs on a cluster, and which setting would lower that."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pipeline import usage
from pipeline.orchestrate.durations import Durations
from pipeline.orchestrate.profile import Profile
from pipeline.sweep import Cell
from pipeline.usage import Used

LITTLE = 0.5  # of the GPU time: below it, what is not training is worth a line


def parts(profile: Profile) -> Mapping[str, float] | None:
    """Fair-share units an hour of one job, by what they are for; None without a formula."""
    cost = profile.charge
    if cost is None:
        return None
    return {
        "cores": cost.core * profile.cores,
        "memory": cost.gib * profile.memory_gib,
        "GPUs": cost.gpu * profile.gpus,
    }


def training_share(cells: Iterable[Cell], times: Durations) -> float | None:
    """The share of the time of the jobs that train in which they do, by the estimate; None of
    nothing."""
    seconds = [(times.seconds(cell), times.guess.seconds(cell)) for cell in cells]
    total_s = math.fsum(in_job_s for in_job_s, _ in seconds)
    trained_s = math.fsum(all_s - times.guess.overhead_s for _, all_s in seconds)
    return trained_s / total_s if total_s else None


def savings(
    profile: Profile, used: Used | None, share: float | None, threads: int | None = None
) -> Iterator[str]:
    """A line for each setting that would lower the cost. `used`: by finished cells, which know it
    best; without them, what leaves no GPU of a node idle. `share`: `training_share`."""
    now = profile.charge_an_hour()
    for key, value, why in _smaller(profile, used, threads):
        after = profile.model_copy(update={key: value}).charge_an_hour()
        if now is not None and after is not None and after < now:
            yield f"--set {key}={value}: {after:g} units an hour instead of {now:g}, {why}"
    if profile.gpus and profile.measure_job is None and share is not None and share < LITTLE:
        yield (
            f"measure: {{cores: 8}} in the profile instead of in-job: training is only {share:.0%} "
            "of the GPU time, the rest is start and measurement"
        )


def _smaller(
    profile: Profile, used: Used | None, threads: int | None
) -> Iterator[tuple[str, int, str]]:
    """(key, value, why) of smaller requests."""
    if used is not None:
        # Without a number of threads in the sweep, fewer cores would change what is measured there.
        least = 1 if profile.measure_job else threads or profile.cores
        wanted: Sequence[tuple[str, int]] = usage.request(used, least)
        for key, value in wanted:
            if value < getattr(profile, key):
                yield key, value, f"as {used.cells} finished cells needed no more"
        return
    node = profile.node
    if node is None or not node.gpus or not profile.gpus:
        return
    for key, has in (("cores", node.cores), ("memory_gib", node.memory_gib)):
        fair = has * profile.gpus // node.gpus
        if 0 < fair < getattr(profile, key):
            yield key, fair, "the GPU's part of its node"


def shown(charge: float, profile_parts: Mapping[str, float]) -> str:
    """`59 units of fair share, at 59 an hour a job: cores 24, memory 10, GPUs 25`."""
    listed = ", ".join(f"{what} {units:g}" for what, units in profile_parts.items() if units)
    hourly = math.fsum(profile_parts.values())
    return f"{charge:.0f} units of fair share, at {hourly:g} an hour a job: {listed}"
