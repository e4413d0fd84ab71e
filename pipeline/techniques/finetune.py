"""Training that goes on from the weights that are there."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pipeline.techniques.settings import Factor, Trained

if TYPE_CHECKING:
    from pipeline.models.network import ModelState
    from pipeline.techniques.context import Context

VERSION = 1


class Settings(Trained):
    """After pruning, fine-tuning at a rate near that of training recovers most (Renda et al. 2020:
    rewinding the learning rate), so half of it is the default."""

    cites: ClassVar[tuple[str, ...]] = ("renda2020rewinding",)

    learning_rate_factor: Factor = 0.5


def apply(state: ModelState, settings: Settings, context: Context) -> ModelState:
    recipe = context.cell.recipe
    return context.train(
        lambda: state,
        settings.objective_of(recipe, context),
        settings.epochs_of(recipe),
        settings.recipe_of(recipe),
    )
