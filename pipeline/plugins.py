"""Plug-ins: files that a sweep names, and installed packages with entry points.

A file declares what it adds in module-level tables (STAGES, TECHNIQUES, MODELS, DATASETS,
TRANSFORMS, RUNTIMES), with the rows of the tables that netpress has, and objects in place of the
paths of modules. An entry point (groups `netpress.stages`, ...) names one such row, where a path
of a module can stand for the object.

This is the user's own code, and is executed: a file only when a sweep or a cell of the user's own
work root that names it is loaded, once per process. No report and no artifact leads here.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from pipeline import registry, store
from pipeline.errors import UserError
from pipeline.models.transforms import Transform
from pipeline.paths import NAME, Work
from pipeline.registry import WORDS, Added
from pipeline.strict_yaml import shown
from pipeline.sweep.own import is_editable, module_file
from pipeline.sweep.settings import Model, Plugin
from pipeline.techniques.settings import StageSettings

MAX_BYTES = 10_000_000
FUNCTIONS = {  # kind: what the object of a row gives
    "stages": ("Settings", "apply"),
    "models": ("spec", "build", "graph"),
    "datasets": ("FLIP", "facts", "key", "verify", "decode", "fetch"),
    "runtimes": ("LABEL", "PACKAGE", "READS_ARTIFACTS", "available", "load", "kernels"),
}


@dataclass(frozen=True)
class Loaded:
    """A plug-in, and its rows: kind -> name -> row."""

    plugin: Plugin
    rows: Mapping[str, Mapping[str, Added]]


_files: dict[str, tuple[bytes, ModuleType]] = {}  # by SHA-256, of this process


# --- files -----------------------------------------------------------------------------------


def from_file(source: Path, at: Path | None = None, sha256: str | None = None) -> Loaded:
    """The plug-in `source`, read from its copy `at` where there is one.

    Raises UserError where there is none, where it is another one than `sha256`, where it cannot be
    imported, and where what it declares is not what netpress can use.
    """
    module, digest = _module(at or source, source, sha256)
    plugin = Plugin(source=str(source), sha256=digest)
    return Loaded(plugin, _rows(module, plugin))


def imported(path: Path, source: Path, sha256: str | None) -> ModuleType:
    """The module in `path`, a copy of `source`; raises as `from_file`."""
    return _module(path, source, sha256)[0]


def _module(path: Path, source: Path, sha256: str | None) -> tuple[ModuleType, str]:
    """The module, executed once per process, and its SHA-256."""
    content = _content(path, source)
    digest = hashlib.sha256(content).hexdigest()
    if sha256 is not None and digest != sha256:
        raise UserError(
            f"{path}: is another file than this cell was made for (SHA-256 {digest[:12]}..., "
            f"expected {sha256[:12]}... of {source}); load its sweep again"
        )
    if digest not in _files:
        _files[digest] = content, _imported(path, content, digest)
    return _files[digest][1], digest


def _content(path: Path, source: Path) -> bytes:
    try:
        if not path.is_file():
            named = "" if path == source else f" (a copy of {source})"
            raise UserError(f"{path}: is not there{named}; expected a Python file")
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: is larger than {MAX_BYTES:,} bytes; expected a Python file")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None


def _imported(path: Path, content: bytes, sha256: str) -> ModuleType:
    """From the bytes that were hashed, under a name of its own: whatever else is called so."""
    module = ModuleType(f"netpress_plugin_{sha256}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses and pydantic look up annotations
    try:
        exec(compile(content, str(path), "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        problem = str(error).strip().splitlines() or [""]
        line = _line(error, str(path))
        raise UserError(
            f"{path}:{line}: cannot be imported: {type(error).__name__}: {problem[0]}"
        ) from error
    return module


def _line(error: BaseException, path: str) -> int:
    """Where in the file, as near to the error as it goes."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return error.lineno or 1
    line, frame = 1, error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == path:
            line = frame.tb_lineno
        frame = frame.tb_next
    return line


