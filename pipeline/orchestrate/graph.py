"""From missing cells to arrays of tasks: the job graph, in as few sbatch calls as possible.

One sbatch call makes one array, and all tasks of an array share its dependency. Two kinds of
dependency make a technique wait for its own base's task alone:

    afterok:A_3     the array waits for task 3 of A: one array a base, any number of tasks in it
    aftercorr:A     task i waits for task i of A: one array for many bases, one task a base in it

For the bases of one array, with k(b) tasks standing on base b, the m bases with most tasks get
arrays of their own, sum ceil(k(b) / limit) calls, and all others share max k(b) arrays of the
second kind; the best m is found by trying each. So 500 bases with 19 techniques each (10,000
cells) are 1 + 19 + 1 calls with the report, and one base with 9,999 techniques 1 + 10 + 1.

A base that starts from another one, which is missing, waits for that one's task in the same way.

Tasks whose base is done wait for nothing and fill arrays up to the limit. A task's index in an
array of the second kind is that of its base, and so is always below the limit.

Where a cluster has no arrays (a limit of 0 or 1), each task is a single job: an `Array` of one task
that is sent without --array, and whose dependents wait for the job itself.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.sweep import Cell

ALL, TRAIN, MEASURE = "all", "train", "measure"  # what a job does to its cells
Ids = tuple[str, ...]
Pack = Callable[[Sequence[Cell]], list[Ids]]  # cells -> tasks


@dataclass(frozen=True)
class Request:
    """The part of a job's request that depends on earlier failures; the profile has the rest."""

    memory_gib: int
    minutes: int
    exclude: tuple[str, ...] = ()  # nodes

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Request:
        """From a line of the ledger."""
        return Request(values["memory_gib"], values["minutes"], tuple(values["exclude"]))


@dataclass(frozen=True)
class Array:
    """One sbatch call: `tasks` {index: cells, one after the other}.

    `after` names what it waits for: other arrays, or ids of jobs that are already in the queue.
    `shares`: other tasks depend on single cells of it, so a task with several cells succeeds where
    one of them did. `at_once`: how many of its tasks may run at the same time; None: all.
    `measures`: it measures what others have trained (measure_jobs.py); `on_gpu`: on a GPU, too.
    """

    name: str
    tasks: Mapping[int, Ids]
    request: Request
    kind: str | None = None  # afterok | aftercorr | afterany
    after: tuple[str, ...] = ()
    shares: bool = False
    single: bool = False
    at_once: int | None = None
    measures: bool = False
    on_gpu: bool = False

    @property
    def cells(self) -> Ids:
        return tuple(cell for ids in self.tasks.values() for cell in ids)


@dataclass(frozen=True)
class Queued:
    """The job in the queue that makes a base: task `index` of the job with this id, or the job
    itself where it is a `single` one."""

    job: int
    index: int
    single: bool = False


def arrays(
    missing: Sequence[Cell],
    request: Callable[[Cell], Request],
    limit: int,
    *,
    queued: Mapping[str, Queued] | None = None,
    pack: Pack | None = None,
) -> list[Array]:
    """The arrays that make `missing`, ordered so that each comes after those it waits for.

    limit: tasks in one array (MaxArraySize, which caps the index, so 0 to limit - 1). queued: bases
    that a job in the queue is making. pack: cells -> tasks; one cell a task where it is None.
    """
    pack = pack or (lambda cells: [(cell.id,) for cell in cells])
    queued = queued or {}
    singles = {str(at.job) for at in queued.values() if at.single}
    places = {base: (str(at.job), at.index) for base, at in queued.items()}
    made: list[Array] = []

    def add(name: str, cells: Iterable[Cell], shares: bool) -> None:
        waiting, free = _by_source(cells, places)
        new = _plain(name, free, request, limit, pack, shares)
        for source, groups in waiting.items():
            for shared_request, members in _by_request(groups, request).items():
                tasks = {index: pack(cells) for index, cells in members.items()}
                by_task = limit <= 1 or source in singles
                first = len(made) + len(new)
                more = _waiting(name, source, tasks, shared_request, limit, first, by_task)
                new += [replace(array, shares=shares) for array in more]
        made.extend(new)

    for level in _levels([cell for cell in missing if cell.is_base]):
        before = len(made)
        add("base", level, True)
        singles |= {array.name for array in made[before:] if array.single}
        places |= _places(made[before:])
    add("cells", [cell for cell in missing if not cell.is_base], False)
    return [_after_jobs(array, singles) for array in made]


def _levels(bases: Iterable[Cell]) -> Iterator[list[Cell]]:
    """First those that start from none of the others, then those that start from these, ..."""
    left = {cell.id: cell for cell in bases}
    while left:
        level = [cell for cell in left.values() if cell.stands_on not in left]
        assert level  # no base starts from itself: see sweep/start.py
        yield level
        for cell in level:
            del left[cell.id]


def _places(arrays: Iterable[Array]) -> dict[str, tuple[str, int]]:
    return {
        cell: (array.name, index)
        for array in arrays
        for index, ids in array.tasks.items()
        for cell in ids
    }


