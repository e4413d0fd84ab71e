"""Whether a process works on a cell now. Looking disturbs nobody."""

from __future__ import annotations

import fcntl
import os
import socket

from pipeline import store
from pipeline.paths import CellPaths


def is_held(folder: CellPaths) -> bool:
    """Whether a process works on the cell now.

    Asking the lock means taking it for a moment, in which a worker that starts would find it
    taken. So it is asked only where the process that took it last may be alive.
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
        pass  # it lives, and is another user's
    return True


def _could_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return True
