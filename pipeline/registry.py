"""What plug-ins add to the tables of stages, techniques, models, data sets, transforms, runtimes.

Each table is a dict in the package that it is of; `catalog.py`, which knows plug-ins, puts their
rows here, below all of them. A process has the plug-ins of one sweep, or of one cell, at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pipeline.errors import UserError
from pipeline.strict_yaml import nearest, shown

WORDS = {  # kind: what one of it is called
    "stages": "stage",
    "techniques": "technique",
    "models": "model",
    "datasets": "data set",
    "transforms": "transform",
    "runtimes": "runtime",
}


@dataclass(frozen=True)
class Added:
    """A row of a plug-in. `load` gives it, as in the built-in table; `source`: what people call the
    plug-in; `stamp`: what changes when the plug-in does."""

    load: Callable[[], Any]
    source: str
    stamp: str


_added: dict[str, dict[str, Added]] = {}


def fill(rows: Mapping[str, Mapping[str, Added]]) -> None:
    """From now on these, {kind: {name: row}}, and no others, stand beside the built-in ones."""
    _added.clear()
    _added.update({kind: dict(table) for kind, table in rows.items()})


def add(kind: str, name: str, row: Added) -> None:
    """One more, beside those of `fill`."""
    _added.setdefault(kind, {})
    _added[kind] = {**_added[kind], name: row}


def added(kind: str) -> Mapping[str, Added]:
    return _added.get(kind, {})


def names(kind: str, built_in: Iterable[str]) -> list[str]:
    return [*built_in, *added(kind)]


def row(kind: str, built_in: Mapping[str, Any], name: str) -> Any:
    """The row of this name; UserError where neither netpress nor a plug-in of this sweep has it."""
    if name in built_in:
        return built_in[name]
    if name in added(kind):
        return added(kind)[name].load()
    raise UserError(
        f"unknown {WORDS[kind]} {shown(name)}, {nearest(name, names(kind, built_in))}; what a "
        "plug-in adds is known where a sweep that names the plug-in is run"
    )


def stamp(kind: str, name: str) -> str | None:
    """What changes when the plug-in that adds this row does; None for a built-in one."""
    return added(kind)[name].stamp if name in added(kind) else None


def resolved(target: Any) -> Any:
    """What a row names: `module` or `module:attribute`; an object is itself. UserError where its
    module ends the process."""
    if not isinstance(target, str):
        return target
    name, _, attribute = target.partition(":")
    try:
        module = import_module(name)
    except SystemExit as error:  # it would end netpress without a word
        raise UserError(f"{target}: cannot be imported: SystemExit: {error}") from error
    return getattr(module, attribute) if attribute else module
