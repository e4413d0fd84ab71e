"""Builds the report of a sweep on the cluster when all its jobs have ended, failed or not.

python -m jobs.aggregate SWEEP --work ROOT --to FOLDER
"""

from __future__ import annotations

import argparse
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import garbage, store, streams, terminal
from pipeline.errors import UserError
from pipeline.orchestrate import state
from pipeline.orchestrate.in_job import job_of
from pipeline.orchestrate.plan import load_again, load_sweep
from pipeline.paths import JobPaths, Work
from pipeline.sweep import Sweep


@dataclass
class Report:
    """For submitit: the sweep's file and its contents, the work root, the folder of reports, the
    job's own folder, in which it records the outcome, {path: SHA-256} of the plug-ins, and the
    user's umask, which the report follows.

    The contents, because days may pass until this runs and the file may have changed by then.
    """

    sweep: str
    text: str
    work: str
    to: str
    folder: str
    plugins: dict[str, str] = field(default_factory=dict)
    umask: int | None = None  # in jobs of earlier versions

    def __call__(self) -> None:
        job = JobPaths(Path(self.folder))
        try:
            store.enter(Work(Path(self.work)))
            sweep = load_again(Path(self.sweep), self.text, Work(Path(self.work)), self.plugins)
            page = aggregate(sweep, Path(self.work), Path(self.to), self.umask)
        except Exception as error:
            store.write_failure(job.report, _failure(error, Path(self.to)))
            raise
        store.publish_json(job.made, {"page": str(page)})


def aggregate(sweep: Sweep, work: Path, to: Path, umask: int | None = None) -> Path:
    """Write TO/SWEEP/ from the available results, with gaps named; returns the report's page.
    `umask`: the user's, where this process has another."""
    from pipeline import report

    streams.ready()
    garbage.seldom()
    store.private(umask)
    store.enter(Work(work))
    write_down_ends(sweep, Work(work))
    made, frames = report.build(sweep, Work(work), to)
    with streams.at_best():
        report.print_summary(frames, sys.stdout)
        terminal.show(f"Report: {made.page}")
    return made.page


def _failure(error: Exception, to: Path) -> store.Failure:
    from submitit.core.utils import UncompletedJobError

    from pipeline.failure_kinds import failure_of

    if isinstance(error, UncompletedJobError):  # submitit raises it on USR2
        return store.Failure("stuck", "the time limit came before the report was made")
    return store.Failure(*failure_of(error, to), traceback.format_exc())


def write_down_ends(sweep: Sweep, work: Work) -> None:
    """Write failure.json for cells whose end only SLURM recorded, since SLURM deletes its records.

    Those are cells that could not record it themselves: out of memory, a failed node, a time limit.
    """
    states = state.find(sweep, work)
    view = states.view
    if view is None:
        return
    for now in states.cells:
        at = view.measured_in(now.cell.id) if now.trained else view.last.get(now.cell.id)
        if now.state != "failed" or at is None or at.entry.job is None:
            continue
        attempt = store.last_attempt(work.cell(now.cell.id))
        if attempt is None or job_of(attempt) != at.task or attempt.failure.exists():
            continue
        cause = view.cause_of_measuring(now.cell) if now.trained else view.cause(now.cell)
        store.write_failure(attempt, store.Failure(cause.kind, cause.reason, node=cause.node))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.aggregate", description=__doc__)
    parser.add_argument("sweep", help="a sweep file, or the name of one that ships")
    parser.add_argument("--work", type=Path, required=True, help="the work root")
    parser.add_argument("--to", type=Path, required=True, help="the folder of reports")
    options = parser.parse_args(arguments)
    try:
        aggregate(load_sweep(options.sweep), options.work, options.to)
    except UserError as error:
        terminal.tell(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
