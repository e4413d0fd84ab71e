"""What code costs, in numbers that hold on every machine: how often functions are called, and how
processor time grows with size. Absolute times are for tests/benchmarks."""

from __future__ import annotations

import gc
import sys
import time
from collections import Counter
from collections.abc import Callable


def calls(run: Callable[[], object]) -> Counter[str]:
    """Name of a function -> how often it was called while `run` ran, those written in C included.
    A name is short: `value`, `open`, `sha256`. No garbage is collected meanwhile: what other tests
    left would be counted with it."""
    counts: Counter[str] = Counter()

    def note(frame, event, function):
        if event == "call":
            counts[frame.f_code.co_name] += 1
        elif event == "c_call":
            counts[function.__name__] += 1

    gc.collect()
    gc.disable()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
        gc.enable()
    return counts


def cpu_s(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def growth(measure: Callable[[int], float], size: int, rounds: int = 3) -> float:
    """How much more four times as much costs: 4 where cost is proportional to size, 16 where each
    looks at all others. `measure`: size -> seconds; the least of some rounds, taken in turns, so
    that whatever else a machine does weighs little."""
    pairs = [(measure(size), measure(4 * size)) for _ in range(rounds)]
    few, many = (min(seconds) for seconds in zip(*pairs, strict=True))
    return many / few


MOST_GROWTH = 8.0  # twice what is proportional, half of what is quadratic


def reference_s() -> float:
    """A fixed loop of Python: what the times of a benchmark are compared with."""

    def loop() -> None:
        texts: dict[int, str] = {}
        for i in range(300_000):
            texts[i % 1000] = str(i)

    return min(cpu_s(loop) for _ in range(5))
