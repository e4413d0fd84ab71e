"""The matrix: data sets x models x techniques x seeds, without what `exclude` names."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from pipeline.strict_yaml import nearest, shown
from pipeline.sweep.cell import BASE, Cell, Dataset, Model, Recipe
from pipeline.sweep.file import MAX_CELLS, Exclude, Source
from pipeline.sweep.techniques import Technique

Point = tuple[str, str, str, int]  # data set, model's label, technique's label, seed


def build_cells(
    source: Source,
    datasets: list[Dataset],
    recipes: Mapping[str, Recipe],
    models: list[Model],
    techniques: list[Technique],
) -> tuple[Cell, ...]:
    """All cells but the excluded ones, and the bases that they stand on; bases first."""
    config = source.config
    _check_size(source, datasets, models, techniques)
    excluded = _excluded(source, datasets, models, techniques)
    asks_base = any(not technique.stages for technique in techniques)
    bases: list[Cell] = []
    cells: list[Cell] = []
    for dataset, model, seed in itertools.product(datasets, models, config.seeds):
        recipe = recipes[dataset.name]
        used = source.catalog.of_base(dataset.name, model.name, config.measure.runtimes)
        base = Cell(dataset, model, BASE, BASE, seed, (), recipe, config.measure, plugins=used)
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


def _check_size(source: Source, *axes: list[Any]) -> None:
    count = math.prod(map(len, axes)) * len(source.config.seeds)
    if count > MAX_CELLS:
        raise source.error(
            (), f"asks for {count:,} cells, at most {MAX_CELLS:,} can be; leave some seeds out"
        )


def _excluded(
    source: Source, datasets: list[Dataset], models: list[Model], techniques: list[Technique]
) -> dict[Point, int]:
    """Every excluded point of the matrix, with the number of the entry that excludes it."""
    excluded: dict[Point, int] = {}
    for i, entry in enumerate(source.config.exclude):
        if entry == Exclude():
            raise source.error(
                ("exclude", i), "names nothing; expected dataset, model, technique or seed"
            )
        axes = {  # key -> {value that the entry may name: labels that it stands for}
            "dataset": {d.name: [d.name] for d in datasets},
            "model": _grouped((m.name, m.label) for m in models),
            "technique": _grouped((t.family, t.label) for t in techniques),
            "seed": {seed: [seed] for seed in source.config.seeds},
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


def _chosen(source: Source, entry: int, key: str, value: Any, axis: dict[Any, list]) -> list:
    """The labels on one axis of the matrix that `exclude[entry]` covers; all, if it names none."""
    if value is None:
        return list(dict.fromkeys(itertools.chain(*axis.values())))
    if value not in axis:
        raise source.error(
            ("exclude", entry, key),
            f"{shown(value)} is not in this sweep; {nearest(value, map(str, axis))}",
        )
    return axis[value]
