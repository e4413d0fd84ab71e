"""What there is: built-in, installed plug-ins, and files that a sweep names.

Nothing here imports torch: `netpress plan` builds the catalog. A plug-in's rows are loaded when
they are used, so that one that is installed but not named costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline import plugins, registry
from pipeline.data import DATASETS, FOLDERS
from pipeline.errors import UserError
from pipeline.models import MODELS
from pipeline.models.transforms import TRANSFORMS
from pipeline.paths import CellPaths
from pipeline.plugins import Loaded
from pipeline.runtimes import RUNTIMES
from pipeline.sweep.cell import plugins_of
from pipeline.sweep.settings import Model, Plugin, Recipe, strictly
from pipeline.techniques import STAGES, TECHNIQUES
from pipeline.techniques.settings import StageSettings, Trained, recorded

Chain = Sequence[Mapping[str, Mapping[str, Any]]]  # ({"prune": {...}}, {"finetune": {...}})
Expander = Callable[[Any], Sequence[tuple[str, Any]]]
Read = Callable[[Any, Any], BaseModel]

TABLES: dict[str, Mapping[str, Any]] = {
    "stages": STAGES,
    "techniques": TECHNIQUES,
    "models": MODELS,
    "datasets": DATASETS,
    "transforms": TRANSFORMS,
    "runtimes": RUNTIMES,
}


@dataclass(frozen=True)
class Catalog:
    """What a sweep file may name. `models` and `datasets`: name -> a line about it; `stages`:
    name -> its settings; `techniques`: name -> its chain; `expanders`: stage -> a function of
    its settings to the (stage, settings) pairs that it stands for (such as pruning in steps);
    `folders`: those of `datasets` that may lie elsewhere, given with `folder:`; `versions`: stage
    -> its version, 1 where it declares none; `origins`: kind -> name -> the plug-in that it is of;
    `files`: the plug-ins that the sweep names; `recorded`: what makes settings of those that a
    plug-in's stage recorded, where plug-ins are not to be loaded."""

    models: Mapping[str, str]
    datasets: Mapping[str, str]
    stages: Mapping[str, type[BaseModel]]
    techniques: Mapping[str, Chain]
    expanders: Mapping[str, Expander] = field(default_factory=dict)
    folders: frozenset[str] = frozenset()
    versions: Mapping[str, int] = field(default_factory=dict)
    origins: Mapping[str, Mapping[str, Plugin]] = field(default_factory=dict)
    files: tuple[Plugin, ...] = ()
    recorded: Read | None = None

    def of_base(self, dataset: str, model: str, runtimes: Sequence[str]) -> tuple[Plugin, ...]:
        """The plug-ins that these are of."""
        named = [("datasets", dataset), ("models", model), *(("runtimes", r) for r in runtimes)]
        return self._origins(named)

    def of_stage(self, stage: str, settings: BaseModel) -> tuple[Plugin, ...]:
        """The plug-ins that a stage and the models that its settings name are of."""
        models = settings.models() if isinstance(settings, StageSettings) else ()
        return self._origins([("stages", stage), *(("models", model) for model in models)])

    def discards(self, settings: BaseModel) -> bool:
        """Whether a stage with these settings keeps nothing of the network that it is given."""
        return isinstance(settings, StageSettings) and settings.discards()

    def finetunes(self, settings: BaseModel, recipe: Recipe) -> bool:
        """Whether a stage with these settings goes on training what it is given, at a rate of its
        own, `learning_rate_factor`."""
        if not isinstance(settings, Trained) or settings.starts_fresh():
            return False
        return settings.epochs_of(recipe) > 0

    def doubt(self, stages: Sequence[BaseModel], recipe: Recipe) -> str | None:
        """What the first stage says against its settings with this recipe; stages whose weights
        one after them throws away do not count."""
        known = [each for each in stages if isinstance(each, StageSettings)]
        fresh = [i for i, each in enumerate(known) if each.starts_fresh()]
        kept = known[fresh[-1] :] if fresh else known
        return next((line for each in kept if (line := each.doubt(recipe))), None)

    def _origins(self, named: Sequence[tuple[str, str]]) -> tuple[Plugin, ...]:
        owners = (self.origins.get(kind, {}).get(name) for kind, name in named)
        return tuple(dict.fromkeys(plugin for plugin in owners if plugin is not None))

    def plugin(self, path: Path, copy: Path | None = None, sha256: str | None = None) -> Loaded:
        """What a file adds; it is executed. Arguments and errors as `plugins.from_file`."""
        return plugins.from_file(path, copy, sha256)

    def with_plugins(self, files: Sequence[Loaded]) -> Catalog:
        """With what is installed and these files, which this process knows from now on."""
        return _extended(self, (*plugins.installed(), *files), files)

    def of_cell(self, data: Mapping[str, Any], paths: CellPaths) -> Catalog:
        """For a cell as its cell.json, in the user's own work root, has it: with the plug-ins that
        it was planned with. UserError where one is not here, or is another one."""
        loaded = [
            plugins.from_package(plugin)
            if plugin.sha256 is None
            else plugins.from_file(Path(plugin.source), paths.plugin(plugin.sha256), plugin.sha256)
            for plugin in plugins_of(data)
        ]
        extended = _extended(self, loaded, ())
        own = data["model"].get("own")
        if own is not None:
            _add_own(strictly(Model, data["model"]), paths)
        return extended


