"""Every cell of a sweep for real, on a sliver of its data, before anything queues.

A rehearsal is a sweep of its own: the same matrix, with one epoch everywhere, a few images and
short measurements. So it goes through the same code as the real one, from data to artifact, and
finds what would fail; its cells have ids of their own, and lie in a work root of their own.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import streams
from pipeline.orchestrate import state
from pipeline.paths import Work, checked_name
from pipeline.sweep import Cell, Measure, Sweep
from pipeline.techniques.settings import StageSettings
from pipeline.terminal import printable

TRAIN_IMAGES = 256
TEST_IMAGES = 128
BATCH = 32
REPEATS, SECONDS = 3, 0.2


def run(asked: Sweep, work: Work, data_root: Path, device: str = "auto") -> int:
    """Rehearse the sweep on this machine; the exit code is 1 where a cell failed."""
    from pipeline.orchestrate import local  # here: plan needs the name of the folder alone

    return local.run(
        sliver(asked),
        root(work),
        data_root,
        device=device,
        conclude=_verdict,
        remedy=f"a new rehearsal: delete {root(work).root}",
    )


def _verdict(small: Sweep, work: Work) -> int:
    """No table: what so few images teach means nothing. Whether each cell came to its end does."""
    failed = [found for found in state.states(small, work) if found.state != "done"]
    with streams.at_best():
        for found in failed:
            print(printable(f"{found.cell.name}: {found.state}: {found.reason}"))
        print(f"{len(small.cells) - len(failed)} of {len(small.cells)} cells went through.")
    return 1 if failed else 0


def root(work: Work) -> Work:
    """Where rehearsed cells lie: beside the real ones, whose checkpoints they must not touch."""
    return Work(work.root / "rehearsal")


def sliver(asked: Sweep) -> Sweep:
    """The sweep that is rehearsed; each of its cells stands for one of `asked`, in order."""
    name = checked_name(f"{asked.name[:53]}-rehearsal")
    return replace(asked, name=name, cells=tuple(map(_small, asked.cells)))


def _small(cell: Cell) -> Cell:
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
    return replace(cell, recipe=recipe, stages=stages, measure=measure)


def _short(settings: Any) -> Any:
    return settings.rehearsed() if isinstance(settings, StageSettings) else settings
