"""What was trained, read back: a cell's own network, and its base's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline import store
from pipeline.errors import Corrupt, UserError
from pipeline.models.network import ModelState
from pipeline.paths import CellPaths, Work
from pipeline.sweep import Cell
from pipeline.training.checkpoint import read_model

if TYPE_CHECKING:
    from pipeline.data import Split


class NoBase(Exception):
    """The base of this cell has no valid result; it has to be made first."""


def base(cell: Cell, work: Work, split: Split) -> ModelState:
    """A fresh copy of the trained base; NoBase where it is not there or damaged, UserError where it
    was trained on other images (a folder's content is not in a cell's id)."""
    paths = work.cell(cell.base_id)
    try:
        store.verify(paths)
        state, fingerprint = read_model(paths.model), images_of(paths)
    except Corrupt as error:
        raise NoBase(f"its base {paths.id} is not there or damaged: {error}") from error
    if fingerprint != split.fingerprint:
        raise UserError(
            f"{split.name}: its images changed since the base {paths.id} was trained; "
            "expected the same, or another name for this data set in the sweep file"
        )
    return state


def images_of(paths: CellPaths) -> str | None:
    """The fingerprint of the images that a cell was trained on."""
    facts = store.read_result(paths.result, with_history=False).facts
    return facts.get("dataset_fingerprint")
