"""What every stage declares by its settings, and what those of several stages share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, PrivateAttr

from pipeline.sweep import Frozen, Recipe
from pipeline.sweep.settings import strictly

if TYPE_CHECKING:
    from pipeline.models.network import ModelState
    from pipeline.techniques.context import Context
    from pipeline.training.losses import Objective


Factor = Annotated[float, Field(gt=0, le=100)]  # of a learning rate


class StageSettings(Frozen):
    """Settings of any stage. ``fresh``: it starts from new weights, not from those given to it."""

    fresh: ClassVar[bool] = False
    cites: ClassVar[tuple[str, ...]] = ()  # keys in report/references.bib

    def starts_fresh(self) -> bool:
        return self.fresh

    def discards(self) -> bool:
        """Whether nothing of the network that it is given stays, not even its shape."""
        return False

    def epochs_of(self, recipe: Recipe) -> int:
        """Epochs that the stage trains for."""
        return 0

    def operating_point(self) -> dict[str, Any]:
        """What the network is to become, for comparison with controls: ``parameters_kept``,
        ``width``, ``model``, or keys of a plug-in's own."""
        return {}

    def models(self) -> tuple[str, ...]:
        """Models that the settings name."""
        return ()

    def references(self) -> tuple[str, ...]:
        """Keys in ``report/references.bib`` of the sources of what these settings do."""
        return self.cites

    def doubt(self, recipe: Recipe) -> str | None:
        """Why these settings are a poor choice for networks that were trained by this recipe, and
        which are better: a note to whoever reads the sweep, and no error."""
        return None

    def rehearsed(self) -> StageSettings:
        """As short as it gets, for a rehearsal, where ``training.epochs`` is 1."""
        return self

    def about(self, recipe: Recipe) -> dict[str, Any]:
        """All of this as plain data, kept beside the settings of a plug-in's stage: a report is
        read where the plug-in is not."""
        return {
            "epochs": self.epochs_of(recipe),
            "fresh": self.starts_fresh(),
            "operating_point": self.operating_point(),
        }


class About(Frozen):
    """What ``StageSettings.about`` gives."""

    epochs: int = Field(ge=0)
    fresh: bool
    operating_point: dict[str, float | int | str | bool]


class Recorded(StageSettings):
    """Settings of a stage whose code is not here, as they were recorded."""

    model_config = ConfigDict(extra="allow")
    _about: About = PrivateAttr()

    def starts_fresh(self) -> bool:
        return self._about.fresh

    def epochs_of(self, recipe: Recipe) -> int:
        return self._about.epochs

    def operating_point(self) -> dict[str, Any]:
        return self._about.operating_point


def recorded(settings: Mapping[str, Any], about: Any) -> Recorded:
    """ValueError where the data is none."""
    record = strictly(Recorded, settings)
    record._about = strictly(About, about)
    return record


class Trained(StageSettings):
    """Settings of a stage that trains: for how long, how fast, and with which teacher."""

    epochs: int | None = Field(
        None, ge=1, le=100_000, description="default: share x training.epochs"
    )
    share: float = Field(1.0, gt=0, le=100, description="part of training.epochs, at least 1 epoch")
    learning_rate_factor: Factor = Field(1.0, description="of training.learning_rate")
    teacher: Literal["base"] | None = Field(None, description="learn from the base's soft logits")
    temperature: float = Field(4.0, gt=0, le=1000, description="softens the logits of both")
    soft: float = Field(0.9, ge=0, le=1, description="weight of the soft targets; rest: the labels")

    def epochs_of(self, recipe: Recipe) -> int:
        return self.epochs or max(1, round(self.share * recipe.epochs))

    def references(self) -> tuple[str, ...]:
        taught = ("hinton2015distilling",) if self.teacher and self.soft else ()
        return (*self.cites, *taught)

    def rehearsed(self) -> StageSettings:
        return self if self.epochs is None else self.model_copy(update={"epochs": 1})

    def recipe_of(self, recipe: Recipe) -> Recipe:
        """The cell's recipe at this stage's learning rate, without what is for fresh weights where
        it has others."""
        recipe = recipe if self.starts_fresh() else recipe.continued()
        rate = recipe.learning_rate * self.learning_rate_factor
        return recipe.model_copy(update={"learning_rate": rate})

    def objective_of(self, recipe: Recipe, context: Context) -> Callable[[ModelState], Objective]:
        """(state) -> objective: the labels alone, or with the base's soft logits."""
        from pipeline.training import losses  # here: settings are read where there is no torch

        if self.teacher is None:
            mixup = self.recipe_of(recipe).mixup
            return lambda state: losses.labels_only(recipe.label_smoothing, mixup)
        return lambda state: losses.soft_targets(
            context.base().network, self.temperature, self.soft, recipe.label_smoothing
        )
