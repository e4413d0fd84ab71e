"""Knowledge distillation: a smaller network learns from the base (Hinton et al. 2015), and from
where the base looks (attention transfer, Zagoruyko and Komodakis 2017)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from pipeline.errors import UserError
from pipeline.techniques.settings import Trained
from pipeline.techniques.train import given, known_model, student_spec

if TYPE_CHECKING:
    from pipeline.models.network import ModelState
    from pipeline.models.spec import NetworkSpec
    from pipeline.techniques.context import Context
    from pipeline.training.losses import Objective

VERSION = 1


class Student(Trained):
    """What all stages share that teach a fresh student. Half the width is a quarter of the
    parameters."""

    fresh: ClassVar[bool] = True

    teacher: Literal["base"] = "base"
    student: str | None = Field(None, description="a model; default: the cell's own")
    width: float = Field(0.5, gt=0, le=4, description="of the cell's own width")

    _known = field_validator("student")(lambda name: known_model(name))

    def discards(self) -> bool:
        return True

    def operating_point(self) -> dict[str, Any]:
        return given(width=self.width, model=self.student)

    def models(self) -> tuple[str, ...]:
        return () if self.student is None else (self.student,)


class Settings(Student):
    attention: float = Field(0.0, ge=0, le=1e6, description="weight (beta) of the attention maps")

    def references(self) -> tuple[str, ...]:
        attention = ("zagoruyko2017attention",) if self.attention else ()
        return (*super().references(), *attention)


def apply(state: ModelState, settings: Settings, context: Context) -> ModelState:
    from pipeline.training import losses

    recipe = context.cell.recipe

    def with_attention(_: ModelState) -> Objective:
        return losses.attention(
            context.base().network,
            settings.attention,
            settings.temperature,
            settings.soft,
            recipe.label_smoothing,
        )

    if not settings.attention:
        return taught(settings, context, settings.objective_of(recipe, context))
    spec = student_spec(context, settings.student, settings.width)
    check_maps("distill.attention", spec, context.base().spec)
    return taught(settings, context, with_attention)


def taught(
    settings: Student, context: Context, objective: Callable[[ModelState], Objective]
) -> ModelState:
    """A fresh student, trained by this objective."""
    recipe = context.cell.recipe
    spec = student_spec(context, settings.student, settings.width)
    return context.train(
        lambda: context.fresh(spec),
        objective,
        settings.epochs_of(recipe),
        settings.recipe_of(recipe),
    )


def check_maps(at: str, student: NetworkSpec, teacher: NetworkSpec) -> None:
    """Feature maps are taught at the ends of blocks: both networks have as many."""
    from pipeline.models import network

    own, others = (len(network.graph_of(spec).maps) for spec in (student, teacher))
    if not own or own != others:
        raise UserError(
            f"{at}: {student.model} has {own} feature maps to learn from the {others} "
            f"of {teacher.model}; expected as many, of a student of the same family"
        )
