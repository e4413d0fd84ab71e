"""Training from fresh weights: the base, and the controls that ignore its weights. A base that
starts from other weights goes on from these."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from pipeline import models, terminal
from pipeline.errors import UserError
from pipeline.techniques.settings import Trained

if TYPE_CHECKING:
    from pipeline.models.network import ModelState
    from pipeline.models.spec import NetworkSpec
    from pipeline.techniques.context import Context

VERSION = 1


class Settings(Trained):
    """The shape that is there, with fresh weights; or another one."""

    fresh: ClassVar[bool] = True

    model: str | None = Field(None, description="default: as it is")
    width: float | None = Field(None, gt=0, le=4, description="of the cell's own width")

    _known = field_validator("model")(lambda name: known_model(name))

    def discards(self) -> bool:
        return self.width is not None or self.model is not None

    def operating_point(self) -> dict[str, Any]:
        return given(width=self.width, model=self.model)

    def models(self) -> tuple[str, ...]:
        return () if self.model is None else (self.model,)


def given(**values: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {key: value for key, value in values.items() if value is not None}


def known_model(name: str | None) -> str | None:
    if name is not None and name not in (known := models.names()):
        raise ValueError(f"unknown model {name!r}; expected one of {', '.join(known)}")
    return name


def apply(state: ModelState, settings: Settings, context: Context) -> ModelState:
    cell, spec = context.cell, state.spec
    if cell.is_base and cell.model.own is not None and cell.model.own.weights is not None:
        from pipeline.models import own

        own.fill(state.network.module, cell.model.own)  # trained already: it is only measured
        return state
    if cell.is_base and cell.model.start is not None:
        recipe = context.cell.recipe.continued()
        return context.train(
            lambda: state,
            settings.objective_of(recipe, context),
            settings.epochs_of(recipe),
            settings.recipe_of(recipe),
        )
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
        return context.fresh(spec)

    return context.train(
        fresh,
        settings.objective_of(recipe, context),
        settings.epochs_of(recipe),
        settings.recipe_of(recipe),
    )


def student_spec(context: Context, model: str | None, width: float) -> NetworkSpec:
    """The specification of another network for the cell's data, ``width`` times as wide; the
    attempt's log lists what cannot be made narrower."""
    from pipeline.models import network

    cell, split = context.cell, context.split
    name = model or cell.model.name
    spec = models.module_of(name).spec(
        name,
        cell.model.width * width,
        split.shape,
        len(split.classes),
        split.zero_point,
        split.scale,
    )
    for line in network.graph_of(spec).left if width < 1 else ():
        terminal.tell(f"width {width:g}: left whole: {line}", begin="")
    return spec
