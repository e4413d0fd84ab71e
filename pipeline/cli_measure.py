"""The command `measure`: which kind of thing each target is, and what is done with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline import paths, terminal
from pipeline.cli_options import load, roots
from pipeline.cli_output import show, show_line
from pipeline.errors import UserError


def run(targets: Sequence[str], files: Sequence[Path]) -> int:
    """A folder with a results.h5 is a report, one with a manifest.json an artifact; all else is a
    sweep. Returns the exit code; the worst of all targets."""
    return max(_one(target, files) for target in targets)


def _one(target: str, files: Sequence[Path]) -> int:
    if folder := paths.published_report(target):
        return _report(folder, files)
    if paths.is_artifact(target):
        if files:
            raise UserError(f"--add: expected a sweep or a report, {target} is an artifact")
        return _artifact(paths.expanded(target))
    return _sweep(target, files)


def _sweep(name: str, files: Sequence[Path]) -> int:
    from pipeline.orchestrate import bench, measure

    sweep = load(name)
    work, data_root = roots(sweep)
    if not files:
        return measure.run(sweep, work, data_root)
    for file in files:
        machine, cells = bench.add(sweep, work, file)
        terminal.tell(f"{file}: added {cells} cells, measured on {machine}", begin="")
    measure.report_of(sweep, work)
    return 0


def _report(folder: Path, files: Sequence[Path]) -> int:
    from pipeline import remeasure

    data_root, cache = paths.data_root(), paths.Work(paths.work_root()).cache
    whole = True
    if files:
        for file in files:
            remeasure.add(folder, file)
    else:
        whole = remeasure.report(folder, data_root, cache, terminal.tell)
    from pipeline import report

    made, frames = report.rebuild(folder)
    report.print_summary(frames)
    show_line(f"Report: {made.page}")
    return 0 if whole else 1


def _artifact(folder: Path) -> int:
    from pipeline import remeasure

    show(remeasure.artifact_lines(folder))
    return 0
