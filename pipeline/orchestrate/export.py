"""Take a compressed model away: a finished cell's artifact, checked, in a folder of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pipeline import gaps, store
from pipeline.errors import Corrupt, UserError
from pipeline.orchestrate.plan import called
from pipeline.paths import CellPaths, Work
from pipeline.sweep import Cell, Sweep


def export(sweep: Sweep, cell: Cell, work: Work, to: Path) -> Path:
    """Copy the artifact of `cell` to `to`, whole or not at all; returns the absolute path.

    Raises UserError where the cell is not done, its artifact was changed, or `to` is taken.
    """
    target = Path(to).expanduser().absolute()
    _refuse_taken(to, target)
    paths = work.cell(cell.id)
    try:
        if store.read_manifest(paths) is None:
            reason = gaps.reason(cell, work)
            raise UserError(f"{cell.name} ({cell.id}) has no model to export yet: {reason}")
        files = _artifact(paths)
        store.publish_folder(target, lambda folder: _copy(paths, files, folder))
    except Corrupt as error:
        again = f"`netpress run {called(sweep)}` makes it again"
        raise UserError(f"{cell.name} ({cell.id}) is damaged: {error}; {again}") from error
    except OSError as error:
        raise UserError(f"{to}: cannot be written: {error.strerror or error}") from error
    return target


def _refuse_taken(to: Path, target: Path) -> None:
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        raise UserError(f"{to}: is there already, expected the name of a new folder")
    if os.path.samefile(target, os.curdir):  # it would be replaced under the user's feet
        raise UserError(f"{to}: is the current folder, expected the name of a new one")
    if any(target.iterdir()):
        raise UserError(f"{to}: is a folder with files in it, expected a new or empty one")


def _artifact(paths: CellPaths) -> dict[str, dict[str, Any]]:
    """The artifact's files: name in the cell's folder -> {"bytes", "sha256"}."""
    files = store.verify(paths, deep=False)["files"]
    prefix = f"{paths.artifact.name}/"
    return {name: said for name, said in files.items() if name.startswith(prefix)}


def _copy(paths: CellPaths, files: dict[str, dict[str, Any]], folder: Path) -> None:
    for name, said in files.items():
        source = paths.folder / name
        copy = folder / source.relative_to(paths.artifact)
        store.make_folder(copy.parent)
        store.copy_checked(source, copy, said["bytes"], said["sha256"])
