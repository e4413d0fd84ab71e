"""How long jobs may run, and which short cells share one, by the estimates of their cells.

The wall time that a job requests is its estimate with a margin: the shorter it is, the earlier a
scheduler finds a place for it. A job that needs more gets more (jobs/task.py). Cells of which too
little is known (a network or a data set of one's own, another GPU, none) request all of the
profile's minutes and have a job each, until some of them are finished.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from pipeline.orchestrate.estimate import Estimate
from pipeline.orchestrate.graph import Array, Ids, Pack, Request, packer
from pipeline.orchestrate.profile import Profile
from pipeline.orchestrate.profile_parts import MeasureJob
from pipeline.sweep import Cell, Sweep

LEAST_MINUTES = 10
PACK_MINUTES = 60.0
STEP = 4  # tasks of one array differ by at most this factor in the wall time that they need


@dataclass(frozen=True)
class Durations:
    """For the jobs of one profile; `seconds` of a cell in a job that trains it, and measures it
    unless jobs of their own do."""

    profile: Profile
    guess: Estimate
    _known: dict[str, tuple[float, bool]] = field(default_factory=dict)

    def seconds(self, cell: Cell) -> float:
        return self._of(cell)[0]

    def measuring_s(self, cells: Sequence[Cell]) -> float:
        """Of a job that measures these, one after the other."""
        return self.guess.measure_s * len(cells)

    def measuring(self, cell: Cell) -> Request:
        """The standard request of a job that measures a trained cell, or many: see `timed`."""
        return self._to_measure_one[self._covers(cell)]

    @cached_property
    def _to_measure_one(self) -> dict[bool, Request]:
        """The same of a cell of which enough is known, and of one of which it is not."""
        job, needed_s = self._measure_job, self.guess.measure_s
        minutes = {known: self._requested(job.minutes, needed_s, known) for known in (True, False)}
        return {known: Request(job.memory_gib, minutes[known]) for known in minutes}

    def pack_measuring(self, cells: Sequence[Cell]) -> list[Ids]:
        """The cells of one base as one task, as far as there is time for them."""
        job = self._measure_job
        most = (job.minutes - self.profile.signal_s / 60) / (self.profile.time_margin or 1.0)
        return packer(most, lambda cell: self.guess.measure_s)(cells)

    def _covers(self, cell: Cell) -> bool:
        return self._of(cell)[1]

    def _of(self, cell: Cell) -> tuple[float, bool]:
        if cell.id not in self._known:
            seconds = self.guess.seconds(cell) - self._apart_s
            self._known[cell.id] = seconds, self.guess.covers(cell)
        return self._known[cell.id]

    def minutes(self, cells: Sequence[Cell]) -> int:
        """The wall time to request for these cells, one after the other."""
        known = all(map(self._covers, cells))
        return self._requested(self.profile.minutes, sum(map(self.seconds, cells)), known)

    def _requested(self, most: int, estimate_s: float, known: bool) -> int:
        """Minutes to request for what takes so long by estimate; `most` where that says little."""
        profile = self.profile
        if profile.time_margin is None or not known:
            return most
        needed_s = estimate_s * profile.time_margin + profile.signal_s
        return min(most, max(LEAST_MINUTES, math.ceil(needed_s / 60)))

    def standard(self, cell: Cell) -> Request:
        """The request of a cell that has not failed."""
        return Request(self.profile.memory_gib, self.minutes([cell]))

    @cached_property
    def _measure_job(self) -> MeasureJob:
        assert self.profile.measure_job is not None  # else none are submitted
        return self.profile.measure_job

    def _minutes_to_measure(self, cells: Sequence[Cell]) -> int:
        known = all(map(self._covers, cells))
        return self._requested(self._measure_job.minutes, self.measuring_s(cells), known)

    @cached_property
    def _apart_s(self) -> float:
        """What of a cell's seconds is not in the job that trains it."""
        return 0.0 if self.profile.measure_job is None else self.guess.measure_s

    def alike(self, request: Request) -> Request:
        """The same for all requests of about the same wall time, which share arrays."""
        if request.minutes >= self.profile.minutes:
            return request
        minutes = LEAST_MINUTES
        while minutes < request.minutes:
            minutes *= STEP
        return replace(request, minutes=min(minutes, self.profile.minutes))

    def timed(self, array: Array, sweep: Sweep, request: Callable[[Cell], Request]) -> Array:
        """The array with the wall time that its longest task needs."""
        tasks = [[sweep.by_id[i] for i in ids] for ids in array.tasks.values()]
        if array.measures:  # of cells with one request
            longest = max(array.request.minutes, *map(self._minutes_to_measure, tasks))
        else:
            longest = max(
                max(self.minutes(cells), *(request(cell).minutes for cell in cells))
                for cells in tasks
            )
        return replace(array, request=replace(array.request, minutes=longest))

    def shared(self, arrays: Sequence[Array], sweep: Sweep) -> list[Array]:
        """The arrays with the profile's `at_once` divided between them, in proportion to their
        work: so techniques become free to run as fast as they are done. At least 1 for each."""
        if sum(len(array.tasks) for array in arrays) <= self.profile.at_once:
            return list(arrays)
        work, tasks = [self._work_s(a, sweep) for a in arrays], [len(a.tasks) for a in arrays]
        shares = _shares(self.profile.at_once, work, tasks)
        return [replace(a, at_once=share) for a, share in zip(arrays, shares, strict=True)]

    def _work_s(self, array: Array, sweep: Sweep) -> float:
        cells = [sweep.by_id[i] for i in array.cells]
        return self.measuring_s(cells) if array.measures else math.fsum(map(self.seconds, cells))

    def pack(self, sweep: Sweep, cells: Iterable[Cell]) -> Pack | None:
        """What puts these cells into tasks: as the sweep says; by default into jobs of about an
        hour, but bases for which other cells wait into a job each."""
        if sweep.pack:
            minutes = sweep.pack.minutes
            return packer(minutes, self.seconds) if minutes else None
        if self.profile.time_margin is None:
            return None
        awaited = {cell.stands_on for cell in cells}
        most = (self.profile.minutes - self.profile.signal_s / 60) / self.profile.time_margin
        together = packer(min(PACK_MINUTES, most), self.seconds)

        def pack(members: Sequence[Cell]) -> list[Ids]:
            short = [c for c in members if c.id not in awaited and self._covers(c)]
            kept = {cell.id for cell in short}
            return [(c.id,) for c in members if c.id not in kept] + together(short)

        return pack


def _shares(most: int, work: Sequence[float], tasks: Sequence[int]) -> list[int]:
    """`most` in proportion to the work (as d'Hondt divides seats), at least 1 for each array, and
    at most its tasks."""
    shares = [1] * len(work)
    heap = [(-part_s / 2, i) for i, part_s in enumerate(work) if tasks[i] > 1]
    heapq.heapify(heap)
    for _ in range(most - len(work)):
        if not heap:
            break
        i = heapq.heappop(heap)[1]
        shares[i] += 1
        if shares[i] < tasks[i]:
            heapq.heappush(heap, (-work[i] / (shares[i] + 1), i))
    return shares
