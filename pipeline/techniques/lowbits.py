"""Weights of 4 or 2 bits with learned scales, reached from 8 bits step by step."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from pipeline.sweep import Recipe
from pipeline.techniques import coarse
from pipeline.techniques.settings import Factor

if TYPE_CHECKING:
    from pipeline.models.network import ModelState
    from pipeline.techniques.context import Context

VERSION = 1
DECAY = {
    2: 0.25
}  # weight decay by bits, 1 where there is none: fewer bits regularize by themselves


class Settings(coarse.CoarseSettings):
    """LSQ (Esser et al. 2020, arXiv 1902.08153): steps of activations and, for each filter, of
    weights are learned; weight decay is a quarter at 2 bits (section 3). The epochs are those of
    all steps together, at least one for each."""

    cites: ClassVar[tuple[str, ...]] = ("esser2020lsq",)

    bits: Literal[4, 2] = Field(4, description="of the weights; activations have 8")
    progressive: bool = Field(True, description="train with 8 bits first, then 4 (then 2)")
    learning_rate_factor: Factor = 0.3

    def steps(self) -> tuple[int, ...]:
        """The bits of each training, the last of which are those that stay."""
        return tuple(b for b in (8, 4, 2) if b > self.bits and self.progressive) + (self.bits,)

    def epochs_of(self, recipe: Recipe) -> int:
        return max(len(self.steps()), super().epochs_of(recipe))

    def epochs_of_steps(self, recipe: Recipe) -> tuple[int, ...]:
        """Alike for all steps; what is left over goes to the last."""
        total, steps = self.epochs_of(recipe), len(self.steps())
        return (total // steps,) * (steps - 1) + (total // steps + total % steps,)

    def recipe_at(self, bits: int, recipe: Recipe) -> Recipe:
        decay = recipe.weight_decay * DECAY.get(bits, 1.0)
        return self.recipe_of(recipe).model_copy(update={"weight_decay": decay})


def apply(state: ModelState, settings: Settings, context: Context) -> ModelState:
    recipe = context.cell.recipe
    objective = settings.objective_of(recipe, context)
    epochs = settings.epochs_of_steps(recipe)
    for i, bits in enumerate(settings.steps()):
        start = partial(_at, bits, state, settings, context, first=i == 0)
        state = context.train(
            start,
            objective,
            epochs[i],
            settings.recipe_at(bits, recipe),
            after_step=coarse.bounded,
        )
    return coarse.finished(state, "lowbits")


def _at(
    bits: int, state: ModelState, settings: Settings, context: Context, first: bool
) -> ModelState:
    """The network before it is trained with this many bits."""
    from pipeline.models.transforms.lowbits import LowBits

    if first:
        state = coarse.started(state, settings, context, "lowbits")
    return state if bits == 8 else coarse.coarsened(state, LowBits(settings.eight_bits, bits))
