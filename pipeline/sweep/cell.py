"""What decides a cell's weights, and its id.

A cell's id is a hash of all that decides its weights and of nothing else: two sweeps that mean the
same cell share it, whatever they call it and however they measure it. The versions of the stages,
of the data pipeline and of the training core are part of it, so that no result of an earlier
version passes for one of this version.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    model_serializer,
    model_validator,
)

from pipeline import registry
from pipeline.store import typed
from pipeline.sweep import recipes
from pipeline.versions import SHARED

if TYPE_CHECKING:
    from pipeline.catalog import Catalog

FORMAT = 3  # of a cell's canonical JSON: every id changes with it
UNVERSIONED = 2  # the format before: no versions, and the settings of measurement in the id
BASE = "base"
MOST_OLDER = 16  # earlier versions of a cell that are looked for

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$")]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


RECORDED = "recorded"  # context: what a plug-in added is not known here
# What a sweep can measure on, the first always; and several that one name stands for.
RUNTIMES = (
    "onnxruntime",
    "openvino",
    "pytorch-cuda-bf16",
    "pytorch-cuda-fp16",
    "onnxruntime-gpu",
    "tensorrt",
)
GROUPS = {"pytorch-cuda": ("pytorch-cuda-bf16", "pytorch-cuda-fp16")}


def _runtimes(value: Any, info: ValidationInfo) -> tuple[str, ...]:
    """In the order of RUNTIMES, so that the same request is the same cell."""
    if info.context == RECORDED:
        return tuple(value)
    known = registry.names("runtimes", RUNTIMES)
    meant = [name for given in value for name in GROUPS.get(given, (given,))]
    wrong = [name for name in meant if name not in known]
    if wrong or known[0] not in meant or len(set(meant)) < len(meant):
        others = ", ".join([*known[1:], *GROUPS])
        raise ValueError(f"expected {known[0]}, and what else of {others}")
    return tuple(name for name in known if name in meant)


Runtimes = Annotated[tuple[str, ...], AfterValidator(_runtimes)]


class Frozen(BaseModel):
    """A frozen part of a cell: no unknown keys, no coercion, no infinities."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True
    )

    def decides(self) -> dict[str, Any]:
        """What of it decides a cell's weights, every default filled in, as plain JSON data."""
        return self.model_dump(mode="json")

    @cached_property
    def canonical(self) -> str:
        """The one spelling of `decides()`; made once, since thousands of cells share a part."""
        return canonical_json(self.decides())

    @cached_property
    def whole(self) -> str:
        """The one spelling of all of it."""
        return canonical_json(self.model_dump(mode="json"))


COLOUR = re.compile("white|black|#[0-9a-f]{6}")


def _colour(value: str) -> str:
    if not COLOUR.fullmatch(value):
        raise ValueError(f"expected white, black or a colour such as '#c0c0c0', got {value[:20]!r}")
    return value


