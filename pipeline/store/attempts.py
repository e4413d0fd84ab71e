"""A cell's attempts: attempts/N/, one for each run of a job."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from pipeline.paths import AttemptPaths, CellPaths
from pipeline.store import files


def new_attempt(cell: CellPaths, job: str | None = None) -> AttemptPaths:
    """The next free attempts/N/, in which it says from the first moment which job it is made in.

    Two processes never get the same one: a rename onto a folder that holds something fails.
    """
    return files.again_if_cleared(_new_attempt_once, cell, job)


def _new_attempt_once(cell: CellPaths, job: str | None) -> AttemptPaths:
    last = last_attempt(cell)
    attempt = cell.attempt(last.number + 1 if last else 1)
    with files.draft_of(attempt.folder) as draft:
        files.write_synced(AttemptPaths(draft).usage, files.json_bytes({"job": job}))
        while not _moved_to_free_name(draft, attempt.folder):
            attempt = cell.attempt(attempt.number + 1)
    return attempt


def _moved_to_free_name(folder: Path, name: Path) -> bool:
    try:
        os.rename(folder, name)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def last_attempt(cell: CellPaths) -> AttemptPaths | None:
    """The attempt with the highest number, or None before the first."""
    try:
        numbers = [int(name) for name in os.listdir(cell.attempts) if name.isdecimal()]
    except FileNotFoundError:
        return None
    return cell.attempt(max(numbers)) if numbers else None
