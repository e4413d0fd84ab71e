"""Quantization to int8: after training, or with training that sees it.

What training sees is simulated (``models/transforms/fakequant.py``); what is measured as small and
fast is the artifact, whose integers have exactly the scales chosen here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from pipeline.errors import UserError
from pipeline.sweep import Recipe
from pipeline.techniques.settings import Factor, Trained

if TYPE_CHECKING:
    from pipeline.models.network import ModelState
    from pipeline.models.transforms.fakequant import FakeQuantized
    from pipeline.techniques.context import Context

VERSION = 2  # since 2, by default, no product of the 8-bit weights can saturate


class Settings(Trained):
    """Weights int8, symmetric, a scale a filter; activations uint8, a scale a tensor (Jacob et al.
    2018; Krishnamoorthi 2018). Batch normalization is folded first."""

    cites: ClassVar[tuple[str, ...]] = ("jacob2018integer", "krishnamoorthi2018quantizing")

    scheme: Literal["int8"] = "int8"
    aware: bool = Field(False, description="train with quantization simulated")
    ranges: Literal["observed", "learned"] = Field(
        "observed", description="observed: by calibration; learned: LSQ (Esser et al. 2020)"
    )
    calibration: Literal["mse", "minmax"] = Field("mse", description="how a range is chosen")
    calibration_images: int = Field(1024, ge=1, le=1_000_000, description="from the training set")
    reduce_range: Literal["auto", "on", "off"] = Field(
        "auto",
        description="8-bit products saturate on x86 without VNNI; auto: 8-bit weights none of "
        "whose products can; on: 7-bit weights; off: any 8-bit weights, for CPUs that have VNNI",
    )
    share: float = 0.2
    learning_rate_factor: Factor = 0.02

    def epochs_of(self, recipe: Recipe) -> int:
        return super().epochs_of(recipe) if self.aware else 0

    def references(self) -> tuple[str, ...]:
        learned = ("esser2020lsq",) if self.ranges == "learned" else ()
        return (*super().references(), *learned)


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
    return settled(trained, "quantize")


def _calibrated(state: ModelState, settings: Settings, context: Context) -> ModelState:
    refuse_quantized(state, "quantize")
    calibration = settings.calibration, settings.calibration_images
    return calibrated(state, _transform(settings), context, *calibration)


def refuse_quantized(state: ModelState, stage: str) -> None:
    """UserError where the network's integers are chosen already."""
    from pipeline.models.transforms.fakequant import FakeQuantized

    if state.spec.has(FakeQuantized.name):
        raise UserError(f"{stage}: the network is quantized already; expected one such stage")


def calibrated(
    state: ModelState,
    transform: FakeQuantized,
    context: Context,
    method: str = "mse",
    images: int = 1024,
) -> ModelState:
    """The folded network with every layer fake-quantized and every scale set, by what the float
    network makes of ``images`` of the training set; ``method`` as in ``calibration.calibrate``."""
    from pipeline.models import network

    state.network.to(context.machine.device)
    return simulated(network.fold(state), transform, context, method, images)


def simulated(
    state: ModelState,
    transform: FakeQuantized,
    context: Context,
    method: str = "mse",
    images: int = 1024,
) -> ModelState:
    """The same of a network as it is, folded or with its normalization."""
    from pipeline import data
    from pipeline.models import network
    from pipeline.models.transforms.calibration import calibrate

    device = context.machine.device
    quantized = network.with_transform(state, transform)
    sample = data.sample(context.split.train, images, context.seed)
    wrapped = quantized.network.to(device)
    batches = (wrapped.normalize(pixels) for pixels, _ in data.ordered(sample.to(device), 64))
    image = quantized.spec.zero_point, quantized.spec.scale
    calibrate(wrapped.module, batches, method, image)
    return quantized


def _transform(settings: Settings) -> FakeQuantized:
    from pipeline.models.transforms.fakequant import FakeQuantized

    return FakeQuantized(
        weight_bits=7 if settings.reduce_range == "on" else 8,
        learned=settings.aware and settings.ranges == "learned",
        pairs=settings.reduce_range == "auto",
    )


def settled(state: ModelState, stage: str) -> ModelState:
    """Observed weight scales follow the weights; the last step moved them once more."""
    from pipeline.models.transforms.fakequant import layers

    for layer in layers(state.network.module).values():
        if not layer.weight_quantizer.learned:
            layer.weight_quantizer.scale.copy_(layer.weight_quantizer.widest(layer.weight))
    return with_ranges(state, stage)


def with_ranges(state: ModelState, stage: str) -> ModelState:
    """The state itself; Diverged where ``stage`` trained a range until it was none."""
    from pipeline.training.loop import Diverged

    if (flaw := state.flaw()) is not None:
        raise Diverged(f"{flaw}; try a smaller {stage}.learning_rate_factor")
    return state
