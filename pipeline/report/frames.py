"""Published results -> pandas: one row a cell, and the histories, one row an epoch.

Rows come in the sweep's order (data set, model, technique, seed), whatever the order in which
they were made, so that everything built from them is the same to the byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas

from pipeline import store
from pipeline.errors import Corrupt
from pipeline.paths import CellPaths, Work
from pipeline.report import gaps, reading
from pipeline.report.evidence import Evidence, evidence, valid_result
from pipeline.report.gaps import Gap
from pipeline.report.reading import Read
from pipeline.report.row import COLUMNS, IDENTITY, identity
from pipeline.sweep import Cell, Sweep

__all__ = [
    "IDENTITY", "Evidence", "Frames", "evidence", "history", "in_order", "read", "valid_result",
]  # fmt: skip


@dataclass(frozen=True)
class Frames:
    """`cells`: IDENTITY, every metric (NaN where it was not measured) and `facts` (canonical JSON);
    `gaps`: the cells of the sweep that are not in it."""

    cells: pandas.DataFrame
    gaps: tuple[Gap, ...]


def read(sweep: Sweep, work: Work) -> Frames:
    """Everything valid that there is of `sweep`; a damaged result is a gap."""
    cells = in_order(sweep)
    asked = [(identity(cell), work.cell(cell.id)) for cell in cells]
    return framed(zip(cells, reading.from_work(asked), strict=True), work)


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
    return pandas.DataFrame(rows, columns=list(COLUMNS))


def _reason(cell: Cell, read: Read, work: Work) -> str:
    if isinstance(read.error, Corrupt):
        return gaps.damaged(read.error, work.cell(cell.id))
    return gaps.reason(cell, work)


def history(sweep: Sweep, work: Work) -> pandas.DataFrame:
    """One row an epoch: IDENTITY, stage_index, stage, epoch_index, and what the stage recorded.

    Has unfinished cells too, as far as they came; a damaged history is left out.
    """
    parts = [part for cell in in_order(sweep) for part in _epochs(cell, work.cell(cell.id))]
    if not parts:
        return pandas.DataFrame(columns=[*IDENTITY, "stage_index", "stage", "epoch_index"])
    return pandas.concat(parts, ignore_index=True)


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


def _epochs(cell: Cell, paths: CellPaths) -> Iterator[pandas.DataFrame]:
    for stage in _histories(paths):
        frame = pandas.DataFrame(stage.columns)
        lead = {**identity(cell), "stage_index": stage.index, "stage": stage.stage}
        for place, (name, value) in enumerate(lead.items()):
            frame.insert(place, name, value, allow_duplicates=False)
        frame.insert(len(lead), "epoch_index", range(len(frame)))
        yield frame


def _histories(paths: CellPaths) -> list[store.StageHistory]:
    for path in (paths.result, paths.metrics):
        try:
            return store.read_history(path)
        except (Corrupt, FileNotFoundError):
            continue
    return []
