"""Who may read and change what this process writes: the user alone, but for what is given away, and
for work roots that a group shares.

A work root with share.json is shared: its folders pass their group on (set-gid), and what is
written there is for the group, whichever member writes it. All other files are private.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from pipeline import paths
from pipeline.errors import UserError

PRIVATE = 0o077  # umask
GROUP, READABLE = 0o007, 0o027  # of a shared work root: for all members; for all to read
RETRY_S = 0.2
_users_umask: int | None = None  # once this process has made its own private
_given_away: ContextVar[int | None] = ContextVar("umask of what is given away", default=None)
_shared_roots: set[Path] = set()


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
    token = _given_away.set(users_umask())
    try:
        yield
    finally:
        _given_away.reset(token)


def umask_of(path: Path) -> int:
    """Which rights a file or folder at `path` gets none of."""
    given = _given_away.get()
    if given is not None:
        return given
    root = next((root for root in _shared_roots if path.is_relative_to(root)), None)
    if root is None:
        return PRIVATE
    return READABLE if paths.Work(root).runs_as_its_writer(path) else GROUP


def set_mode_of_file(descriptor: int, path: Path) -> None:
    is_program = os.fstat(descriptor).st_mode & stat.S_IXUSR
    with _without_modes(path):
        os.fchmod(descriptor, (0o777 if is_program else 0o666) & ~umask_of(path))


def set_mode_of_folder(folder: Path) -> None:
    keeps = folder.stat().st_mode & stat.S_ISGID  # a group's folder passes its group on
    with _without_modes(folder):
        os.chmod(folder, 0o777 & ~umask_of(folder) | keeps | _sticky(folder))


def _sticky(folder: Path) -> int:
    """For a folder in which each member may make, but not replace, what jobs execute."""
    inside, parent = folder / "any", umask_of(folder)
    return stat.S_ISVTX if parent == GROUP and umask_of(inside) == READABLE else 0


def open_own(path: Path, flags: int) -> int:
    """`os.open` of a file that is written in place, such as a lock; made where there is none."""
    flags |= os.O_CREAT | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o600)
    except PermissionError:
        if umask_of(path) == PRIVATE:
            raise
        time.sleep(RETRY_S)  # another member has made it, and gives it its mode now
        descriptor = os.open(path, flags, 0o600)
    if umask_of(path) != PRIVATE and os.fstat(descriptor).st_uid == os.geteuid():
        set_mode_of_file(descriptor, path)
    return descriptor


@contextlib.contextmanager
def _without_modes(path: Path) -> Iterator[None]:
    """A disk may have no modes of its own (FAT): what is shared needs none."""
    try:
        yield
    except OSError as error:
        if umask_of(path) == PRIVATE or error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
            raise


# --- work roots of a group -------------------------------------------------------------------


def enter(work: paths.Work) -> bool:
    """To be called before anything is written into a work root; returns whether a group shares
    it."""
    root = Path(work.root)
    for shared_root in (root, root.parent):  # a rehearsal has a root inside of it
        if os.path.lexists(paths.Work(shared_root).share):
            _shared_roots.add(shared_root)
    return umask_of(root) != PRIVATE


def share_with_group(work: paths.Work) -> None:
    """Make the work root one that its group shares, with what this user has made in it before.
    Raises UserError where that is not the user's to decide."""
    root = Path(work.root)
    if enter(work):
        return
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if root.stat().st_uid != os.geteuid():
        raise UserError(
            f"{root}: belongs to another user, and is not shared; expected a folder of yours, or "
            "that they submit with `share: group` first"
        )
    _shared_roots.add(root)
    try:
        for path in [root, *root.rglob("*")]:
            _open_up(path)
    except BaseException:
        _shared_roots.discard(root)
        raise


def _open_up(path: Path) -> None:
    """For the group, where it is ours: others' files in it are theirs to open."""
    status = path.lstat()
    if status.st_uid != os.geteuid() or stat.S_ISLNK(status.st_mode):
        return
    if stat.S_ISDIR(status.st_mode):
        os.chmod(path, 0o777 & ~umask_of(path) | stat.S_ISGID | _sticky(path))
    else:
        program = status.st_mode & stat.S_IXUSR
        os.chmod(path, (0o777 if program else 0o666) & ~umask_of(path))


def closed_to_group(root: Path) -> Path | None:
    """The first folder on the way to a work root that only its owner can pass."""
    others = stat.S_IXGRP | stat.S_IXOTH
    return next((p for p in reversed(root.parents) if not p.stat().st_mode & others), None)
