"""Shows the logs of a cell: its job's output, and the log of its last attempt."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline import store
from pipeline.errors import UserError
from pipeline.orchestrate import ledger, state
from pipeline.orchestrate.display import described
from pipeline.orchestrate.plan import quoted
from pipeline.paths import Work
from pipeline.sweep import Cell, Sweep

FOLLOW_S = 1.0
LOOK_S = 15.0  # how often --follow checks whether the cell has ended


@dataclass
class _Tail:
    """A growing file: yields the complete lines added since the last call, and with `all_of_it`
    also the beginning of one, since no more is awaited."""

    path: Path
    offset: int = 0
    rest: bytes = b""

    def lines(self, all_of_it: bool = False) -> Iterator[str]:
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                data = self.rest + file.read()
        except FileNotFoundError:
            return
        self.offset += len(data) - len(self.rest)
        *whole, self.rest = data.split(b"\n")
        if all_of_it and self.rest:
            whole, self.rest = [*whole, self.rest], b""
        for line in whole:
            yield line.decode(errors="replace")


def show(sweep: Sweep, work: Work, cell: Cell, follow: bool = False) -> Iterator[str]:
    """The log lines of a cell; with `follow`, until it is neither running nor in the queue, nor to
    be measured by a job that is."""
    tails: dict[Path, _Tail] = {}
    seen = list(_new(sweep, work, cell, tails, ends=not follow))
    yield from seen
    if tails and len(seen) == len(tails):  # the names of the files alone
        yield (
            f"nothing was logged; `netpress status {quoted(sweep)} --watch` and "
            f"`netpress top {quoted(sweep)}` show progress"
        )
    if not tails:
        now, ended = _now(sweep, work, cell)
        if not follow or ended:
            raise UserError(f"{cell.name} has no log yet: it is {now.state}, {now.reason}")
    looked = time.monotonic()
    while follow:
        time.sleep(FOLLOW_S)
        yield from _new(sweep, work, cell, tails)
        if time.monotonic() - looked > LOOK_S:
            looked = time.monotonic()
            now, ended = _now(sweep, work, cell)
            if ended:
                yield from _new(sweep, work, cell, tails, ends=True)
                yield f"==> {now.state}" + (f": {now.reason}" if now.reason else "")
                return


def _now(sweep: Sweep, work: Work, cell: Cell) -> tuple[state.CellState, bool]:
    """The cell's state, and whether nothing more will happen to it by itself."""
    states = state.find(sweep, work)
    now, view = states.by_id[cell.id], states.view
    waits = now.state == "trained" and view is not None and view.will_measure(cell.id)
    return now, now.state not in ("running", "queued", "waiting") and not waits


def _new(
    sweep: Sweep, work: Work, cell: Cell, tails: dict[Path, _Tail], ends: bool = False
) -> Iterator[str]:
    """What is new in the logs; `ends`: this is the last look at them."""
    for path in _files(sweep, work, cell):
        if path not in tails and path.exists():
            tails[path] = _Tail(path)
            yield f"==> {path}"
        if path in tails:
            for line in tails[path].lines(ends):
                if (text := _readable(line, cell)) is not None:
                    yield text


def _files(sweep: Sweep, work: Work, cell: Cell) -> Iterator[Path]:
    paths = work.sweep(sweep.name)
    known = ledger.read(paths)
    for at in (known.last.get(cell.id), known.measuring.get(cell.id)):
        if at is not None and at.entry.job is not None:
            job = paths.job(at.entry.intent)
            yield from (job.out(at.task), job.err(at.task))
    attempt = store.last_attempt(work.cell(cell.id))
    if attempt is not None:
        yield attempt.log


def _readable(line: str, cell: Cell) -> str | None:
    """A line for the user: progress events in words; None for events of other cells of the job."""
    try:
        event = json.loads(line)
        mine = event["cell"] == cell.id
        if not mine:
            return None
        reason = f": {event['reason']}" if "reason" in event else ""
        return described(event) + reason
    except (ValueError, KeyError, TypeError):
        return line