def _rows(module: ModuleType, plugin: Plugin) -> dict[str, dict[str, Added]]:
    tables = {kind: getattr(module, kind.upper(), {}) for kind in WORDS}
    for kind, table in tables.items():
        if not isinstance(table, Mapping):
            raise UserError(f"{plugin.source}: {kind.upper()}: expected a dict, name: row")
        for name, row in table.items():
            _check(kind, name, row, f"{plugin.source}: {kind.upper()}", paths=False)
    if not any(tables.values()):
        expected = ", ".join(kind.upper() for kind in WORDS)
        raise UserError(f"{plugin.source}: adds nothing; expected one of {expected}, a dict each")
    return {
        kind: {name: _added(plugin, partial(_same, row)) for name, row in table.items()}
        for kind, table in tables.items()
    }


def _added(plugin: Plugin, load: Callable[[], Any]) -> Added:
    return Added(load, plugin.label, plugin.canonical)


def _same(row: Any) -> Any:
    return row


def keep(plugins: Iterable[Plugin], work: Work) -> None:
    """A copy of each file under the work root: a process that runs a cell, or builds the report,
    reads it there, whatever becomes of the user's file."""
    for sha256 in [plugin.sha256 for plugin in plugins if plugin.sha256 is not None]:
        copy = work.plugin(sha256)
        content = _files[sha256][0]
        try:
            if copy.read_bytes() == content:
                continue
        except FileNotFoundError:
            store.make_folder(copy.parent)
        store.publish_bytes(copy, content)


def keep_own(models: Iterable[Model], work: Work) -> None:
    """The same for the files that users' own networks are built by. They are not executed here, so
    their bytes are read again; UserError where they are others by now."""
    for own in dict.fromkeys(model.own.canonical for model in models if model.own):
        network = next(m.own for m in models if m.own and m.own.canonical == own)
        if network.sha256 is None or not network.source.endswith(".py"):
            continue
        copy, source = work.plugin(network.sha256), Path(network.source)
        if copy.exists():
            continue
        content = _content(source, source)
        if hashlib.sha256(content).hexdigest() != network.sha256:
            raise UserError(f"{source}: changed since the sweep was loaded; load it again")
        store.make_folder(copy.parent)
        store.publish_bytes(copy, content)


# --- installed packages ------------------------------------------------------------------------


@cache
def installed() -> tuple[Loaded, ...]:
    """Those of this environment; nothing of them is imported before one of their rows is used."""
    plugins: dict[str, Loaded] = {}
    for dist in metadata.distributions():
        declared = dist.read_text("entry_points.txt")  # not parsed where no line is for netpress
        if declared and "[netpress." in declared:
            plugins.setdefault(dist.name, _of_distribution(dist))  # the first one is imported
    return tuple(plugins[name] for name in sorted(plugins))


def _of_distribution(dist: metadata.Distribution) -> Loaded:
    entries = [
        (kind, entry)
        for entry in dist.entry_points
        if (kind := entry.group.removeprefix("netpress.")) != entry.group and kind in WORDS
    ]
    version = dist.version
    if is_editable(dist):
        version = f"{version}+sha256.{_code_sha256([entry for _, entry in entries])[:16]}"
    plugin = Plugin(source=dist.name, version=version)
    rows: dict[str, dict[str, Added]] = {kind: {} for kind in WORDS}
    for kind, entry in entries:
        load = cache(partial(_entry, kind, entry, plugin.label))
        rows[kind][entry.name] = _added(plugin, load)
    return Loaded(plugin, rows)


def _code_sha256(entries: Iterable[metadata.EntryPoint]) -> str:
    """Of the files of the modules that entry points name, which their author changes without a new
    version. Of one that is not there, its name: loading it tells why."""
    digest = hashlib.sha256()
    for name in sorted({entry.module for entry in entries}):
        file = module_file(name)
        content = store.sha256(file) if file is not None and file.is_file() else ""
        digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()


