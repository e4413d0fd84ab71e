"""A sweep file becomes a tuple of validated, frozen cells: the only configuration that travels.

Everything is checked here, once: `load` returns a Sweep in which every name exists, every default
is filled in and every cell has its id, or raises one UserError (`FILE:LINE: key: what is wrong;
what would be right`).

A cell's id is a hash of all that decides its result and of nothing else: two sweeps that mean the
same cell share it, whatever they call it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline import strict_yaml
from pipeline.errors import UserError
from pipeline.strict_yaml import Document, Key, described, nearest, shown

FORMAT = 2  # raise it when the same cell.json would give another result: every id changes
MAX_CELLS = 1_000_000
BASE = "base"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$")]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Frozen(BaseModel):
    """A frozen part of a cell: no unknown keys, no coercion, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

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
    """Each latency series takes at most `repeats` rounds and at most `seconds`."""

    repeats: int = Field(100, ge=1, le=100_000)
    seconds: float = Field(3.0, gt=0, le=3600)


class Pack(Frozen):
    """On a cluster, short cells share a job until their estimate fills `minutes`."""

    minutes: float = Field(gt=0, le=10_080)


@dataclass(frozen=True)
class Stage:
    """One operation of a technique; `settings` is the stage's own frozen model."""

    name: str
    settings: BaseModel

    @cached_property
    def canonical(self) -> str:
        return canonical_json(
            {"name": self.name, "settings": self.settings.model_dump(mode="json")}
        )


