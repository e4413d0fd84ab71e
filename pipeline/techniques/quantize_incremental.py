"""Incremental quantization to zero and powers of two: freeze some weights, train the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from pipeline.sweep import Recipe
from pipeline.techniques import refuse_settled
from pipeline.techniques.settings import Factor, Trained

if TYPE_CHECKING:
    from pipeline.models.network import ModelState
    from pipeline.techniques.context import Context

VERSION = 2
PORTIONS = (0.5, 0.75, 0.875)  # of a layer's weights are frozen when the others are trained


class Settings(Trained):
    """INQ (Zhou et al. 2017, arXiv 1702.03044): of each layer the largest half of the weights are
    rounded to zero or a power of two and frozen, the others trained; then 75 %, 87.5 % and all of
    them. The learning rate starts anew each time; after the last time nothing is trained. Which
    levels there are, and how they differ from the paper's: ``models/transforms/powers.py``.

    The network is quantized to int8 first, unless it is.
    """

    cites: ClassVar[tuple[str, ...]] = ("zhou2017incremental",)

    bits: Literal[5, 3] = Field(5, description="zero and 7 powers of two, or zero and 2")
    scales: Literal["layer", "filter"] = Field(
        "layer", description="what has a power of two of its own as the scale of its levels"
    )
    epochs: int | None = Field(
        None, ge=1, le=100_000, description="of each of 3 trainings; default: share x epochs"
    )
    share: float = Field(
        0.1, gt=0, le=100, description="of training.epochs, for each of 3 trainings"
    )
    learning_rate_factor: Factor = 0.02

    def epochs_of(self, recipe: Recipe) -> int:
        return len(PORTIONS) * self.epochs_each(recipe)

    def epochs_each(self, recipe: Recipe) -> int:
        return super().epochs_of(recipe)


def apply(state: ModelState, settings: Settings, context: Context) -> ModelState:
    from pipeline.techniques import quantize

    for portion in PORTIONS:
        state = _trained(state, portion, settings, context)
    return quantize.with_ranges(_frozen(state, 1.0), "quantize-incremental")


def _trained(state: ModelState, portion: float, settings: Settings, context: Context) -> ModelState:
    recipe = context.cell.recipe
    first = portion == PORTIONS[0]
    return context.train(
        lambda: _frozen(_free(state, settings, context) if first else state, portion),
        settings.objective_of(recipe, context),
        settings.epochs_each(recipe),
        settings.recipe_of(recipe),
    )


def _free(state: ModelState, settings: Settings, context: Context) -> ModelState:
    """The quantized network with a scale for the levels of each layer, and no weight frozen."""
    from pipeline.models import network
    from pipeline.models.transforms import powers
    from pipeline.models.transforms.fakequant import FakeQuantized, layers
    from pipeline.techniques import quantize

    refuse_settled(state, "quantize-incremental")
    if not state.spec.has(FakeQuantized.name):
        state = quantize.calibrated(state, FakeQuantized(), context)
    free = network.with_transform(state, powers.PowersOfTwo(settings.bits))
    weighted = layers(free.network.module)
    for name, quantizer in powers.quantizers(free.network.module).items():
        quantizer.fit(weighted[name].weight, settings.scales == "filter")
    return free


def _frozen(state: ModelState, portion: float) -> ModelState:
    """``portion``: of PORTIONS, or all. Counted from what is free: weights that are frozen at zero
    cannot be told from those that a mask holds there."""
    from pipeline.models.transforms import powers
    from pipeline.models.transforms.fakequant import layers

    before = max((other for other in PORTIONS if other < portion), default=0.0)
    weighted = layers(state.network.module)
    for name, quantizer in powers.quantizers(state.network.module).items():
        quantizer.freeze(weighted[name].weight.detach(), (portion - before) / (1 - before))
    return state
