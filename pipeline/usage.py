"""What a sweep's jobs used of what they requested, and a request that would do.

Imports nothing heavy. Read from attempts/N/usage.json of cells that ran as SLURM jobs; elsewhere
nothing was requested. A *record* is what one usage.json has, with that of all attempts beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pipeline import store
from pipeline.paths import AttemptPaths, CellPaths, Work
from pipeline.sweep import Cell

GIB = 1024**3
MOST_CELLS = 500  # that are read
LEAST_MINUTES = 10
MARGIN = 1.25  # of what was seen, since a sample every few seconds misses the highest moment


@dataclass(frozen=True)
class Used:
    """The most that any of `cells` cells used, and the most that one requested. `gpu_busy`: the
    mean share of time in which its GPU was at work; None where that was not seen. `measured`: in
    the same jobs, so that their cores decide what all threads are."""

    cells: int
    memory_bytes: int
    requested_memory_bytes: int
    cores: float
    requested_cores: int
    gpu_memory_bytes: int
    gpu_busy: float | None
    minutes: float = 0  # the longest that a cell took which was alone in its jobs
    requested_minutes: float = 0
    measured: bool = True


def read(cells: Iterable[Cell], work: Work) -> Used | None:
    """None where no cell ran in a job that recorded its request."""
    records = (record for cell in cells if (record := of_cell(work.cell(cell.id))))
    return total(islice(records, MOST_CELLS))


def threads_of(cells: Iterable[Cell]) -> int | None:
    """The most threads that measurements of these cells are set to; None where one is not set."""
    wanted = [cell.measure.threads for cell in cells]
    return None if None in wanted or not wanted else max(filter(None, wanted))


def timelines(cells: Iterable[Cell], work: Work) -> list[dict[str, float]]:
    """Seconds of each phase of all attempts of a cell, of those that recorded them."""
    every = []
    for cell in islice(cells, MOST_CELLS):
        folder = work.cell(cell.id)
        last = store.last_attempt(folder)
        spent: dict[str, float] = {}
        for number in range(1, last.number + 1 if last else 1):
            used = store.read_usage(folder.attempt(number))
            for phase, seconds in ((used and used.phases) or {}).items():
                spent[phase] = spent.get(phase, 0.0) + seconds
        every += [spent] if spent else []
    return every


def total(records: Iterable[dict]) -> Used | None:
    """The records of cells (`of_cell`) taken together; None of nothing."""
    every = list(records)
    if not every:
        return None
    busy = [s["used"]["gpu_busy"] for s in every if s["used"]["gpu_busy"] is not None]
    return Used(
        len(every),
        max(s["used"]["memory_bytes"] for s in every),
        max(request_of(s)["memory_bytes"] for s in every),
        max(s["used"]["cores"] for s in every),
        max(request_of(s)["cores"] for s in every),
        max(s["used"]["gpu_memory_bytes"] for s in every),
        math.fsum(busy) / len(busy) if busy else None,
        *_minutes(every),
        any(_measured(one) for one in every),
    )


def _minutes(records: Sequence[dict]) -> tuple[float, float]:
    """(of the longest cell, at most requested), of cells that were alone in their jobs."""
    alone = [(of_all(one, "wall_s") / 60, m) for one in records if (m := _limit(one))]
    return max((took for took, _ in alone), default=0), max((m for _, m in alone), default=0)


def _limit(record: dict) -> float:
    return _number(request_of(record).get("minutes"))


def lines(used: Used, threads: int | None = None) -> Iterator[str]:
    """For people: what was used, and what to request instead where that is clearly less. `threads`:
    those of the sweep's measurements; None: as many as cores were requested, so that fewer cores
    would change what is measured."""
    gpu = f", {used.gpu_memory_bytes / GIB:.1f} GiB of the GPU" if used.gpu_memory_bytes else ""
    busy = f", busy {used.gpu_busy * 100:.0f} % of the time" if used.gpu_busy is not None else ""
    yield (
        f"At most {used.memory_bytes / GIB:.1f} of {used.requested_memory_bytes / GIB:.0f} GiB and "
        f"{used.cores:.1f} of {used.requested_cores} cores were used{gpu}{busy} "
        f"({used.cells} job{'s' if used.cells != 1 else ''})."
    )
    if not used.measured:
        threads = 1
    better = request(used, threads or 1)
    cores = [f"--set {key}={value}" for key, value in better if key == "cores"]
    others = [f"--set {key}={value}" for key, value in better if key != "cores"]
    if threads is not None or not cores:
        if better:
            yield f"This would do: {' '.join((*cores, *others))}"
        return
    number = cores[0].partition("=")[2]
    first = f"{' '.join(others)}; also {cores[0]}" if others else cores[0]
    yield (
        f"This would do: {first}, once the sweep has `measure: {{threads: {number}}}`: without it, "
        "all threads are as many as the cores that are requested"
    )


def request(used: Used, threads: int = 1) -> Sequence[tuple[str, int]]:
    """(key of the profile, value) where at least a quarter less than was requested is enough, and
    there are as many cores as `threads`."""
    smaller = []
    for key, seen, requested, least in (
        ("cores", used.cores, used.requested_cores, threads),
        ("memory_gib", used.memory_bytes / GIB, used.requested_memory_bytes // GIB, 1),
    ):
        enough = max(least, math.ceil(seen * MARGIN))
        if enough <= 0.75 * requested:
            smaller.append((key, enough))
    minutes = max(LEAST_MINUTES, math.ceil(2 * used.minutes))
    if used.minutes and minutes <= 0.75 * used.requested_minutes:
        smaller.append(("minutes", minutes))
    return smaller


def of_cell(cell: CellPaths) -> dict | None:
    """The record of the last attempt at a cell that ran in a job, of those that trained where there
    are any, and of `all` attempts the number and the seconds; None where none did."""
    last = store.last_attempt(cell)
    if last is None:
        return None
    attempts = (cell.attempt(number) for number in range(1, last.number + 1))
    every = [record for attempt in attempts if (record := _record(attempt))]
    if not every:
        return None
    trained = [one for one in every if not _only_measures(one)]
    return {
        **(trained or every)[-1],
        "all": {
            "attempts": last.number,
            "wall_s": sum(wall_s(one) for one in every),
            "gpu_s": sum(wall_s(one) * gpus(one) for one in every),
            "cpu_s": sum(wall_s(one) * cores(one) for one in every),
            "training_gpu_s": sum(training_s(one) * gpus(one) for one in every),
            **_charges(every),
        },
    }


def _measured(record: dict) -> bool:
    """Whether the cell was measured in this job, or in one of a version that does not record it."""
    phases = record.get("phases")
    return not phases or "measure" in phases


def _only_measures(record: dict) -> bool:
    """Whether it is of a job that measured what another had trained, and requested less."""
    phases = record.get("phases") or {}
    return "measure" in phases and not {"prepare", "train", "export"} & phases.keys()


def _charges(records: Sequence[dict]) -> dict[str, float]:
    """Units of fair share, where each job knew its formula."""
    hourly = [request_of(one).get("charge") for one in records]
    if None in hourly:
        return {}
    return {
        "charge": sum(
            wall_s(one) / 3600 * _number(h) for one, h in zip(records, hourly, strict=True)
        )
    }


def _record(attempt: AttemptPaths) -> dict | None:
    usage = store.read_usage(attempt)
    record = usage.to_json() if usage else None
    return record if is_whole(record) else None


def wall_s(record: dict) -> float:
    return _number(record.get("wall_s"))


def request_of(record: dict) -> dict:
    """What the job requested; KeyError where the record has nothing about it."""
    return record["request"] if "request" in record else record["asked"]  # earlier versions' name


def gpus(record: dict) -> float:
    return _number(request_of(record).get("gpus"))


def cores(record: dict) -> float:
    return _number(request_of(record).get("cores"))


def training_s(record: dict) -> float:
    return _number(record.get("training_s"))


def of_all(record: dict, key: str) -> float:
    """`attempts`, `wall_s`, `gpu_s`, `cpu_s` or `training_gpu_s` of all attempts; of the last alone
    where only it is known."""
    every = record.get("all")
    if isinstance(every, dict) and (key in every or key in ("attempts", "wall_s", "gpu_s")):
        return _number(every.get(key))
    known = {
        "attempts": 1,
        "wall_s": wall_s(record),
        "gpu_s": wall_s(record) * gpus(record),
        "cpu_s": wall_s(record) * cores(record),
        "training_gpu_s": training_s(record) * gpus(record),
    }
    return known[key]


def costs(records: Iterable[dict]) -> Iterator[str]:
    """For people: what all attempts have cost, as far as it is known."""
    every = list(records)
    gpu_s = math.fsum(of_all(one, "gpu_s") for one in every)
    cpu_s = math.fsum(of_all(one, "cpu_s") for one in every)
    yield f"{gpu_s / 3600:.3f} GPU-hours and {cpu_s / 3600:.3f} CPU-hours (cores × time)."
    training_gpu_s = math.fsum(of_all(one, "training_gpu_s") for one in every)
    if gpu_s and training_gpu_s:
        share = min(1.0, training_gpu_s / gpu_s)
        yield f"{share:.0%} of the GPU time was training; start and measurement took the rest."
    charges = [charge_of(one) for one in every]
    if every and None not in charges:
        yield f"{math.fsum(c or 0 for c in charges):.1f} units of fair share were charged for it."


def charge_of(record: dict) -> float | None:
    """Units of fair share for all attempts at a cell; None where that is not known."""
    every = record.get("all")
    charge = every.get("charge") if isinstance(every, dict) else None
    return None if charge is None else _number(charge)


def gpu_hours(records: Iterable[dict]) -> float:
    """Wall time x GPUs, of all attempts: those that failed cost as much."""
    return math.fsum(of_all(one, "gpu_s") for one in records) / 3600


def _number(value: object) -> float:
    return value if isinstance(value, (int, float)) and math.isfinite(value) else 0


def is_whole(record: Any) -> bool:
    """Whether it has everything that `total` reads."""
    try:
        requested, used = request_of(record), record["used"]
        numbers = (
            requested["memory_bytes"],
            requested["cores"],
            used["memory_bytes"],
            used["cores"],
            used["gpu_memory_bytes"],
            used["gpu_busy"] or 0.0,
        )
        known = record["job"] and requested["memory_bytes"] and requested["cores"]
    except (KeyError, TypeError):
        return False
    return bool(known) and all(isinstance(n, (int, float)) for n in numbers)
