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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline import strict_yaml
from pipeline.errors import UserError
from pipeline.strict_yaml import Document, Key, described, nearest, shown

FORMAT = 1  # raise it when the same cell.json would give another result: every id changes
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
            raise ValueError(f"cell {expected} was made by another version of netpress, "
                             f"to this one it is {cell.id}")  # fmt: skip
        return cell


Chain = Sequence[Mapping[str, Mapping[str, Any]]]  # ({"prune": {...}}, {"finetune": {...}})
Expander = Callable[[Any], Sequence[tuple[str, Any]]]


@dataclass(frozen=True)
class Catalog:
    """What a sweep file may name. `models` and `datasets`: name -> a line about it; `stages`:
    name -> its settings; `techniques`: name -> its chain; `expanders`: stage -> a function of
    its settings to the (stage, settings) pairs that it stands for (such as pruning in steps)."""

    models: Mapping[str, str]
    datasets: Mapping[str, str]
    stages: Mapping[str, type[BaseModel]]
    techniques: Mapping[str, Chain]
    expanders: Mapping[str, Expander] = field(default_factory=dict)


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


def load(path: Path, catalog: Catalog) -> Sweep:
    """The sweep in the YAML file `path`; raises UserError, one sentence, for whatever is wrong."""
    document = strict_yaml.read(Path(path))
    asked = _File.read(document)
    datasets = _datasets(document, asked, catalog)
    models = _models(document, asked, catalog)
    techniques, notes = _techniques(document, asked, catalog)
    cells = _matrix(document, asked, datasets, models, techniques)
    return Sweep(asked.name, cells, document.path, document.text, asked.profile, asked.pack, notes)


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

    @classmethod
    def read(cls, document: Document) -> _File:
        # The parts first: each names its own keys when one is wrong.
        data = document.data
        for key, part in (("training", Recipe), ("measure", Measure), ("pack", Pack)):
            if key in data:
                document.check((key,), part, data[key])
        if isinstance(data.get("exclude"), list):
            for i, entry in enumerate(data["exclude"]):
                document.check(("exclude", i), _Exclude, entry)
        for key in ("models", "datasets", "seeds", "techniques"):
            if data.get(key, ...) in ([], None):
                raise document.error((key,), "the list is empty; name at least one")
        asked = document.check((), cls, data)
        for key in ("models", "datasets", "seeds", "techniques", "exclude"):
            _refuse_twins(document, (key,), data.get(key, []))
        return asked


def _refuse_twins(document: Document, at: Key, values: Sequence[Any]) -> None:
    seen: set[str] = set()
    for i, value in enumerate(values):
        text = canonical_json(value)
        if text in seen:
            raise document.error((*at, i), f"{shown(value)} stands here twice; name it once")
        seen.add(text)


def _known(document: Document, at: Key, what: str, name: str, valid: Mapping[str, Any],
           listed_by: str) -> None:  # fmt: skip
    if name not in valid:
        raise document.error(at, f"unknown {what} {shown(name)}; {nearest(name, valid)} "
                                 f"(`netpress {listed_by}` lists them)")  # fmt: skip


def _entry(document: Document, at: Key, part: type[Frozen], value: Any) -> Any:
    """An entry of `models` or `datasets`: a name, or a mapping with `name` and more."""
    if not isinstance(value, (str, dict)):
        raise document.error(
            at, f"expected a name or a mapping with `name:`, got {described(value)}"
        )
    return document.check(at, part, {"name": value} if isinstance(value, str) else value)


def _models(document: Document, asked: _File, catalog: Catalog) -> list[Model]:
    found: dict[str, Model] = {}
    for i, value in enumerate(asked.models):
        model = _entry(document, ("models", i), Model, value)
        _known(document, ("models", i), "model", model.name, catalog.models, "models")
        if model.label in found:
            raise document.error(("models", i), f"{model.label} stands here twice; name it once")
        found[model.label] = model
    return list(found.values())


