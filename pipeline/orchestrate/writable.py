"""Whether what a command is about to write can be written, tried before it does anything."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pipeline import paths
from pipeline.errors import UserError


def require_work(work: paths.Work) -> None:
    """Raises UserError where the work root cannot be written; leaves no files behind."""
    what = f"{work.root}: the work root cannot be written there"
    _require(work.root, what, "set NETPRESS_WORK to a folder that you may write to")


def require_report(reports: Path, sweep: str) -> None:
    """Raises UserError where a report of this sweep could not be written from here; leaves no
    files behind."""
    report = paths.report(sweep, reports)
    for folder in (report.folder, report.tables, report.figures, report.artifacts):
        if os.path.lexists(folder) or folder is report.folder:
            what = f"{folder}: the report cannot be written there"
            _require(folder, what, "run this in a folder that you may write to")


def _require(folder: Path, what: str, remedy: str) -> None:
    nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise UserError(f"{what}, since {nearest} is not a folder; remove it, or {remedy}")
    try:
        with tempfile.TemporaryDirectory(prefix=".netpress-probe-", dir=nearest):
            pass
    except OSError as error:
        raise UserError(f"{what}, {error.strerror} in {nearest}; {remedy}") from None
