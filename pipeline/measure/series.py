"""One latency series: what was timed, on what, how. Its samples are milliseconds, one a call.

The name of a series in result.h5, below /measure, is written and parsed here and nowhere else:

    latency/RUNTIME/MODEL/THREADS/batchN            on the CPU
    latency/RUNTIME@DEVICE/MODEL/THREADS/batchN     on another device

Of the same calls, one number each: throughput/... in images a second, energy/... in joules an
image.

Imports nothing heavy: reports read it without torch.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, NamedTuple, cast

Model = Literal["artifact", "base", "simulated"]
Threads = Literal["one", "all"]

MODELS: tuple[Model, ...] = ("artifact", "base", "simulated")
THREADS: tuple[Threads, ...] = ("one", "all")
BATCHES = (1, 64)
GPU_BATCHES = (1, 64, 1024)
KINDS = LATENCY, THROUGHPUT, ENERGY = "latency", "throughput", "energy"
CPU = "cpu"
_NAME = re.compile(
    r"(?P<kind>latency|throughput|energy)/(?P<runtime>[^/@]+)(@(?P<device>[^/@]+))?/(?P<model>artifact|base|simulated)"
    r"/(?P<threads>one|all)/batch(?P<batch>[1-9][0-9]{0,5})"
)


class Series(NamedTuple):
    """`model`: the artifact, the artifact of its base, or the network that training works with;
    on the reference runtime `base` is the base's network. `batch`: images a call."""

    runtime: str
    model: Model
    threads: Threads
    batch: int
    device: str = CPU

    @property
    def name(self) -> str:
        """In result.h5."""
        return self.named(LATENCY)

    def named(self, kind: str) -> str:
        """The same of LATENCY, THROUGHPUT or ENERGY."""
        where = self.runtime if self.device == CPU else f"{self.runtime}@{self.device}"
        return f"{kind}/{where}/{self.model}/{self.threads}/batch{self.batch}"


@lru_cache(1000)
def parse(name: str, kind: str = LATENCY) -> Series | None:
    """The series of this name; None for the name of anything else."""
    match = _NAME.fullmatch(name)
    if match is None or match["kind"] != kind:
        return None
    series = Series(
        match["runtime"],
        cast(Model, match["model"]),
        cast(Threads, match["threads"]),
        int(match["batch"]),
        match["device"] or CPU,
    )
    return series if series.named(kind) == name else None  # a device that is given as cpu has no @
