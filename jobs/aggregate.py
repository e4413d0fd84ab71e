"""The report of a sweep, built on the cluster when all its jobs have ended, however they did.

python -m jobs.aggregate SWEEP --work ROOT --to FOLDER
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

from pipeline import garbage, store, streams
from pipeline.errors import UserError
from pipeline.orchestrate import state
from pipeline.orchestrate.cluster import job_of
from pipeline.orchestrate.plan import load_again, load_sweep
from pipeline.paths import JobPaths, Work
from pipeline.sweep import Sweep


class Report:
    """For submitit: the sweep's file and what it held, the work root, the folder of reports, and
    the job's own folder, in which it says whether there is a report; SHA-256 of its plug-ins by
    where they lay.

    What it held, because days may pass until this runs: by then the file is the user's next idea.
    """

    def __init__(
        self,
        sweep: str,
        text: str,
        work: str,
        to: str,
        folder: str,
        plugins: Mapping[str, str] | None = None,
    ):
        self.sweep, self.text, self.work, self.to = sweep, text, work, to
        self.folder, self.plugins = folder, dict(plugins or {})

    def __call__(self) -> None:
        job = JobPaths(Path(self.folder))
        try:
            asked = load_again(Path(self.sweep), self.text, Work(Path(self.work)), self.plugins)
            page = aggregate(asked, Path(self.work), Path(self.to))
        except Exception as error:
            store.write_failure(job.report, _failure(error))
            raise
        store.publish_json(job.made, {"page": str(page)})


def aggregate(asked: Sweep, work: Path, to: Path) -> Path:
    """Write TO/SWEEP/ from what is there, gaps named, which are no failure; the report's page."""
    from pipeline import report

    streams.ready()
    garbage.seldom()
    store.private()
    write_down_ends(asked, Work(work))
    made, frames = report.build(asked, Work(work), to)
    with streams.at_best():
        report.print_summary(frames, sys.stdout)
        print(f"Report: {made.page}")
    return made.page


def _failure(error: Exception) -> store.Failure:
    from submitit.core.utils import UncompletedJobError

    from pipeline.execute import failure_of

    if isinstance(error, UncompletedJobError):  # USR2: submitit raises it wherever we are
        return store.Failure("stuck", "the time limit came before the report was made")
    return store.Failure(*failure_of(error), traceback.format_exc())


def write_down_ends(asked: Sweep, work: Work) -> None:
    """What only SLURM knows of how cells ended becomes a failure.json, which outlives its records.

    For those that could not say it themselves: out of memory, a node that failed, a time limit.
    """
    found = state.find(asked, work)
    for now in found.cells:
        view = found.view
        task = view.task(now.cell.id) if view is not None else None
        if now.state != "failed" or task is None:
            continue
        attempt = store.last_attempt(work.cell(now.cell.id))
        if attempt is None or job_of(attempt) != task or attempt.failure.exists():
            continue
        cause = view.cause(now.cell)
        store.write_failure(attempt, store.Failure(cause.kind, cause.reason, node=cause.node))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.aggregate", description=__doc__)
    parser.add_argument("sweep", help="a sweep file, or the name of one that ships")
    parser.add_argument("--work", type=Path, required=True, help="the work root")
    parser.add_argument("--to", type=Path, required=True, help="the folder of reports")
    asked = parser.parse_args(arguments)
    try:
        aggregate(load_sweep(asked.sweep), asked.work, asked.to)
    except UserError as error:
        print(f"netpress: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
