"""From a sweep file to a Sweep: every step of reading one, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import strict_yaml
from pipeline.sweep.cell import Cell
from pipeline.sweep.file import (
    Source,
    read_config,
    read_datasets,
    read_models,
    read_recipes,
    with_plugins,
)
from pipeline.sweep.matrix import build_cells
from pipeline.sweep.settings import Pack, Plugin
from pipeline.sweep.techniques import resolve_techniques

if TYPE_CHECKING:
    from pipeline.catalog import Catalog


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
    tracking: tuple[str, ...] = ()  # what follows its trainings, see pipeline/tracking
    notes: tuple[str, ...] = ()
    plugins: tuple[Plugin, ...] = ()  # the files that it names
    tuned: Mapping[str, str] = field(default_factory=dict)  # technique -> what it is a candidate of

    @cached_property
    def by_id(self) -> dict[str, Cell]:
        return {cell.id: cell for cell in self.cells}

    @cached_property
    def read_in_place(self) -> tuple[str, ...]:
        """Folders of images and files of weights: of them, unlike of plug-ins and own networks,
        the work root has no copy."""
        there = {cell.dataset.folder for cell in self.cells}
        for model in {cell.model for cell in self.cells}:
            if model.own is not None:
                there.add(model.own.weights)
            if model.start is not None and model.start.sha256 is not None:
                there.add(model.start.source)
        return tuple(sorted(place for place in there if place is not None))


def load(
    path: Path,
    catalog: Catalog,
    text: str | None = None,
    copies: Mapping[str, tuple[Path, str]] | None = None,
) -> Sweep:
    """The sweep in the YAML file `path`; raises UserError, one sentence, for whatever is wrong.

    text: what the file held when it was read before, in place of what it holds now. copies: the
    same for its plug-ins and own networks, by where they lay: (a copy, its SHA-256).
    """
    document = strict_yaml.read(Path(path), text)
    catalog = with_plugins(document, catalog, copies or {})
    known = {path: sha256 for path, (_, sha256) in (copies or {}).items()}
    source = Source(document, read_config(document), catalog, known)
    techniques = resolve_techniques(source)
    datasets, on_each = read_datasets(source)
    models = read_models(source)
    recipes = read_recipes(source, on_each, datasets, models)
    cells = build_cells(source, datasets, recipes, models, techniques)
    config = source.config
    return Sweep(
        name=config.name,
        cells=cells,
        path=document.path,
        text=document.text,
        profile=config.profile,
        pack=config.pack,
        tracking=tuple(dict.fromkeys(config.tracking)),
        notes=(*_notes(source), *_doubts(source, cells)),
        plugins=catalog.files,
        tuned={each.label: each.tuned for each in techniques if each.tuned is not None},
    )


def _notes(source: Source) -> tuple[str, ...]:
    config, document = source.config, source.document
    return tuple(
        f"{document.path}:{document.line(('define', name))}: define.{name}: defined, but no cell "
        "uses it; name it in `techniques` as well"
        for name in config.define
        if name not in config.techniques
    )


def _doubts(source: Source, cells: Iterable[Cell]) -> Iterator[str]:
    """What stages say against the recipe, once for each technique and data set."""
    seen = set()
    for cell in cells:
        where = f"{cell.technique} on {cell.dataset.name}"
        settings = [stage.settings for stage in cell.stages]
        if where not in seen and (line := source.catalog.doubt(settings, cell.recipe)):
            seen.add(where)
            yield f"{source.document.path}: {where}: {line}"
