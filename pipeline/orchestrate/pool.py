"""Worker processes: a bounded number of cells at once, each in a process of its own.

The parent does not import torch. It sees of a worker its progress events (one JSON object per line
on standard output), the files that it wrote, and its exit status. Workers die with the parent: they
get its process id and request a parent-death signal from the kernel; each leads a process group, so
that its own child processes are killed with it.

A cell is measured alone: the other workers are stopped until it is done, since otherwise its
latencies would be those of a busy machine. They are told for how long (`pipeline.clock`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from pipeline import done, gaps, paths, store
from pipeline.errors import UserError
from pipeline.orchestrate import ended, state
from pipeline.orchestrate.display import Lines
from pipeline.orchestrate.launch import Launcher, Process
from pipeline.orchestrate.stops import Stops
from pipeline.sweep import Cell

POLL_S = 0.2
ENDS = ("done", "failed", "busy")  # last events of a worker; its files on disk decide
ADVICE = "use fewer --workers, a smaller training.batch_size, or a machine with more memory"
GRACE_S = 10.0  # from SIGTERM to SIGKILL
MOST_AGAIN = 2  # for a cell that a worker made as another sweep requests it


@dataclass(frozen=True)
class Slot:
    """A place for one worker: its command-line options, and additions to its environment."""

    options: tuple[str, ...]
    environment: dict[str, str]


@dataclass
class _Worker:
    cell: Cell
    process: Process
    slot: Slot
    errors: IO[bytes]  # its standard error until it opens the log of its attempt
    attempts_before: int
    kills_before: int
    began: float
    stops: Stops
    unread: bytes = b""
    silent: bool = False  # it closed its end of the pipe
    paused: bool = False
    last: dict[str, Any] = field(default_factory=dict)  # the last event

    @property
    def output(self) -> IO[bytes]:
        """The pipe with its events."""
        assert self.process.stdout is not None  # it is a pipe
        return self.process.stdout

    def events(self) -> Iterator[dict[str, Any]]:
        """The events since the last call; does not block."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.output.fileno(), 1 << 16):
                self.unread += chunk
            self.silent = True
        *lines, self.unread = self.unread.split(b"\n")
        for line in lines:
            self.last = json.loads(line)
            yield self.last

    @property
    def measures(self) -> bool:
        return self.last.get("stage") == "measure"

    def pause(self, wanted: bool) -> None:
        if wanted == self.paused:
            return
        self.paused = wanted
        if wanted:
            self.signal(signal.SIGSTOP)
            self.stops.begin()
        else:
            self.stops.end()  # before it goes on, so that it never sees half of the stop
            self.signal(signal.SIGCONT)

    def close(self) -> None:
        """Nothing is read of it or told to it any more."""
        self.errors.close()
        self.stops.close()

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


