"""Images a second, and joules an image, of runs one after the other.

A GPU's energy is what its driver counts for the whole card (NVML); a CPU's is that of its packages
and their memory (RAPL), idle parts included. It is told only where this process may use every core
of the machine: what others run there counts as well. None where it cannot be read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline import hardware, nvml
from pipeline.measure.latency import Run

POWERCAP = Path("/sys/class/powercap")
TICK_S = 0.5  # within which a counter that works has moved; cards count every 20 to 100 ms
Meter = Callable[[], float | None]  # joules since some moment


class Steady(NamedTuple):
    """Of calls back to back. `joules_per_image`: None where no driver reports it."""

    images_per_s: float
    joules_per_image: float | None


def steady(run: Run, batch: int, seconds: float, meter: Meter | None) -> Steady:
    """Of `run`, which takes `batch` images and is warm, called for `seconds`. Energy is counted
    from one step of its counter to another, so that how rarely it moves costs no precision."""
    start = None if meter is None else _tick(run, meter)
    began, runs = time.perf_counter(), 0
    while runs == 0 or time.perf_counter() - began < seconds:
        run()
        runs += 1
    speed = runs * batch / (time.perf_counter() - began)
    end = None if meter is None or start is None else _tick(run, meter)
    if start is None or end is None:
        return Steady(speed, None)
    images = (runs + end.runs) * batch
    return Steady(speed, max(0.0, end.joules - start.joules) / images)


class _Tick(NamedTuple):
    """A counter that just moved, and the runs until then."""

    joules: float
    runs: int


def _tick(run: Run, meter: Meter) -> _Tick | None:
    """None where it does not move."""
    first, began, runs = meter(), time.perf_counter(), 0
    while first is not None and (runs == 0 or time.perf_counter() - began < TICK_S):
        run()
        runs += 1
        now = meter()
        if now is None:
            return None
        if now != first:
            return _Tick(now, runs)
    return None


# --- what counts -----------------------------------------------------------------------------


def of_gpu() -> Meter | None:
    """Of the GPU that PyTorch uses."""
    import torch

    if not torch.cuda.is_available():
        return None
    uuid = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", None)
    return None if uuid is None else nvml.energy(str(uuid))


def of_cpu(folder: Path = POWERCAP) -> Meter | None:
    """Of all packages of this machine and their memory. Most systems let only root read it."""
    if hardware.cores() < (os.cpu_count() or 1):
        return None  # what others do on the rest would be counted
    counters = [_Counter.of(path) for path in sorted(folder.glob("intel-rapl:*"))]
    known = [counter for counter in counters if counter is not None]
    if not known:
        return None

    def joules() -> float | None:
        read = [counter.joules() for counter in known]
        return None if None in read else sum(filter(None, read))

    return joules if joules() is not None else None


@dataclass
class _Counter:
    """A RAPL counter, which begins again from zero after `range_uj` microjoules."""

    path: Path
    range_uj: int
    last_uj: int = 0
    before_uj: int = 0  # of the rounds that are complete

    @staticmethod
    def of(folder: Path) -> _Counter | None:
        """None for what is a part of another one (cores, graphics, the whole platform)."""
        try:
            name = (folder / "name").read_text().strip()
            if not name.startswith("package") and name != "dram":
                return None
            return _Counter(folder / "energy_uj", int((folder / "max_energy_range_uj").read_text()))
        except (OSError, ValueError):
            return None

    def joules(self) -> float | None:
        try:
            now = int(self.path.read_text())
        except (OSError, ValueError):
            return None
        if now < self.last_uj:
            self.before_uj += self.range_uj
        self.last_uj = now
        return (self.before_uj + now) / 1e6
