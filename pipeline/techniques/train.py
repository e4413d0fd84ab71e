"""Training from fresh weights: the base, and the controls that ignore its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from pipeline.errors import UserError
from pipeline.models import MODELS
from pipeline.techniques.settings import Trained

if TYPE_CHECKING:
    from pipeline.models.network import ModelState
    from pipeline.models.spec import NetworkSpec
    from pipeline.techniques.context import Context


class Settings(Trained):
    """The shape that is there, with fresh weights; or another one."""

    model: str | None = Field(None, description="default: as it is")
    width: float | None = Field(None, gt=0, le=4, description="of the cell's own width")

    _known = field_validator("model")(lambda name: known_model(name))


def known_model(name: str | None) -> str | None:
    if name is not None and name not in MODELS:
        raise ValueError(f"unknown model {name!r}; expected one of {', '.join(MODELS)}")
    return name


def apply(state: ModelState, settings: Settings, context: Context) -> ModelState:
    from pipeline.models import network

    spec = state.spec
    if settings.model or settings.width:
        spec = student_spec(context, settings.model, settings.width or 1.0)
    recipe = context.cell.recipe

    def fresh() -> ModelState:
        if spec != spec.structure:  # its ranges would be nobody's
            left = ", ".join(t.name for t in spec.transforms if not t.structural)
            raise UserError(
                f"train: starts from fresh weights, but the network is {left} already; "
                "expected it before the stage that does this"
            )
        return network.new(spec, context.seed)

    return context.train(
        fresh,
        settings.objective_of(recipe, context),
        settings.epochs_of(recipe),
        settings.recipe_of(recipe),
    )


def student_spec(context: Context, model: str | None, width: float) -> NetworkSpec:
    """The specification of another network for the cell's data, ``width`` times as wide."""
    from pipeline.models import module_of

    cell, split = context.cell, context.split
    name = model or cell.model.name
    return module_of(name).spec(
        name,
        cell.model.width * width,
        split.shape,
        len(split.classes),
        split.zero_point,
        split.scale,
    )