class Dataset(Frozen):
    """A data set: one that netpress knows by name, or a folder of images.

    `folder` has the ImageFolder layout, train/CLASS/* and test/CLASS/*; `size`: images are resized
    to size x size pixels; `flip`: mirror images in training (None: as the data set's kind says).
    Of folders of images only: `channels`: 1 reads all as grey, 3 as colour (None: as most of them
    are); `background`: what transparent parts are laid on; `on_error`: what becomes of a run with
    an image that cannot be read.
    """

    name: Name
    folder: str | None = None
    size: int | None = Field(None, ge=4, le=1024)
    flip: bool | None = None
    channels: Literal[1, 3] | None = None
    background: Annotated[str, AfterValidator(_colour)] = "white"
    on_error: Literal["refuse", "skip"] = "refuse"

    def decides(self) -> dict[str, Any]:
        # Where the images lie differs between a laptop and a cluster; the result does not.
        return {"name": self.name, "size": self.size, "flip": self.flip, **self.of_images}

    @property
    def of_images(self) -> dict[str, Any]:
        """What differs from the defaults of the settings that only folders of images have. They
        are younger than many results, whose ids and cell.json lack them."""
        fields = type(self).model_fields
        return {
            name: value
            for name in OF_IMAGES
            if (value := getattr(self, name)) != fields[name].default
        }

    @model_serializer(mode="wrap")
    def _dumped(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        kept = self.of_images
        return {k: v for k, v in dump(self).items() if k not in OF_IMAGES or k in kept}


OF_IMAGES = ("channels", "background", "on_error")


class Pixels(Frozen):
    """A pixel p (0..255) enters an own network as (p - zero_point) * scale."""

    zero_point: int = Field(0, ge=0, le=255)
    scale: float = Field(1 / 255, gt=0, le=1000)


class Own(Frozen):
    """Where a user's own network comes from: `function` of a file (`source` is where it lay) or of
    a module, called with `arguments`. `sha256`: of the file; `version`: of the distribution that
    the module is of. `weights`: trained ones, with their own SHA-256; `pixels`: what they expect,
    where that is not the data set's own range."""

    source: str
    function: str
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    version: str | None = None
    arguments: dict[str, Any] = {}
    weights: str | None = None
    weights_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    pixels: Pixels | None = None

    @property
    def label(self) -> str:
        return f"{self.source.rpartition('/')[2]}:{self.function}"

    def decides(self) -> dict[str, Any]:
        """Where files lie, and what they are called, decides nothing."""
        data = self.model_dump(mode="json", exclude={"weights"}, exclude_none=True)
        if self.sha256 is not None:
            del data["source"]
        return data


class Model(Frozen):
    """A network by name; `width` multiplies its channels. `own`: of a user's own."""

    name: Name
    width: float = Field(1.0, gt=0, le=4)
    own: Own | None = Field(None, exclude_if=lambda value: value is None)

    def decides(self) -> dict[str, Any]:
        own = {} if self.own is None else {"own": self.own.decides()}
        return {"name": self.name, "width": self.width, **own}

    @property
    def label(self) -> str:
        """`vgg16_bn`, or `vgg16_bn-w0.25` where the width is not 1."""
        return self.name if self.width == 1 else f"{self.name}-w{self.width}"


def _young(default: Any, **bounds: Any) -> Any:
    """A setting that is younger than many results: at its default no id and no cell.json has it."""
    return Field(default, exclude_if=lambda value: value == default, **bounds)


class Recipe(Frozen):
    """How networks are trained in this sweep, the base and (unless a stage differs) all after it.

    `warmup` and `holdout` are fractions: of all steps, and of the training set (held out,
    stratified, for every choice). `crop` is pixels of padding, 0: no cropping. `train_images` and
    `test_images` take a stratified sliver of the sets, for rehearsals and tests.

    `flips`: each image is mirrored by chance, or (`alternating`) in every other epoch. `cutout`:
    side in pixels of a square that is blanked. `resized_crop`: in place of `crop`, boxes of this
    least part of an image's area to all of it, enlarged to its size; 0: none. The others are for
    trainings from fresh weights, see `continued`. `whitening`: the first convolution starts as
    whitening filters, and stays so for this fraction of all steps (0: neither). `dirac`: other
    convolutions start by handing on what they read. `bias_rate`: learning rate of batch
    normalization's biases, a multiple of that of all. `lookahead`: every few steps the network goes
    back to a running average of its weights. `mixup`: where labels alone are learned, images are
    blended, in parts drawn from Beta(mixup, mixup).
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
    flips: Literal["random", "alternating"] = _young("random")
    cutout: int = _young(0, ge=0, le=1024)
    resized_crop: float = _young(0.0, ge=0, le=1)
    whitening: float = _young(0.0, ge=0, le=1)
    dirac: bool = _young(False)
    bias_rate: float = _young(1.0, gt=0, le=1000)
    lookahead: bool = _young(False)
    mixup: float = _young(0.0, ge=0, le=100)

    _named = model_validator(mode="before")(recipes.expanded)

    def decides(self) -> dict[str, Any]:
        """Without `test_images`: no weight depends on the test set."""
        return self.model_dump(mode="json", exclude={"test_images"})

    def continued(self) -> Recipe:
        """For a training that goes on from weights that are there."""
        return self.model_copy(update=_OF_FRESH_WEIGHTS)


_OF_FRESH_WEIGHTS = {
    name: Recipe.model_fields[name].default
    for name in ("whitening", "dirac", "bias_rate", "lookahead", "mixup")
}


SIMULATED_S = 30.0


class Measure(Frozen):
    """Each latency series takes at most `repeats` rounds and at most `seconds`. `runtimes`: what
    runs the artifact; the first is the one that a report's columns are of. `simulated_seconds`: for
    all that is run in PyTorch, the reference. `threads`: what "all threads" means; None: as many as
    the cores that were requested. No part of a cell's id: the record of a measurement has them
    (`pipeline.done`)."""

    repeats: int = Field(100, ge=1, le=100_000)
    seconds: float = Field(3.0, gt=0, le=3600)
    runtimes: Runtimes = ("onnxruntime",)
    simulated_seconds: float = Field(SIMULATED_S, gt=0, le=3600)
    threads: int | None = Field(None, ge=1, le=4096)

    def decides(self) -> dict[str, Any]:
        """Without the defaults of what is younger than many results."""
        data = self.model_dump(mode="json")
        if len(self.runtimes) == 1:
            del data["runtimes"]
        if self.threads is None:
            del data["threads"]
        if self.simulated_seconds == SIMULATED_S:
            del data["simulated_seconds"]
        return data


class Pack(Frozen):
    """On a cluster, short cells share a job until their estimate fills `minutes`; 0: none does."""

    minutes: float = Field(ge=0, le=10_080)


class Plugin(Frozen):
    """What adds to what netpress has: a file (`source` is where it lay, `sha256` of its bytes), or
    an installed distribution (`source` is its name) of this `version`."""

    source: str
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
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
    """One operation of a technique; `settings` is the stage's own frozen model, `version` that of
    the code that runs it. `plugins`: those that it, or a model that its settings name, is of."""

    name: str
    settings: BaseModel
    version: int = 1
    plugins: Plugins = field(default=(), kw_only=True)

    def to_json(self, recipe: Recipe, versioned: bool = True) -> dict[str, Any]:
        data = {**self._unversioned, **({"version": self.version} if versioned else {})}
        if self.plugins:
            data["plugins"] = _dumped(self.plugins)
            data["about"] = self.settings.about(recipe)  # type: ignore[attr-defined]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any], catalog: Catalog, versioned: bool) -> Stage:
        plugins = _plugins_in(data)
        if plugins and catalog.recorded is not None:
            settings = catalog.recorded(data["settings"], data["about"])
        else:
            settings = strictly(catalog.stages[data["name"]], data["settings"])
        version = _version(data["version"]) if versioned else 1
        return cls(data["name"], settings, version, plugins=plugins)

    @cached_property
    def canonical(self) -> str:
        decides = {**self._unversioned, "version": self.version}
        return canonical_json(decides | _decided(self.plugins))

    @cached_property
    def canonical_unversioned(self) -> str:
        """As cells of format 2 have it."""
        return canonical_json(self._unversioned)

    @cached_property
    def _unversioned(self) -> dict[str, Any]:
        return {"name": self.name, "settings": self.settings.model_dump(mode="json")}

    @cached_property
    def _others(self) -> dict[int, Stage]:
        return {}

    def at(self, version: int) -> Stage:
        """The same stage in another version; made once, since thousands of cells share it."""
        if version not in self._others:
            self._others[version] = replace(self, version=version)
        return self._others[version]


def _decided(plugins: Plugins) -> dict[str, Any]:
    """Nothing where there is none: cells without plug-ins are older than these."""
    decided = sorted(canonical_json(plugin.decides()) for plugin in plugins)
    return {"plugins": [json.loads(text) for text in decided]} if plugins else {}


def _dumped(plugins: Plugins) -> list[dict[str, Any]]:
    return [plugin.model_dump(mode="json", exclude_none=True) for plugin in plugins]


def _plugins_in(data: Mapping[str, Any]) -> Plugins:
    return tuple(strictly(Plugin, plugin) for plugin in data.get("plugins", ()))


def plugins_of(data: Mapping[str, Any]) -> Plugins:
    """Of a cell as `to_json` gives it: all that have to be there before it can be run."""
    parts = (data, *data["stages"])
    return tuple(dict.fromkeys(plugin for part in parts for plugin in _plugins_in(part)))


@dataclass(frozen=True)
class Core:
    """Versions of what every cell goes through before it has weights."""

    data: int = field(default_factory=lambda: SHARED["data"])
    training: int = field(default_factory=lambda: SHARED["training"])

    def to_json(self) -> dict[str, int]:
        return {"data": self.data, "training": self.training}

    @cached_property
    def canonical(self) -> str:
        return f'{{"data":{self.data},"training":{self.training}}}'


@dataclass(frozen=True)
class Cell:
    """One point of the matrix, fully resolved. `technique` is its label, `family` the technique
    whose operating point it is (the same, where there is no grid). A base has no stages. `measure`
    is how its artifact is to be measured, which is no part of its id. `plugins`: those that its
    data set, model and runtimes are of."""

    dataset: Dataset
    model: Model
    technique: str
    family: str
    seed: int
    stages: tuple[Stage, ...]
    recipe: Recipe
    measure: Measure
    core: Core = field(default_factory=Core)
    format: int = FORMAT
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
        text = self._unversioned(stages) if self.format == UNVERSIONED else self._canonical(stages)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _canonical(self, stages: tuple[Stage, ...]) -> str:
        # The canonical JSON of the whole, put together from its parts, keys in sorted order.
        plugins = canonical_json(_decided(self.plugins))[1:-1] + "," if self.plugins else ""
        return (
            f'{{"core":{self.core.canonical},"dataset":{self.dataset.canonical},'
            f'"format":{self.format},"model":{self.model.canonical},'
            f'{plugins}"recipe":{self.recipe.canonical},"seed":{self.seed},'
            f'"stages":[{",".join(stage.canonical for stage in stages)}]}}'
        )

    def _unversioned(self, stages: tuple[Stage, ...]) -> str:
        """The same in format 2, whose ids are in the work roots and reports of that time."""
        return (
            f'{{"dataset":{self.dataset.canonical},"format":{UNVERSIONED},'
            f'"measure":{self.measure.canonical},"model":{self.model.canonical},'
            f'"recipe":{self.recipe.whole},"seed":{self.seed},'
            f'"stages":[{",".join(stage.canonical_unversioned for stage in stages)}]}}'
        )

    # --- versions --------------------------------------------------------------------------------

    @property
    def versions(self) -> dict[str, int]:
        """Of all that decides its weights; empty for a cell of format 2, which does not say."""
        if self.format == UNVERSIONED:
            return {}
        return {**self.core.to_json(), **{stage.name: stage.version for stage in self.stages}}

    def differs_from(self, other: Cell) -> str:
        """In which versions: `quantize 1`; "" where in none."""
        if self.format != other.format:
            return f"cell format {self.format}"
        others = other.versions
        return ", ".join(f"{k} {v}" for k, v in self.versions.items() if others.get(k) != v)

    def of_this_version(self, catalog: Catalog) -> Cell:
        """The same cell as this version of netpress would make it."""
        versions = catalog.versions
        stages = tuple(stage.at(versions.get(stage.name, 1)) for stage in self.stages)
        return replace(self, stages=stages, core=Core(), format=FORMAT)

    def older(self) -> Iterator[Cell]:
        """The cell as earlier versions made it, the newest first and format 2 last; a few."""
        names = list(dict.fromkeys(stage.name for stage in self.stages))
        now = {stage.name: stage.version for stage in self.stages}
        for data, training, *rest in _lower(
            (self.core.data, self.core.training, *(now[name] for name in names))
        ):
            at = dict(zip(names, rest, strict=True))
            stages = tuple(stage.at(at[stage.name]) for stage in self.stages)
            yield replace(self, stages=stages, core=Core(data, training))
        stages = tuple(stage.at(1) for stage in self.stages)
        yield replace(self, stages=stages, core=Core(1, 1), format=UNVERSIONED)

    @property
    def is_base(self) -> bool:
        return not self.stages

    @property
    def name(self) -> str:
        """dataset/model/technique/seed, as people name a cell."""
        return f"{self.dataset.name}/{self.model.label}/{self.technique}/{self.seed}"

    def to_json(self) -> dict[str, Any]:
        """Plain data for cell.json, from which `from_json` makes the same cell again."""
        versioned = self.format != UNVERSIONED
        return {
            "format": self.format,
            "id": self.id,
            **({"core": self.core.to_json()} if versioned else {}),
            "dataset": self.dataset.model_dump(mode="json"),
            "model": self.model.model_dump(mode="json"),
            "technique": self.technique,
            "family": self.family,
            "seed": self.seed,
            "stages": [stage.to_json(self.recipe, versioned) for stage in self.stages],
            "recipe": self.recipe.model_dump(mode="json"),
            "measure": self.measure.decides(),
            **({"plugins": _dumped(self.plugins)} if self.plugins else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], catalog: Catalog) -> Cell:
        """The cell that `to_json` wrote, in the versions that it says.

        Raises ValueError where the data is no such cell, or means another one to this version.
        """
        try:
            versioned = data["format"] != UNVERSIONED
            if data["format"] not in (UNVERSIONED, FORMAT):
                expected = f"expected {UNVERSIONED} or {FORMAT}"
                raise ValueError(f"a cell of format {str(data['format'])[:20]}, {expected}")
            cell = cls(
                dataset=strictly(Dataset, data["dataset"]),
                model=strictly(Model, data["model"]),
                **vars(strictly(_Named, {key: data[key] for key in _Named.model_fields})),
                stages=tuple(
                    Stage.from_json(stage, catalog, versioned) for stage in data["stages"]
                ),
                recipe=strictly(Recipe, data["recipe"]),
                measure=strictly(Measure, data["measure"], RECORDED if catalog.recorded else None),
                core=Core(*(_version(data["core"][name]) if versioned else 1 for name in CORE)),
                format=data["format"],
                plugins=_plugins_in(data),
            )
            expected = data["id"]
        except ValidationError as error:
            raise ValueError(f"not such a cell: {typed.problem(error)}") from error
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a cell of this version of netpress: {error!r}") from error
        if cell.id != expected:
            raise ValueError(
                f"cell {expected} was made by another version of netpress, "
                f"to this one it is {cell.id}"
            )
        return cell


class _Named(Frozen):
    """Of a cell, what is no part with a model of its own."""

    technique: Name
    family: Name
    seed: Seed


CORE = ("data", "training")  # in the order of Core's fields


def _version(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"a version is a number from 1, got {str(value)[:20]!r}")
    return value


@cache
def _lower(now: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Versions of the same parts, none of them newer and one at least older; nearest first."""
    ranges = [range(version, max(0, version - 3), -1) for version in now]
    found = sorted(itertools.product(*ranges), key=sum, reverse=True)
    return found[1 : MOST_OLDER + 1]


def canonical_json(data: Any) -> str:
    """The one JSON text of `data`: sorted keys, no blanks, ASCII."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def strictly(model: type[BaseModel], data: Any, context: Any = None) -> Any:
    """`data` as this model, without coercion; pydantic's ValidationError where it is not."""
    return model.model_validate_json(json.dumps(data), strict=True, context=context)
