"""What a stage is given beside the model: its data, its base, and how to train.

A stage never reads the command line, the ledger or SLURM. What must survive a kill is in the state
that it returns, or in the one that it trains through ``Context.train``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # a stage's Settings are read where there is no torch
    from pipeline.data import Split
    from pipeline.models.network import ModelState
    from pipeline.models.spec import NetworkSpec
    from pipeline.sweep import Cell, Recipe
    from pipeline.training.loop import Training
    from pipeline.training.losses import Objective
    from pipeline.training.recipe import Machine


# What a stage may tell by `tick`.
WHAT = "what"  # it is doing: text
NUMBERS = frozenset({"epoch", "epochs", "loss", "accuracy", "seconds_left"})  # finite


class Train(Protocol):
    """Trains, and gives the trained state. ``start`` makes the state before the first epoch; it is
    not called when a checkpoint of this training is there, so that nothing is pruned, or
    initialized, twice. ``after_step`` and ``after_epoch`` as in ``loop.Hooks``.

    A stage may train several times, one training after the other. Resumed in one of them, those
    before it give the state of the checkpoint at once: what a stage does between two trainings
    belongs into the ``start`` of the second.
    """

    def __call__(
        self,
        start: Callable[[], ModelState],
        objective: Callable[[ModelState], Objective],
        epochs: int,
        recipe: Recipe,
        *,
        after_step: Callable[[ModelState, int, int], None] = ...,
        after_epoch: Callable[[Training], None] = ...,
    ) -> ModelState: ...


@dataclass(frozen=True)
class Context:
    """One stage of one cell. ``tick`` shows how far a stage is that does not train by ``train``,
    which shows that itself: ``{"what": "clusters the weights"}``, and the numbers in NUMBERS. The
    name of the stage is added, and other keys are left out."""

    cell: Cell
    split: Split
    machine: Machine
    seed: int  # of this stage, derived from the cell's
    base: Callable[[], ModelState]  # the trained base, on the machine's device, in eval mode
    train: Train
    tick: Callable[[dict[str, Any]], None]

    def fresh(self, spec: NetworkSpec) -> ModelState:
        """A network with fresh weights, as the cell's recipe wants them."""
        from pipeline.models import initial

        return initial.fresh(spec, self.seed, self.cell.recipe, self.split.train)
