"""Take a compressed model away: a finished cell's artifact, checked, in a folder of its own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

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


def _artifact(paths: CellPaths) -> dict[str, str]:
    """The artifact's files: name in the cell's folder -> SHA-256."""
    files = store.verify(paths, deep=False)["files"]
    prefix = f"{paths.artifact.name}/"
    return {name: said["sha256"] for name, said in files.items() if name.startswith(prefix)}


def _copy(paths: CellPaths, files: dict[str, str], folder: Path) -> None:
    for name, expected in files.items():
        source = paths.folder / name
        copy = folder / source.relative_to(paths.artifact)
        store.make_folder(copy.parent)
        shutil.copyfile(source, copy)
        if store.sha256(copy) != expected:  # of the copy, so that nothing comes in between
            raise Corrupt(f"{source}: its SHA-256 is not the one in its manifest")
