"""What decides a cell's result, and its id.

A cell's id is a hash of all that decides its result and of nothing else: two sweeps that mean the
same cell share it, whatever they call it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from pipeline import registry

if TYPE_CHECKING:
    from pipeline.catalog import Catalog

FORMAT = 2  # raise it when the same cell.json would give another result: every id changes
BASE = "base"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$")]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


RECORDED = "recorded"  # context: what a plug-in added is not known here
RUNTIMES = ("onnxruntime", "openvino")  # those that run artifacts, the first always


def _runtimes(value: Any, info: ValidationInfo) -> tuple[str, ...]:
    """In the order of RUNTIMES, so that the same request is the same cell."""
    if info.context == RECORDED:
        return tuple(value)
    known = registry.names("runtimes", RUNTIMES)
    wrong = [name for name in value if name not in known]
    if wrong or known[0] not in value or len(set(value)) < len(value):
        raise ValueError(f"expected {known[0]}, and what else of {', '.join(known[1:])}")
    return tuple(name for name in known if name in value)


Runtimes = Annotated[tuple[str, ...], AfterValidator(_runtimes)]


class Frozen(BaseModel):
    """A frozen part of a cell: no unknown keys, no coercion, no infinities."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True
    )

    def decides(self) -> dict[str, Any]:
        """What of it decides a cell's result, every default filled in, as plain JSON data."""
        return self.model_dump(mode="json")

    @cached_property
    def canonical(self) -> str:
        """The one spelling of `decides()`; made once, since thousands of cells share a part."""
        return canonical_json(self.decides())


class Dataset(Frozen):
    """A data set: one that netpress knows by name, or a folder of images.

    `folder` has the ImageFolder layout, train/CLASS/* and test/CLASS/*; `size`: images are resized
    to size x size pixels; `flip`: mirror images in training (None: as the data set's kind says).
    """

    name: Name
    folder: str | None = None
    size: int | None = Field(None, ge=4, le=1024)
    flip: bool | None = None

    def decides(self) -> dict[str, Any]:
        # Where the images lie differs between a laptop and a cluster; the result does not.
        return {"name": self.name, "size": self.size, "flip": self.flip}


class Model(Frozen):
    """A network by name; `width` multiplies its channels."""

    name: Name
    width: float = Field(1.0, gt=0, le=4)

    @property
    def label(self) -> str:
        """`vgg16_bn`, or `vgg16_bn-w0.25` where the width is not 1."""
        return self.name if self.width == 1 else f"{self.name}-w{self.width}"


class Recipe(Frozen):
    """How networks are trained in this sweep, the base and (unless a stage differs) all after it.

    `warmup` and `holdout` are fractions: of all steps, and of the training set (held out,
    stratified, for every choice). `crop` is pixels of padding, 0: no cropping. `train_images` and
    `test_images` take a stratified sliver of the sets, for rehearsals and tests.
    """

    epochs: int = Field(60, ge=1, le=100_000)
    batch_size: int = Field(128, ge=1, le=65_536)
    learning_rate: float = Field(0.1, gt=0, le=100)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0, le=1)
    warmup: float = Field(0.15, ge=0, lt=1)
    schedule: Literal["linear", "cosine"] = "linear"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    crop: int = Field(4, ge=0, le=64)
    flip: bool | None = None
    holdout: float = Field(0.1, gt=0, lt=1)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    train_images: int | None = Field(None, ge=1)
    test_images: int | None = Field(None, ge=1)


class Measure(Frozen):
    """Each latency series takes at most `repeats` rounds and at most `seconds`. `runtimes`: what
    runs the artifact; the first is the one that a report's columns are of."""

    repeats: int = Field(100, ge=1, le=100_000)
    seconds: float = Field(3.0, gt=0, le=3600)
    runtimes: Runtimes = ("onnxruntime",)

    def decides(self) -> dict[str, Any]:
        """Without `runtimes` where there is only the first: it is younger than many results."""
        data = self.model_dump(mode="json")
        return (
            data if len(self.runtimes) > 1 else {k: v for k, v in data.items() if k != "runtimes"}
        )


class Pack(Frozen):
    """On a cluster, short cells share a job until their estimate fills `minutes`."""

    minutes: float = Field(gt=0, le=10_080)


class Plugin(Frozen):
    """What adds to what netpress has: a file (`source` is where it lay, `sha256` of its bytes), or
    an installed distribution (`source` is its name) of this `version`."""

    source: str
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    version: str | None = None

    def decides(self) -> dict[str, Any]:
        """Where a file lies, and what it is called, decides nothing."""
        if self.sha256 is not None:
            return {"sha256": self.sha256}
        return {"distribution": self.source, "version": self.version}

    @property
    def label(self) -> str:
        return self.source.rpartition("/")[2] if self.sha256 else f"{self.source} {self.version}"


Plugins = tuple[Plugin, ...]


