"""Progress of local workers on standard error: live bars on a terminal, else plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

from pipeline.orchestrate import estimate
from pipeline.sweep import Cell
from pipeline.terminal import printable

QUIET_S = 2.0  # least time between two lines about one cell in the same stage
WITHIN_S = 30.0  # the same, within an epoch
MEASURING = 5.0  # cost of start and measurement of a cell, in epochs


class Lines:
    """One line when a cell starts and ends, and about one per epoch, the last one always."""

    def __init__(self, cells: Sequence[Cell], done: Sequence[Cell], file: IO[str] | None = None):
        self.file = file or sys.stderr
        self.total = len(cells)
        ids = {cell.id for cell in done}
        self.clock = _Clock([cell for cell in cells if cell.id not in ids])
        self.numbers: dict[str, int] = {}
        self.ended = len(done)
        self.last: dict[str, tuple[str, float]] = {}
        if done:
            self.say(f"{len(done)} of {len(cells)} cells are already done")

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, line: str) -> None:
        with suppress(OSError):  # the reader is gone; the work goes on
            print(printable(line), file=self.file, flush=True)

    def start(self, cell: Cell) -> None:
        number = self.total - self.clock.count + len(self.numbers) + 1
        self.numbers.setdefault(cell.id, min(number, self.total))
        self.say(f"{self._head(cell)}: started")

    def event(self, cell: Cell, event: dict[str, Any]) -> None:
        stage, then = self.last.get(cell.id, ("", 0.0))
        now = time.monotonic()
        epoch = event.get("epoch", 0.5)
        quiet = QUIET_S if float(epoch).is_integer() else WITHIN_S
        if event["stage"] != stage or now - then >= quiet or epoch == event.get("epochs"):
            self.last[cell.id] = (event["stage"], now)
            self.say(f"{self._head(cell)}: {described(event)}")

    def end(self, cell: Cell, state: str, reason: str | None, seconds: float) -> None:
        self.clock.end(cell)
        self.ended += 1
        why = f" ({reason})" if reason else ""
        left = self.clock.left_s()
        more = f"; about {duration(left)} left" if left else ""
        took = f" after {duration(seconds)}" if seconds else ""
        self.say(f"{self._head(cell)}: {state}{took}{why}{more}")

    def _head(self, cell: Cell) -> str:
        return f"[{self.numbers.get(cell.id, self.ended)}/{self.total}] {cell.name}"


class Bars(Lines):
    """The same lines for starts and ends, above a bar for every running cell and one for all."""

    def __init__(self, cells: Sequence[Cell], done: Sequence[Cell]):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.console = Console(stderr=True, highlight=False)
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[facts]}", markup=False),
            console=self.console,
            transient=True,
        )
        self.names = _short_names(cells)
        self.tasks: dict[str, Any] = {}
        self.seen: dict[str, dict[str, Any]] = {}
        super().__init__(cells, done)
        self.all = self.bars.add_task(
            "all cells", total=len(cells), completed=len(done), facts=f"{len(done)}/{len(cells)}"
        )

    def __enter__(self) -> Bars:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def say(self, line: str) -> None:
        self.console.print(printable(line), markup=False, soft_wrap=True)

    def start(self, cell: Cell) -> None:
        super().start(cell)
        self.tasks[cell.id] = self.bars.add_task(self.names[cell.id], total=None, facts="starts")

    def event(self, cell: Cell, event: dict[str, Any]) -> None:
        before = self.seen.get(cell.id, {})
        if before.get("stage") == event["stage"]:  # keep the loss until there is a newer one
            event = {**before, **event}
        self.seen[cell.id] = event
        self.bars.update(
            self.tasks[cell.id],
            total=event.get("epochs"),
            completed=event.get("epoch", 0),
            facts=tersely(event),
        )

    def end(self, cell: Cell, state: str, reason: str | None, seconds: float) -> None:
        if cell.id in self.tasks:
            self.bars.remove_task(self.tasks.pop(cell.id))
        super().end(cell, state, reason, seconds)
        left = self.clock.left_s()
        facts = f"{self.ended}/{self.total}" + (f", {duration(left)} left" if left else "")
        self.bars.update(self.all, completed=self.ended, facts=facts)

    def _head(self, cell: Cell) -> str:
        return f"[{self.numbers.get(cell.id, self.ended)}/{self.total}] {self.names[cell.id]}"


def _short_names(cells: Sequence[Cell]) -> dict[str, str]:
    """Names without the parts that all share, by id: a terminal has 80 columns."""
    parts = {cell.id: cell.name.split("/") for cell in cells}
    differ = [len(set(column)) > 1 for column in zip(*parts.values(), strict=True)]
    differ[2] = True  # the technique is always shown
    return {
        id_: "/".join(p for p, d in zip(name, differ, strict=True) if d)
        for id_, name in parts.items()
    }


@dataclass
class _Clock:
    """Estimates the time left from the cells that ended, weighted by their epochs."""

    cells: Sequence[Cell]
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0

    @property
    def count(self) -> int:
        return len(self.cells)

    def end(self, cell: Cell) -> None:
        self.ended += _weight(cell)

    def left_s(self) -> float:
        """0 before the first cell ended, and after the last."""
        left = sum(map(_weight, self.cells)) - self.ended
        passed = time.monotonic() - self.began
        return passed / self.ended * left if self.ended > 0 and left > 0 else 0.0


def _weight(cell: Cell) -> float:
    return estimate.epochs(cell) + MEASURING


def display(cells: Sequence[Cell], done: Sequence[Cell]) -> Lines:
    """Bars where standard error is a terminal, else plain lines."""
    return Bars(cells, done) if sys.stderr.isatty() else Lines(cells, done)


def described(event: dict[str, Any]) -> str:
    """A worker's event: `1-finetune, epoch 3/10, 12 s left, loss 0.512, accuracy 97.1 %`."""
    parts = [event["stage"], *([event["what"]] if "what" in event else [])]
    if event.get("epoch") is not None:
        parts.append(f"epoch {round(event['epoch'], 1):g}/{event.get('epochs', '?')}")
    if event.get("seconds_left") is not None:
        parts.append(f"{duration(event['seconds_left'])} left")
    if event.get("loss") is not None:
        parts.append(f"loss {event['loss']:.3f}")
    if event.get("accuracy") is not None:
        parts.append(f"accuracy {100 * event['accuracy']:.1f} %")
    return ", ".join(parts)


def tersely(event: dict[str, Any]) -> str:
    """The same in half a line: `finetune 3/10, loss 0.512, acc. 97.1 %, 12 s left`."""
    stage = event["stage"].partition("-")[2] or event["stage"]
    if "epochs" not in event or "epoch" not in event:
        return ", ".join([stage, *([event["what"]] if "what" in event else [])])
    parts = [f"{stage} {round(event['epoch'], 1):g}/{event['epochs']}"]
    if event.get("loss") is not None:
        parts.append(f"loss {event['loss']:.3f}")
    if event.get("accuracy") is not None:
        parts.append(f"acc. {100 * event['accuracy']:.1f} %")
    if event.get("seconds_left") is not None:
        parts.append(f"{duration(event['seconds_left'])} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 5 min`."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"
