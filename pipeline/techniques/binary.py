"""Training with weights -1 and 1 times a scale a filter."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pipeline.techniques import coarse

if TYPE_CHECKING:
    from pipeline.models.network import ModelState
    from pipeline.techniques.context import Context

VERSION = 1


class Settings(coarse.CoarseSettings):
    """Binary weight networks (Rastegari et al. 2016, arXiv 1603.05279, section 3.1)."""

    cites: ClassVar[tuple[str, ...]] = ("rastegari2016xnor",)


def apply(state: ModelState, settings: Settings, context: Context) -> ModelState:
    from pipeline.models.transforms.binary import Binary

    return coarse.trained(state, settings, context, "binary", Binary(settings.eight_bits))
