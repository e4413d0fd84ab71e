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


def interleaved(
    contenders: Mapping[Contender, Run],
    repeats: int,
    seconds: float,
    spinning: Collection[Contender] = (),
) -> dict[Contender, np.ndarray]:
    """Contender -> milliseconds of each timed run, one a round: ``repeats`` rounds, or as many as
    fit into ``seconds`` (at least 10, or ``repeats`` where that is less). ``spinning``: those that
    come last in each round."""
    quiet = [name for name in contenders if name not in spinning]
    last = [name for name in contenders if name in spinning]
    for run in contenders.values():
        for _ in range(WARM_UP):
            run()
    samples: dict[Contender, list[float]] = {name: [] for name in contenders}
    began, rounds = time.perf_counter(), 0
    while rounds < repeats:
        if rounds >= LEAST_ROUNDS and time.perf_counter() - began > seconds:
            break
        time.sleep(REST_S)
        for name in quiet + last:
            run = contenders[name]
            _warm(run)
            start = time.perf_counter_ns()
            run()
            samples[name].append((time.perf_counter_ns() - start) / 1e6)
        quiet = quiet[1:] + quiet[:1]
        rounds += 1
    return {name: np.array(values) for name, values in samples.items()}


def _warm(run: Run) -> None:
    began = time.perf_counter()
    for _ in range(UNTIMED):
        run()
        if time.perf_counter() - began > UNTIMED_S:
            return
