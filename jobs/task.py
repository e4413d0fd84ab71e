"""What a SLURM job runs: the cells of its task, one after the other, each in a process of its own.

submitit calls a Task and, on USR2, its `checkpoint`. All state is on disk, published every epoch,
so there is nothing to save at that moment: the cell's process is ended, and the job goes back into
the queue if anything was made since it started. Otherwise it would go round for ever.

A process of its own for each cell means that one that runs out of memory, or whose native code
crashes, costs itself alone; that this process answers signals at once, whatever the cell is doing;
and that cells see no signals: USR2, and the TERM that comes before a preemption or the time limit,
are ignored in them, so that they work until the last moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from submitit.core.utils import DelayedSubmission
from submitit.helpers import Checkpointable

from jobs.usage import job, requested
from pipeline import done, store
from pipeline.hardware import cores
from pipeline.orchestrate import slurm
from pipeline.orchestrate.cluster import job_of
from pipeline.orchestrate.ended import cause, kills
from pipeline.orchestrate.plan import cell_command
from pipeline.orchestrate.retry import out_of_memory
from pipeline.paths import CODE, CellPaths, JobPaths, Work

CONTROLLER_S = 60.0
POLL_S = 0.1
EARLY_S = 90
ADVICE = "`netpress resume` asks for more"
NO_PROGRESS = (
    "nothing was finished between the start of the job and its end, not one epoch, so another "
    "round would not get further; `netpress resume` asks for more time"
)
NO_CONTROLLER = (
    "the controller did not answer when the time limit came, so the job could not go back into "
    "the queue; `netpress resume` goes on from the last epoch"
)


class Task(Checkpointable):
    """Cells by id, for each task of an array, and where files lie: nothing else is pickled.

    folder: of the array, with what its cells are. work, data: the roots.
    lenient: others stand on these cells one by one, so that the task fails only where all did.
    lead_s: how long before the time limit USR2 is to come.
    """

    def __init__(
        self,
        folder: str,
        work: str,
        data: str,
        cells: Mapping[int, tuple[str, ...]],
        lenient: bool = False,
        lead_s: int = 120,
    ):
        self.folder, self.work, self.data = folder, work, data
        self.cells, self.lenient, self.lead_s = dict(cells), lenient, lead_s
        self.running: subprocess.Popen | None = None
        self.before: dict[Path, int] = {}

    def __call__(self) -> None:
        store.private()
        self.before = _made(self._mine())
        self._publish_cells()
        ended = [self._done(cell) for cell in self._mine()]
        if not any(ended) or not (all(ended) or self.lenient):
            sys.exit(1)  # each cell said why in its attempt; all that Slurm needs is the code

    def checkpoint(self) -> DelayedSubmission | None:
        """What the job goes on with; None, which ends it, where another round gets no further."""
        if self.running is not None and self.running.returncode is None:
            _kill(self.running)  # `_done` waits for its end on the way out
        if _made(self._mine()) == self.before and self._at_its_limit():
            self._end_of("stuck", NO_PROGRESS)
            return None
        # submitit asks for the requeue once, and fails without.
        if not slurm.wait_until_up(CONTROLLER_S):
            self._end_of("time_limit", NO_CONTROLLER)
            return None
        return DelayedSubmission(
            Task(self.folder, self.work, self.data, self.cells, self.lenient, self.lead_s)
        )

    def _at_its_limit(self) -> bool:
        """Whether USR2 says that time is up. It may come before a preemption as well, which is no
        reason to give up. Slurm sends it up to a minute early."""
        left_s = slurm.seconds_left(str(job()))
        return left_s is None or left_s <= self.lead_s + EARLY_S

    def _end_of(self, kind: str, reason: str) -> None:
        """Why there is no other round, for each cell that is not done."""
        for cell in self._mine():
            if not self._is_done(cell):
                attempt = store.last_attempt(cell)
                if attempt is None or job_of(attempt) != job():
                    attempt = store.new_attempt(cell, job())
                store.write_failure(attempt, store.Failure(kind, reason))

    def _publish_cells(self) -> None:
        """cell.json of each, from which its process knows what to do."""
        for cell in self._mine():
            if not self._is_done(cell):
                with contextlib.suppress(store.Busy):  # its own process says so
                    done.publish_cell(cell, store.json_bytes(self._said[cell.id]))

    @property
    def _said(self) -> dict[str, Any]:
        """Cell's id -> what its cell.json says."""
        return json.loads(JobPaths(Path(self.folder)).cells.read_bytes())

    def _is_done(self, cell: CellPaths) -> bool:
        return done.is_current(cell, done.record_of_json(self._said[cell.id]))

    def _mine(self) -> list[CellPaths]:
        work = Work(Path(self.work))
        return [work.cell(i) for i in self.cells[int(os.environ["SLURM_ARRAY_TASK_ID"])]]

    def _done(self, cell: CellPaths) -> bool:
        """Run the cell, where it is not done yet; whether it is done now."""
        if self._is_done(cell):
            return True
        earlier, kills_before = store.last_attempt(cell), kills()
        options = ("--die-with-parent", str(os.getpid()), *_threads())
        command = cell_command(Work(Path(self.work)), Path(self.data), [cell.id], *options)
        try:
            self.running = subprocess.Popen(
                command,
                cwd=CODE,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=_ignore_signals,
            )
            # Not wait(): a signal handler that runs in it would find its lock taken.
            while (code := self.running.poll()) is None:
                time.sleep(POLL_S)
        finally:
            self._end_cell()
        if code < 0:
            _record(cell, earlier, code, kills() > kills_before)
        return code == 0 and self._is_done(cell)

    def _end_cell(self) -> None:
        """Killed, not asked: its state is on disk, and the next run must not find it at work."""
        process, self.running = self.running, None
        if process is not None and process.poll() is None:
            _kill(process)
            process.wait()


def _kill(process: subprocess.Popen) -> None:
    """The cell's process and all that it started: it leads a session, and so a group, of its own.
    Not yet waited for, so its number is still its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _threads() -> tuple[str, ...]:
    """As many as the job asked for, also where the cluster does not bind it to its cores."""
    asked = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return ("--threads", str(min(int(asked), cores()))) if asked.isdecimal() else ()


def _ignore_signals() -> None:
    """Between fork and exec: what is ignored stays ignored in the new program."""
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT):
        signal.signal(number, signal.SIG_IGN)


def _made(cells: Iterable[CellPaths]) -> dict[Path, int]:
    """When each product of these cells was published: changed by every epoch and every result."""
    found = {}
    for path in (p for cell in cells for p in (cell.metrics, cell.manifest)):
        try:
            found[path] = path.stat().st_mtime_ns
        except FileNotFoundError:
            continue
    return found


def _record(cell: CellPaths, earlier, code: int, memory_ran_out: bool) -> None:
    """The end of a process that a signal ended, in its attempt, or in one where it made none."""
    attempt = store.last_attempt(cell)
    if attempt is None or (earlier is not None and attempt.number == earlier.number):
        attempt = store.new_attempt(cell, job())
    kind, reason = cause(code, "", memory_ran_out, ADVICE)
    if memory_ran_out and (limit := requested().memory_bytes):
        reason = out_of_memory(limit, limit)  # the kernel ends it when all of it is in use
    store.write_failure(attempt, store.Failure(kind, reason))
