"""Writes histories of cells to what people follow trainings with: one file a tracker.

A tracker gets the rows of a cell's metrics file, which are published each epoch, and nothing else.
It runs in a process of its own (jobs/track.py), so that nothing that it does can fail a cell. Its
package is imported when it is opened: none of them is needed for anything else.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from pipeline.errors import UserError
from pipeline.store import StageHistory

TRACKERS = {name: f"pipeline.tracking.{name}" for name in ("tensorboard", "mlflow", "wandb")}


@dataclass(frozen=True)
class Run:
    """A cell, as trackers show it. `folder`: of this tracker under the work root; `settings`: what
    the cell is, flat."""

    id: str
    name: str
    sweep: str
    folder: Path
    settings: Mapping[str, str]


class Tracker(Protocol):
    """One run that is open. `add`: the values of one epoch, by name; `step` counts the epochs of
    all stages, from 1."""

    def add(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Module(Protocol):
    """What a tracker's module has: the package that it needs, and `start`, which opens a run."""

    PACKAGE: str

    def start(self, run: Run) -> Tracker: ...


def opened(name: str, run: Run) -> Tracker:
    """Raises UserError where its package is missing."""
    try:
        return _module(name).start(run)
    except ImportError as error:
        raise _missing(name, str(error)) from error


def require(names: Iterable[str]) -> None:
    """Raises UserError for the first tracker whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(_module(name).PACKAGE) is None:
            raise _missing(name, "not installed")


def _module(name: str) -> Module:
    return cast(Module, importlib.import_module(TRACKERS[name]))


def _missing(name: str, why: str) -> UserError:
    return UserError(
        f"tracking: {name} needs the package {_module(name).PACKAGE} ({why}); expected `pip "
        "install 'netpress[tracking]'` in netpress's environment, or a sweep without it"
    )


def rows(history: Iterable[StageHistory]) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, values) of each epoch: `0-train/loss`, and finite numbers only."""
    step = 0
    for stage in history:
        count = min(map(len, stage.columns.values()), default=0)
        for row in range(count):
            step += 1
            named = {k: float(column[row]) for k, column in stage.columns.items() if k != "epoch"}
            prefix = f"{stage.index}-{stage.stage}"
            yield step, {f"{prefix}/{k}": v for k, v in named.items() if math.isfinite(v)}


def add_new(tracker: Tracker, history: Sequence[StageHistory], after: int) -> int:
    """Add the epochs after this step; returns the last step there is."""
    last = after
    for step, values in rows(history):
        if step > after:
            tracker.add(step, values)
            last = step
    return last


def identity(history: Iterable[StageHistory]) -> str | None:
    """What tells trainings of one cell apart: the SHA-256 of the first epoch, whose seconds no
    other has; None before it."""
    first = next(rows(history), None)
    return first and hashlib.sha256(json.dumps(first, sort_keys=True).encode()).hexdigest()


def settings_of(cell: Mapping[str, Any]) -> dict[str, str]:
    """A cell.json as flat settings: `recipe.epochs`, `stages.0.name`."""
    return dict(_flat("", cell))


def _flat(at: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        yield at, str(value)
        return
    for key, part in value.items():
        yield from _flat(f"{at}.{key}" if at else str(key), part)
