"""The deployable models in a report, REPORT/artifacts/ID/: others can measure them again."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from pipeline import store
from pipeline.artifact.format import MODEL_BYTES
from pipeline.errors import Corrupt
from pipeline.paths import ReportPaths, Work
from pipeline.report.merged import Published

Files = dict[str, dict]  # name -> {"bytes", "sha256"}


def publish(published: Published, work: Work, paths: ReportPaths, most_bytes: int | None) -> None:
    """Copy the artifacts of at most `most_bytes` (None: none), and take away those in the report
    that are no longer a cell's own. Raises Corrupt, after all others, where one in the work root is
    damaged. A cell of an earlier report has none in the work root: what is in the report stays."""
    wanted = {} if most_bytes is None else _within(published, most_bytes)
    wanted = {
        i: files
        for i, files in wanted.items()
        if work.cell(i).manifest.exists() or paths.artifact(i).exists()
    }
    damaged = [error for error in (_bring(*one, work, paths) for one in wanted.items()) if error]
    for folder in present(paths):
        if folder.name not in wanted and (most_bytes is not None or _is_stale(published, folder)):
            _remove(folder)
    if damaged:
        raise damaged[0]


def _bring(cell_id: str, files: Files, work: Work, paths: ReportPaths) -> Corrupt | None:
    """What is wrong with the one in the work root; the report then has none of this cell."""
    target = paths.artifact(cell_id)
    if differs(target, files) is None:
        return None
    try:
        store.publish_folder(target, lambda to: _copy(work.cell(cell_id).artifact, files, to))
    except Corrupt as error:
        shutil.rmtree(target, ignore_errors=True)
        return error
    return None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def present(paths: ReportPaths) -> list[Path]:
    """What lies in the report's folder of artifacts, by name."""
    return sorted(paths.artifacts.iterdir()) if paths.artifacts.is_dir() else []


def differs(folder: Path, files: Files) -> str | None:
    """How a folder is not an artifact of these files, in a few words; None where it is."""
    if folder.is_symlink() or not folder.is_dir():  # a link may lead to the whole machine
        return "is missing"
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
    for name in sorted(there ^ set(files)):
        return f"{name} is {'missing' if name in files else 'not part of it'}"
    for name, said in files.items():
        status = os.lstat(folder / name)
        if not stat.S_ISREG(status.st_mode):
            return f"{name} is no regular file"
        if said["bytes"] > MODEL_BYTES:
            return f"{name} should have {said['bytes']} bytes, expected at most {MODEL_BYTES}"
        if status.st_size != said["bytes"]:
            return f"{name} does not have its {said['bytes']} bytes"
        if store.sha256(folder / name) != said["sha256"]:
            return f"{name} was changed, its SHA-256 is not the recorded one"
    return None


def _within(published: Published, most_bytes: int) -> dict[str, Files]:
    cells = published.frames.cells
    ids = cells["id"][cells["stored_bytes"] <= most_bytes]
    return {cell_id: published.artifact(cell_id) for cell_id in ids}


def _is_stale(published: Published, folder: Path) -> bool:
    known = folder.name in set(published.frames.cells["id"])
    return not known or differs(folder, published.artifact(folder.name)) is not None


def _copy(source: Path, files: Files, to: Path) -> None:
    for name, said in files.items():
        store.make_folder((to / name).parent)
        try:
            store.copy_checked(source / name, to / name, said["bytes"], said["sha256"])
        except FileNotFoundError:
            raise Corrupt(f"{source / name}: is missing, its manifest names it") from None
