"""The deployable models in a report, REPORT/artifacts/ID/: others can measure them again."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline import store
from pipeline.errors import Corrupt
from pipeline.paths import ReportPaths, Work
from pipeline.report.merged import Published

Files = dict[str, dict]  # name -> {"bytes", "sha256"}


def publish(published: Published, work: Work, paths: ReportPaths, most_bytes: int | None) -> None:
    """Copy the artifacts of at most `most_bytes` (None: none), and take away those in the report
    that are no longer a cell's own. Raises Corrupt where one in the work root was changed."""
    wanted = {} if most_bytes is None else _within(published, most_bytes)
    for cell_id, files in wanted.items():
        if differs(paths.artifact(cell_id), files):
            source = work.cell(cell_id).artifact
            store.publish_folder(
                paths.artifact(cell_id), lambda to, s=source, f=files: _copy(s, f, to)
            )
    for folder in present(paths):
        if folder.name not in wanted and (most_bytes is not None or _is_stale(published, folder)):
            _remove(folder)


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
    if not folder.is_dir():
        return "is missing"
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
    for name in sorted(there ^ set(files)):
        return f"{name} is {'missing' if name in files else 'not part of it'}"
    for name, said in files.items():
        path = folder / name
        if path.is_symlink() or path.stat().st_size != said["bytes"]:
            return f"{name} does not have its {said['bytes']} bytes"
        if store.sha256(path) != said["sha256"]:
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
        copy = to / name
        store.make_folder(copy.parent)
        shutil.copyfile(source / name, copy)
        if store.sha256(copy) != said["sha256"]:  # of the copy: nothing comes in between
            raise Corrupt(f"{source / name}: its SHA-256 is not the one in its manifest")
