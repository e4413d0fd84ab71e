"""Exports a compressed model: a finished cell's artifact, checked, in a folder of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pipeline import gaps, paths, store
from pipeline.errors import Corrupt, UserError
from pipeline.orchestrate.plan import quoted
from pipeline.paths import CellPaths, Work
from pipeline.sweep import Cell, Sweep


def export(sweep: Sweep, cell: Cell, work: Work, to: Path, encoded: bool = False) -> Path:
    """Copy the artifact of `cell` to `to`, completely or not at all; returns the absolute path. A
    coded artifact is decoded to its runnable form, unless `encoded` is set.

    Raises UserError where the cell is not done, its artifact was changed, or `to` exists.
    """
    target = new_folder(to)
    of_cell = work.cell(cell.id)
    try:
        if store.read_manifest(of_cell) is None:
            reason = gaps.reason(cell, work)
            raise UserError(f"{cell.name} ({cell.id}) has no model to export yet: {reason}")
        files = _artifact(of_cell)
        copy = _copy_stored if encoded else _copy_runnable
        with store.shared():
            store.publish_new_folder(target, lambda folder: copy(of_cell, files, folder))
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


def _artifact(cell: CellPaths) -> dict[str, dict[str, Any]]:
    """The artifact's files: name in the cell's folder -> {"bytes", "sha256"}."""
    files = store.verify(cell, deep=False)["files"]
    prefix = f"{cell.artifact.name}/"
    return {name: entry for name, entry in files.items() if name.startswith(prefix)}


def _copy(cell: CellPaths, files: dict[str, dict[str, Any]], folder: Path) -> None:
    for name, entry in files.items():
        source = cell.folder / name
        copy = folder / source.relative_to(cell.artifact)
        store.make_folder(copy.parent)
        store.copy_checked(source, copy, entry["bytes"], entry["sha256"])


def _copy_stored(cell: CellPaths, files: dict[str, dict[str, Any]], folder: Path) -> None:
    """With the program that decodes it, where its codec comes with one."""
    from pipeline.artifact.coded import CODECS

    _copy(cell, files, folder)
    stored = {path.suffix for path in folder.iterdir()}
    for codec in CODECS.values():
        if codec.decoder is not None and codec.suffix in stored:
            (folder / codec.decoder.name).write_bytes(codec.decoder.read_bytes())


def _copy_runnable(cell: CellPaths, files: dict[str, dict[str, Any]], folder: Path) -> None:
    """Decodes before the folder is published, so nobody sees the stored form in it."""
    _copy(cell, files, folder)
    if not any(path.name.startswith("model.onnx.") for path in folder.iterdir()):
        return  # it is stored in its runnable form
    from pipeline import artifact  # here, since it loads ONNX

    stored = artifact.load(folder)
    artifact.write_runnable(stored, folder)
    stored.model_path.unlink()
