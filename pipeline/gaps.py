"""Why a cell has no result: read from its folder, in one line. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline import store
from pipeline.errors import Corrupt
from pipeline.paths import CellPaths, Work
from pipeline.sweep import Cell

NOT_RUN = "not run yet"


@dataclass(frozen=True)
class Gap:
    """A cell of the sweep without a valid result, and why."""

    cell: Cell
    reason: str


def reason(cell: Cell, work: Work) -> str:
    """Why `cell`, which has no valid result, has none: its own last attempt, else that of the cell
    that it stands on, or of the one that this one stands on."""
    own = _own_reason(work.cell(cell.id))
    if own != NOT_RUN:
        return own
    for ground, on in cell.grounds:
        if store.is_done(work.cell(on)):
            break
        if (base := _own_reason(work.cell(on))) != NOT_RUN:
            return f"{ground} is missing: {base}"
    return NOT_RUN


def _own_reason(cell: CellPaths) -> str:
    unfinished = "started, not finished"
    try:
        if store.read_manifest(cell) is not None:
            store.verify(cell, deep=False)
            unfinished = "trained, not measured yet"
    except Corrupt as error:
        return damaged(error, cell)
    attempt = store.last_attempt(cell)
    if attempt is None:
        return unfinished if cell.metrics.exists() else NOT_RUN
    try:
        failure = store.read_failure(attempt)
    except Corrupt:
        return f"failed in attempt {attempt.number}, and its failure.json cannot be read"
    return failure.line if failure else unfinished


def damaged(error: Corrupt, cell: CellPaths) -> str:
    """Without the path of the work root, which differs from machine to machine."""
    return f"damaged: {str(error).replace(f'{cell.folder}/', '')}"
