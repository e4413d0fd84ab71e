"""Runs every cell of a sweep on a small part of its data, before anything is queued.

A rehearsal is a sweep of its own: the same matrix, with one epoch in each stage, a few images and
short measurements. So it runs the same code as the real sweep, from data to artifact, and finds
errors early; its cells have their own ids and their own work root.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import streams
from pipeline.orchestrate import state
from pipeline.paths import Work, checked_name
from pipeline.sweep import Cell, Measure, Sweep
from pipeline.techniques.settings import StageSettings
from pipeline.terminal import show

TRAIN_IMAGES = 256
TEST_IMAGES = 128
BATCH = 32
REPEATS, SECONDS = 3, 0.2


def run(sweep: Sweep, work: Work, data_root: Path, device: str = "auto") -> int:
    """Rehearse the sweep on this machine; the exit code is 1 where a cell failed."""
    from pipeline.orchestrate import local  # here, since `plan` needs only `root`

    return local.run(
        sliver(sweep),
        root(work),
        data_root,
        device=device,
        conclude=_verdict,
        remedy=f"a new rehearsal: delete {root(work).root}",
    )


def _verdict(small: Sweep, work: Work) -> int:
    """Prints which cells failed. No table: results of so few images mean nothing."""
    failed = [cell_state for cell_state in state.states(small, work) if cell_state.state != "done"]
    with streams.at_best():
        for cell_state in failed:
            show(f"{cell_state.cell.name}: {cell_state.state}: {cell_state.reason}")
        show(f"{len(small.cells) - len(failed)} of {len(small.cells)} cells went through.")
    return 1 if failed else 0


def root(work: Work) -> Work:
    """The work root of rehearsed cells, which must not change the checkpoints of the real ones."""
    return Work(work.root / "rehearsal")


def sliver(sweep: Sweep) -> Sweep:
    """The sweep that is rehearsed; its cells correspond to those of `sweep`, in order."""
    name = checked_name(f"{sweep.name[:53]}-rehearsal")
    small: dict[str, Cell] = {}
    for cell in sweep.cells:  # a base comes after the one that it starts from
        small[cell.id] = _small(cell, small)
    return replace(sweep, name=name, cells=tuple(small.values()), tracking=())


def _small(cell: Cell, small: Mapping[str, Cell]) -> Cell:
    """`small`: of the cells before, by their own ids."""
    recipe = cell.recipe.model_copy(
        update={
            "epochs": 1,
            "train_images": min(TRAIN_IMAGES, cell.recipe.train_images or TRAIN_IMAGES),
            "test_images": min(TEST_IMAGES, cell.recipe.test_images or TEST_IMAGES),
            "batch_size": min(BATCH, cell.recipe.batch_size),
        }
    )
    stages = tuple(replace(s, settings=_short(s.settings)) for s in cell.stages)
    measure = Measure(repeats=REPEATS, seconds=SECONDS, runtimes=cell.measure.runtimes)
    model, start = cell.model, cell.model.start
    if start is not None and start.cell is not None:
        start = start.model_copy(update={"cell": small[start.cell].id})
        model = model.model_copy(update={"start": start})
    return replace(cell, model=model, recipe=recipe, stages=stages, measure=measure)


def _short(settings: Any) -> Any:
    """A stage's settings, shortened for a rehearsal where the stage supports it."""
    return settings.rehearsed() if isinstance(settings, StageSettings) else settings
