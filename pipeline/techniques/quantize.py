"""Quantization to int8: after training, or with training that sees it.

What training sees is simulated (``models/fakequant.py``); what is measured as small and fast is the
artifact, whose integers have exactly the scales found here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.errors import UserError
from pipeline.techniques.settings import Trained

if TYPE_CHECKING:
    from pipeline.models.network import ModelState
    from pipeline.models.spec import Quantization
    from pipeline.techniques.context import Context


class Settings(Trained):
    """Weights int8, symmetric, a scale a filter; activations uint8, a scale a tensor (Jacob et al.
    2018; Krishnamoorthi 2018). Batch normalization is folded first."""

    scheme: Literal["int8"] = "int8"
    aware: bool = Field(False, description="train with quantization simulated")
    ranges: Literal["observed", "learned"] = Field(
        "observed", description="observed: by calibration; learned: LSQ (Esser et al. 2020)"
    )
    calibration: Literal["mse", "minmax"] = Field("mse", description="how a range is chosen")
    calibration_images: int = Field(1024, ge=1, le=1_000_000, description="from the training set")
    reduce_range: Literal["auto", "on", "off"] = Field(
        "auto", description="7-bit weights: where 8-bit products saturate (x86 without VNNI)"
    )
    share: float = 0.2
    learning_rate_factor: float = 0.02


def apply(state: ModelState, settings: Settings, context: Context) -> ModelState:
    if not settings.aware:
        return _calibrated(state, settings, context)
    recipe = context.cell.recipe
    trained = context.train(
        lambda: _calibrated(state, settings, context),
        settings.objective_of(recipe, context),
        settings.epochs_of(recipe),
        settings.recipe_of(recipe),
    )
    return _settled(trained)


def _calibrated(state: ModelState, settings: Settings, context: Context) -> ModelState:
    """The folded network with every layer fake-quantized and every scale set."""
    from pipeline import data
    from pipeline.models import fakequant, network

    if state.spec.quantization:
        raise UserError("quantize: the network is quantized already; expected one such stage")
    folded = network.fold(state)
    spec = replace(folded.spec, quantization=_quantization(settings))
    device, split = context.machine.device, context.split
    quantized = network.restore(replace(spec, quantization=None), folded.network.state_dict())
    quantized.network.to(device)
    fakequant.insert(quantized.network, spec.quantization)
    quantized.network.to(device)
    sample = data.sample(split.train, settings.calibration_images, context.seed)
    batches = (images for images, _ in data.ordered(sample.to(device), 64))
    fakequant.calibrate(
        quantized.network, batches, settings.calibration, (spec.zero_point, spec.scale)
    )
    return network.ModelState(spec, quantized.network)


def _quantization(settings: Settings) -> Quantization:
    from pipeline import hardware
    from pipeline.models.spec import Quantization

    reduced = settings.reduce_range == "on" or (
        settings.reduce_range == "auto" and hardware.saturates()
    )
    return Quantization(7 if reduced else 8, settings.aware and settings.ranges == "learned")


def _settled(state: ModelState) -> ModelState:
    """Observed weight scales follow the weights; the last step moved them once more."""
    from pipeline.models import fakequant
    from pipeline.training.loop import Diverged

    for name, layer in fakequant.layers(state.network).items():
        if not layer.learned:
            layer.weight_scale.copy_(fakequant.widest(layer.weight, layer.weight_max))
        elif min(layer.input_scale.min(), layer.weight_scale.min()) <= 0:
            raise Diverged(
                f"a learned range of {name} is not positive any more; "
                "try a smaller quantize.learning_rate_factor"
            )
    return state
