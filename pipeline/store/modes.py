"""Who may read what this process writes: the user alone, but for what is given away."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

PRIVATE = 0o077  # umask
_users_umask: int | None = None  # once this process has made its own private
_umask: ContextVar[int] = ContextVar("umask", default=PRIVATE)


def private(users: int | None = None) -> None:
    """From now on, this process creates files readable only by its user. `users`: the umask of the
    user, for what is `shared`; by default the one that this process was started with."""
    global _users_umask
    before = os.umask(PRIVATE)
    if users is not None:
        _users_umask = users
    elif _users_umask is None or before != PRIVATE:  # not when this is called a second time
        _users_umask = before


def users_umask() -> int:
    """The umask that the user has chosen, whatever this process has made of it."""
    if _users_umask is not None:
        return _users_umask
    now = os.umask(PRIVATE)
    os.umask(now)
    return now


@contextlib.contextmanager
def shared() -> Iterator[None]:
    """What is published here, such as a report or an export, is for others too: it is as readable
    as the user's umask lets new files be."""
    token = _umask.set(users_umask())
    try:
        yield
    finally:
        _umask.reset(token)


def set_mode_of_file(descriptor: int) -> None:
    is_program = os.fstat(descriptor).st_mode & stat.S_IXUSR
    with _without_modes():
        os.fchmod(descriptor, (0o777 if is_program else 0o666) & ~_umask.get())


def set_mode_of_folder(folder: Path) -> None:
    keeps = folder.stat().st_mode & stat.S_ISGID  # a group's folder passes its group on
    with _without_modes():
        os.chmod(folder, 0o777 & ~_umask.get() | keeps)


@contextlib.contextmanager
def _without_modes() -> Iterator[None]:
    """A disk may have no modes of its own (FAT): what is shared needs none."""
    try:
        yield
    except OSError as error:
        if _umask.get() == PRIVATE or error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
            raise
