"""A sweep file's keys: read and checked, with models and data sets that the catalog knows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import Discriminator, Field, Tag

from pipeline import paths
from pipeline.errors import UserError
from pipeline.strict_yaml import Document, Key, described, nearest, shown
from pipeline.sweep import own, recipes, start
from pipeline.sweep.settings import (
    Dataset,
    Frozen,
    Measure,
    Model,
    Name,
    Pack,
    Recipe,
    Seed,
    canonical_json,
)

if TYPE_CHECKING:
    from pipeline.catalog import Catalog

MAX_CELLS = 500_000  # planned in a minute, in 1.5 GB


T = TypeVar("T")
OneOrMore = Annotated[
    Annotated[T, Tag("[one]")] | Annotated[list[T], Tag("[list]")],
    Discriminator(lambda value: "[list]" if isinstance(value, list) else "[one]"),
]


class Exclude(Frozen):
    """What an axis is called, or a list of it; None: all."""

    dataset: OneOrMore[str] | None = None
    model: OneOrMore[str] | None = None
    technique: OneOrMore[str] | None = None
    seed: OneOrMore[int] | None = None


class Override(Frozen):
    """What of the training differs on a data set, for a model, or for a model on a data set."""

    dataset: OneOrMore[str] | None = None
    model: OneOrMore[str] | None = None
    training: dict[str, Any]


class SweepFile(Frozen):
    """The keys of a sweep file; what depends on the catalog is checked after this."""

    name: Name
    plugins: list[str] = []
    models: list[Any] = Field(min_length=1)
    datasets: list[Any] = Field(min_length=1)
    seeds: list[Seed] = Field([0], min_length=1)
    techniques: list[str] = Field(min_length=1)
    training: Recipe = Recipe()
    overrides: list[Override] = []
    measure: Measure = Measure()
    exclude: list[Exclude] = []
    define: dict[str, Any] = {}
    grid: dict[str, Any] = {}
    tune: dict[str, Any] = {}
    profile: Name | None = None
    pack: Pack | None = None
    tracking: list[Literal["tensorboard", "mlflow", "wandb"]] = []


class _Plugins(Frozen):
    plugins: list[str] = []


class _DatasetEntry(Dataset):
    """An entry of `datasets`; its `training` is what differs from the sweep's on this data set."""

    training: dict[str, Any] = {}


class _ModelEntry(Frozen):
    """An entry of `models` without a factory."""

    name: Name
    width: float = Field(1.0, gt=0, le=4)


OF_OWN = ("arguments", "weights", "pixels")


class _Label(Frozen):
    label: Name


@dataclass(frozen=True)
class Source:
    """What the reading functions below share: the document, its keys, what it may name, and files
    of own networks that were read before."""

    document: Document
    config: SweepFile
    catalog: Catalog
    read_before: own.Read = field(default_factory=dict)

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


def read_config(document: Document) -> SweepFile:
    data = document.data
    for key in ("models", "datasets", "seeds", "techniques"):
        if data.get(key, ...) in ([], None):
            raise document.error((key,), "names nothing, so the matrix is empty; name at least one")
    for at, part, value in _parts(data):  # on their own, so that each can name its nearest key
        document.check(at, part, value)
    config = document.check((), SweepFile, data)
    for key in ("models", "datasets", "seeds", "techniques", "overrides", "exclude"):
        refuse_twins(document, (key,), data.get(key, []))
    return config


def with_plugins(
    document: Document, catalog: Catalog, copies: Mapping[str, tuple[Path, str]]
) -> Catalog:
    """The catalog with the files under `plugins`, which lie relative to the sweep file."""
    listed = document.check((), _Plugins, {"plugins": document.data.get("plugins", [])}).plugins
    refuse_twins(document, ("plugins",), listed)
    at: Key = ("plugins",) if listed else ()
    loaded = []
    try:
        for i, name in enumerate(listed):
            at = ("plugins", i)
            path = (document.path.parent / paths.expanded(name)).resolve()
            loaded.append(catalog.plugin(path, *copies.get(str(path), ())))
        return catalog.with_plugins(loaded)
    except UserError as error:
        raise document.error(at, str(error)) from error


def _parts(data: dict[str, Any]) -> Iterator[tuple[Key, type[Frozen], Any]]:
    for key, part in (("training", Recipe), ("measure", Measure), ("pack", Pack)):
        if key in data:
            yield (key,), part, data[key]
    of_lists: tuple[tuple[str, type[Frozen]], ...]
    of_lists = (("overrides", Override), ("exclude", Exclude))
    for key, entries in of_lists:
        if isinstance(data.get(key), list):
            for i, entry in enumerate(data[key]):
                yield (key, i), entries, entry


def refuse_twins(document: Document, at: Key, values: Sequence[Any]) -> None:
    seen: set[str] = set()
    for i, value in enumerate(values):
        text = canonical_json(value)
        if text in seen:
            raise document.error((*at, i), f"{shown(value)} stands here twice; name it once")
        seen.add(text)


def read_models(source: Source) -> list[Model]:
    models: dict[str, Model] = {}
    for i, value in enumerate(source.config.models):
        at = ("models", i)
        model = _model(source, at, value)
        if model.label in models:
            raise source.error(at, f"{model.label} stands here twice; name it once")
        models[model.label] = model
    return list(models.values())


