"""Patient and consistent distillation: many epochs, on blends of images that both networks see."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from pipeline.techniques import distill

if TYPE_CHECKING:
    from pipeline.models.network import ModelState
    from pipeline.techniques.context import Context
    from pipeline.training.losses import Objective

VERSION = 1


class Settings(distill.Student):
    """After Beyer et al. 2022 (arXiv 2106.05237): teacher and student see the same crop of the same
    image (as they do in all of this project's distillation), blends of two images (mixup, Zhang et
    al. 2018, each with a part of its own, even over 0 to 1), the loss is the distance of their
    outputs alone, and the schedule is long. Their schedules are of hundreds or thousands of epochs;
    ``share`` is three times the base's here, and all of it is counted.

    With ``soft`` below 1 the rest is cross entropy with both images' labels, in their parts.
    """

    cites: ClassVar[tuple[str, ...]] = ("beyer2022patient", "zhang2018mixup")

    share: float = Field(3.0, gt=0, le=100, description="part of training.epochs")
    temperature: float = Field(2.0, gt=0, le=1000, description="softens the logits of both")
    soft: float = Field(1.0, ge=0, le=1, description="weight of the soft targets; rest: the labels")
    mixup: bool = Field(True, description="learn from blends of two images")


def apply(state: ModelState, settings: Settings, context: Context) -> ModelState:
    from pipeline.training import losses

    if not settings.mixup:
        return distill.taught(
            settings, context, settings.objective_of(context.cell.recipe, context)
        )

    def objective(_: ModelState) -> Objective:
        return losses.blended(
            context.base().network,
            settings.temperature,
            settings.soft,
            context.cell.recipe.label_smoothing,
        )

    return distill.taught(settings, context, objective)