@dataclass(frozen=True)
class Stage:
    """One operation of a technique; `settings` is the stage's own frozen model. `plugins`: those
    that it, or a model that its settings name, is of."""

    name: str
    settings: BaseModel
    plugins: Plugins = field(default=(), kw_only=True)

    @cached_property
    def canonical(self) -> str:
        said = {"name": self.name, "settings": self.settings.model_dump(mode="json")}
        return canonical_json(said | _decided(self.plugins))

    def to_json(self, recipe: Recipe) -> dict[str, Any]:
        said = {"name": self.name, "settings": self.settings.model_dump(mode="json")}
        if self.plugins:
            said["plugins"] = _dumped(self.plugins)
            said["about"] = self.settings.about(recipe)  # type: ignore[attr-defined]
        return said

    @classmethod
    def from_json(cls, data: Mapping[str, Any], catalog: Catalog) -> Stage:
        plugins = _plugins_in(data)
        if plugins and catalog.recorded is not None:
            settings = catalog.recorded(data["settings"], data["about"])
        else:
            settings = strictly(catalog.stages[data["name"]], data["settings"])
        return cls(data["name"], settings, plugins=plugins)


def _decided(plugins: Plugins) -> dict[str, Any]:
    """Nothing where there is none: cells without plug-ins are older than these."""
    found = sorted(canonical_json(plugin.decides()) for plugin in plugins)
    return {"plugins": [json.loads(text) for text in found]} if plugins else {}


def _dumped(plugins: Plugins) -> list[dict[str, Any]]:
    return [plugin.model_dump(mode="json", exclude_none=True) for plugin in plugins]


def _plugins_in(data: Mapping[str, Any]) -> Plugins:
    return tuple(strictly(Plugin, plugin) for plugin in data.get("plugins", ()))


def plugins_of(data: Mapping[str, Any]) -> Plugins:
    """Of a cell as `to_json` gives it: all that have to be there before it can be run."""
    parts = (data, *data["stages"])
    return tuple(dict.fromkeys(plugin for part in parts for plugin in _plugins_in(part)))


@dataclass(frozen=True)
class Cell:
    """One point of the matrix, fully resolved. `technique` is its label, `family` the technique
    whose operating point it is (the same, where there is no grid). A base has no stages.
    `plugins`: those that its data set, model and runtimes are of."""

    dataset: Dataset
    model: Model
    technique: str
    family: str
    seed: int
    stages: tuple[Stage, ...]
    recipe: Recipe
    measure: Measure
    plugins: Plugins = field(default=(), kw_only=True)

    @cached_property
    def id(self) -> str:
        """16 hexadecimal characters, the same in every process, Python and sweep."""
        return self._hash(self.stages)

    @cached_property
    def base_id(self) -> str:
        """The id of the base that this cell starts from; its own, if it is one."""
        return self._hash(())

    def _hash(self, stages: tuple[Stage, ...]) -> str:
        # The canonical JSON of the whole, put together from its parts, keys in sorted order.
        plugins = canonical_json(_decided(self.plugins))[1:-1] + "," if self.plugins else ""
        text = (
            f'{{"dataset":{self.dataset.canonical},"format":{FORMAT},'
            f'"measure":{self.measure.canonical},"model":{self.model.canonical},'
            f'{plugins}"recipe":{self.recipe.canonical},"seed":{self.seed},'
            f'"stages":[{",".join(stage.canonical for stage in stages)}]}}'
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def is_base(self) -> bool:
        return not self.stages

    @property
    def name(self) -> str:
        """dataset/model/technique/seed, as people name a cell."""
        return f"{self.dataset.name}/{self.model.label}/{self.technique}/{self.seed}"

    def to_json(self) -> dict[str, Any]:
        """Plain data for cell.json, from which `from_json` makes the same cell again."""
        return {
            "format": FORMAT,
            "id": self.id,
            "dataset": self.dataset.model_dump(mode="json"),
            "model": self.model.model_dump(mode="json"),
            "technique": self.technique,
            "family": self.family,
            "seed": self.seed,
            "stages": [stage.to_json(self.recipe) for stage in self.stages],
            "recipe": self.recipe.model_dump(mode="json"),
            "measure": self.measure.decides(),
            **({"plugins": _dumped(self.plugins)} if self.plugins else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], catalog: Catalog) -> Cell:
        """The cell that `to_json` wrote.

        Raises ValueError where the data is no such cell, or means another one to this version.
        """
        try:
            cell = cls(
                dataset=strictly(Dataset, data["dataset"]),
                model=strictly(Model, data["model"]),
                technique=data["technique"],
                family=data["family"],
                seed=data["seed"],
                stages=tuple(Stage.from_json(stage, catalog) for stage in data["stages"]),
                recipe=strictly(Recipe, data["recipe"]),
                measure=strictly(Measure, data["measure"], RECORDED if catalog.recorded else None),
                plugins=_plugins_in(data),
            )
            expected = data["id"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a cell of this version of netpress: {error!r}") from error
        if cell.id != expected:
            raise ValueError(
                f"cell {expected} was made by another version of netpress, "
                f"to this one it is {cell.id}"
            )
        return cell


def canonical_json(data: Any) -> str:
    """The one JSON text of `data`: sorted keys, no blanks, ASCII."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def strictly(model: type[BaseModel], data: Any, context: Any = None) -> Any:
    """`data` as this model, without coercion; pydantic's ValidationError where it is not."""
    return model.model_validate_json(json.dumps(data), strict=True, context=context)