def _datasets(document: Document, asked: _File, catalog: Catalog) -> list[Dataset]:
    found: dict[str, Dataset] = {}
    for i, value in enumerate(asked.datasets):
        at = ("datasets", i)
        dataset = _entry(document, at, Dataset, value)
        if dataset.folder is None:
            _known(document, at, "data set", dataset.name, catalog.datasets, "datasets")
        else:
            dataset = _with_folder(document, at, dataset, catalog)
        if dataset.name in found:
            raise document.error(at, f"a data set named {shown(dataset.name)} stands here already; "
                                     "names must differ")  # fmt: skip
        found[dataset.name] = dataset
    return list(found.values())


def _with_folder(document: Document, at: Key, dataset: Dataset, catalog: Catalog) -> Dataset:
    """The data set with its folder made absolute; relative ones are relative to the sweep file."""
    if dataset.name in catalog.datasets:
        raise document.error((*at, "name"), f"{shown(dataset.name)} is a data set that netpress has; "
                                            "give the folder's another name")  # fmt: skip
    folder = (document.path.parent / Path(dataset.folder or "").expanduser()).resolve()
    if not folder.is_dir():
        raise document.error((*at, "folder"), f"{shown(str(folder))} is not there; expected a folder "
                                              "with train/CLASS/ and test/CLASS/")  # fmt: skip
    return dataset.model_copy(update={"folder": str(folder)})


# --- techniques ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Technique:
    label: str
    family: str
    stages: tuple[Stage, ...]
    at: Key  # where the sweep file asks for it


def _techniques(
    document: Document, asked: _File, catalog: Catalog
) -> tuple[list[_Technique], tuple[str, ...]]:
    """Every technique and operating point of the sweep, resolved once, and notes about them."""
    chains = {name: _parse(document, name, catalog) for name in asked.define}
    for name, chain in chains.items():  # all are checked, also those that no cell uses
        _resolve(document, chain, catalog)
    found: list[_Technique] = []
    for i, name in enumerate(asked.techniques):
        at = ("techniques", i)
        _known(document, at, "technique", name, {**catalog.techniques, **chains}, "techniques")
        chain = chains.get(name) or _built_in(catalog.techniques[name], at)
        found += _points(document, asked, catalog, name, chain, at)
    _check_grid_names(document, asked)
    _refuse_same(document, found)
    unused = [name for name in chains if name not in asked.techniques]
    notes = tuple(f"{document.path}:{document.line(('define', name))}: define.{name}: defined, but "
                  f"not in `techniques`, so no cell uses it" for name in unused)  # fmt: skip
    return found, notes


_Step = tuple[str, dict[str, Any], Key]  # stage, settings as written, where they stand


def _built_in(chain: Chain, at: Key) -> list[_Step]:
    return [(name, dict(settings or {}), at) for step in chain for name, settings in step.items()]


def _parse(document: Document, name: str, catalog: Catalog) -> list[_Step]:
    """The chain under `define: NAME`: a list of `- stage: {settings}`."""
    at, chain = ("define", name), document.data["define"][name]
    _check_label(document, at, name)
    if name in catalog.techniques:
        raise document.error(
            at, f"{shown(name)} is a technique that netpress has; choose another name"
        )
    if not isinstance(chain, list) or not chain:
        raise document.error(at, "expected a list of stages, such as `- finetune: {epochs: 5}`")
    return [_parse_step(document, (*at, i), step, catalog) for i, step in enumerate(chain)]


def _parse_step(document: Document, at: Key, step: Any, catalog: Catalog) -> _Step:
    step = {step: {}} if isinstance(step, str) else step
    if not isinstance(step, dict) or len(step) != 1:
        raise document.error(at, "expected one stage with its settings, such as `- finetune: "
                                 f"{{epochs: 5}}`, got {described(step)}")  # fmt: skip
    [(stage, settings)] = step.items()
    if stage not in catalog.stages:
        raise document.error((*at, stage), f"unknown stage {shown(stage)}; "
                             f"{nearest(stage, catalog.stages)}")  # fmt: skip
    return stage, {} if settings is None else settings, (*at, stage)


