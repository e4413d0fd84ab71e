"""What was trained, read back: a cell's base, and what a base starts from."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline import store
from pipeline.errors import Corrupt, UserError
from pipeline.models import weights
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
        state = read_model(paths.model)
        require_images(paths, split, f"the base {paths.id}")
    except Corrupt as error:
        raise NoBase(f"its base {paths.id} is not there or damaged: {error}") from error
    return state


def require_images(paths: CellPaths, split: Split, whose: str) -> None:
    """Raises UserError where a cell, called ``whose``, was trained on other images than those of
    the split; Corrupt where its result is damaged."""
    facts = store.read_result(paths.result, with_history=False).facts
    if facts.get("dataset_fingerprint") != split.fingerprint:
        raise UserError(
            f"{split.name}: its images changed since {whose} was trained; "
            "expected the same, or another name for this data set in the sweep file"
        )


def started(fresh: ModelState, cell: Cell, work: Work) -> ModelState:
    """`fresh` with the weights that the cell, a base, starts from. Its last layer keeps its fresh
    weights where the number of classes is another one. NoBase where the other base is not there or
    damaged, UserError where a file changed, or where the weights are not those of such a network.
    """
    tensors = _start(cell, work)
    assert cell.model.start is not None
    builds = f"a {cell.model.anew} for images of {list(fresh.spec.shape)}"
    left = weights.other_head(fresh, tensors)
    weights.fill(fresh.network.module, tensors, cell.model.start.source, builds, left)
    return fresh


def start_facts(cell: Cell, work: Work, state: ModelState) -> dict[str, Any]:
    """For the result of a base that starts from other weights: whose they are, and whether its last
    layer is its own. That is left out where they are gone by now, which costs no trained base."""
    if not cell.is_base or cell.model.start is None:
        return {}
    facts: dict[str, Any] = {"source": cell.model.start.source}
    with contextlib.suppress(NoBase, UserError):
        facts["head_anew"] = bool(weights.other_head(state, _start(cell, work)))
    return {"weights_from": facts}


def _start(cell: Cell, work: Work) -> dict[str, torch.Tensor]:
    start = cell.model.start
    assert start is not None
    if start.sha256 is not None:
        return weights.read(Path(start.source), start.sha256)
    assert start.cell is not None  # the sweep looked it up
    paths = work.cell(start.cell)
    try:
        store.verify(paths)
        return dict(read_model(paths.model).network.module.state_dict())
    except Corrupt as error:
        raise NoBase(
            f"{cell.ground} ({start.source}, {start.cell}) is not there or damaged: {error}"
        ) from error
