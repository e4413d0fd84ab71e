"""What the settings of several stages share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.sweep import Frozen, Recipe

if TYPE_CHECKING:
    from pipeline.models.network import ModelState
    from pipeline.techniques.context import Context
    from pipeline.training.losses import Objective


class Trained(Frozen):
    """Settings of a stage that trains: for how long, how fast, and with which teacher."""

    epochs: int | None = Field(
        None, ge=1, le=100_000, description="default: share x training.epochs"
    )
    share: float = Field(1.0, gt=0, le=100, description="part of training.epochs, at least 1 epoch")
    learning_rate_factor: float = Field(1.0, gt=0, le=100, description="of training.learning_rate")
    teacher: Literal["base"] | None = Field(None, description="learn from the base's soft logits")
    temperature: float = Field(4.0, gt=0, le=1000, description="softens the logits of both")
    soft: float = Field(0.9, ge=0, le=1, description="weight of the soft targets; rest: the labels")

    def epochs_of(self, recipe: Recipe) -> int:
        return self.epochs or max(1, round(self.share * recipe.epochs))

    def recipe_of(self, recipe: Recipe) -> Recipe:
        """The cell's recipe at this stage's learning rate."""
        rate = recipe.learning_rate * self.learning_rate_factor
        return recipe.model_copy(update={"learning_rate": rate})

    def objective_of(self, recipe: Recipe, context: Context) -> Callable[[ModelState], Objective]:
        """(state) -> objective: the labels alone, or with the base's soft logits."""
        from pipeline.training import losses  # here: settings are read where there is no torch

        if self.teacher is None:
            return lambda state: losses.labels_only(recipe.label_smoothing)
        return lambda state: losses.soft_targets(
            context.base().network, self.temperature, self.soft, recipe.label_smoothing
        )
