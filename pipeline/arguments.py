"""What an argument of a command means: a sweep (by file or name), a report or an artifact."""

from __future__ import annotations

from pathlib import Path

from pipeline import paths
from pipeline.errors import UserError
from pipeline.paths import ReportPaths

SWEEP_FILE = "a sweep file (YAML)"
OR_REPORT = f"{SWEEP_FILE}, or a report's folder (with results.h5)"
OR_MODEL = f"{SWEEP_FILE}, a report's folder (with results.h5) or an exported model's"


def sweep_file(name_or_path: str | Path, expected: str = SWEEP_FILE) -> Path:
    """The YAML file meant by a path, or by the name of a sweep that ships; UserError if neither.
    `expected`: what the command takes, SWEEP_FILE or more."""
    from pipeline.strict_yaml import nearest  # here: `netpress --help` needs no YAML

    text = str(name_or_path)
    if not text.strip():  # as a path it would be the current folder
        raise UserError(f"{text!r}: is no name, expected {expected}, or the name of one that ships")
    if shipped := _shipped(text):
        return shipped
    path = paths.expanded(text)
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"{text}: is a folder, expected {expected}")
    if path.exists():
        raise UserError(f"{text}: is not a plain file, expected {expected}")
    near = nearest(path.stem, [p.stem for p in paths.shipped_sweeps().glob("*.yaml")])
    more = "" if expected == SWEEP_FILE else f"; expected {expected}"
    raise UserError(f"{text}: no such sweep file, and no shipped sweep of this name ({near}){more}")


def published_report(text: str) -> Path | None:
    """The folder of a report that is meant by a path; None where it has no results.h5, or where a
    shipped sweep has this name."""
    if not text or _shipped(text):
        return None
    folder = paths.expanded(text)
    return folder if ReportPaths(folder).merged.is_file() else None


def is_artifact(text: str) -> bool:
    """Whether a path is that of an artifact's folder."""
    folder = paths.expanded(text)
    return bool(text) and (folder / "manifest.json").is_file() and any(folder.glob("model.onnx*"))


def _shipped(text: str) -> Path | None:
    """The file of the sweep that ships under this name."""
    file = paths.shipped_sweeps() / f"{text}.yaml"
    return file if paths.NAME.fullmatch(text) and file.is_file() else None