def _by_source(
    cells: Iterable[Cell], places: Mapping[str, tuple[str, int]]
) -> tuple[dict[str, dict[int, list[Cell]]], list[Cell]]:
    """(array -> its task -> the cells that wait for it, those that wait for nothing)."""
    waiting: dict[str, dict[int, list[Cell]]] = defaultdict(lambda: defaultdict(list))
    free: list[Cell] = []
    for cell in cells:
        if cell.stands_on is not None and cell.stands_on in places:
            source, index = places[cell.stands_on]
            waiting[source][index].append(cell)
        else:
            free.append(cell)
    return waiting, free


def _after_jobs(array: Array, singles: Collection[str]) -> Array:
    """A single job has no tasks to wait for: `12_0` is `12`."""
    after = tuple(
        source if (source := on.rpartition("_")[0]) in singles else on for on in array.after
    )
    return replace(array, after=after)


def cut(arrays: Sequence[Array], tasks: int) -> tuple[list[Array], list[tuple[Array, list[str]]]]:
    """(the first `tasks` tasks of these arrays, the cells of all others by their arrays). None of
    those kept waits for one that is not, since each array comes after those it waits for."""
    kept: list[Array] = []
    others: list[tuple[Array, list[str]]] = []
    for array in arrays:
        every = list(array.tasks.items())
        if first := dict(every[: max(0, tasks)]):
            kept.append(replace(array, tasks=first))
        if left := [cell for _, ids in every[max(0, tasks) :] for cell in ids]:
            others.append((array, left))
        tasks -= len(every)
    return kept, others


def _plain(
    name: str,
    cells: Iterable[Cell],
    request: Callable[[Cell], Request],
    limit: int,
    pack: Pack,
    shares: bool = False,
) -> list[Array]:
    """Arrays that wait for nothing, filled up to the limit."""
    classes: dict[Request, list[Cell]] = defaultdict(list)
    for cell in cells:
        classes[request(cell)].append(cell)
    made: list[Array] = []
    for shared_request, members in classes.items():
        tasks, width = pack(members), max(limit, 1)
        for first in range(0, len(tasks), width):
            part = dict(enumerate(tasks[first : first + width]))
            new = Array(f"{name}-{len(made)}", part, shared_request, shares=shares)
            made.append(replace(new, single=limit <= 1))
    return made


def _by_request(
    groups: Mapping[int, Iterable[Cell]], request: Callable[[Cell], Request]
) -> dict[Request, dict[int, list[Cell]]]:
    classes: dict[Request, dict[int, list[Cell]]] = defaultdict(lambda: defaultdict(list))
    for index, cells in groups.items():
        for cell in cells:
            classes[request(cell)][index].append(cell)
    return classes


def _waiting(
    name: str,
    source: str,
    tasks: dict[int, list[Ids]],
    request: Request,
    limit: int,
    start: int,
    alone: bool = False,
) -> list[Array]:
    """The arrays that wait for tasks of `source`, as few as there can be; `alone`: each for one
    task."""
    single, limit = limit <= 1, max(limit, 1)
    by_count = sorted(tasks, key=lambda index: len(tasks[index]), reverse=True)
    apart = len(tasks) if alone else _alone([len(tasks[index]) for index in by_count], limit)
    made: list[Array] = []
    for index in by_count[:apart]:
        for first in range(0, len(tasks[index]), limit):
            part = dict(enumerate(tasks[index][first : first + limit]))
            after = (f"{source}_{index}",)
            made.append(Array("", part, request, "afterok", after, single=single))
    shared = sorted(by_count[apart:])
    for layer in range(max((len(tasks[index]) for index in shared), default=0)):
        part = {index: tasks[index][layer] for index in shared if layer < len(tasks[index])}
        made.append(Array("", part, request, "aftercorr", (source,)))
    return [replace(array, name=f"{name}-{start + i}") for i, array in enumerate(made)]


def _alone(counts: Sequence[int], limit: int) -> int:
    """How many bases, those with most tasks first, need arrays of their own for the fewest
    calls."""
    own = itertools.accumulate((math.ceil(count / limit) for count in counts), initial=0)
    calls = [mine + shared for mine, shared in zip(own, [*counts, 0], strict=True)]
    return calls.index(min(calls))


def packer(minutes: float, seconds: Callable[[Cell], float]) -> Pack:
    """Cells into tasks of at most `minutes` by their estimate, in order; a longer cell gets a task
    of its own."""

    def pack(cells: Iterable[Cell]) -> list[Ids]:
        tasks: list[list[str]] = []
        left_s = 0.0
        for cell in cells:
            needed_s = seconds(cell)
            if not tasks or needed_s > left_s:
                tasks.append([])
                left_s = minutes * 60
            tasks[-1].append(cell.id)
            left_s -= needed_s
        return [tuple(task) for task in tasks]

    return pack


def ranges(indices: Iterable[int]) -> str:
    """0 1 2 5 7 8 -> `0-2,5,7-8`, as --array and scancel take them."""
    spans: list[list[int]] = []
    for index in sorted(indices):
        if spans and spans[-1][1] == index - 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)