class Pool:
    """Runs cells in workers: bases before the cells that depend on them. A failure costs one cell
    (and, if it is a base, those that depend on it)."""

    def __init__(
        self,
        cells: Sequence[Cell],
        done: Sequence[Cell],
        work: paths.Work,
        launcher: Launcher,
        slots: Sequence[Slot],
        shown: Lines,
        stopping: Sequence[int] = (),
    ):
        self.pending = {cell.id: cell for cell in cells}
        self.done = {cell.id for cell in done}
        self.trained: set[str] = set()  # bases whose measurement failed: others can use them
        self.looked: dict[str, bool] = {}  # bases that start from others -> whether trained
        self.failed: dict[str, str] = {}
        self.workers: list[_Worker] = []
        self.alone: _Worker | None = None  # the one that measures
        self.elsewhere: set[str] = set()
        self.again: Counter[str] = Counter()
        self.work, self.launcher, self.shown = work, launcher, shown
        self.free, self.stopping = list(slots), stopping
        self.selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Run until every cell has ended or a signal arrives; leaves no worker behind."""
        try:
            while (self.pending or self.workers) and not self.stopping:
                self._start()
                self._listen()
                self._reap()
                self._make_quiet()
        finally:
            self._stop()
            self.launcher.close()
            self.selector.close()

    def _start(self) -> None:
        for cell in list(self.pending.values()):
            on = cell.stands_on
            has_base = on is None or on in self.done | self.trained or self._is_made(cell)
            if on in self.failed and not has_base:
                del self.pending[cell.id]
                self._end(cell, f"{cell.ground} failed: {self.failed[on]}", 0)
            elif not self.free or self.alone or not self.launcher.ready():
                continue
            elif has_base:
                self._start_or_leave(cell)

    def _is_made(self, cell: Cell) -> bool:
        """Whether a base that starts from another one needs it no more: it is trained, and lacks a
        measurement alone."""
        if not cell.is_base:
            return False
        if cell.id not in self.looked:
            self.looked[cell.id] = done.is_trained(cell, self.work)
        return self.looked[cell.id]

    def _start_or_leave(self, cell: Cell) -> None:
        """Launch the cell, unless another process holds it: then wait for that one to end."""
        folder = self.work.cell(cell.id)
        if state.is_held(folder):
            if cell.id not in self.elsewhere:
                self.shown.say(
                    f"{cell.name}: another process is working on it; waiting for it to finish"
                )
            self.elsewhere.add(cell.id)
            return
        del self.pending[cell.id]
        if cell.id in self.elsewhere and done.is_done(cell, self.work):
            self._end(cell, None, 0)
            return
        try:
            self._launch(cell, folder)
        except store.Busy:  # another process took it this moment
            self.pending[cell.id] = cell
        except OSError as error:  # a full disk, no more processes: it costs this cell only
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            kind = "disk_full" if full else "exception"
            failure = store.Failure(kind, f"its process cannot be started: {error}")
            self._end(cell, self._write_down(folder, None, failure), 0)
        except UserError as error:  # such as a cell of another user's
            failure = store.Failure("exception", str(error))
            self._end(cell, self._write_down(folder, None, failure), 0)

    def _launch(self, cell: Cell, folder: paths.CellPaths) -> None:
        done.publish_cell(folder, store.json_bytes(cell.to_json()))
        attempt = store.last_attempt(folder)
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the worker
        slot, stops = self.free[0], Stops()
        options = (*slot.options, "--stops", str(stops.path))
        try:
            process = self.launcher.start(cell, options, slot.environment, errors)
        except OSError:
            stops.close()
            raise
        worker = _Worker(
            cell,
            process,
            self.free.pop(0),
            errors,
            attempt.number if attempt else 0,
            ended.kills(),
            time.monotonic(),
            stops,
        )
        self.workers.append(worker)
        os.set_blocking(worker.output.fileno(), False)
        self.selector.register(worker.output, selectors.EVENT_READ, worker)
        self.shown.start(cell)

    def _listen(self) -> None:
        """Pass on the events of workers; waits a moment for them."""
        for key, _ in self.selector.select(POLL_S):
            self._hear(key.data)
            if key.data.silent:  # until it exits, the selector would return at once
                self.selector.unregister(key.fileobj)

    def _hear(self, worker: _Worker) -> None:
        for event in worker.events():
            if event["stage"] not in ENDS:
                self.shown.event(worker.cell, event)

    def _reap(self) -> None:
        for worker in [w for w in self.workers if w.process.poll() is not None]:
            self._hear(worker)
            self._forget(worker)
            self._judge(worker)
            worker.close()

    def _make_quiet(self) -> None:
        """While a worker measures, stop all others. A worker without an event yet may not have
        requested its parent-death signal: it is not stopped, since it could stay so for ever."""
        if self.alone not in self.workers:
            self.alone = next((worker for worker in self.workers if worker.measures), None)
        for worker in self.workers:
            worker.pause(self.alone not in (None, worker) and bool(worker.last))

    def _forget(self, worker: _Worker) -> None:
        worker.signal(signal.SIGKILL)  # child processes that it left behind
        self.workers.remove(worker)
        self.free.append(worker.slot)
        if worker.output in self.selector.get_map():
            self.selector.unregister(worker.output)
        worker.output.close()

    def _judge(self, worker: _Worker) -> None:
        """Record how a cell ended: by its files on disk, not by the exit code of its worker."""
        cell, folder = worker.cell, self.work.cell(worker.cell.id)
        if done.is_done(cell, self.work):
            self._end(cell, None, time.monotonic() - worker.began)
        elif worker.last.get("stage") == "busy":  # another process was faster
            self.elsewhere.add(cell.id)
            self.pending[cell.id] = cell
        elif self._was_made_otherwise(worker):
            self.again[cell.id] += 1
            self.pending[cell.id] = cell
        else:
            self._end(cell, self._reason(worker, folder), time.monotonic() - worker.began)

    def _was_made_otherwise(self, worker: _Worker) -> bool:
        """Whether it was as another sweep requests it: whose run may have replaced cell.json before
        the worker had the lock. It is trained, and only to be measured as we request it."""
        cell = worker.cell
        is_made = worker.last.get("stage") == "done" and done.is_trained(cell, self.work)
        return is_made and self.again[cell.id] < MOST_AGAIN

    def _reason(self, worker: _Worker, folder: paths.CellPaths) -> str:
        """Why the worker failed: by its own record, else by its end, which is then recorded
        here."""
        attempt = store.last_attempt(folder)
        if attempt is not None and attempt.number <= worker.attempts_before:
            attempt = None  # of an earlier worker
        if attempt is not None and attempt.failure.exists():
            return gaps.reason(worker.cell, self.work)
        return self._write_down(folder, attempt, _failure(worker))

    def _write_down(
        self, folder: paths.CellPaths, attempt: paths.AttemptPaths | None, failure: store.Failure
    ) -> str:
        """Publish failure.json of the attempt (None: of a new one); returns the reason in one
        line."""
        try:
            attempt = attempt or store.new_attempt(folder)
            store.write_failure(attempt, failure)
        except OSError as error:  # such as a full disk: it is only shown
            self.shown.say(f"netpress: the reason cannot be recorded: {error}")
        return failure.line

    def _end(self, cell: Cell, failure: str | None, seconds: float) -> None:
        if failure is None:
            self.done.add(cell.id)
        else:
            self.failed[cell.id] = failure
            if cell.is_base and done.is_trained(cell, self.work):
                self.trained.add(cell.id)
        self.shown.end(cell, "failed" if failure else "done", failure, seconds)

    def _stop(self) -> None:
        """Terminate all workers, wait, kill those that remain; a second signal ends the wait."""
        for worker in self.workers:
            worker.signal(signal.SIGTERM)
            worker.pause(False)  # a stopped process does not handle SIGTERM
        deadline = time.monotonic() + GRACE_S
        signals = len(self.stopping)
        while any(worker.process.poll() is None for worker in self.workers):
            if time.monotonic() > deadline or len(self.stopping) > signals:
                break
            time.sleep(0.05)
        for worker in list(self.workers):
            self._forget(worker)
            worker.process.wait()
            worker.close()


def _failure(worker: _Worker) -> store.Failure:
    """The contents of failure.json: from the last event, else from how the process ended."""
    worker.errors.seek(0)
    errors = worker.errors.read()[-20_000:].decode(errors="replace").strip()
    kind, reason = _cause(worker, errors)
    if worker.last.get("stage") == "failed":
        kind, reason = worker.last["kind"], worker.last["reason"]
    return store.Failure(kind, reason, errors)


def _cause(worker: _Worker, errors: str) -> tuple[str, str]:
    ran_out = ended.kills() > worker.kills_before
    return ended.cause(worker.process.returncode, errors, ran_out, ADVICE)
