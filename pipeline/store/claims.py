"""One process at a time: flock(2), and claims where a file system has no flock.

Lustre without `-o flock`, NFS without its lock daemon and some FUSE file systems answer ENOSYS,
ENOLCK or EOPNOTSUPP. There a lock is the newest of its claims, LOCK.claim-1, LOCK.claim-2, ...: a
claim is linked into place whole, which only one process can do for one number, and names its
owner. Whoever finds the newest claim released, or its owner gone, makes the next one. Numbers only
grow: the newest claim is never removed, so that none that is late can pass for new.

Whether an owner is gone is certain on its own machine; on another one only the scheduler knows. An
owner whose state is unknown keeps the lock, and the message names the file to remove.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.store import files

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK}
RETRIES_S = (0.1, 0.4, 0.0)  # a server may be out of locks (ENOLCK) for a moment
RELEASED = "released"
OWNER = re.compile(r"process (?P<pid>\d+) on (?P<host>\S+)(?: in job (?P<job>\S+))?")

IsGone = Callable[[re.Match[str]], bool]  # of an owner on another machine


@dataclass
class FileLock:
    """The lock that the file at `path` stands for, open as `descriptor`. `owner`: who takes it,
    such as `process 12 on node1`."""

    path: Path
    descriptor: int
    owner: str
    claim: Path | None = None  # that holds it, ours or another's; None where there is flock

    def take(self, is_gone: IsGone = lambda owner: False) -> bool:
        """Whether it is ours now; does not wait. Raises OSError with the path."""
        with files.naming(self.path):
            answer = _flock(self.descriptor, fcntl.LOCK_EX)
        if answer is None:
            return self._claim(is_gone)
        # A claim may be another machine's, which mounts the same folder without flock.
        return answer and self._is_free(_newest(self.path), is_gone)

    def release(self) -> None:
        """For a lock that is ours. flock ends when the file is closed, so nothing is left to do."""
        if self.claim is None:
            return
        with contextlib.suppress(FileNotFoundError):  # another process has taken it from us
            descriptor = os.open(self.claim, os.O_WRONLY | os.O_NOFOLLOW)
            try:
                os.pwrite(descriptor, f"{RELEASED}\n".encode(), 0)  # needs no room on a full disk
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    @property
    def remedy(self) -> str:
        """What to do about an owner of which it is unknown whether it is gone."""
        return f"; if that process has ended, remove {self.claim}" if self.claim else ""

    def _claim(self, is_gone: IsGone) -> bool:
        newest = _newest(self.path)
        if not self._is_free(newest, is_gone):
            return False
        mine = _numbered(self.path, newest + 1)
        if not _linked(mine, f"{self.owner}\n{_started(os.getpid())}\n".encode()):
            return False
        if _newest(self.path) != newest + 1:  # it was long over when we looked: another is newer
            mine.unlink(missing_ok=True)
            return False
        for number in [n for n in _numbers(self.path) if n <= newest]:
            _numbered(self.path, number).unlink(missing_ok=True)
        self.claim = mine
        return True

    def _is_free(self, newest: int, is_gone: IsGone) -> bool:
        self.claim = _numbered(self.path, newest) if newest else None
        if self.claim is None or _is_free(self.claim, is_gone):
            self.claim = None
            return True
        return False


def is_taken(descriptor: int, path: Path) -> bool:
    """Whether a process holds the lock now; takes it for a moment where there is flock."""
    answer = _flock(descriptor, fcntl.LOCK_SH)
    if answer:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    newest = _newest(path)
    claimed = newest > 0 and not _is_free(_numbered(path, newest), lambda owner: False)
    return answer is False or claimed


def has_flock(folder: Path) -> bool:
    """Whether the file system of a folder has flock; raises OSError where it cannot be tried."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return _flock(descriptor, fcntl.LOCK_SH) is not None
    finally:
        os.close(descriptor)


def _flock(descriptor: int, kind: int) -> bool | None:
    """Whether it is locked now; None where there are no locks."""
    for delay_s in RETRIES_S:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            if error.errno != errno.ENOLCK:
                break
            time.sleep(delay_s)
        else:
            return True
    return None


def this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def lives_here(owner: re.Match[str]) -> bool | None:
    """Whether the process lives; None where it is of another machine."""
    if owner["host"] != socket.gethostname():
        return None
    try:
        os.kill(int(owner["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is alive, and another user's
    return True


def _is_free(claim: Path, is_gone: IsGone) -> bool:
    try:
        text = claim.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:  # another process has just made the next one
        return False
    owner_line, _, started = (line.strip() for line in text.partition("\n"))
    owner = OWNER.match(owner_line)
    if owner is None:  # without hard links, one that is being written
        return owner_line == RELEASED
    lives = lives_here(owner)
    if lives is None:
        return is_gone(owner)
    return not lives or started != _started(int(owner["pid"]))


def _started(pid: int) -> str:
    """Of a process: its number may be another's by now. Empty where there is no /proc, and for one
    that has ended and is not reaped by its parent yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    state, *rest = stat.rpartition(")")[2].split()  # the 3rd field and on, proc_pid_stat(5)
    return "" if state in "ZX" else rest[18]


def _linked(claim: Path, content: bytes) -> bool:
    """Make a claim, whole, where there is none; whether that is what happened."""
    try:
        with _draft(claim, content) as draft:
            os.link(draft, claim)
    except (FileExistsError, FileNotFoundError):  # another process, which also cleared our draft
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        with contextlib.suppress(FileExistsError):
            files.write_synced(claim, content)
            return True
        return False
    files.sync_folder(claim.parent)
    return True


@contextlib.contextmanager
def _draft(claim: Path, content: bytes) -> Iterator[Path]:
    draft = files.beside(claim, "tmp")
    try:
        files.write_synced(draft, content)
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _numbered(lock: Path, number: int) -> Path:
    return lock.with_name(f"{lock.name}.claim-{number}")


def _newest(lock: Path) -> int:
    return max(_numbers(lock), default=0)


def _numbers(lock: Path) -> Iterator[int]:
    start = f"{lock.name}.claim-"
    for name in os.listdir(lock.parent):
        number = name.removeprefix(start)
        if number != name and number.isdecimal():
            yield int(number)
