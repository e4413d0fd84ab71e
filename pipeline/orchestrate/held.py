"""Whether a process holds a cell now, without disturbing it."""

from __future__ import annotations

import fcntl
import os
import socket

from pipeline import store
from pipeline.paths import CellPaths


def is_held(folder: CellPaths) -> bool:
    """Whether a process holds the cell now.

    Testing the lock means holding it for a moment, in which a worker that starts would fail to get
    it. So it is tested only where its last holder may be alive.
    """
    try:
        with open(folder.lock, encoding="utf-8", errors="replace") as file:
            return _may_live(file.read(200)) and not _could_lock(file.fileno())
    except OSError:
        return False


def _may_live(holder: str) -> bool:
    match = store.HOLDER.fullmatch(holder.strip())
    if match is None or match["host"] != socket.gethostname():
        return match is not None
    try:
        os.kill(int(match["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is alive, and another user's
    return True


def _could_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return True
