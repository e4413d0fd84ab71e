"""What a SLURM job runs: the cells of its task, one after the other, each in a process of its own.

It trains and measures them, or only trains them, or only measures those that are trained by then.

submitit calls a Task and, on USR2, its `checkpoint`. All state is on disk, published every epoch,
so there is nothing to save at that moment: the cell's process is killed, and the job is requeued if
it made progress since it started. Otherwise it would be requeued for ever.

With a process of its own for each cell, one that runs out of memory, or whose native code crashes,
does not affect the others; this process handles signals at once, whatever the cell is doing; and
cells see no signals: they ignore USR2, and the TERM before a preemption or the time limit, so that
they work until the end.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from submitit.core.utils import DelayedSubmission
from submitit.helpers import Checkpointable

from jobs.usage import MINUTES, job, requested
from pipeline import done, store, terminal
from pipeline.hardware import training_cores
from pipeline.orchestrate import slurm
from pipeline.orchestrate.ended import cause, kills
from pipeline.orchestrate.graph import ALL, MEASURE, TRAIN
from pipeline.orchestrate.in_job import job_of
from pipeline.orchestrate.plan import cell_command, track_options
from pipeline.orchestrate.retry import out_of_memory
from pipeline.paths import CODE, AttemptPaths, CellPaths, JobPaths, Work

CONTROLLER_S = 60.0
POLL_S = 0.1
EARLY_S = 90
ADVICE = "`netpress resume` requests more"
NO_PROGRESS = (
    "the job did not finish a single {} before its time limit, so a requeue would not get "
    "further; `netpress resume` requests more time"
)
STEP = {ALL: "epoch or measurement", TRAIN: "epoch", MEASURE: "measurement"}  # that is kept
NO_CONTROLLER = (
    "the controller did not answer at the time limit, so the job could not be requeued; "
    "`netpress resume` continues from the last epoch"
)
NO_SCONTROL = (
    "scontrol is not on PATH in the job, so it cannot be requeued at its time limit; every epoch "
    "is kept, and `netpress resume` continues from the last one"
)


@dataclass
class Task(Checkpointable):
    """The ids of cells for each task of an array, and paths: nothing else is pickled.

    folder: of the array, with the contents of its cells. work, data: the roots.
    lenient: other cells depend on single ones of these, so the task fails only where all did.
    lead_s: how long before the time limit USR2 is sent. minutes: that limit, 0 in jobs of earlier
    versions; most_minutes: up to which it is raised for a job that comes to it.
    tracking: the sweep's name, and the trackers that follow its cells. act: what is done to them.
    device: `cuda` where the job requests a GPU, so that one that cannot be used is a failure.
    """

    folder: str
    work: str
    data: str
    cells: dict[int, tuple[str, ...]]
    lenient: bool = False
    lead_s: int = 120
    minutes: int = 0
    most_minutes: int = 0
    tracking: tuple[str, tuple[str, ...]] = ("", ())
    act: str = ALL
    device: str = "auto"
    running: subprocess.Popen | None = field(default=None, init=False)
    before: dict[Path, int] = field(default_factory=dict, init=False)

    def __call__(self) -> None:
        store.private()
        store.enter(Work(Path(self.work)))
        self.before = _made(self._mine())
        if shutil.which("scontrol") is None:
            terminal.tell(NO_SCONTROL)
        self._publish_cells()
        ended = [self._done(cell) for cell in self._to_do()]
        if self.lenient:  # what the other cells need of it is its training
            ended = [self._is_trained(cell) for cell in self._mine()]
        if ended and not (all(ended) or (self.lenient and any(ended))):
            sys.exit(1)  # the attempts record why; Slurm only needs the exit code

    # submitit takes None, which its annotation lacks, for a job that is not to be requeued.
    def checkpoint(self) -> DelayedSubmission | None:  # type: ignore[override]
        """What the requeued job runs; None, which ends the job, where a requeue makes no
        progress."""
        if self.running is not None and self.running.returncode is None:
            _kill(self.running)  # `_done` waits for its end
        at_its_limit = self._at_its_limit()
        minutes = min(2 * self.minutes, self.most_minutes) if at_its_limit else self.minutes
        if at_its_limit and minutes <= self.minutes and _made(self._mine()) == self.before:
            self._end_of("stuck", NO_PROGRESS.format(STEP[self.act]))
            return None
        if shutil.which("scontrol") is None:
            self._end_of("not_requeued", NO_SCONTROL)
            return None
        # submitit requests the requeue once, and fails without it.
        if not slurm.wait_until_up(CONTROLLER_S):
            self._end_of("time_limit", NO_CONTROLLER)
            return None
        if minutes > self.minutes:
            # After submitit's requeue: only a job that waits may be given more time.
            atexit.register(_give_time, str(job()), minutes)
        return DelayedSubmission(replace(self, minutes=max(minutes, self.minutes)))

    def _at_its_limit(self) -> bool:
        """Whether USR2 was sent for the time limit. It is also sent before a preemption, after
        which the job continues. Slurm sends it up to a minute early."""
        left_s = slurm.seconds_left(str(job()))
        return left_s is None or left_s <= self.lead_s + EARLY_S

    def _end_of(self, kind: str, reason: str) -> None:
        """Record why the job is not requeued, for each cell that is not done."""
        for cell in self._to_do():
            if not self._is_done(cell):
                attempt = store.last_attempt(cell)
                if attempt is None or job_of(attempt) != job():
                    attempt = store.new_attempt(cell, job())
                store.write_failure(attempt, store.Failure(kind, reason))

    def _publish_cells(self) -> None:
        """Publish cell.json of each cell, the input of its process."""
        for cell in self._to_do():
            if not self._is_done(cell):
                self._publish_cell(cell)

    def _publish_cell(self, cell: CellPaths) -> None:
        with contextlib.suppress(store.Busy):  # its own process reports this
            done.publish_cell(cell, store.json_bytes(self._contents[cell.id]))

    @property
    def _contents(self) -> dict[str, Any]:
        """{cell id: contents of its cell.json}"""
        contents: dict[str, Any] = json.loads(JobPaths(Path(self.folder)).cells.read_bytes())
        return contents

    def _is_done(self, cell: CellPaths) -> bool:
        """Whether this job has nothing to do for it."""
        if self.act == TRAIN:
            return self._is_trained(cell)
        return done.is_current(cell, done.record_of_json(self._contents[cell.id]))

    def _is_trained(self, cell: CellPaths) -> bool:
        return done.is_made(cell, done.record_of_json(self._contents[cell.id]))

    def _mine(self) -> list[CellPaths]:
        work = Work(Path(self.work))
        return [work.cell(i) for i in self.cells[int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))]]

    def _to_do(self) -> list[CellPaths]:
        """Its cells; what is not trained cannot be measured, and its own job's end says why."""
        if self.act != MEASURE:
            return self._mine()
        return [cell for cell in self._mine() if self._is_trained(cell)]

    def _done(self, cell: CellPaths) -> bool:
        """Run the cell, unless it is done; returns whether it is done now. Twice where the first
        process made it as another sweep requests it, whose job had replaced cell.json."""
        if self._is_done(cell):
            return True
        for _ in range(2):
            self._publish_cell(cell)
            if self._ran(cell) != 0:
                return False
            if self._is_done(cell):
                return True
        return False

    def _ran(self, cell: CellPaths) -> int:
        """Run the cell in a process of its own; returns its exit code."""
        earlier, kills_before = store.last_attempt(cell), kills()
        options = (
            "--die-with-parent",
            str(os.getpid()),
            *("--device", self.device),
            *_threads(),
            *track_options(*(("", ()) if self.act == MEASURE else self.tracking)),
            *(("--train-only",) if self.act == TRAIN else ()),
        )
        alone = len(self._mine()) == 1  # the limit of a pack says nothing of one of its cells
        os.environ[MINUTES] = str(self.minutes if alone else 0)
        module = "jobs.measure" if self.act == MEASURE else "jobs.compress"
        command = cell_command(
            Work(Path(self.work)), Path(self.data), [cell.id], *options, module=module
        )
        try:
            self.running = subprocess.Popen(
                command,
                cwd=CODE,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=_ignore_signals,
            )
            # Not wait(): a signal handler that runs in it would wait for its lock.
            while (code := self.running.poll()) is None:
                time.sleep(POLL_S)
        finally:
            self._end_cell()
        if code < 0:
            _record(cell, earlier, code, kills() > kills_before)
        return code

    def _end_cell(self) -> None:
        """Kill it without a warning: its state is on disk, and it must not run beside the next
        run."""
        process, self.running = self.running, None
        if process is not None and process.poll() is None:
            _kill(process)
            process.wait()