@dataclass(frozen=True)
class Cell:
    """One point of the matrix, fully resolved. `technique` is its label, `family` the technique
    whose operating point it is (the same, where there is no grid). A base has no stages."""

    dataset: Dataset
    model: Model
    technique: str
    family: str
    seed: int
    stages: tuple[Stage, ...]
    recipe: Recipe
    measure: Measure

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
        text = (
            f'{{"dataset":{self.dataset.canonical},"format":{FORMAT},'
            f'"measure":{self.measure.canonical},"model":{self.model.canonical},'
            f'"recipe":{self.recipe.canonical},"seed":{self.seed},'
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
            "stages": [
                {"name": stage.name, "settings": stage.settings.model_dump(mode="json")}
                for stage in self.stages
            ],
            "recipe": self.recipe.model_dump(mode="json"),
            "measure": self.measure.model_dump(mode="json"),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], catalog: Catalog) -> Cell:
        """The cell that `to_json` wrote.

        Raises ValueError where the data is no such cell, or means another one to this version.
        """
        try:
            cell = cls(
                dataset=_strictly(Dataset, data["dataset"]),
                model=_strictly(Model, data["model"]),
                technique=data["technique"],
                family=data["family"],
                seed=data["seed"],
                stages=tuple(
                    Stage(
                        stage["name"], _strictly(catalog.stages[stage["name"]], stage["settings"])
                    )
                    for stage in data["stages"]
                ),
                recipe=_strictly(Recipe, data["recipe"]),
                measure=_strictly(Measure, data["measure"]),
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


Chain = Sequence[Mapping[str, Mapping[str, Any]]]  # ({"prune": {...}}, {"finetune": {...}})
Expander = Callable[[Any], Sequence[tuple[str, Any]]]


@dataclass(frozen=True)
class Catalog:
    """What a sweep file may name. `models` and `datasets`: name -> a line about it; `stages`:
    name -> its settings; `techniques`: name -> its chain; `expanders`: stage -> a function of
    its settings to the (stage, settings) pairs that it stands for (such as pruning in steps);
    `folders`: those of `datasets` that may lie elsewhere, given with `folder:`."""

    models: Mapping[str, str]
    datasets: Mapping[str, str]
    stages: Mapping[str, type[BaseModel]]
    techniques: Mapping[str, Chain]
    expanders: Mapping[str, Expander] = field(default_factory=dict)
    folders: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Sweep:
    """What one sweep file asks for: its cells, bases first, and how to run them.

    `text` is the file as it was read; `notes` are lines for the user about what is odd in it.
    """

    name: str
    cells: tuple[Cell, ...]
    path: Path
    text: str = field(repr=False)
    profile: str | None = None
    pack: Pack | None = None
    notes: tuple[str, ...] = ()

    @cached_property
    def by_id(self) -> dict[str, Cell]:
        return {cell.id: cell for cell in self.cells}


def canonical_json(data: Any) -> str:
    """The one JSON text of `data`: sorted keys, no blanks, ASCII."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def load(path: Path, catalog: Catalog, text: str | None = None) -> Sweep:
    """The sweep in the YAML file `path`; raises UserError, one sentence, for whatever is wrong.

    text: what the file held when it was read before, in place of what it holds now.
    """
    document = strict_yaml.read(Path(path), text)
    source = _Source(document, _read_file(document), catalog)
    techniques = _techniques(source)
    datasets, recipes = _datasets(source)
    cells = _matrix(source, datasets, recipes, _models(source), techniques)
    asked = source.asked
    return Sweep(
        name=asked.name,
        cells=cells,
        path=document.path,
        text=document.text,
        profile=asked.profile,
        pack=asked.pack,
        notes=_notes(source),
    )


# --- the file --------------------------------------------------------------------------------


class _Exclude(Frozen):
    dataset: str | None = None
    model: str | None = None
    technique: str | None = None
    seed: int | None = None


class _File(Frozen):
    """The keys of a sweep file; what depends on the catalog is checked after this."""

    name: Name
    models: list[Any] = Field(min_length=1)
    datasets: list[Any] = Field(min_length=1)
    seeds: list[Seed] = Field([0], min_length=1)
    techniques: list[str] = Field(min_length=1)
    training: Recipe = Recipe()
    measure: Measure = Measure()
    exclude: list[_Exclude] = []
    define: dict[str, Any] = {}
    grid: dict[str, Any] = {}
    profile: Name | None = None
    pack: Pack | None = None


class _DatasetEntry(Dataset):
    """An entry of `datasets`; its `training` is what differs from the sweep's on this data set."""

    training: dict[str, Any] = {}


class _Label(Frozen):
    label: Name


@dataclass(frozen=True)
class _Source:
    """What the reading functions below share: where it stands, what it says, what may be named."""

    document: Document
    asked: _File
    catalog: Catalog

    def error(self, at: Key, problem: str) -> UserError:
        return self.document.error(at, problem)

    def known(self, at: Key, what: str, name: str, valid: Iterable[str], command: str) -> None:
        if name not in valid:
            raise self.error(
                at,
                f"unknown {what} {shown(name)}; {nearest(name, valid)} "
                f"(`netpress {command}` lists them)",
            )

    def check_label(self, at: Key, label: str) -> None:
        self.document.check(at, _Label, {"label": label}, name_keys=False)


def _read_file(document: Document) -> _File:
    data = document.data
    for key in ("models", "datasets", "seeds", "techniques"):
        if data.get(key, ...) in ([], None):
            raise document.error((key,), "names nothing, so the matrix is empty; name at least one")
    for at, part, value in _parts(data):  # on their own, so that each can name its nearest key
        document.check(at, part, value)
    asked = document.check((), _File, data)
    for key in ("models", "datasets", "seeds", "techniques", "exclude"):
        _refuse_twins(document, (key,), data.get(key, []))
    return asked


def _parts(data: dict[str, Any]) -> Iterator[tuple[Key, type[Frozen], Any]]:
    for key, part in (("training", Recipe), ("measure", Measure), ("pack", Pack)):
        if key in data:
            yield (key,), part, data[key]
    if isinstance(data.get("exclude"), list):
        for i, entry in enumerate(data["exclude"]):
            yield ("exclude", i), _Exclude, entry


def _refuse_twins(document: Document, at: Key, values: Sequence[Any]) -> None:
    seen: set[str] = set()
    for i, value in enumerate(values):
        text = canonical_json(value)
        if text in seen:
            raise document.error((*at, i), f"{shown(value)} stands here twice; name it once")
        seen.add(text)


def _models(source: _Source) -> list[Model]:
    found: dict[str, Model] = {}
    for i, value in enumerate(source.asked.models):
        at = ("models", i)
        model = _entry(source.document, at, Model, value)
        source.known(at, "model", model.name, source.catalog.models, "models")
        if model.label in found:
            raise source.error(at, f"{model.label} stands here twice; name it once")
        found[model.label] = model
    return list(found.values())


def _datasets(source: _Source) -> tuple[list[Dataset], dict[str, Recipe]]:
    """The data sets, and the recipe on each by its name."""
    found: dict[str, Dataset] = {}
    recipes: dict[str, Recipe] = {}
    for i, value in enumerate(source.asked.datasets):
        at = ("datasets", i)
        entry = _entry(source.document, at, _DatasetEntry, value)
        dataset = Dataset(**entry.model_dump(exclude={"training"}))
        if dataset.folder is not None:
            dataset = _with_folder(source, at, dataset)
        else:
            source.known(at, "data set", dataset.name, source.catalog.datasets, "datasets")
        if dataset.name in found:
            raise source.error(at, f"{shown(dataset.name)} stands here already; names must differ")
        found[dataset.name] = dataset
        recipes[dataset.name] = _recipe(source, (*at, "training"), entry.training)
    return list(found.values()), recipes


def _recipe(source: _Source, at: Key, differs: dict[str, Any]) -> Recipe:
    if not differs:
        return source.asked.training
    source.document.check(at, Recipe, differs)
    return Recipe(**{**source.asked.training.model_dump(), **differs})


def _entry(document: Document, at: Key, part: type[Frozen], value: Any) -> Any:
    """An entry of `models` or `datasets`: a name, or a mapping with `name` and more."""
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict):
        raise document.error(at, f"expected a name, or a mapping with it, got {described(value)}")
    return document.check(at, part, value)


