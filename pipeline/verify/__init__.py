"""Measure a shared report again: its files against results.h5, its artifacts against its numbers.

Everything is checked that can be checked on this machine, a line each; what cannot says why.
Nothing in the report is trusted, and nothing in it is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import Corrupt, UserError
from pipeline.paths import ReportPaths
from pipeline.report import merged
from pipeline.verify import artifacts, files
from pipeline.verify.check import DIFFERS, NOTE, OK, UNCHECKED, Check, without

__all__ = [
    "DIFFERS",
    "NOTE",
    "OK",
    "UNCHECKED",
    "Check",
    "any_differs",
    "checks",
    "summary",
]


def checks(
    folder: Path, data_root: Path, cache: Path, *, accuracy: bool = True, speed: bool = True
) -> Iterator[Check]:
    """One after the other, as they are done: whoever reads a line need not wait for the last.

    `cache`: for decoded images. Raises UserError where `folder` is no report of this version.
    """
    paths = ReportPaths(folder)
    if not paths.merged.is_file():
        raise UserError(f"{folder}: no report, expected a folder with {paths.merged.name} in it")
    try:
        published = merged.read(paths.merged)
    except Corrupt as error:
        yield Check(paths.merged.name, DIFFERS, without(folder, error))
        return
    yield Check(paths.merged.name, OK, f"whole, {len(published.frames.rows)} results")
    bench = artifacts.Bench(published, paths, data_root, cache)
    try:
        yield from files.numbers(published)
        yield from files.bases(published)
        yield from files.files(published, paths)
        yield from artifacts.artifacts(bench, accuracy, speed)
    except Corrupt as error:  # a file of somebody who sealed what netpress never writes
        yield Check(paths.merged.name, DIFFERS, without(folder, error))


def summary(checks: list[Check]) -> str:
    """How many of each, in a line."""
    count = {
        kind: sum(check.outcome == kind for check in checks) for kind in (OK, DIFFERS, UNCHECKED)
    }
    return (
        f"{count[OK]} as recorded, {count[DIFFERS]} differ, "
        f"{count[UNCHECKED]} cannot be checked here"
    )


def any_differs(checks: list[Check]) -> bool:
    return any(check.outcome == DIFFERS for check in checks)
