"""From published results to what people read. Works on partial results and names each gap.

Never imports torch. pandas and matplotlib are loaded when a report is asked for, so that
`pipeline.report.gaps` stays cheap for status.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import store
from pipeline.paths import ReportPaths, Work, report
from pipeline.report.answer import best

if TYPE_CHECKING:
    from pipeline.report.frames import Frames
    from pipeline.sweep import Sweep

__all__ = ["best", "build", "print_summary", "rows"]


def build(sweep: Sweep, work: Work, out: Path | None = None) -> ReportPaths:
    """Write OUT/SWEEP/ (out: ./reports) from what is there; the same results give the same bytes.

    Each file appears whole or not at all; the Markdown, which points to the others, comes last.
    Raises OSError where they cannot be written.
    """
    from pipeline.report import figures, frames, json_rows, tables, text, usage

    found = frames.read(sweep, work)
    listed = json_rows.rows(found)
    paths = report(sweep.name, out)
    store.publish_bytes(paths.csv, tables.csv_text(found.cells).encode())
    if listed:
        store.publish_bytes(paths.accuracy_bytes, figures.accuracy_bytes(listed))
    else:  # one of an earlier report would be of results that are gone
        paths.accuracy_bytes.unlink(missing_ok=True)
    figure = paths.accuracy_bytes.relative_to(paths.folder).as_posix() if listed else None
    used = usage.read(sweep.cells, work)
    markdown = text.report(sweep, found, listed, figure, used)
    store.publish_bytes(paths.markdown, markdown.encode())
    return paths


def rows(sweep: Sweep, work: Work) -> dict[str, Any]:
    """What `netpress report --json` prints: `rows` and `gaps`; null where nothing was measured."""
    from pipeline.report import frames, json_rows

    found: Frames = frames.read(sweep, work)
    return {"rows": json_rows.rows(found), "gaps": json_rows.gaps(found)}


def print_summary(listed: dict[str, Any], file=None) -> None:
    """The table for the terminal, from what `rows` gave."""
    from pipeline.report import tables

    tables.print_summary(listed, file)