def _model(source: Source, at: Key, value: Any) -> Model:
    """A model by its name, or a user's own by its factory; what it starts from."""
    if isinstance(value, dict) and "weights_from" in value:
        alone = {key: given for key, given in value.items() if key != "weights_from"}
        model = _model(source, at, alone)
        begin = start.read(source.document, at, value, source.read_before)
        started = model.model_copy(update={"start": begin})
        source.check_label((*at, "weights_from"), started.label)
        return started
    if isinstance(value, dict) and "factory" in value:
        model = own.read(source.document, at, value, source.read_before)
        if model.name in source.catalog.models:
            raise source.error(
                (*at, "name"),
                f"{shown(model.name)} is a model that netpress has; give yours another name",
            )
        return model
    if isinstance(value, dict) and (given := [key for key in OF_OWN if key in value]):
        raise source.error((*at, given[0]), "is of an own network, which has a `factory`, too")
    model = _entry(source.document, at, _ModelEntry, value)
    source.known(at, "model", model.name, source.catalog.models, "models")
    return Model(name=model.name, width=model.width)


def read_datasets(source: Source) -> tuple[list[Dataset], dict[str, Recipe]]:
    """The data sets, and the recipe on each by its name."""
    datasets: dict[str, Dataset] = {}
    recipes: dict[str, Recipe] = {}
    for i, value in enumerate(source.config.datasets):
        at = ("datasets", i)
        entry = _entry(source.document, at, _DatasetEntry, value)
        dataset = Dataset(**entry.model_dump(exclude={"training"}))
        if dataset.folder is not None:
            dataset = _with_folder(source, at, dataset)
        else:
            source.known(at, "data set", dataset.name, source.catalog.datasets, "datasets")
            _check_settings(source, at, dataset)
        if dataset.name in datasets:
            raise source.error(at, f"{shown(dataset.name)} stands here already; names must differ")
        datasets[dataset.name] = dataset
        recipes[dataset.name] = _recipe(
            source, (*at, "training"), source.config.training, entry.training
        )
    return list(datasets.values()), recipes


Recipes = Mapping[tuple[str, str], Recipe]  # by the data set's name and the model's label


def read_recipes(
    source: Source, on: Mapping[str, Recipe], datasets: list[Dataset], models: list[Model]
) -> Recipes:
    """The recipe of each model on each data set: `on` that data set, with what `overrides` says."""
    recipes = {(d.name, m.label): on[d.name] for d in datasets for m in models}
    axes = {
        "dataset": {dataset.name for dataset in datasets},
        "model": {name for model in models for name in model.names},
    }
    for i, override in enumerate(source.config.overrides):
        at = ("overrides", i)
        named, of_models = named_on(source, at, axes, override)
        if named is None and of_models is None:
            raise source.error(at, "is for no data set and no model; give `dataset` or `model`")
        if not override.training:
            raise source.error((*at, "training"), "says nothing; expected settings that differ")
        for dataset, model in itertools.product(datasets, models):
            if (named is None or dataset.name in named) and (
                of_models is None or not model.names.isdisjoint(of_models)
            ):
                point = dataset.name, model.label
                recipes[point] = _recipe(
                    source, (*at, "training"), recipes[point], override.training
                )
    return recipes


def named_on(
    source: Source, at: Key, axes: Mapping[str, set[Any]], entry: Frozen
) -> list[list[Any] | None]:
    """What an entry names on each axis; None: nothing, so that it is about all of the axis. Raises
    UserError for an empty list, and for what is not on the axis."""
    values = [_each(getattr(entry, key)) for key in axes]
    for (key, axis), names in zip(axes.items(), values, strict=True):
        if names == []:
            raise source.error((*at, key), f"names nothing; expected a {key}, or a list of them")
        for name in names or ():
            if name not in axis:
                raise source.error(
                    (*at, key),
                    f"{shown(name)} is not in this sweep; {nearest(name, map(str, axis))}",
                )
    return values


def _each(named: Any) -> list[Any] | None:
    return named if named is None or isinstance(named, list) else [named]


def _recipe(source: Source, at: Key, of_more: Recipe, differs: dict[str, Any]) -> Recipe:
    if not differs:
        return of_more
    source.document.check(at, Recipe, differs)
    return Recipe(**{**of_more.model_dump(), **recipes.expanded(differs)})


def _entry(document: Document, at: Key, part: type[Frozen], value: Any) -> Any:
    """An entry of `models` or `datasets`: a name, or a mapping with `name` and more."""
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict):
        raise document.error(at, f"expected a name, or a mapping with it, got {described(value)}")
    return document.check(at, part, value)


def _check_settings(source: Source, at: Key, dataset: Dataset) -> None:
    if dataset.name not in source.catalog.folders:
        for name in dataset.of_images:
            raise source.error((*at, name), "is for folders of images; remove it")


def _with_folder(source: Source, at: Key, dataset: Dataset) -> Dataset:
    """The data set with its folder made absolute; a relative one starts at the sweep file."""
    if dataset.name in set(source.catalog.datasets) - source.catalog.folders:
        raise source.error(
            (*at, "name"),
            f"{shown(dataset.name)} is a data set that netpress has; give the folder another name",
        )
    here = source.document.path.parent
    try:
        folder = (here / paths.expanded(dataset.folder or "")).resolve()
        is_there = folder.is_dir()
    except (UserError, OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise source.error((*at, "folder"), str(error)) from None
    if not is_there:
        raise source.error(
            (*at, "folder"),
            f"{shown(str(folder))} is not there; expected a folder with train/CLASS/ and "
            "test/CLASS/ in it",
        )
    return dataset.model_copy(update={"folder": str(folder)})