def _with_folder(source: _Source, at: Key, dataset: Dataset) -> Dataset:
    """The data set with its folder made absolute; a relative one starts at the sweep file."""
    if dataset.name in set(source.catalog.datasets) - source.catalog.folders:
        raise source.error(
            (*at, "name"),
            f"{shown(dataset.name)} is a data set that netpress has; give the folder another name",
        )
    here = source.document.path.parent
    folder = (here / Path(dataset.folder or "").expanduser()).resolve()
    if not folder.is_dir():
        raise source.error(
            (*at, "folder"),
            f"{shown(str(folder))} is not there; expected a folder with train/CLASS/ and "
            "test/CLASS/ in it",
        )
    return dataset.model_copy(update={"folder": str(folder)})


# --- techniques ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Step:
    """A stage as it is written, before its settings are checked and expanded."""

    stage: str
    written: dict[str, Any]
    at: Key


@dataclass(frozen=True)
class _Technique:
    label: str
    family: str
    stages: tuple[Stage, ...]
    at: Key  # where the sweep file asks for it


def _techniques(source: _Source) -> list[_Technique]:
    """Every technique and operating point of the sweep, resolved once."""
    asked, built_in = source.asked, source.catalog.techniques
    chains = {name: _defined(source, name) for name in asked.define}
    for family in asked.grid:
        if family not in asked.techniques:
            raise source.error(
                ("grid", family),
                f"{shown(family)} is not in `techniques`; {nearest(family, asked.techniques)}",
            )
    found: list[_Technique] = []
    for i, name in enumerate(asked.techniques):
        at = ("techniques", i)
        source.known(at, "technique", name, {*built_in, *chains}, "techniques")
        chain = chains[name] if name in chains else _built_in(built_in[name], at)
        found += _points(source, name, chain, at)
    _refuse_same(source, found)
    return found


def _built_in(chain: Chain, at: Key) -> list[_Step]:
    return [_Step(name, dict(written), at) for step in chain for name, written in step.items()]


def _defined(source: _Source, name: str) -> list[_Step]:
    """The chain under `define: NAME`, a list of `- stage: {settings}`, checked to its end."""
    at, chain = ("define", name), source.asked.define[name]
    source.check_label(at, name)
    if name in source.catalog.techniques:
        raise source.error(at, "is a technique that netpress has; define it under another name")
    if not isinstance(chain, list) or not chain:
        raise source.error(at, "expected a list of stages, such as `- finetune: {epochs: 5}`")
    steps = [_step(source, (*at, i), step) for i, step in enumerate(chain)]
    _resolve(source, steps)  # also where no cell uses it
    return steps


