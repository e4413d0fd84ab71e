"""The deployable models in a report, REPORT/artifacts/ID/: others can measure them again."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pipeline import store
from pipeline.artifact.format import MODEL_BYTES
from pipeline.errors import Corrupt
from pipeline.paths import ReportPaths, Work
from pipeline.report.merged import Published
from pipeline.report.owned import Owned

Files = dict[str, dict]  # name -> {"bytes", "sha256"}


def wanted(
    published: Published, work: Work, paths: ReportPaths, most_bytes: int | None
) -> dict[str, Files]:
    """The artifacts of at most `most_bytes` (None: none) that are to be in the report, by cell. One
    of a cell of an earlier report, which the work root does not have, can only stay."""
    within = {} if most_bytes is None else _within(published, most_bytes)
    return {
        cell_id: files
        for cell_id, files in within.items()
        if work.cell(cell_id).manifest.exists() or paths.artifact(cell_id).exists()
    }


def names(paths: ReportPaths, models: dict[str, Files]) -> list[str]:
    """How the report calls their files."""
    return [
        f"{paths.name(paths.artifact(i))}/{name}" for i, files in models.items() for name in files
    ]


def publish(
    models: dict[str, Files], published: Published, work: Work, owned: Owned, *, only: bool
) -> None:
    """Copy these artifacts, whose files the report owns, and take away those that are no longer a
    cell's own, or, with `only`, all others. Raises Corrupt, after all others, where one in the work
    root is damaged."""
    damaged = [error for one in models.items() if (error := _bring(*one, work, owned))]
    for folder in present(owned.paths):
        if folder.name not in models and (only or _is_stale(published, folder)):
            owned.remove(owned.of_model(folder.name))
    if damaged:
        raise damaged[0]


def _bring(cell_id: str, files: Files, work: Work, owned: Owned) -> Corrupt | None:
    """What is wrong with the one in the work root; the report then has none of this cell."""
    target = owned.paths.artifact(cell_id)
    if differs(target, files) is None:
        return None
    try:
        store.publish_folder(target, lambda to: _copy(work.cell(cell_id).artifact, files, to))
    except Corrupt as error:
        owned.remove(owned.of_model(cell_id))
        return error
    return None


def present(paths: ReportPaths) -> list[Path]:
    """What lies in the report's folder of artifacts, by name."""
    return sorted(paths.artifacts.iterdir()) if paths.artifacts.is_dir() else []


def require(folder: Path, files: Files) -> None:
    """Raises Corrupt where a folder is not an artifact of these files."""
    if wrong := differs(folder, files):
        raise Corrupt(f"{folder}: {wrong}")


def differs(folder: Path, files: Files) -> str | None:
    """How a folder is not an artifact of these files, in a few words; None where it is."""
    if folder.is_symlink() or not folder.is_dir():  # a link may lead to the whole machine
        return "is missing"
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
    for name in sorted(there ^ set(files)):
        return f"{name} is {'missing' if name in files else 'not part of it'}"
    for name, recorded in files.items():
        status = os.lstat(folder / name)
        if not stat.S_ISREG(status.st_mode):
            return f"{name} is not a regular file"
        if recorded["bytes"] > MODEL_BYTES:
            return f"{name} should have {recorded['bytes']} bytes, expected at most {MODEL_BYTES}"
        if status.st_size != recorded["bytes"]:
            return f"{name} does not have its {recorded['bytes']} bytes"
        if store.sha256(folder / name) != recorded["sha256"]:
            return f"{name} was changed, its SHA-256 is not the recorded one"
    return None


def _within(published: Published, most_bytes: int) -> dict[str, Files]:
    return {
        row.id: published.artifact(row.id)
        for row in published.frames.rows
        if row.stored_bytes is not None and row.stored_bytes <= most_bytes
    }


def _is_stale(published: Published, folder: Path) -> bool:
    known = folder.name in published.frames.ids
    return not known or differs(folder, published.artifact(folder.name)) is not None


def _copy(source: Path, files: Files, to: Path) -> None:
    for name, recorded in files.items():
        store.make_folder((to / name).parent)
        try:
            store.copy_checked(source / name, to / name, recorded["bytes"], recorded["sha256"])
        except FileNotFoundError:
            raise Corrupt(f"{source / name}: is missing, its manifest names it") from None
