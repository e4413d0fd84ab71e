"""Where a cell's time goes, told by its events: `prepare` is what a stage does around its training
(pruning, calibration, clustering).

Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

PHASES = ("start", "prepare", "compile", "train", "export", "evaluate", "measure")  # in their order


class Timeline:
    """Seconds of each phase so far. `event` gets the events of the cell's progress: each begins a
    phase, which lasts until the next one."""

    def __init__(self, now: Callable[[], float] | None = None):
        from pipeline import clock  # here, since `plan` needs none

        self.now = now or clock.now
        self.phase, self.since = PHASES[0], self.now()
        self._seconds: dict[str, float] = {}

    def event(self, event: Mapping[str, Any]) -> None:
        phase = phase_of(event)
        if phase is not None and phase != self.phase:
            self._pass()
            self.phase = phase

    def seconds(self) -> dict[str, float]:
        """Phase -> seconds, of those that there were."""
        self._pass()
        return {p: round(self._seconds[p], 2) for p in PHASES if p in self._seconds}

    def _pass(self) -> None:
        now = self.now()
        self._seconds[self.phase] = self._seconds.get(self.phase, 0.0) + now - self.since
        self.since = now


def phase_of(event: Mapping[str, Any]) -> str | None:
    """The phase that an event belongs to; None where it goes on with the one before."""
    stage = str(event.get("stage", ""))
    if stage == "artifact":
        return "export"
    if stage == "measure":
        return "evaluate" if event.get("what") == "accuracy" else "measure"
    if stage == "compile" or event.get("what") == "compile":
        return "compile"
    if not stage[:1].isdecimal():
        return None
    return "train" if "epoch" in event or event.get("what") == "train" else "prepare"


def together(timelines: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Phase -> seconds of all, of those that there were."""
    every = list(timelines)
    there = {phase for one in every for phase in one}
    return {p: round(sum(one.get(p, 0.0) for one in every), 2) for p in PHASES if p in there}


def mean(timelines: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Phase -> mean seconds a cell."""
    every = list(timelines)
    totals = {p: sum(one.get(p, 0.0) for one in every) for p in PHASES}
    return {p: total / len(every) for p, total in totals.items() if total}


def line(timelines: Iterable[Mapping[str, float]]) -> str:
    """`start 3 s, train 40 s (69 %), measure 12 s`; empty of nothing."""
    means = mean(timelines)
    whole = sum(means.values())
    parts = []
    for phase, seconds in means.items():
        share = f" ({seconds / whole:.0%})" if phase == "train" else ""
        parts.append(f"{phase} {seconds:.3g} s{share}")
    return ", ".join(parts)