def _add_own(model: Model, paths: CellPaths) -> None:
    """A user's own network as a row of the models, until the next cell's plug-ins take its place;
    its file is executed when it is built."""
    own = model.own
    assert own is not None
    if model.name in MODELS:
        raise UserError(f"model {model.name}: is one that netpress has; expected another name")
    copy = paths.plugin(own.sha256) if own.sha256 and own.source.endswith(".py") else None

    @cache
    def row() -> tuple[Any, str]:
        from pipeline.models import own as owned  # torch, which only building needs

        return owned.OwnModel(own, owned.load(own, copy)), f"built by {own.label}"

    registry.add("models", model.name, registry.Added(row, own.label, own.canonical))


@dataclass(frozen=True)
class _Lazy(Mapping[str, Any]):
    """A table, and what plug-ins add to it, each made when it is looked up."""

    table: Mapping[str, Any]
    rows: Mapping[str, registry.Added]
    made: Callable[[Any], Any]

    def __getitem__(self, name: str) -> Any:
        return self.table[name] if name in self.table else self.made(self.rows[name].load())

    def __iter__(self) -> Iterator[str]:
        yield from self.table
        yield from self.rows

    def __len__(self) -> int:
        return len(self.table) + len(self.rows)


@dataclass(frozen=True)
class _OfStages(Mapping[str, Any]):
    """What the module of each built-in stage has; imported when it is looked up."""

    read: Callable[[Any], Any]

    def __getitem__(self, name: str) -> Any:
        return self.read(import_module(STAGES[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(STAGES)

    def __len__(self) -> int:
        return len(STAGES)


@cache
def built_in() -> Catalog:
    """What comes with netpress, from its registries."""
    return Catalog(
        models={name: row[1] for name, row in MODELS.items()},
        datasets={name: entry.description for name, entry in DATASETS.items()},
        stages=_OfStages(lambda module: module.Settings),
        techniques={name: chain for name, (_, chain) in TECHNIQUES.items()},
        expanders=_OfStages(lambda module: getattr(module, "expand", None)),
        folders=FOLDERS,
        versions=_OfStages(lambda module: getattr(module, "VERSION", 1)),
    )


def reading() -> Catalog:
    """For cells of a report, which can be anybody's: no plug-in is loaded for them."""
    return replace(built_in(), recorded=recorded)


def _extended(base: Catalog, loaded: Sequence[Loaded], files: Sequence[Loaded]) -> Catalog:
    plugins.activate(loaded, TABLES)
    if not loaded:
        return base
    rows = {kind: registry.added(kind) for kind in TABLES}
    origins: dict[str, dict[str, Plugin]] = {kind: {} for kind in TABLES}
    for each in loaded:
        for kind, table in each.rows.items():
            origins[kind].update(dict.fromkeys(table, each.plugin))
    extended = replace(
        base,
        models=_Lazy(base.models, rows["models"], lambda row: row[1]),
        datasets=_Lazy(base.datasets, rows["datasets"], lambda row: row[1]),
        stages=_Lazy(base.stages, rows["stages"], lambda row: registry.resolved(row).Settings),
        techniques=_Lazy(base.techniques, rows["techniques"], lambda row: row[1]),
        expanders=_Lazy(base.expanders, rows["stages"], _expander),
        versions=_Lazy(base.versions, rows["stages"], _stage_version),
        origins=origins,
        files=tuple(each.plugin for each in files),
    )
    _check_chains(extended, files)
    return extended


def _expander(row: Any) -> Expander | None:
    return getattr(registry.resolved(row), "expand", None)


def _stage_version(row: Any) -> int:
    return getattr(registry.resolved(row), "VERSION", 1)


def _check_chains(catalog: Catalog, files: Sequence[Loaded]) -> None:
    """Every stage of a technique that a file adds is there."""
    for loaded in files:
        for name, row in loaded.rows["techniques"].items():
            for stage in [stage for step in row.load()[1] for stage in step]:
                if stage not in catalog.stages:
                    raise UserError(
                        f"{loaded.plugin.source}: TECHNIQUES: '{name}': unknown stage '{stage}'; "
                        f"there are {', '.join(catalog.stages)}"
                    )


def lines(catalog: Catalog, kind: str) -> dict[str, str]:
    """{name: a line about it} of all `techniques`, `models` or `datasets`; those of a plug-in
    name it."""
    if kind == "techniques":
        table = _Lazy(TECHNIQUES, registry.added(kind), lambda row: row)
        descriptions = {name: f"{line}: {_chain(chain)}" for name, (line, chain) in table.items()}
    else:
        descriptions = dict(getattr(catalog, kind))
    origins = catalog.origins.get(kind, {})
    return {
        name: f"{line} (plug-in {origins[name].label})" if name in origins else line
        for name, line in descriptions.items()
    }


def _chain(chain: Chain) -> str:
    return " > ".join(name for step in chain for name in step) or "train"
