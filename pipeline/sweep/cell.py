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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from pydantic import (
    BaseModel,
    ValidationError,
)

from pipeline.store import typed
from pipeline.sweep.settings import (
    RECORDED,
    Dataset,
    Frozen,
    Measure,
    Model,
    Name,
    Plugin,
    Plugins,
    Recipe,
    Seed,
    canonical_json,
    strictly,
)
from pipeline.versions import SHARED

if TYPE_CHECKING:
    from pipeline.catalog import Catalog

FORMAT = 3  # of a cell's canonical JSON: every id changes with it
UNVERSIONED = 2  # the format before: no versions, and the settings of measurement in the id
BASE = "base"
MOST_OLDER = 16  # earlier versions of a cell that are looked for


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


BASES_TRACED = 6  # the version of tracing from which ids of bases have it: it changes what they do


@dataclass(frozen=True)
class Core:
    """Versions of what every cell goes through before it has weights; `tracing`: what a network of
    the user's own alone goes through, in all stages after its base, and since BASES_TRACED in its
    base as well."""

    data: int = field(default_factory=lambda: SHARED["data"])
    training: int = field(default_factory=lambda: SHARED["training"])
    tracing: int = field(default_factory=lambda: SHARED["tracing"])

    def to_json(self, traced: bool = False) -> dict[str, int]:
        """Nothing about tracing in version 1, which cells do not record."""
        own = {"tracing": self.tracing} if traced and self.tracing > 1 else {}
        return {"data": self.data, **own, "training": self.training}

    @cached_property
    def canonical(self) -> str:
        return f'{{"data":{self.data},"training":{self.training}}}'

    @cached_property
    def canonical_traced(self) -> str:
        return canonical_json(self.to_json(traced=True))


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

    @property
    def stands_on(self) -> str | None:
        """The id of the cell whose weights it starts from, which has to be trained before: its
        base's, or, of a base, that of `weights_from`; None where there is no such cell."""
        if self.stages:
            return self.base_id
        return None if self.model.start is None else self.model.start.cell

    @property
    def ground(self) -> str:
        """What `stands_on` is to it, in a sentence."""
        return "its base" if self.stages else "its starting base"

    @property
    def grounds(self) -> Iterator[tuple[str, str]]:
        """What has to be trained before it, nearest first: what that is to it, and its id. What a
        starting base starts from itself is in its own cell alone."""
        if self.stages:
            yield "its base", self.base_id
        if self.model.start is not None and self.model.start.cell is not None:
            yield "its starting base" if self.is_base else "its base's start", self.model.start.cell

    def _hash(self, stages: tuple[Stage, ...]) -> str:
        text = self._unversioned(stages) if self.format == UNVERSIONED else self._canonical(stages)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _canonical(self, stages: tuple[Stage, ...]) -> str:
        # The canonical JSON of the whole, put together from its parts, keys in sorted order.
        plugins = canonical_json(_decided(self.plugins))[1:-1] + "," if self.plugins else ""
        core = self.core.canonical_traced if self._traced(stages) else self.core.canonical
        return (
            f'{{"core":{core},"dataset":{self.dataset.canonical},'
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
        """Of all that decides its weights; empty for a cell of format 2, which has none."""
        if self.format == UNVERSIONED:
            return {}
        core = self.core.to_json(self.is_traced)
        return {**core, **{stage.name: stage.version for stage in self.stages}}

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
        tracing = self.core.tracing if self.is_traced else 1
        for data, training, traced, *rest in _lower(
            (self.core.data, self.core.training, tracing, *(now[name] for name in names))
        ):
            at = dict(zip(names, rest, strict=True))
            stages = tuple(stage.at(at[stage.name]) for stage in self.stages)
            core = Core(data, training, traced if self.is_traced else self.core.tracing)
            yield replace(self, stages=stages, core=core)
        stages = tuple(stage.at(1) for stage in self.stages)
        yield replace(self, stages=stages, core=Core(1, 1), format=UNVERSIONED)

    @property
    def is_base(self) -> bool:
        return not self.stages

    @property
    def is_traced(self) -> bool:
        """Whether what is done to it depends on how a network of the user's own is taken apart."""
        return self._traced(self.stages)

    def _traced(self, stages: tuple[Stage, ...]) -> bool:
        since = 1 if stages else BASES_TRACED
        return self.model.own is not None and self.core.tracing >= since

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
            **({"core": self.core.to_json(self.is_traced)} if versioned else {}),
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
        """The cell that `to_json` wrote, in the versions that it records.

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
                core=_core(data) if versioned else Core(1, 1),
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


def _core(data: Mapping[str, Any]) -> Core:
    versions = data["core"]
    if data["model"].get("own") is None:
        tracing = SHARED["tracing"]
    else:
        tracing = versions.get("tracing", 1 if data["stages"] else BASES_TRACED - 1)
    return Core(*map(_version, (versions["data"], versions["training"], tracing)))


def _version(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"a version is a number from 1, got {str(value)[:20]!r}")
    return value


@cache
def _lower(now: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Versions of the same parts, none of them newer and one at least older; nearest first."""
    ranges = [range(version, max(0, version - 3), -1) for version in now]
    combinations = sorted(itertools.product(*ranges), key=sum, reverse=True)
    return combinations[1 : MOST_OLDER + 1]
