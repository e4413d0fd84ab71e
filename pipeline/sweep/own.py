"""Entries of `models` that name a factory: where it lies, and what its bytes are.

Nothing of it is imported here: `netpress plan` parses a file, or finds a module's file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Mapping
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline import paths
from pipeline.errors import UserError
from pipeline.strict_yaml import Document, Key, nearest, shown
from pipeline.sweep import top_level
from pipeline.sweep.settings import Frozen, Model, Name, Own, Pixels

MAX_BYTES = 10_000_000
MAX_PARSED_BYTES = 200_000  # in 0.2 s; whether a longer one has the function is seen when it runs


class Entry(Frozen):
    """An own network as the sweep file specifies it."""

    name: Name
    factory: str
    width: float = Field(1.0, gt=0, le=1)
    arguments: dict[str, Any] = {}
    weights: str | None = None
    pixels: Pixels | None = None


Read = Mapping[str, str]  # files that were read before, by their paths -> SHA-256


def read(document: Document, at: Key, value: dict[str, Any], known: Read) -> Model:
    """The model of an entry with a `factory`; UserError where one of its files is not there, or
    does not have the function. Those in `known` are taken as they were then, and need not be there
    any more."""
    entry = document.check(at, Entry, value)
    place, _, function = entry.factory.rpartition(":")
    if not place or not function.isidentifier():
        raise document.error(
            (*at, "factory"),
            f"expected FILE.py:FUNCTION or MODULE:FUNCTION, got {shown(entry.factory)}",
        )
    try:
        if place.endswith(".py"):
            source = _file(document, place, function, known)
        else:
            source = _module(place)
    except (UserError, OSError) as error:
        raise document.error((*at, "factory"), _told(error)) from None
    weights: dict[str, Any] = {}
    if entry.weights is not None:
        path, sha256 = weights_in(document, (*at, "weights"), entry.weights, known)
        weights = {"weights": path, "weights_sha256": sha256}
    own = Own(
        **source,
        function=function,
        arguments=entry.arguments,
        pixels=entry.pixels,
        **weights,
    )
    return Model(name=entry.name, width=entry.width, own=own)


def weights_in(document: Document, at: Key, name: str, known: Read) -> tuple[str, str]:
    """Where a file of weights lies, and its SHA-256; raises as `read`."""
    try:
        path = _beside(document, name)
        return str(path), known.get(str(path)) or _sha256(path, "a file of weights")
    except (UserError, OSError) as error:
        raise document.error(at, _told(error)) from None


def _told(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _beside(document: Document, name: str) -> Path:
    """A relative path starts at the sweep file."""
    return (document.path.parent / paths.expanded(name)).resolve()


def files(model: Model) -> dict[str, str]:
    """What `read` looked at, as it takes it again: path -> SHA-256."""
    own, start = model.own, model.start
    digests = {} if own is None else {own.source: own.sha256, own.weights: own.weights_sha256}
    digests |= {} if start is None else {start.source: start.sha256}
    return {path: sha256 for path, sha256 in digests.items() if path and sha256}


def _file(document: Document, name: str, function: str, known: Read) -> dict[str, Any]:
    path = _beside(document, name)
    if str(path) in known:
        return {"source": str(path), "sha256": known[str(path)]}
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: is larger than {MAX_BYTES:,} bytes; expected a Python file")
    digest = _sha256(path, "a Python file")
    if path.stat().st_size <= MAX_PARSED_BYTES:
        _require(function, path)
    return {"source": str(path), "sha256": digest}


def _require(function: str, path: Path) -> None:
    """UserError where the file is no Python, or lacks the function however it runs."""
    try:
        names = top_level.names(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        line, problem = getattr(error, "lineno", None) or 1, getattr(error, "msg", error)
        raise UserError(
            f"{path}:{line}: cannot be imported: {type(error).__name__}: {problem}"
        ) from None
    if names is not None and function not in names.bound:
        raise UserError(
            f"{path}: has no {shown(function)} at its top level; {nearest(function, names.made)}"
        )


def _sha256(path: Path, expected: str) -> str:
    if not path.is_file():
        raise UserError(f"{path}: is not there; expected {expected}")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _module(name: str) -> dict[str, Any]:
    """A module that can be imported: of an installed distribution, whose version identifies it, or
    else, as of one that is installed in editable mode, by the bytes of its file. Packages are
    looked into, not imported."""
    file = module_file(name)
    if file is None:
        raise UserError(
            f"{shown(name)} cannot be imported here; expected a module, or a file such as "
            "nets.py:build"
        )
    version = _version(name.partition(".")[0])
    if version is not None:
        return {"source": name, "version": version}
    return {"source": name, "sha256": _sha256(file, "a Python file")}


def module_file(name: str) -> Path | None:
    """Where the code of a module that can be imported lies; None where there is none."""
    top, *rest = name.split(".")
    spec = _found(top)
    for part in rest:
        inside = spec.submodule_search_locations if spec is not None else None
        spec = PathFinder.find_spec(part, inside) if inside else None
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


def _found(top: str) -> ModuleSpec | None:
    """On the path, or by a finder of its own, as an editable install may have."""
    with contextlib.suppress(ValueError):  # of what is loaded and has no spec
        return PathFinder.find_spec(top, sys.path) or find_spec(top)
    return None


def _version(distribution: str) -> str | None:
    """None where it is not installed, or where its files are its author's, who changes them."""
    try:
        installed = metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return None
    return None if is_editable(installed) else installed.version


def is_editable(installed: metadata.Distribution) -> bool:
    direct = json.loads(installed.read_text("direct_url.json") or "{}")  # PEP 610
    return bool(direct.get("dir_info", {}).get("editable"))
