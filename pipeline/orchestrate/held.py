"""Whether a process holds a cell now, without disturbing it."""

from __future__ import annotations

from pipeline import store
from pipeline.paths import CellPaths


def is_held(folder: CellPaths) -> bool:
    """Whether a process holds the cell now.

    Testing the lock means holding it for a moment, in which a worker that starts would fail to get
    it. So it is tested only where its last holder may be alive.
    """
    try:
        with open(folder.lock, encoding="utf-8", errors="replace") as file:
            holder = store.OWNER.fullmatch(file.read(200).strip())
            may_live = holder is not None and store.lives_here(holder) is not False
            return may_live and store.is_taken(file.fileno(), folder.lock)
    except OSError:
        return False
