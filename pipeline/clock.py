"""A clock that stands still while this process is stopped, for the time that its work takes.

A local run stops its other workers while one of them measures. No clock of the system leaves that
out, and a process does not notice that it was stopped. The one that stops it writes for how long
into a file before the process goes on. Imports nothing heavy.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

SECONDS = struct.Struct("d")

_stops: int | None = None  # the file, open


def follow(path: Path | None) -> None:
    """From here on `now` leaves out the stops that `path` records (orchestrate.stops), or none. The
    file loses its name, so that nothing is left of it, however the two processes end."""
    global _stops
    _stops = None
    if path is not None:
        _stops = os.open(path, os.O_RDONLY)
        path.unlink()


def now() -> float:
    """Seconds since some moment, without those for which this process was stopped."""
    stopped_s = _stopped_s()
    while True:
        at, before_s, stopped_s = time.monotonic(), stopped_s, _stopped_s()
        if stopped_s == before_s:  # else it was stopped between the two
            return at - stopped_s


def _stopped_s() -> float:
    if _stops is None:
        return 0.0
    record = os.pread(_stops, SECONDS.size, 0)
    return float(SECONDS.unpack(record)[0])
