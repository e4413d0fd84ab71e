"""Lossless coding of what is stored; it can end any technique. What runs is decoded from it, byte
for byte the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.errors import UserError
from pipeline.sweep.settings import young
from pipeline.techniques.settings import StageSettings

if TYPE_CHECKING:
    from pipeline.models.network import ModelState
    from pipeline.techniques.context import Context


VERSION = 2  # since 2, `npk` by default
IMAGES, BATCH = 1024, 32  # of the training set, on which `rounding` looks at what weights do


class Settings(StageSettings):
    """How integer weights are coded; and, with ``rounding``, chosen for it (DeepCABAC, Wiedemann et
    al. 2020, section III; ``training/rounding.py``). Coding itself loses nothing."""

    codec: Literal["npk", "xz"] = Field(
        "npk", description="npk: weights by what is known of their neighbours; xz: LZMA2"
    )
    rounding: float = young(
        0.0,
        ge=0,
        le=1e6,
        description="lambda: the part of the logits' square that may change to save one bit a "
        "weight; 0: integers stay as they are",
    )

    def references(self) -> tuple[str, ...]:
        return ("wiedemann2020deepcabac",) if self.rounding else ()


def apply(state: ModelState, settings: Settings, context: Context) -> ModelState:
    from pipeline.models import network
    from pipeline.models.transforms.encoded import Encoded

    if state.spec.has(Encoded.name):
        raise UserError("encode: the artifact is coded already; expected one such stage")
    if settings.rounding:
        _round(state, settings.rounding, context)
    return network.with_transform(state, Encoded(settings.codec))


def _round(state: ModelState, price: float, context: Context) -> None:
    """Integers moved towards zero, in place; UserError where the weights are floats."""
    from pipeline import data, terminal
    from pipeline.models.transforms.fakequant import FakeQuantized
    from pipeline.training import rounding

    if not state.spec.has(FakeQuantized.name):
        raise UserError(
            "encode.rounding: the weights of the network are floats; expected a stage before it "
            "that makes them integers, such as quantize"
        )
    device = context.machine.device
    network = state.network.to(device).eval()
    sample = data.sample(context.split.train, IMAGES, context.seed).to(device)
    batches = (pixels for pixels, _ in data.ordered(sample, BATCH))
    importance = rounding.of_logits(network, network.module, batches, context.seed)
    moved, weights = rounding.optimize(network.module, importance, price)
    terminal.tell(f"encode: {moved:,} of {weights:,} weights rounded towards zero", begin="")
