"""Submits the cells of a sweep for which there was no room, as room comes free.

It does what `netpress submit` does, with the profile and the sweep's file of the submission, and
goes back into the queue until nothing is left. As the same job: so it takes one place among the
jobs that a limit allows, and the report that waits for it goes on waiting.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.aggregate import Report
from jobs.task import Task
from jobs.usage import job as this_job
from pipeline import store
from pipeline.errors import UserError
from pipeline.orchestrate import ledger, slurm, submit, submitted
from pipeline.orchestrate.plan import load_again
from pipeline.orchestrate.profile import Cluster
from pipeline.orchestrate.profile_parts import FollowUp as FollowUpJob
from pipeline.orchestrate.send import JobFunctions
from pipeline.paths import JobPaths, Work

PATIENCE_S = 7 * 86_400  # without a single job submitted
ENDED_S = 30.0  # within which Slurm ends a job that was requeued


@dataclass
class FollowUp(Report):
    """For submitit: as for the report's job (jobs/aggregate.py), the data root, and the record of
    the profile, of the submission that sent this job. What a later one left over is submitted with
    the sweep and the profile of that one, which the ledger has, as all else."""

    data: str = ""
    profile: dict[str, Any] = field(default_factory=dict)

    def __call__(self) -> None:
        store.private(self.umask)
        store.enter(Work(Path(self.work)))
        job = JobPaths(Path(self.folder))
        try:
            self._follow()
        except Exception as error:
            store.write_failure(job.report, _failure(error))
            raise

    def _follow(self) -> None:
        work = Work(Path(self.work))
        place = work.sweep(Path(self.folder).parents[1].name)
        left: str | None = None
        while True:
            last = ledger.read(place).put_off_by
            target = self._target(work, last)
            try:
                batch = submit.go_on(target, functions(), last, Path(self.folder).name)
                if batch.left_over:
                    left = batch.limit.line if batch.limit else "no room for more jobs"
            except submit.Superseded:  # read and locked are not one step
                continue
            except submit.Cancelled:
                return
            except slurm.Unreachable as error:  # for a while
                left = str(error)
            break
        if left:
            _come_again(ledger.read(place), target.cluster, left)

    def _target(self, work: Work, last: Mapping[str, Any] | None) -> submit.Target:
        """Of the submission that last left something over, or of that which sent this job."""
        about = (self.sweep, self.text, self.to, self.plugins)
        by = last or {"about": about, "profile": self.profile}
        path, text, to, plugins = by["about"]
        sweep = load_again(Path(path), text, work, plugins)
        cluster = submitted.cluster_of(by["profile"], sweep)
        return submit.Target(sweep, work, Path(self.data), cluster, Path(to))


def _come_again(known: ledger.Ledger, cluster: Cluster, why: str) -> None:
    """Back into the queue; Slurm ends this process then."""
    jobs = [entry for entry in known.entries.values() if entry.job is not None]  # this one's, too
    if min(time.time() - ledger.when(entry) for entry in jobs) > PATIENCE_S:
        raise UserError(f"nothing could be submitted for {PATIENCE_S // 86_400} days: {why}")
    wait = cluster.profile.follow_up or FollowUpJob()
    slurm.requeue(str(this_job()), seconds=wait.every_s)
    time.sleep(ENDED_S)
    sys.exit(os.EX_TEMPFAIL)


def _failure(error: Exception) -> store.Failure:
    from pipeline.failure_kinds import failure_of

    return store.Failure(*failure_of(error), traceback.format_exc())


def functions() -> JobFunctions:
    """What the jobs of a sweep call."""
    return JobFunctions(cells=Task, report=Report, follow_up=FollowUp)
