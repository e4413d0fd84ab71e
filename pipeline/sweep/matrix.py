"""The matrix: data sets x models x techniques x seeds, without what `exclude` names."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.sweep.cell import BASE, Cell
from pipeline.sweep.file import MAX_CELLS, Recipes, Source, named_on
from pipeline.sweep.settings import Dataset, Model
from pipeline.sweep.start import Bases
from pipeline.sweep.techniques import Technique

Names = tuple[Any, ...]  # all that an entry of `exclude` may call a point of an axis


def build_cells(
    source: Source,
    datasets: list[Dataset],
    recipes: Recipes,
    models: list[Model],
    techniques: list[Technique],
) -> tuple[Cell, ...]:
    """All cells but the excluded ones, and the bases that they stand on; bases first, each after
    the one that it starts from."""
    config = source.config
    _check_size(source, datasets, models, techniques)
    exclusions = _exclusions(source, datasets, models, techniques)
    asks_base = any(not technique.stages for technique in techniques)
    bases = _bases(source, datasets, recipes, models, exclusions)
    cells: list[Cell] = []
    for dataset, model, seed in itertools.product(datasets, models, config.seeds):
        names = tuple(model.names)
        here = [
            technique
            for technique in techniques
            if technique.stages
            and exclusions.entry(dataset.name, names, _technique_names(technique), seed) is None
        ]
        without_base = exclusions.entry(dataset.name, names, (BASE,), seed)
        if here and without_base is not None:
            raise source.error(
                ("exclude", without_base),
                f"excludes the base that {dataset.name}/{model.label}/{here[0].label}/{seed} "
                "starts from; exclude that too",
            )
        if here or (asks_base and without_base is None):
            base = bases.of(dataset, model, seed)
            cells += [
                replace(base, technique=t.label, family=t.family, stages=t.stages) for t in here
            ]
    if not bases.wanted:
        raise source.error(("exclude",), "excludes every cell; leave at least one")
    return (*bases.wanted.values(), *cells)


def _bases(
    source: Source,
    datasets: list[Dataset],
    recipes: Recipes,
    models: list[Model],
    exclusions: _Exclusions,
) -> Bases:
    """All that there can be, from fresh weights."""
    measure, points = source.config.measure, {}
    for dataset, model in itertools.product(datasets, models):
        used = source.catalog.of_base(dataset.name, model.name, measure.runtimes)
        recipe = recipes[dataset.name, model.label]
        for seed in source.config.seeds:
            points[dataset.name, model.label, seed] = Cell(
                dataset, model, BASE, BASE, seed, (), recipe, measure, plugins=used
            )

    def excluded(cell: Cell) -> bool:
        names = tuple(cell.model.names)
        return exclusions.entry(cell.dataset.name, names, (BASE,), cell.seed) is not None

    at = {model.label: ("models", i) for i, model in enumerate(models)}
    return Bases(source.document, points, excluded, at)


def _check_size(source: Source, *axes: list[Any]) -> None:
    count = math.prod(map(len, axes)) * len(source.config.seeds)
    if count > MAX_CELLS:
        raise source.error(
            (), f"asks for {count:,} cells, at most {MAX_CELLS:,} can be; leave some seeds out"
        )


@dataclass(frozen=True)
class _Exclusions:
    """The entries of `exclude`, indexed by what they name: the keys of one entry are one pattern,
    and a point is looked up once for each pattern, however many entries there are."""

    patterns: Mapping[tuple[bool, ...], Mapping[tuple[Any, ...], int]]

    def entry(self, dataset: str, model: Names, technique: Names, seed: int) -> int | None:
        """The number of the first entry that excludes this point of the matrix; None for none."""
        axes: tuple[Names, ...] = ((dataset,), model, technique, (seed,))
        matching: list[int] = []
        for named, entries in self.patterns.items():
            chosen = [axis if name else (None,) for axis, name in zip(axes, named, strict=True)]
            matching += [entries[k] for k in itertools.product(*chosen) if k in entries]
        return min(matching, default=None)


def _exclusions(
    source: Source, datasets: list[Dataset], models: list[Model], techniques: list[Technique]
) -> _Exclusions:
    axes: dict[str, set[Any]] = {
        "dataset": {dataset.name for dataset in datasets},
        "model": {name for model in models for name in model.names},
        "technique": {name for technique in techniques for name in _technique_names(technique)},
        "seed": set(source.config.seeds),
    }
    patterns: dict[tuple[bool, ...], dict[tuple[Any, ...], int]] = {}
    for i, entry in enumerate(source.config.exclude):
        values = named_on(source, ("exclude", i), axes, entry)
        if not any(values):
            raise source.error(
                ("exclude", i), "names nothing; expected dataset, model, technique or seed"
            )
        named = tuple(names is not None for names in values)
        entries = patterns.setdefault(named, {})
        for point in itertools.product(*(dict.fromkeys(names or [None]) for names in values)):
            entries.setdefault(point, i)
    return _Exclusions(patterns)


def _technique_names(technique: Technique) -> Names:
    """The family stands for all of its operating points."""
    return tuple({technique.family, technique.label})
