"""The command `measure`: which kind of thing each target is, and what is done with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import arguments, paths, terminal
from pipeline.cli_options import load, roots
from pipeline.cli_output import show, show_line
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.orchestrate import bench


def run(targets: Sequence[str], files: Sequence[Path]) -> int:
    """A folder with a results.h5 is a report, one with a manifest.json an artifact; all else is a
    sweep. Returns the exit code; the worst of all targets. All of them and all files are read
    before anything is measured or added, so that a wrong one costs none of that."""
    from pipeline.orchestrate import bench

    for file in files:
        bench.read(file)
    return max([act() for act in [_resolved(target, files) for target in targets]])


def _resolved(target: str, files: Sequence[Path]) -> Callable[[], int]:
    """What is done with a target; raises UserError where that is nothing."""
    if folder := arguments.published_report(target):
        return partial(_report, folder, files)
    if arguments.is_artifact(target):
        if files:
            raise UserError(f"--add: expected a sweep or a report, {target} is an artifact")
        return partial(_artifact, paths.expanded(target))
    return _of_sweep(target, files)


def _of_sweep(name: str, files: Sequence[Path]) -> Callable[[], int]:
    from pipeline.orchestrate import bench, measure

    sweep = load(name, arguments.OR_MODEL)
    work, data_root = roots(sweep)
    if not files:
        measure.trained(sweep, work)
        return partial(measure.run, sweep, work, data_root)
    additions = {file: bench.addition(sweep, work, file) for file in files}

    def add() -> int:
        for file, addition in additions.items():
            _tell(file, addition.publish(work))
        measure.report_of(sweep, work)
        return 0

    return add


def _report(folder: Path, files: Sequence[Path]) -> int:
    from pipeline import remeasure

    whole = True
    if files:
        for file, added in remeasure.add(folder, files).items():
            _tell(file, added)
    else:
        data_root, cache = paths.data_root(), paths.Work(paths.work_root()).cache
        whole = remeasure.report(folder, data_root, cache, terminal.tell)
    from pipeline import report

    made, frames = report.rebuild(folder)
    report.print_summary(frames)
    show_line(f"Report: {made.page}")
    return 0 if whole else 1


def _tell(file: Path, added: bench.Added) -> None:
    there = (
        f", {added.earlier} {'was' if added.earlier == 1 else 'were'} there already"
        if added.earlier
        else ""
    )
    cells = f"{added.new} cell{'s' * (added.new != 1)} added"
    terminal.tell(f"{file}, measured on {added.machine}: {cells}{there}", begin="")


def _artifact(folder: Path) -> int:
    from pipeline import remeasure

    show(remeasure.artifact_lines(folder))
    return 0
