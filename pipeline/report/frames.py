"""Published results -> rows, and as a table of pandas: one line a cell.

Rows come in the sweep's order (data set, model, technique, seed), whatever the order in which
they were made, so that everything built from them is the same to the byte.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas

from pipeline import done, gaps
from pipeline.errors import Corrupt, UserError
from pipeline.gaps import Gap
from pipeline.paths import Work
from pipeline.report import images, reading, sources
from pipeline.report.measured import CLASSIFIED_ON
from pipeline.report.metrics import METRICS
from pipeline.report.reading import Read
from pipeline.report.row import IDENTITY, Row, identity
from pipeline.strict_yaml import nearest, shown
from pipeline.sweep import Cell, Sweep

COLUMNS = (*IDENTITY, *(metric.key for metric in METRICS), "facts", "other_images_of")


@dataclass(frozen=True)
class Frames:
    """`rows`: of the cells that have a result, each of one machine; `gaps`: the cells of the sweep
    that have none; `every`: a row for each cell and machine that measured it; `set_apart`: ids of
    the results that are no part of what is compared (report/tuned.py)."""

    rows: tuple[Row, ...]
    gaps: tuple[Gap, ...]
    every: tuple[Row, ...] = ()
    set_apart: frozenset[str] = frozenset()

    @classmethod
    def of(cls, rows: Iterable[Row], gaps: Iterable[Gap]) -> Frames:
        """Of rows as they were read, those of a cell one after the other: each cell of the machine
        that measured most, or of the next one that measured it. Those of other images than the
        newest are set apart."""
        every = tuple(images.apart(list(rows)))
        most = {name: place for place, name in enumerate(by_cells(every))}
        cells: dict[str, Row] = {}
        for row in every:
            best = cells.setdefault(row.id, row)
            if most[row.machine] < most[best.machine]:
                cells[row.id] = row
        return cls(tuple(cells.values()), tuple(gaps), every)

    def on(self, machine: str | None, sweep: Sweep) -> Frames:
        """What one machine measured; what it did not is a gap. UserError where it measured none.
        None: the frames as they are."""
        if machine is None:
            return self
        name = self.named(machine)
        rows = tuple(row for row in self.every if row.machine == name)
        there = {row.id for row in rows}
        missing = [
            Gap(sweep.by_id[row.id], f"not measured on {name}, but on {row.machine}")
            for row in self.rows
            if row.id not in there
        ]
        return Frames(rows, (*self.gaps, *missing), self.every)

    def compared(self) -> Frames:
        """Without what is set apart."""
        if not self.set_apart:
            return self
        rows, every = (
            tuple(row for row in rows if row.id not in self.set_apart)
            for rows in (self.rows, self.every)
        )
        return Frames(rows, self.gaps, every, self.set_apart)

    def named(self, machine: str) -> str:
        """The machine of this name, or of a unique beginning of it."""
        names = self.machines
        known = [name for name in names if name.lower().startswith(machine.lower())]
        if machine in names or len(known) == 1:
            return machine if machine in names else known[0]
        if not names:
            raise UserError(f"--machine {shown(machine)}: nothing was measured yet")
        expected = nearest(machine, names)
        raise UserError(f"--machine {shown(machine)}: measured none of these cells, {expected}")

    @property
    def machines(self) -> list[str]:
        """Those that measured, the one with most cells first."""
        return by_cells(self.every or self.rows)

    @cached_property
    def cells(self) -> pandas.DataFrame:
        """COLUMNS: identity, every metric (NaN where it was not measured), `facts` as canonical
        JSON, and `other_images_of`."""
        return pandas.DataFrame([_values(row) for row in self.rows], columns=list(COLUMNS))

    @property
    def ids(self) -> list[str]:
        return [row.id for row in self.rows]


def by_cells(rows: Iterable[Row]) -> list[str]:
    """The machines of these rows: that of most cells first, then one that measured accuracy."""
    rows = list(rows)
    counts = Counter(row.machine for row in rows)
    lent = Counter(row.machine for row in rows if CLASSIFIED_ON in row.facts)
    return sorted(counts, key=lambda name: (-counts[name], lent[name], name))


def _values(row: Row) -> dict[str, Any]:
    numbers = {metric.key: metric.of(row) for metric in METRICS}
    return {
        **{name: getattr(row, name) for name in IDENTITY},
        **{key: float("nan") if value is None else value for key, value in numbers.items()},
        "facts": json.dumps(row.facts, sort_keys=True),
        "other_images_of": row.other_images_of,
    }


def read(sweep: Sweep, work: Work, earlier: Sequence[Path] = ()) -> Frames:
    """Everything valid that there is of `sweep`; a damaged result is a gap. `earlier`: as in
    `reading.from_work`."""
    cells = in_order(sweep)
    requests = [request(cell, work) for cell in cells]
    return framed(zip(cells, reading.from_work(requests, earlier), strict=True), work)


def request(cell: Cell, work: Work) -> sources.Request:
    return sources.Request(identity(cell), work.cell(cell.id), done.record(cell))


def framed(read: Iterable[tuple[Cell, Read]], work: Work) -> Frames:
    """What was read of each cell, in order."""
    rows: list[Row] = []
    missing: list[Gap] = []
    for cell, one in read:
        if not one.rows:
            missing.append(Gap(cell, _reason(cell, one, work)))
        rows += one.rows
    return Frames.of(rows, missing)


def _reason(cell: Cell, read: Read, work: Work) -> str:
    if isinstance(read.error, Corrupt):
        return gaps.damaged(read.error, work.cell(cell.id))
    return gaps.reason(cell, work)


def in_order(sweep: Sweep) -> list[Cell]:
    """By data set, model and technique as the sweep first names them, then by seed."""
    places: dict[tuple[str, str], int] = {}
    for cell in sweep.cells:
        for name in _place_names(cell):
            places.setdefault(name, len(places))
    return sorted(
        sweep.cells, key=lambda c: (*(places[name] for name in _place_names(c)), c.seed, c.id)
    )


def _place_names(cell: Cell) -> tuple[tuple[str, str], ...]:
    return (
        ("dataset", cell.dataset.name),
        ("model", cell.model.label),
        ("technique", cell.technique),
    )
