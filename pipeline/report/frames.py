"""Published results -> pandas: one row a cell.

Rows come in the sweep's order (data set, model, technique, seed), whatever the order in which
they were made, so that everything built from them is the same to the byte.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas

from pipeline import gaps
from pipeline.errors import Corrupt
from pipeline.gaps import Gap
from pipeline.paths import Work
from pipeline.report import images, reading
from pipeline.report.reading import Read
from pipeline.report.row import COLUMNS, identity
from pipeline.sweep import Cell, Sweep


@dataclass(frozen=True)
class Frames:
    """`cells`: IDENTITY, every metric (NaN where it was not measured), `facts` (canonical JSON) and
    images.APART; `gaps`: the cells of the sweep that are not in it."""

    cells: pandas.DataFrame
    gaps: tuple[Gap, ...]


def read(sweep: Sweep, work: Work, earlier: Path | None = None) -> Frames:
    """Everything valid that there is of `sweep`; a damaged result is a gap. `earlier`: as in
    `reading.from_work`."""
    cells = in_order(sweep)
    asked = [(identity(cell), work.cell(cell.id)) for cell in cells]
    return framed(zip(cells, reading.from_work(asked, earlier), strict=True), work)


def framed(found: Iterable[tuple[Cell, Read]], work: Work) -> Frames:
    """What was found of each cell, in order."""
    rows, missing = [], []
    for cell, read in found:
        if read.row is None:
            missing.append(Gap(cell, _reason(cell, read, work)))
        else:
            rows.append(read.row)
    return Frames(frame(rows), tuple(missing))


def frame(rows: Iterable[dict[str, Any]]) -> pandas.DataFrame:
    return pandas.DataFrame(images.apart(list(rows)), columns=[*COLUMNS, images.APART])


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
