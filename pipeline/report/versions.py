"""Results of several versions of netpress in one report: listed, and marked.

A cell that this version has not made yet is shown as an earlier version made it, where that is
finished. Within a report the newest versions of each stage, and of what stages share, are the
measure; rows that are behind in one of them are marked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from pipeline import done
from pipeline.paths import Work
from pipeline.report.row import Row
from pipeline.sweep import Cell, Sweep

MARK = "†"


def with_older(sweep: Sweep, work: Work, reported: Collection[str] = ()) -> Sweep:
    """The sweep with the finished earlier versions of cells in the place of unfinished ones.
    `reported`: ids of results that an earlier report has; the work root goes before it."""
    try:
        begun = work.begun()
    except FileNotFoundError:  # a report of what earlier reports have
        begun = frozenset()
    cells = tuple(_newest(cell, work, begun, reported) for cell in sweep.cells)
    return sweep if cells == sweep.cells else replace(sweep, cells=cells)


def _newest(cell: Cell, work: Work, begun: frozenset[str], reported: Collection[str]) -> Cell:
    if cell.id in reported or (cell.id in begun and work.cell(cell.id).manifest.exists()):
        return cell
    if (older := done.older(cell, work, begun)) is not None:
        return older
    candidates = cell.older() if reported else ()
    return next((older for older in candidates if older.id in reported), cell)


def behind(rows: Iterable[Row]) -> dict[str, str]:
    """Id of each row that another row's versions are ahead of -> the versions that it has of what
    has changed, `quantize 1`."""
    rows = list(rows)
    newest: dict[str, int] = {}
    for row in rows:
        for name, version in row.versions:
            newest[name] = max(version, newest.get(name, 0))
    outdated = {}
    for row in rows:
        if not row.versions and newest:  # before cells recorded their versions
            outdated[row.id] = "before versions were recorded"
        elif older := [f"{name} {v}" for name, v in row.versions if v < newest[name]]:
            outdated[row.id] = ", ".join(older)
    return outdated


def needs(rows: Sequence[Row]) -> str:
    """One line where artifacts need what not every CPU has; empty where none does."""
    limited = [row.technique for row in rows if "vnni" in _needs_of_cpu(row)]
    if not limited:
        return ""
    names = ", ".join(dict.fromkeys(limited))
    return (
        f"On x86 the artifacts of {names} need a CPU with VNNI: without it their 8-bit products "
        "saturate, and accuracy differs from the values here."
    )


def _needs_of_cpu(row: Row) -> Sequence[str]:
    recorded = row.facts.get("needs")
    cpu = recorded.get("cpu") if isinstance(recorded, dict) else None
    return cpu if isinstance(cpu, list) else ()


def sentence(rows: Sequence[Row]) -> str:
    """One line where rows are of several versions; empty where they are not."""
    older = behind(rows)
    if not older:
        return ""
    names: dict[str, list[str]] = {}
    for row in rows:
        if row.id in older:
            names.setdefault(older[row.id], []).append(row.technique)
    listed = "; ".join(
        f"{', '.join(dict.fromkeys(techniques))} ({versions})"
        for versions, techniques in names.items()
    )
    return f"Results of earlier versions of netpress are marked {MARK}: {listed}."
