"""Jobs that measure what other jobs have trained: one task a base, with all that stands on it.

A task measures its cells one after the other on one node, each in turns with the base, so that
their speeds can be compared. It waits (afterany) for the tasks that train these cells: what failed
there is left out. All tasks of an array share its dependency, so bases get arrays of their own, as
long as there are few; of many, some share an array, and wait for one another's cells.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.orchestrate.graph import Array, Ids, Pack, Request
from pipeline.orchestrate.state import CellState, SweepState
from pipeline.sweep import Cell, Sweep
from pipeline.sweep.settings import RUNTIMES

MOST_ARRAYS = 20  # that wait for something; each is a call of sbatch


@dataclass
class Places:
    """Where cells are trained: {cell: (array or job, index)}; `every`: the indices of each, so that
    one that is awaited as a whole is named once; `singles`: jobs without tasks."""

    of: dict[str, tuple[str, int]] = field(default_factory=dict)
    every: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    singles: set[str] = field(default_factory=set)

    def add(self, source: str, tasks: Mapping[int, Ids], single: bool) -> None:
        self.every[source] |= tasks.keys()
        self.singles |= {source} if single else set()
        for index, ids in tasks.items():
            self.of.update(dict.fromkeys(ids, (source, index)))

    def add_one(
        self, cell: str, source: str, index: int, tasks: Mapping[int, Ids], single: bool
    ) -> None:
        """A cell of an array, of which all `tasks` are known but not whether each is awaited."""
        self.of[cell] = (source, index)
        if source not in self.every:
            self.every[source] |= tasks.keys()
            self.singles |= {source} if single else set()

    def beside(self, arrays: Iterable[Array], single: bool) -> Places:
        """With those in arrays that are to be submitted."""
        more = Places(dict(self.of), defaultdict(set, self.every), set(self.singles))
        for array in arrays:
            more.add(array.name, array.tasks, single)
        return more

    def awaited(self, cells: Iterable[str]) -> Iterator[str]:
        """What to wait for until all of these are trained, as `Array.after` has it."""
        indices: dict[str, set[int]] = defaultdict(set)
        for cell in cells:
            if cell in self.of:
                source, index = self.of[cell]
                indices[source].add(index)
        for source, some in indices.items():
            if source in self.singles or some == self.every[source]:
                yield source
            else:
                yield from (f"{source}_{index}" for index in sorted(some))


def choose(
    sweep: Sweep,
    states: SweepState,
    training: Iterable[Cell],
    wanted: Callable[[CellState], bool],
) -> list[Cell]:
    """The cells to submit to jobs that measure: those which are submitted for `training`, those in
    jobs that only train them, and those which are trained and wanted; but none that a job in the
    queue will measure."""
    ids, view = {cell.id for cell in training}, states.view

    def needs(s: CellState) -> bool:
        if s.cell.id in ids:
            return True
        if s.state == "done" or (view and view.will_measure(s.cell.id)):
            return False
        if view and view.in_queue(s.cell.id):
            return view.last[s.cell.id].entry.apart
        return s.trained and s.state != "running" and wanted(s)

    return [s.cell for s in states.cells if needs(s)]


def need_gpu(cells: Iterable[Cell]) -> bool:
    """Whether a runtime that they are measured on is one of a GPU."""
    named = {name for cell in cells for name in cell.measure.runtimes} - {*RUNTIMES[:1]}
    if not named:
        return False
    from pipeline import runtimes  # here: most sweeps name none, and need no numpy for that

    return bool(runtimes.on_gpu(named))


def arrays(
    cells: Iterable[Cell],
    places: Places,
    request: Callable[[Cell], Request],
    limit: int,
    pack: Pack,
) -> list[Array]:
    """The arrays that measure `cells`. limit: tasks in one array; 0 or 1: single jobs. pack: the
    cells of one base -> tasks, several where they would take too long."""
    cells = list(cells)
    on_gpu = need_gpu(cells)
    groups: dict[tuple[str, Request], list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.base_id, request(cell)].append(cell)
    classes: dict[tuple[Request, bool], list[tuple[Ids, tuple[str, ...]]]] = defaultdict(list)
    for (base_id, shared_request), members in groups.items():
        after = tuple(places.awaited([base_id, *(cell.id for cell in members)]))
        tasks = ((ids, after) for ids in pack(members))
        classes[shared_request, bool(after)] += tasks
    made: list[Array] = []
    for (shared_request, waits), of_class in classes.items():
        width = math.ceil(len(of_class) / MOST_ARRAYS) if waits else len(of_class)
        for part in _chunks(of_class, max(1, min(width, limit))):
            ids = [i for _, after in part for i in after]
            new = Array(
                f"measure-{len(made)}",
                {index: task for index, (task, _) in enumerate(part)},
                shared_request,
                "afterany" if waits else None,
                _whole(ids, places),
                measures=True,
                on_gpu=on_gpu,
            )
            made.append(new)
    return made


def _chunks(tasks: Sequence, width: int) -> Iterator[Sequence]:
    for first in range(0, len(tasks), width):
        yield tasks[first : first + width]


def _whole(after: Iterable[str], places: Places) -> tuple[str, ...]:
    """Each once, and an array whose tasks are all awaited by its own name."""
    every = dict.fromkeys(after)
    for source, indices in places.every.items():
        names = [f"{source}_{index}" for index in indices]
        if source in every or (names and all(name in every for name in names)):
            every = {on: None for on in every if on not in names} | {source: None}
    return tuple(every)
