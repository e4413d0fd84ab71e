"""Runs cells, one after the other: the same under SLURM and in local workers.

    python -m jobs.compress --work ROOT --data ROOT ID [ID ...]

The input of a cell is cells/ID/cell.json under the work root. Progress goes to standard output as
JSON, one event per line; all other output of a cell goes to the log of its attempt. A failed cell
does not affect the others. Exit code 0: all are done; 1: one is not.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pipeline import clock, garbage, streams, terminal

if TYPE_CHECKING:
    from pipeline.paths import AttemptPaths, CellPaths, Work
    from pipeline.sweep import Cell

# (cell, work root, data root, device, threads, progress)
Act = Callable[["Cell", "Work", Path, str, "int | None", Callable[[dict[str, Any]], None]], None]
WATCH_S = 3.0
SUPERSEDED = 76  # exit code of a run that another run of its job has replaced


def _train_and_measure(
    cell: Cell,
    work: Work,
    data_root: Path,
    device: str,
    threads: int | None,
    progress: Callable[[dict[str, Any]], None],
    measures: bool = True,
) -> None:
    from pipeline import execute

    execute.run_cell(
        cell,
        work,
        data_root,
        device=device,
        threads=threads,
        progress=progress,
        measures=measures,
    )


def main(
    arguments: list[str] | None = None,
    act: Act | None = None,
    name: str = "compress",
    about: str | None = __doc__,
) -> int:
    """`act`: what is done to each cell, in an attempt of its own, in place of training and
    measuring it; `name`: of the module."""
    streams.ready()
    parser = _parser(name, about)
    if act is None:
        parser.add_argument("--train-only", action="store_true", help="other jobs measure them")
    options = parser.parse_args(arguments)
    act = act or partial(_train_and_measure, measures=not options.train_only)
    if options.die_with_parent:
        die_with(options.die_with_parent)
    clock.follow(options.stops)
    garbage.seldom()
    from pipeline import hardware, store
    from pipeline.paths import Work

    store.private()
    hardware.request(options.cores)
    store.enter(Work(options.work))
    with _events() as events:
        outcomes = [
            _begun(act, i, Work(options.work), options.data, events, options) for i in options.ids
        ]
    return 0 if all(outcomes) else 1


def _begun(
    act: Act,
    cell_id: str,
    work: Work,
    data_root: Path,
    events: TextIO,
    options: argparse.Namespace,
) -> bool:
    """One cell, in an attempt of its own; returns whether that succeeded."""
    from jobs import track
    from jobs.usage import Monitor, job
    from pipeline import store
    from pipeline.orchestrate import slurm

    def emit(event: dict[str, Any]) -> None:
        events.write(json.dumps({"cell": cell_id, **event}) + "\n")
        events.flush()

    try:
        paths = work.cell(cell_id)
        with store.lock_cell(paths, job(), slurm.is_working) as held, _gives_way(held):
            attempt = store.new_attempt(paths, job())
            with (
                _logged(attempt.log),
                Monitor(attempt) as monitor,
                track.beside(paths, work, options.sweep, options.track) as tracked,
            ):

                def record(event: dict[str, Any]) -> None:
                    monitor.event(event)
                    tracked.event(event)
                    emit(event)

                return _attempted(act, paths, attempt, work, data_root, record, options)
    except store.Busy as busy:
        terminal.tell(busy)
        emit({"stage": "busy", "reason": str(busy)})
    # No attempt to record it in: a full disk, another user's folder.
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        kind, reason = _failure_of(error, work.root)
        emit({"stage": "failed", "kind": kind, "reason": reason})
    return False


@contextmanager
def _gives_way(held: Callable[[], bool]) -> Iterator[None]:
    """End this process as soon as another one holds the cell: its job was started again elsewhere,
    because the scheduler had lost this node."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(WATCH_S):
            if not held():
                terminal.show("the job was started again elsewhere: this run of it ends here")
                os._exit(SUPERSEDED)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _attempted(
    act: Act,
    paths: CellPaths,
    attempt: AttemptPaths,
    work: Work,
    data_root: Path,
    progress: Callable[[dict[str, Any]], None],
    options: argparse.Namespace,
) -> bool:
    """Record any failure in the attempt; returns whether there was none."""
    from pipeline import store

    began = time.time()
    try:
        from pipeline import catalog, execute

        cell = execute.read_cell(paths, catalog.built_in())
        act(cell, work, data_root, options.device, options.threads, progress)
        progress({"stage": "done", "seconds": time.time() - began})
        return True
    except (Exception, SystemExit) as error:  # a stage may read a command line that is not its own
        traceback.print_exc()
        kind, reason = _failure_of(error, paths.folder)
        node = os.environ.get("SLURMD_NODENAME") if kind == "no_gpu" else None
        failure = store.Failure(kind, reason, traceback.format_exc(), node)
        try:
            store.write_failure(attempt, failure)
        except OSError:  # a full disk; the log, the event and the exit code show it
            traceback.print_exc()
        progress({"stage": "failed", "kind": kind, "reason": reason})
        return False


def _failure_of(error: BaseException, folder: Path) -> tuple[str, str]:
    try:
        from pipeline.failure_kinds import failure_of
    except Exception as missing:  # torch itself cannot be loaded
        return "exception", f"{type(missing).__name__}: {missing}"
    return failure_of(error, folder)


@contextmanager
def _events() -> Iterator[TextIO]:
    """Standard output, only for events: what libraries print there goes to standard error."""
    kept = os.fdopen(os.dup(1), "w")
    sys.stdout.flush()
    os.dup2(2, 1)
    try:
        yield kept
    finally:
        kept.close()


@contextmanager
def _logged(log: Path) -> Iterator[None]:
    """Redirect descriptors 1 and 2 to the log, so that it also has the output of native code."""
    from pipeline import store

    kept = [os.dup(1), os.dup(2)]
    descriptor = store.open_own(log, os.O_WRONLY | os.O_APPEND)
    try:
        _point_both(descriptor, descriptor)
        yield
    finally:
        _point_both(*kept)
        for each in (*kept, descriptor):
            os.close(each)


def _point_both(out: int, err: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        _flush(stream)
    os.dup2(out, 1)
    os.dup2(err, 2)


def _flush(stream: TextIO) -> None:
    try:
        stream.flush()
    except OSError:  # the disk that the log is on is full: its last lines are lost, nothing else
        return


def die_with(parent: int) -> None:
    """On Linux: have this process killed when its parent ends, however that ends."""
    if sys.platform != "linux":
        return
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        os.kill(os.getpid(), signal.SIGKILL)


def _parser(name: str, about: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m jobs.{name}", description=about)
    parser.add_argument("--work", type=Path, required=True, help="the work root")
    parser.add_argument("--data", type=Path, required=True, help="the data root")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, help="CPU threads; default: one a core")
    parser.add_argument("--cores", type=int, help="cores requested for it; default: all")
    parser.add_argument("--sweep", default="", help="the sweep's name, for trackers")
    parser.add_argument("--track", action="append", default=[], help="a tracker; may be repeated")
    parser.add_argument("--die-with-parent", type=int, metavar="PID", help=argparse.SUPPRESS)
    parser.add_argument("--stops", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("ids", nargs="+", metavar="ID", help="cells, by id")
    return parser


if __name__ == "__main__":
    code = main()
    garbage.no_more()
    sys.exit(code)
