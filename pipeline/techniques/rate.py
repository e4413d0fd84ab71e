"""Training with a rate term: the bits that the integer weights take are part of the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from pipeline.techniques import coarse
from pipeline.techniques.settings import Factor

if TYPE_CHECKING:
    from pipeline.models.network import ModelState
    from pipeline.techniques.context import Context
    from pipeline.training.loop import Training
    from pipeline.training.losses import Objective

VERSION = 1


class Settings(coarse.Aware):
    """Cross entropy + rate x mean bits of a weight, as estimated by a probability model of each
    layer (Oktay et al. 2020, arXiv 1906.06624, section 2; Girish et al. 2022, arXiv 2204.02965,
    section 3). Weights are integers -127..127 times a learned scale a filter, all layers alike. The
    history has ``bits_per_weight``. Several rates are operating points: ``grid: {rate: {rate.rate:
    [...]}}``."""

    cites: ClassVar[tuple[str, ...]] = ("oktay2020scalable", "girish2022lilnetx")

    rate: float = Field(0.1, ge=0, le=1e6, description="lambda: loss for one bit a weight")
    first_bits: Literal[8, 6, 4] = Field(
        4,
        description="scales begin where LSQ's do for so many bits: at 4 just below 3 bits a weight",
    )
    share: float = 0.5
    learning_rate_factor: Factor = 0.5


def apply(state: ModelState, settings: Settings, context: Context) -> ModelState:
    recipe = context.cell.recipe
    plain = settings.objective_of(recipe, context)

    def objective(state: ModelState) -> Objective:
        from pipeline.training.rate import with_rate

        return with_rate(plain(state), state.network.module, settings.rate)

    done = context.train(
        lambda: _started(state, settings, context),
        objective,
        settings.epochs_of(recipe),
        settings.recipe_of(recipe),
        after_step=coarse.bounded,
        after_epoch=_record,
    )
    return coarse.finished(done, "rate")


def _started(state: ModelState, settings: Settings, context: Context) -> ModelState:
    """Scales as where LSQ begins, 2 mean|w| / sqrt(Q_P) (Esser et al. 2020, section 2.1). Few bits
    cost nothing once training sees them, and those that are not there need not be trained away."""
    import torch

    from pipeline.models.transforms.fakequant import layers, usable

    largest = 2 ** (settings.first_bits - 1) - 1
    started = coarse.started(state, settings, context, "rate")
    with torch.no_grad():
        for layer in layers(started.network.module).values():
            quantizer = layer.weight_quantizer
            mean = layer.weight.abs().flatten(1).mean(1)
            quantizer.scale.copy_(usable(2 * mean / largest**0.5))
    return started


def _record(training: Training) -> None:
    from pipeline.training.rate import bits_per_weight

    bits = float(bits_per_weight(training.state.network.module).detach())
    training.columns.setdefault("bits_per_weight", []).append(bits)