def _check_label(document: Document, at: Key, label: str) -> None:
    document.check(at, _Label, {"label": label})


class _Label(Frozen):
    label: Name


def _resolve(document: Document, chain: list[_Step], catalog: Catalog) -> tuple[Stage, ...]:
    """Settings checked and filled in; a stage that stands for several becomes them."""
    stages: list[Stage] = []
    for name, written, at in chain:
        settings = document.check(at, catalog.stages[name], written)
        expand = catalog.expanders.get(name)
        stages += [Stage(*pair) for pair in (expand(settings) if expand else [(name, settings)])]
    return tuple(stages)


def _points(document: Document, asked: _File, catalog: Catalog, family: str,
            chain: list[_Step], at: Key) -> Iterator[_Technique]:  # fmt: skip
    """The technique, or one for each operating point that `grid` asks for."""
    if family not in asked.grid:
        yield _Technique(family, family, _resolve(document, chain, catalog), at)
        return
    axes = _axes(document, asked, family, chain, catalog)
    if _product(len(values) for values in axes.values()) > MAX_CELLS:
        raise document.error(("grid", family), f"more than {MAX_CELLS:,} points; leave some out")
    for point in itertools.product(*(range(len(values)) for values in axes.values())):
        chosen = {key: axes[key][i] for key, i in zip(axes, point, strict=True)}
        label = "-".join([family, *(_spelled(value) for value in chosen.values())])
        _check_label(document, ("grid", family), label)
        yield _Technique(label, family, _at_point(document, family, chain, catalog, chosen), at)


def _axes(document: Document, asked: _File, family: str, chain: list[_Step],
          catalog: Catalog) -> dict[str, list[Any]]:  # fmt: skip
    """`grid: FAMILY:` checked: {"prune.parameters_kept": [0.5, 0.25]}."""
    axes, at = asked.grid[family], ("grid", family)
    if not isinstance(axes, dict) or not axes:
        raise document.error(at, "expected `stage.setting: [values]`")
    valid = [f"{name}.{key}" for name, _, _ in chain for key in catalog.stages[name].model_fields]
    for key, values in axes.items():
        if key not in valid:
            raise document.error(
                (*at, key), f"no stage of {family!r} has it; {nearest(key, valid)}"
            )
        if not isinstance(values, list) or not values:
            raise document.error((*at, key), "expected a list of values, at least one")
        _refuse_twins(document, (*at, key), values)
    return axes


def _at_point(document: Document, family: str, chain: list[_Step], catalog: Catalog,
              chosen: dict[str, Any]) -> tuple[Stage, ...]:  # fmt: skip
    """The chain with `chosen` settings; a bad value is reported where the grid has it."""
    for key, value in chosen.items():
        stage, setting = key.split(".", 1)
        for name, written, _ in chain:
            if name == stage:
                at = ("grid", family, key)
                _check_one(document, at, catalog.stages[name], {**written, setting: value}, setting)
    changed = []
    for name, written, at in chain:
        mine = {key.split(".", 1)[1]: value for key, value in chosen.items()
                if key.split(".", 1)[0] == name}  # fmt: skip
        changed.append((name, {**written, **mine}, at))
    return _resolve(document, changed, catalog)


def _check_one(document: Document, at: Key, model: type[BaseModel], written: dict[str, Any],
               setting: str) -> None:  # fmt: skip
    try:
        document.check((), model, written)
    except UserError as error:
        problem = str(error).split(": ", 1)[1].removeprefix(f"{setting}: ")
        raise document.error(at, problem) from None


def _spelled(value: Any) -> str:
    """A grid value in a label: 0.25, true, l1."""
    return value if isinstance(value, str) else json.dumps(value)


def _check_grid_names(document: Document, asked: _File) -> None:
    for family in asked.grid:
        if family not in asked.techniques:
            raise document.error(("grid", family), f"{shown(family)} is not among this sweep's "
                                 f"techniques; {nearest(family, asked.techniques)}")  # fmt: skip


