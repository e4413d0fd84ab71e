"""Decoupled knowledge distillation: what the teacher says of the right class, and of the others."""

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
    """DKD (Zhao et al. 2022, arXiv 2203.08679). KL divergence of softened outputs is TCKD + (1 -
    p_t) NCKD: of the teacher's probability p_t of the right class against all others together, and
    among the others alone. The factor is small where the teacher is sure; here both parts have
    weights of their own: cross entropy + T^2 (``target`` TCKD + ``others`` NCKD).

    ``target`` 1 and T = 4 are the paper's values (from memory); it chooses the other weight by the
    teacher (its vgg13 -> vgg8 on CIFAR-100 has 6 in a list of results seen second-hand), 2 is this
    project's. The paper's loss also grows over the first epochs (from memory); here the learning
    rate does.
    """

    cites: ClassVar[tuple[str, ...]] = ("zhao2022decoupled",)

    target: float = Field(1.0, ge=0, le=1000, description="weight (alpha) of the right class")
    others: float = Field(2.0, ge=0, le=1000, description="weight (beta) of all other classes")
    soft: float = Field(1.0, ge=1, le=1, description="not used: target and others say it")


def apply(state: ModelState, settings: Settings, context: Context) -> ModelState:
    from pipeline.training import losses

    def objective(_: ModelState) -> Objective:
        return losses.decoupled(
            context.base().network,
            settings.temperature,
            settings.target,
            settings.others,
            context.cell.recipe.label_smoothing,
        )

    return distill.taught(settings, context, objective)