def _step(source: _Source, at: Key, step: Any) -> _Step:
    if isinstance(step, str):
        step = {step: {}}
    if not isinstance(step, dict) or len(step) != 1:
        raise source.error(
            at, "expected one stage and its settings, such as `- finetune: {epochs: 5}`"
        )
    [(stage, written)] = step.items()
    if stage not in source.catalog.stages:
        raise source.error(
            (*at, stage), f"unknown stage {shown(stage)}; {nearest(stage, source.catalog.stages)}"
        )
    return _Step(stage, {} if written is None else written, (*at, stage))


def _resolve(source: _Source, steps: Sequence[_Step]) -> tuple[Stage, ...]:
    """Settings checked and filled in; a stage that stands for several becomes them."""
    stages: list[Stage] = []
    for step in steps:
        settings = source.document.check(step.at, source.catalog.stages[step.stage], step.written)
        expand = source.catalog.expanders.get(step.stage)
        for name, expanded in expand(settings) if expand else [(step.stage, settings)]:
            if not isinstance(expanded, BaseModel):
                expanded = _strictly(source.catalog.stages[name], expanded)
            stages.append(Stage(name, expanded))
    return tuple(stages)


def _points(source: _Source, family: str, chain: list[_Step], at: Key) -> Iterator[_Technique]:
    """The technique, or one for each operating point that `grid` asks for."""
    if family not in source.asked.grid:
        yield _Technique(family, family, _resolve(source, chain), at)
        return
    axes = _axes(source, family, chain)
    if math.prod(map(len, axes.values())) > MAX_CELLS:
        raise source.error(("grid", family), f"has more than {MAX_CELLS:,} points; leave some out")
    for values in itertools.product(*axes.values()):
        label = "-".join([family, *map(_spelled, values)])
        source.check_label(("grid", family), label)
        point = _at_point(family, chain, dict(zip(axes, values, strict=True)))
        yield _Technique(label, family, _resolve(source, point), at)


def _axes(source: _Source, family: str, chain: list[_Step]) -> dict[str, list[Any]]:
    """`grid: FAMILY:` checked: {"prune.parameters_kept": [0.5, 0.25]}."""
    axes, at = source.asked.grid[family], ("grid", family)
    if not isinstance(axes, dict) or not axes:
        raise source.error(at, "expected `stage.setting: [values]`")
    settings = source.catalog.stages
    valid = {f"{step.stage}.{key}" for step in chain for key in settings[step.stage].model_fields}
    for key, values in axes.items():
        if key not in valid:
            raise source.error((*at, key), f"no stage of {family!r} has it; {nearest(key, valid)}")
        if not isinstance(values, list) or not values:
            raise source.error((*at, key), "expected a list of values, at least one")
        _refuse_twins(source.document, (*at, key), values)
        _check_axis(source, (*at, key), chain, values)
    return axes


def _check_axis(source: _Source, at: Key, chain: list[_Step], values: list[Any]) -> None:
    """Each value tried alone, so that the sentence about a bad one names its place in the grid."""
    stage, setting = at[-1].split(".", 1)
    for step in chain:
        for i, value in enumerate(values):
            if step.stage == stage:
                changed, settings = {**step.written, setting: value}, source.catalog.stages[stage]
                source.document.check((*at, i), settings, changed, name_keys=False)


def _at_point(family: str, chain: list[_Step], point: dict[str, Any]) -> list[_Step]:
    """The chain with the settings of one point of the grid; every stage of a name takes them."""
    steps = []
    for step in chain:
        mine = {key: value for key, value in point.items() if key.split(".", 1)[0] == step.stage}
        written = {**step.written, **{key.split(".", 1)[1]: mine[key] for key in mine}}
        steps.append(_Step(step.stage, written, ("grid", family) if mine else step.at))
    return steps


def _spelled(value: Any) -> str:
    """A grid value in a label: 0.25, true, l1."""
    return value if isinstance(value, str) else json.dumps(value)


def _refuse_same(source: _Source, techniques: list[_Technique]) -> None:
    """No two techniques of one name, and no two names for one cell."""
    labels: set[str] = set()
    chains: dict[tuple[str, ...], _Technique] = {}
    for technique in techniques:
        label = technique.label
        if label in labels:
            raise source.error(
                technique.at, f"two techniques would be called {label!r}; rename one"
            )
        labels.add(label)
        twin = chains.setdefault(tuple(stage.canonical for stage in technique.stages), technique)
        if twin is not technique:
            raise source.error(
                technique.at, f"{label!r} does the same as {twin.label!r}, stage by stage; keep one"
            )


