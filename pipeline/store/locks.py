"""Locks a cell, or a folder, for one process at a time; clears what a dead process left behind."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import UserError
from pipeline.paths import CellPaths
from pipeline.store import files, modes
from pipeline.store.claims import OWNER, FileLock, IsGone, lives_here, this_process

WAIT_S, LOOK_S = 600.0, 0.1  # for the lock of a folder
SUPERSEDE_S = 60.0  # for an earlier run of the same job to notice that it has to end


class Busy(Exception):
    """Another process works on this cell."""


@contextlib.contextmanager
def lock_cell(
    cell: CellPaths, job: str | None = None, lives: Callable[[str], bool] | None = None
) -> Iterator[Callable[[], bool]]:
    """Hold the cell alone; raises Busy when another process does, and clears what a dead one left.

    The lock ends with its process, however that ends. The lock file itself stays: removing it
    would let two processes lock two different files of one name. Some network file systems apply
    locks only within one machine; so the file also names its holder, until that one releases it.
    Others have none, see `claims`.
    `lives` tells whether a job is alive, for a holder on another machine and in another job than
    `job`, our own. An earlier run of our own job has to give way: it may still run on a node that
    the scheduler has lost. Yields a function that tells whether the lock is still ours; a holder
    that has lost it must end at once.
    """
    descriptor = _open_lock(cell)
    mine = this_process() + (f" in job {job}" if job else "")
    lock = FileLock(cell.lock, descriptor, mine)
    try:
        holder = _holder(descriptor)
        other = OWNER.fullmatch(holder)
        away = other is not None and lives_here(other) is None
        other_job = other["job"] if other else None
        again = away and job is not None and other_job == job

        def is_gone(owner: re.Match[str]) -> bool:
            """Only the scheduler knows, but of our own job, whose earlier run has to end."""
            if owner["job"] is None:
                return False
            return owner["job"] == job or (lives is not None and not lives(owner["job"]))

        if not (lock.take(is_gone) or (again and _supersede(lock, is_gone))):
            by = f"{holder or 'another process'}{lock.remedy}"
            raise Busy(f"cell {cell.id} is being worked on by {by}")
        try:
            # Only the scheduler knows whether it is alive.
            if away and not again and lives and other_job and lives(other_job):
                raise Busy(f"cell {cell.id} is being worked on by {holder}")
            _sign(descriptor, mine)
            _clear_leftovers(cell.folder)
            yield lambda: _signed(cell.lock) in (mine, None)
            if _holder(descriptor) == mine:
                os.ftruncate(descriptor, 0)
        finally:
            lock.release()
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock_folder(lock: Path) -> Iterator[None]:
    """Hold a folder alone, by the file `lock` in it, which is there only meanwhile; waits for
    another process, and raises UserError where that takes longer than WAIT_S. The folder is made
    where there is none, and goes again where nothing came into it."""
    is_new = not lock.parent.exists()
    try:
        with _held(lock):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
    finally:
        if is_new:
            with contextlib.suppress(OSError):
                lock.parent.rmdir()


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    deadline = time.monotonic() + WAIT_S
    while True:
        with _opened(path) as descriptor:
            lock = FileLock(path, descriptor, this_process())
            if lock.take():
                try:
                    if _is_at(path, descriptor):  # its last holder may have removed it since
                        with contextlib.suppress(OSError):  # it is for the message alone
                            _sign(descriptor, lock.owner)
                        yield
                        return
                finally:
                    lock.release()
            elif time.monotonic() > deadline:
                by = f"{_holder(descriptor) or 'another process'}{lock.remedy}"
                raise UserError(f"{path.parent}: is being changed by {by}")
            else:
                time.sleep(LOOK_S)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        descriptor = files.again_if_cleared(_open_in_folder, path)
    except OSError as error:
        error.filename = str(path.parent)  # the name that the user knows
        raise
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open_in_folder(path: Path) -> int:
    files.make_folder(path.parent)
    return modes.open_own(path, os.O_RDWR)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _supersede(lock: FileLock, is_gone: IsGone) -> bool:
    """Put our name into the lock file of an earlier run of our job, and wait for that run to
    end."""
    _sign(lock.descriptor, lock.owner)
    deadline = time.monotonic() + SUPERSEDE_S
    while not (taken := lock.take(is_gone)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return taken


def _sign(descriptor: int, mine: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{mine}\n".encode(), 0)
    os.fsync(descriptor)  # for readers on other machines


def _signed(lock: Path) -> str | None:
    """The present contents, opened again so that a network file system updates them; None:
    unknown."""
    try:
        return lock.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 200, 0).decode(errors="replace").strip()


def _open_lock(cell: CellPaths) -> int:
    try:
        files.make_folder(cell.folder)
        return modes.open_own(cell.lock, os.O_RDWR)
    except PermissionError:
        raise UserError(
            f"{cell.folder}: not writable, it may belong to another user; "
            "set NETPRESS_WORK to a folder of your own"
        ) from None


def _clear_leftovers(folder: Path) -> None:
    """Remove temporary files of a process that died; restore what it had only moved aside."""
    for root, folders, names in os.walk(folder):
        for name in sorted([*folders, *names]):
            if match := files.TEMPORARY.fullmatch(name):
                files.clear(Path(root) / name, match)
        folders[:] = [name for name in folders if not files.TEMPORARY.fullmatch(name)]
