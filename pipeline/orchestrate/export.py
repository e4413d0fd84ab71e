"""Exports a compressed model: a cell's artifact, checked, in a folder of its own. It comes from the
work root, or, where that has none, from a report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import gaps, paths, store
from pipeline.errors import Corrupt, UserError
from pipeline.orchestrate.plan import quoted
from pipeline.orchestrate.reported import Files, Reported
from pipeline.paths import CellPaths, Work
from pipeline.sweep import Cell, Sweep


@dataclass(frozen=True)
class _Model:
    """A folder with a model, and the files in it that belong to it."""

    folder: Path
    files: Files


def export(
    sweep: Sweep,
    cell: Cell,
    work: Work,
    to: Path,
    encoded: bool = False,
    reports: Sequence[Reported] = (),
) -> Path:
    """Copy the artifact of `cell` to `to`, completely or not at all; returns the absolute path. A
    coded artifact is decoded to its runnable form, unless `encoded` is set. `reports`: where it is
    taken from if the work root has none.

    Raises UserError where the cell is not done, its artifact was changed, or `to` exists.
    """
    target = new_folder(to)
    try:
        model = _in_work(work.cell(cell.id)) or _in_reports(cell, reports)
        if model is None:
            reason = f"{gaps.reason(cell, work)}{_without(cell, reports)}"
            raise UserError(f"{cell.name} ({cell.id}) has no model to export yet: {reason}")
        copy = _copy_stored if encoded else _copy_runnable
        with store.shared():
            store.publish_new_folder(target, lambda folder: copy(model, folder))
    except Corrupt as error:
        again = f"`netpress run {quoted(sweep)}` makes it again"
        raise UserError(f"{cell.name} ({cell.id}) is damaged: {error}; {again}") from error
    except FileExistsError:  # created while the model was copied
        raise taken(to) from None
    except OSError as error:
        raise UserError(f"{to}: cannot be written: {error.strerror or error}") from error
    return target


def new_folder(to: Path) -> Path:
    """The absolute path without `..` and links, so that the path that is checked is the one
    created."""
    given = paths.expanded(to)
    target = Path(os.path.realpath(given))
    if os.path.lexists(given) or os.path.lexists(target):  # a dangling link exists, too
        raise taken(to)
    return target


def taken(to: Path) -> UserError:
    return UserError(f"{to}: exists already, expected the name of a new folder")


def _in_work(cell: CellPaths) -> _Model | None:
    """Raises Corrupt where it is not what the cell's manifest says."""
    if store.read_manifest(cell) is None:
        return None
    files = store.verify(cell, deep=False)["files"]
    prefix = f"{cell.artifact.name}/"
    own = {n.removeprefix(prefix): entry for n, entry in files.items() if n.startswith(prefix)}
    return _Model(cell.artifact, own)


def _in_reports(cell: Cell, reports: Sequence[Reported]) -> _Model | None:
    """Raises Corrupt where it is not what the report's results.h5 says."""
    for report in reports:
        if report.has_model(cell.id):
            return _Model(report.paths.artifact(cell.id), report.files(cell.id))
    return None


def _without(cell: Cell, reports: Sequence[Reported]) -> str:
    """What the reports have in its place."""
    parts = []
    for report in reports:
        has = "its result without the model" if report.has_result(cell.id) else "no result of it"
        parts.append(f"; the report {report.paths.folder} has {has}")
    return "".join(parts)


def _copy(model: _Model, folder: Path) -> None:
    for name, entry in model.files.items():
        copy = folder / name
        store.make_folder(copy.parent)
        store.copy_checked(model.folder / name, copy, entry["bytes"], entry["sha256"])


def _copy_stored(model: _Model, folder: Path) -> None:
    """With the program that decodes it, where its codec comes with one."""
    from pipeline.artifact.coded import CODECS

    _copy(model, folder)
    stored = {path.suffix for path in folder.iterdir()}
    for codec in CODECS.values():
        if codec.decoder is not None and codec.suffix in stored:
            (folder / codec.decoder.name).write_bytes(codec.decoder.read_bytes())


def _copy_runnable(model: _Model, folder: Path) -> None:
    """Decodes before the folder is published, so nobody sees the stored form in it."""
    _copy(model, folder)
    if not any(path.name.startswith("model.onnx.") for path in folder.iterdir()):
        return  # it is stored in its runnable form
    from pipeline import artifact  # here, since it loads ONNX

    stored = artifact.load(folder)
    artifact.write_runnable(stored, folder)
    stored.model_path.unlink()