def _notes(source: _Source) -> tuple[str, ...]:
    asked, document = source.asked, source.document
    return tuple(
        f"{document.path}:{document.line(('define', name))}: define.{name}: defined, but no cell "
        "uses it; name it in `techniques` as well"
        for name in asked.define
        if name not in asked.techniques
    )


# --- the matrix ------------------------------------------------------------------------------

Point = tuple[str, str, str, int]  # data set, model's label, technique's label, seed


def _matrix(
    source: _Source,
    datasets: list[Dataset],
    recipes: Mapping[str, Recipe],
    models: list[Model],
    techniques: list[_Technique],
) -> tuple[Cell, ...]:
    """All cells but the excluded ones, and the bases that they stand on; bases first."""
    asked = source.asked
    _check_size(source, datasets, models, techniques)
    excluded = _excluded(source, datasets, models, techniques)
    asks_base = any(not technique.stages for technique in techniques)
    bases: list[Cell] = []
    cells: list[Cell] = []
    for dataset, model, seed in itertools.product(datasets, models, asked.seeds):
        recipe = recipes[dataset.name]
        base = Cell(dataset, model, BASE, BASE, seed, (), recipe, asked.measure)
        here = [
            replace(
                base, technique=technique.label, family=technique.family, stages=technique.stages
            )
            for technique in techniques
            if technique.stages
            and (dataset.name, model.label, technique.label, seed) not in excluded
        ]
        without_base = excluded.get((dataset.name, model.label, BASE, seed))
        if here and without_base is not None:
            raise source.error(
                ("exclude", without_base),
                f"excludes the base that {here[0].name} starts from; exclude that too",
            )
        if here or (asks_base and without_base is None):
            bases.append(base)
        cells += here
    if not bases:
        raise source.error(("exclude",), "excludes every cell; leave at least one")
    return (*bases, *cells)


def _check_size(source: _Source, *axes: list[Any]) -> None:
    count = math.prod(map(len, axes)) * len(source.asked.seeds)
    if count > MAX_CELLS:
        raise source.error(
            (), f"asks for {count:,} cells, at most {MAX_CELLS:,} can be; leave some seeds out"
        )


def _excluded(
    source: _Source, datasets: list[Dataset], models: list[Model], techniques: list[_Technique]
) -> dict[Point, int]:
    """Every excluded point of the matrix, with the number of the entry that excludes it."""
    excluded: dict[Point, int] = {}
    for i, entry in enumerate(source.asked.exclude):
        if entry == _Exclude():
            raise source.error(
                ("exclude", i), "names nothing; expected dataset, model, technique or seed"
            )
        axes = {  # key -> {value that the entry may name: labels that it stands for}
            "dataset": {d.name: [d.name] for d in datasets},
            "model": _grouped((m.name, m.label) for m in models),
            "technique": _grouped((t.family, t.label) for t in techniques),
            "seed": {seed: [seed] for seed in source.asked.seeds},
        }
        chosen = [_chosen(source, i, key, getattr(entry, key), axes[key]) for key in axes]
        for point in itertools.product(*chosen):
            excluded.setdefault(point, i)
    return excluded


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """{family or label: its labels} of (family, label) pairs."""
    groups: dict[str, list[str]] = {}
    for family, label in pairs:
        for name in {family, label}:
            groups.setdefault(name, []).append(label)
    return groups


def _chosen(source: _Source, entry: int, key: str, value: Any, axis: dict[Any, list]) -> list:
    """The labels on one axis of the matrix that `exclude[entry]` covers; all, if it names none."""
    if value is None:
        return list(dict.fromkeys(itertools.chain(*axis.values())))
    if value not in axis:
        raise source.error(
            ("exclude", entry, key),
            f"{shown(value)} is not in this sweep; {nearest(value, map(str, axis))}",
        )
    return axis[value]


def _strictly(model: type[BaseModel], data: Any) -> Any:
    return model.model_validate_json(json.dumps(data), strict=True)
