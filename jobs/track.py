"""Writes a running cell's history to trackers, in a process of its own.

    python -m jobs.track --work ROOT --sweep NAME --tracker NAME ID

Started beside the process of the cell, which writes a line to it after each epoch, and closes its
standard input at its end. Whatever goes wrong here is one sentence in the attempt's log.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from pipeline import store, streams, terminal, tracking
from pipeline.errors import Corrupt
from pipeline.paths import CODE, CellPaths, Work

PUBLISH_S = 1.0  # for the metrics file, which is written beside the training
END_S = 20.0  # the most time for the last rows, after the cell has ended


# --- beside the cell -------------------------------------------------------------------------


class Tracking:
    """The processes of a cell's trackers; none of their errors is the cell's."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]]):
        self.processes = processes

    def event(self, event: dict[str, Any]) -> None:
        """After each epoch, for its metrics file was published."""
        if event.get("epoch") is not None and float(event["epoch"]).is_integer():
            for process in self.processes:
                _poke(process.stdin)

    def end(self) -> None:
        for process in self.processes:
            with contextlib.suppress(OSError):
                assert process.stdin is not None
                process.stdin.close()
        for process in self.processes:
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                terminal.tell("tracking: not all was written when the cell had ended")
                process.kill()
                process.wait()


def _poke(pipe: IO[bytes] | None) -> None:
    assert pipe is not None
    with contextlib.suppress(OSError, ValueError):  # it has ended, or is so slow that a pipe fills
        pipe.write(b"\n")
        pipe.flush()


@contextlib.contextmanager
def beside(cell: CellPaths, work: Work, sweep: str, names: Sequence[str]) -> Iterator[Tracking]:
    """The trackers of a cell while it runs."""
    tracked = Tracking([p for name in names if (p := _started(cell, work, sweep, name))])
    try:
        yield tracked
    finally:
        tracked.end()


def _started(cell: CellPaths, work: Work, sweep: str, name: str) -> subprocess.Popen[bytes] | None:
    options = ["--work", str(work.root), "--sweep", sweep, "--tracker", name, cell.id]
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.track", *options],
            cwd=CODE,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
    except OSError as error:
        terminal.tell(f"tracking: {name} cannot be started: {error}")
        return None
    assert process.stdin is not None
    os.set_blocking(process.stdin.fileno(), False)
    return process


# --- in the tracker's process ----------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    streams.ready()
    store.private()
    options = _parser().parse_args(arguments)
    work = Work(options.work)
    store.enter(work)
    try:
        _follow(work, options.sweep, options.tracker, work.cell(options.id))
    except Exception as error:  # a tracker's package may raise anything: it is the user's to read
        line = " ".join(str(error).split())[:500]
        terminal.tell(f"tracking: {options.tracker} ended: {line or type(error).__name__}")
        return 1
    return 0


def _follow(work: Work, sweep: str, name: str, cell: CellPaths) -> None:
    tracker = tracking.opened(name, _run(work, sweep, name, cell))
    try:
        for _ in sys.stdin:
            time.sleep(PUBLISH_S)
            _export(tracker, cell, name)
        _export(tracker, cell, name)
    finally:
        tracker.close()


def _run(work: Work, sweep: str, name: str, cell: CellPaths) -> tracking.Run:
    facts = json.loads(cell.cell_json.read_bytes())
    label = f"{facts['technique']}-{facts['seed']}"
    folder = work.tracking(name) / (f"{sweep}/{cell.id}-{label}" if name != "mlflow" else "")
    return tracking.Run(cell.id, label, sweep, folder, tracking.settings_of(facts))


def _export(tracker: tracking.Tracker, cell: CellPaths, name: str) -> None:
    """Adds the epochs that the tracker lacks: a cell that is resumed adds no step twice, and one
    whose training begins anew (on other images) adds all of them."""
    try:
        history = store.read_history(cell.metrics)
    except (FileNotFoundError, Corrupt):  # none yet
        return
    training = tracking.identity(history)
    done = _step(_tracked(cell).get(name), training)
    last = tracking.add_new(tracker, history, done)
    if last != done:
        with store.lock_folder(cell.tracked_lock):  # other trackers write their steps, too
            now = {**_tracked(cell), name: {"step": last, "training": training}}
            store.publish_json(cell.tracked, now)


def _tracked(cell: CellPaths) -> dict[str, Any]:
    try:
        tracked = json.loads(cell.tracked.read_bytes())
    except (OSError, ValueError):
        return {}
    return tracked if isinstance(tracked, dict) else {}


def _step(tracked: Any, training: str | None) -> int:
    """The last step of this training that a tracker has; 0 where it has none. Earlier versions
    recorded the step alone."""
    step = tracked
    if isinstance(tracked, dict):
        step = tracked.get("step") if tracked.get("training") == training else 0
    return step if isinstance(step, int) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.track", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="the work root")
    parser.add_argument("--sweep", required=True, help="the name that its runs are grouped by")
    parser.add_argument("--tracker", required=True, choices=sorted(tracking.TRACKERS))
    parser.add_argument("id", metavar="ID", help="a cell")
    return parser


if __name__ == "__main__":
    sys.exit(main())