def _entry(kind: str, entry: metadata.EntryPoint, label: str) -> Any:
    try:
        row = entry.load()
    except (Exception, SystemExit) as error:
        _refuse(
            label,
            f"its entry point {entry.name} = {entry.value} cannot be imported: "
            f"{type(error).__name__}: {error}",
        )
    _check(kind, entry.name, row, f"{label}: netpress.{kind}", paths=True)
    return row


def from_package(plugin: Plugin) -> Loaded:
    """The installed one that a cell was made for; UserError where it is another version."""
    for loaded in installed():
        if loaded.plugin == plugin:
            return loaded
    versions = [each.plugin.version for each in installed() if each.plugin.source == plugin.source]
    here = f"{versions[0]} is installed" if versions else "it is not installed"
    _refuse(plugin.label, f"this cell needs it, but here {here}; install this version")


# --- rows --------------------------------------------------------------------------------------


def _check(kind: str, name: Any, row: Any, where: str, paths: bool) -> None:
    """UserError where it is no row of this kind. `paths`: it can name a module by its path."""
    where = f"{where}: {shown(name)}"
    if not isinstance(name, str) or not NAME.fullmatch(name) or name[0] in ".-":
        _refuse(where, "expected a name of letters, digits, dots, dashes and underscores")
    if kind == "techniques":
        return _check_technique(row, where)
    thing = row
    if kind in ("models", "datasets"):
        lengths = (2, 3) if kind == "models" else (2,)
        if not isinstance(row, tuple) or len(row) not in lengths or not isinstance(row[1], str):
            macs = ", MACs relative to VGG-16's" if kind == "models" else ""
            _refuse(where, f"expected a tuple (object, a line about it{macs})")
        if row[2:] not in ((), (None,)) and not isinstance(row[2], (int, float)):
            _refuse(where, f"expected its MACs relative to VGG-16's, got {shown(row[2])}")
        thing = row[0]
    if isinstance(thing, str):
        if not paths:
            _refuse(where, f"expected an object of this file, got {shown(thing)}")
        return None  # a path: looked at when it is used
    _check_object(kind, name, thing, where)


def _check_object(kind: str, name: str, thing: Any, where: str) -> None:
    if kind == "transforms":
        right = isinstance(thing, type) and issubclass(thing, Transform)
        if not right or getattr(thing, "name", None) != name:
            _refuse(
                where, f"expected a class of pipeline.models.transforms.Transform, named {name}"
            )
        return
    if lacking := [part for part in FUNCTIONS[kind] if not hasattr(thing, part)]:
        _refuse(where, f"lacks {', '.join(lacking)}")
    if kind == "stages":
        settings = thing.Settings
        if not (isinstance(settings, type) and issubclass(settings, StageSettings)):
            _refuse(where, "its Settings derive from pipeline.techniques.settings.StageSettings")


def _check_technique(row: Any, where: str) -> None:
    right = isinstance(row, tuple) and len(row) == 2 and isinstance(row[0], str)
    if not right or not isinstance(row[1], list) or not all(map(_is_step, row[1])) or not row[1]:
        _refuse(where, "expected (a line about it, [{stage: {setting: value}}, ...])")


def _is_step(step: Any) -> bool:
    return (
        isinstance(step, dict)
        and len(step) == 1
        and all(isinstance(k, str) and isinstance(v, dict) for k, v in step.items())
    )


def _refuse(where: str, problem: str) -> NoReturn:
    raise UserError(f"{where}: {problem}")


def activate(plugins: Iterable[Loaded], built_in: Mapping[str, Iterable[str]]) -> None:
    """Put the rows of these, and of no others, beside the built-in ones; UserError for a name that
    is taken."""
    rows: dict[str, dict[str, Added]] = {kind: {} for kind in WORDS}
    for loaded in plugins:
        for kind, table in loaded.rows.items():
            for name, added in table.items():
                owner = "netpress" if name in built_in.get(kind, ()) else None
                if name in rows[kind]:
                    owner = rows[kind][name].source
                if owner:
                    _refuse(
                        loaded.plugin.source,
                        f"the {WORDS[kind]} {shown(name)} is in {owner} already; give this one "
                        "another name",
                    )
                rows[kind][name] = added
    registry.fill(rows)
