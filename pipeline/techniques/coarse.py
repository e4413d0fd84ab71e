"""What stages share that train weights of few integers, or of few bits.

They start from the float network and keep its normalization until training ends, as what is
multiplied by a scale a filter stays integers when it is folded: normalization holds activations in
their range while weights are rounded ever more, which a network without it does not survive. So
they take the place of ``quantize``, and do not follow it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.techniques.quantize import refuse_quantized, settled, simulated
from pipeline.techniques.settings import Factor, Trained

if TYPE_CHECKING:
    from pipeline.models.network import ModelState
    from pipeline.models.transforms.coarse import Coarse
    from pipeline.techniques.context import Context


NARROWEST = 0.25  # as in calibration


class Aware(Trained):
    """Activations are uint8, their ranges learned (LSQ, Esser et al. 2020)."""

    calibration_images: int = Field(1024, ge=1, le=1_000_000, description="from the training set")


class CoarseSettings(Aware):
    share: float = 0.5
    learning_rate_factor: Factor = 0.5
    eight_bits: Literal["first-and-last", "first", "last", "none"] = Field(
        "first-and-last", description="layers whose weights keep 8 bits"
    )


def started(state: ModelState, settings: Aware, context: Context, stage: str) -> ModelState:
    """The network with 8-bit weights and activations simulated, its normalization beside them."""
    from pipeline.models.transforms.fakequant import FakeQuantized

    refuse_quantized(state, stage)
    transform = FakeQuantized(learned=True, pairs=True)
    return simulated(state, transform, context, "mse", settings.calibration_images)


def coarsened(state: ModelState, transform: Coarse) -> ModelState:
    """A quantized network with ``transform`` on it, in the place of that of its name, and scales
    for the weights that are there."""
    from pipeline.models import network

    if state.spec.has(transform.name):
        spec = state.spec.with_other(transform)
        state = network.restore(spec, state.network.state_dict())
    else:
        state = network.with_transform(state, transform)
    transform.begin(state.network.module, network.graph_of(state.spec))
    return state


def bounded(state: ModelState, step: int, steps: int) -> None:
    """After each step: a learned scale stays at least NARROWEST of what its weights ask for. That
    of a filter of few weights and many levels would else pass zero in one bad step, and not come
    back."""
    from pipeline.models.transforms.fakequant import layers

    for layer in layers(state.network.module).values():
        quantizer = layer.weight_quantizer
        if quantizer.learned:
            quantizer.scale.clamp_(min=NARROWEST * quantizer.widest(layer.weight))


def finished(state: ModelState, stage: str) -> ModelState:
    """The trained network with its normalization folded into scales and biases."""
    from pipeline.models import network

    return network.fold(settled(state, stage))


def trained(
    state: ModelState, settings: CoarseSettings, context: Context, stage: str, transform: Coarse
) -> ModelState:
    """One training with ``transform`` on the network, from the float weights to folded integers."""
    recipe = context.cell.recipe
    done = context.train(
        lambda: coarsened(started(state, settings, context, stage), transform),
        settings.objective_of(recipe, context),
        settings.epochs_of(recipe),
        settings.recipe_of(recipe),
        after_step=bounded,
    )
    return finished(done, stage)
