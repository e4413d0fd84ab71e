"""Which code this is: a checkout at its commit, or a snapshot that a submission made of one.

A snapshot has a record, snapshot.json, with the commit and the folder of the checkout.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from pipeline import paths


def record(code: Path) -> dict[str, Any] | None:
    """What a snapshot records of itself; None for any other folder."""
    try:
        snapshot = json.loads(paths.snapshot_record(code).read_bytes())
        known = isinstance(snapshot["commit"], (str, type(None))) and isinstance(
            snapshot["files"], dict
        )
        known = known and isinstance(snapshot["checkout"], str) and isinstance(snapshot["id"], str)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return snapshot if known else None


def snapshot_id(code: Path = paths.CODE) -> str | None:
    """Of the snapshot that this code is; None where it is a checkout, or installed."""
    own = record(code)
    return own["id"] if own else None


def commit(code: Path = paths.CODE) -> str | None:
    """The commit that the code is at, with a + where it was changed; of a snapshot, that of its
    checkout then. None outside of git."""
    if own := record(code):
        return own["commit"]
    if not (code / ".git").exists():  # installed somewhere, perhaps inside of another repository
        return None
    # Without optional locks: a status that refreshes the index could get into the user's way.
    git = ["git", "--no-optional-locks", "-C", str(code)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True
        )
    except FileNotFoundError:  # no git on this machine
        return None
    if head.returncode:
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
