"""Published results -> rows, and as a table of pandas: one line a cell.

Rows come in the sweep's order (data set, model, technique, seed), whatever the order in which
they were made, so that everything built from them is the same to the byte.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas

from pipeline import gaps
from pipeline.errors import Corrupt
from pipeline.gaps import Gap
from pipeline.paths import Work
from pipeline.report import images, reading
from pipeline.report.metrics import METRICS
from pipeline.report.reading import Read
from pipeline.report.row import IDENTITY, Row, identity
from pipeline.sweep import Cell, Sweep

COLUMNS = (*IDENTITY, *(metric.key for metric in METRICS), "facts", "other_images_of")


@dataclass(frozen=True)
class Frames:
    """`rows`: of the cells that have a result; `gaps`: the cells of the sweep that have none."""

    rows: tuple[Row, ...]
    gaps: tuple[Gap, ...]

    @classmethod
    def of(cls, rows: Iterable[Row], gaps: Iterable[Gap]) -> Frames:
        """Of rows as they were read: those of other images than the newest are set apart."""
        return cls(tuple(images.apart(list(rows))), tuple(gaps))

    @cached_property
    def cells(self) -> pandas.DataFrame:
        """COLUMNS: identity, every metric (NaN where it was not measured), `facts` as canonical
        JSON, and `other_images_of`."""
        return pandas.DataFrame([_values(row) for row in self.rows], columns=list(COLUMNS))

    @property
    def ids(self) -> list[str]:
        return [row.id for row in self.rows]


def _values(row: Row) -> dict[str, Any]:
    numbers = {metric.key: metric.of(row) for metric in METRICS}
    return {
        **{name: getattr(row, name) for name in IDENTITY},
        **{key: float("nan") if value is None else value for key, value in numbers.items()},
        "facts": json.dumps(row.facts, sort_keys=True),
        "other_images_of": row.other_images_of,
    }


def read(sweep: Sweep, work: Work, earlier: Path | None = None) -> Frames:
    """Everything valid that there is of `sweep`; a damaged result is a gap. `earlier`: as in
    `reading.from_work`."""
    cells = in_order(sweep)
    requests = [(identity(cell), work.cell(cell.id)) for cell in cells]
    return framed(zip(cells, reading.from_work(requests, earlier), strict=True), work)


def framed(read: Iterable[tuple[Cell, Read]], work: Work) -> Frames:
    """What was read of each cell, in order."""
    rows, missing = [], []
    for cell, one in read:
        if one.row is None:
            missing.append(Gap(cell, _reason(cell, one, work)))
        else:
            rows.append(one.row)
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
