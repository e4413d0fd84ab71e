"""How long an answer takes: contenders interleaved in one process, after warming up.

All contenders take turns, round after round, so that whatever slows the machine down for a while
slows all of them. Each turn begins with runs that are not timed: they bring the model's weights
into the caches, and a core that rested is at its full speed only after some milliseconds. Who comes
first changes with every round, since the first after a rest is slower all the same. Each round
begins with a pause, and those that leave threads spinning come last in it: PyTorch's (OpenMP) go on
for some 10 ms after their work, and would take a core from the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import TypeVar

import numpy as np

Run = Callable[[], object]
Contender = TypeVar("Contender", bound=Hashable)
WARM_UP = 3
LEAST_ROUNDS = 10
REST_S = 0.03
# Before each timed run: so many, or as few as take so long.
UNTIMED, UNTIMED_S = 5, 0.04
LONG_S = 0.5


class Budget:
    """Seconds that some contenders may take in all, warming up included, and in each of several
    steps; what was begun is finished."""

    def __init__(self, seconds: float):
        self.left_s = self.step_s = seconds

    def begin(self, steps: int) -> None:
        """The first of ``steps`` that are left: it has its share of what is left."""
        self.step_s = self.left_s / steps

    def spend(self, seconds: float) -> None:
        self.left_s -= seconds
        self.step_s -= seconds


class Limited:
    """A run that takes its time from a budget; raises Spent where that has less than it took."""

    def __init__(self, run: Run, budget: Budget):
        self.run, self.budget, self.last_s = run, budget, 0.0

    def __call__(self) -> object:
        if self.budget.step_s <= self.last_s:
            raise Spent
        began = time.perf_counter()
        result = self.run()
        self.last_s = time.perf_counter() - began
        self.budget.spend(self.last_s)
        return result

    @property
    def long(self) -> bool:
        """Whether it takes so long that neither caches nor a core's speed count: it is timed
        without a run before."""
        return self.last_s > LONG_S


class Spent(Exception):
    """A contender's budget is used up: it leaves, and the others go on."""


def interleaved(
    contenders: Mapping[Contender, Run],
    repeats: int,
    seconds: float,
    spinning: Collection[Contender] = (),
) -> dict[Contender, np.ndarray]:
    """Contender -> milliseconds of each timed run, one a round: ``repeats`` rounds, or as many as
    fit into ``seconds`` (at least 10, or ``repeats`` where that is less). ``spinning``: those that
    come last in each round. One whose budget is spent has what was timed until then; one of which
    nothing was timed is missing."""
    quiet = [name for name in contenders if name not in spinning]
    last = [name for name in contenders if name in spinning]
    spent = {name for name, run in contenders.items() if not _ran(run, WARM_UP)}
    samples: dict[Contender, list[float]] = {name: [] for name in contenders}
    began, rounds = time.perf_counter(), 0
    while rounds < repeats:
        if rounds >= LEAST_ROUNDS and time.perf_counter() - began > seconds:
            break
        time.sleep(REST_S)
        for name in [name for name in quiet + last if name not in spent]:
            try:
                samples[name].append(_timed_ms(contenders[name]))
            except Spent:
                spent.add(name)
        quiet = quiet[1:] + quiet[:1]
        rounds += 1
    return {name: np.array(values) for name, values in samples.items() if values}


def _ran(run: Run, times: int) -> bool:
    """Whether its budget was enough for that, or for one run where it is long."""
    try:
        for _ in range(times):
            run()
            if isinstance(run, Limited) and run.long:
                break
    except Spent:
        return False
    return True


def _timed_ms(run: Run) -> float:
    if not (isinstance(run, Limited) and run.long):
        _warm(run)
    start = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - start) / 1e6


def _warm(run: Run) -> None:
    began = time.perf_counter()
    for _ in range(UNTIMED):
        run()
        if time.perf_counter() - began > UNTIMED_S:
            return