def _refuse_same(document: Document, techniques: list[_Technique]) -> None:
    """No two labels for one cell, and no two cells for one label."""
    labels: dict[str, _Technique] = {}
    chains: dict[str, _Technique] = {}
    for technique in techniques:
        if technique.label in labels:
            raise document.error(technique.at, f"two techniques would be called {technique.label!r}; "
                                               "rename one")  # fmt: skip
        labels[technique.label] = technique
        twin = chains.setdefault(",".join(s.canonical for s in technique.stages), technique)
        if twin is not technique:
            raise document.error(technique.at, f"{technique.label!r} is the same as {twin.label!r}, "
                                 "stage by stage; keep one")  # fmt: skip


# --- the matrix ------------------------------------------------------------------------------


def _matrix(document: Document, asked: _File, datasets: list[Dataset], models: list[Model],
            techniques: list[_Technique]) -> tuple[Cell, ...]:  # fmt: skip
    """All cells but the excluded ones, and the bases that they stand on; bases first."""
    count = _product(map(len, (datasets, models, techniques, asked.seeds)))
    if count > MAX_CELLS:
        raise document.error((), f"{count:,} cells; a sweep has at most {MAX_CELLS:,}: "
                                 "fewer seeds, techniques or grid values")  # fmt: skip
    excluded = _excluded(document, asked, datasets, models, techniques)
    plain = [technique for technique in techniques if technique.stages]
    wants_base = len(plain) < len(techniques)
    bases: list[Cell] = []
    cells: list[Cell] = []
    for dataset, model, seed in itertools.product(datasets, models, asked.seeds):

        def cell(label: str, family: str, stages: tuple[Stage, ...],
                 d: Dataset = dataset, m: Model = model, s: int = seed) -> Cell:  # fmt: skip
            return Cell(d, m, label, family, s, stages, asked.training, asked.measure)

        here = [cell(t.label, t.family, t.stages) for t in plain
                if (dataset.name, model.label, t.label, seed) not in excluded]  # fmt: skip
        base_excluded = (dataset.name, model.label, BASE, seed) in excluded
        if here and base_excluded:
            at = ("exclude", excluded[dataset.name, model.label, BASE, seed])
            raise document.error(at, f"excludes the base of {here[0].name}, which needs it; "
                                     "exclude that too")  # fmt: skip
        if here or (wants_base and not base_excluded):
            bases.append(cell(BASE, BASE, ()))
        cells += here
    if not bases:
        raise document.error(("exclude",), "everything is excluded: no cell is left")
    return (*bases, *cells)


Point = tuple[str, str, str, int]  # data set, model label, technique label, seed


def _excluded(document: Document, asked: _File, datasets: list[Dataset], models: list[Model],
              techniques: list[_Technique]) -> dict[Point, int]:  # fmt: skip
    """Every excluded point of the matrix, with the number of the entry that excludes it."""
    excluded: dict[Point, int] = {}
    for i, entry in enumerate(asked.exclude):
        axes = (
            [d.name for d in datasets if entry.dataset in (None, d.name)],
            [m.label for m in models if entry.model in (None, m.name, m.label)],
            [t.label for t in techniques if entry.technique in (None, t.label, t.family)],
            [seed for seed in asked.seeds if entry.seed in (None, seed)],
        )
        if entry == _Exclude():
            raise document.error(("exclude", i), "names nothing; expected dataset, model, technique "
                                                 "or seed")  # fmt: skip
        if not all(axes):
            raise document.error(("exclude", i), "matches no cell of this sweep")
        for point in itertools.product(*axes):
            excluded.setdefault(point, i)
    return excluded


def _product(counts: Any) -> int:
    total = 1
    for count in counts:
        total *= count
    return total


def _strictly(model: type[BaseModel], data: Any) -> Any:
    return model.model_validate_json(json.dumps(data), strict=True)
