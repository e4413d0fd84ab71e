"""Training with weights -1, 0 and 1 times a scale a filter."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pipeline.sweep.settings import young
from pipeline.techniques import coarse

if TYPE_CHECKING:
    from pipeline.models.network import ModelState
    from pipeline.techniques.context import Context

VERSION = 1


class Settings(coarse.CoarseSettings):
    """Ternary weight networks (Li et al. 2016, arXiv 1605.04711, section 2.2)."""

    cites: ClassVar[tuple[str, ...]] = ("li2016ternary",)

    threshold: float = young(
        0.7,
        ge=0,
        le=10,
        description="part of the mean |w| up to which a weight is zero; 0.7: least squared error",
    )


def apply(state: ModelState, settings: Settings, context: Context) -> ModelState:
    from pipeline.models.transforms.ternary import Ternary

    transform = Ternary(settings.eight_bits, settings.threshold)
    return coarse.trained(state, settings, context, "ternary", transform)