def _give_time(task: str, minutes: int) -> None:
    """The last that the process does. A requeue comes with TERM for all of the job's processes:
    what this one ignores, scontrol ignores, too, where a handler would be lost at its start."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    slurm.change(task, f"TimeLimit={minutes}")


def _kill(process: subprocess.Popen) -> None:
    """Kill the cell's process and its children: it leads a session, and so a group, of its own. It
    was not waited for yet, so its number was not reused."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _threads() -> tuple[str, ...]:
    """As many as the job requested, also where the cluster does not bind it to its cores."""
    requested_cores = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if not requested_cores.isdecimal():
        return ()
    threads = min(int(requested_cores), training_cores())
    return ("--threads", str(threads), "--cores", requested_cores)


def _ignore_signals() -> None:
    """Between fork and exec: ignored signals stay ignored in the new program."""
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT):
        signal.signal(number, signal.SIG_IGN)


def _made(cells: Iterable[CellPaths]) -> dict[Path, int]:
    """When metrics and manifests of these cells were published: every epoch, result and measurement
    changes it."""
    times = {}
    published = (p for c in cells for p in (c.metrics, c.manifest, *c.measurements.glob("*.json")))
    for path in published:
        try:
            times[path] = path.stat().st_mtime_ns
        except FileNotFoundError:
            continue
    return times


def _record(cell: CellPaths, earlier: AttemptPaths | None, code: int, memory_ran_out: bool) -> None:
    """Record the end of a process that a signal ended, in its attempt or, without one, in a new
    one."""
    attempt = store.last_attempt(cell)
    if attempt is None or (earlier is not None and attempt.number == earlier.number):
        attempt = store.new_attempt(cell, job())
    kind, reason = cause(code, "", memory_ran_out, ADVICE)
    if memory_ran_out and (limit := requested().memory_bytes):
        reason = out_of_memory(limit, limit)  # the kernel kills it when all of it is in use
    store.write_failure(attempt, store.Failure(kind, reason))
