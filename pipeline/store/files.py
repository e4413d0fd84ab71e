"""Atomic publication: a file or folder is either complete or absent.

Bytes are written under a temporary name in the same folder, fsynced and renamed; then the folder is
fsynced.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from pipeline.store import modes

TEMPORARY = re.compile(
    # Names of before have 4 digits for the host, or none.
    r"\.(?P<name>.+)\.(?P<kind>tmp|old)-(?P<process>\d+)-"
    r"(?P<host>[0-9a-f]{8}|[0-9a-f]{4})?[0-9a-f]{8}"
)
ABANDONED_S = 24 * 3600.0  # for temporary files of other machines, whose processes are not known
# NFS may show a rename seconds late: reading a file that must exist is retried.
RETRIES_S = (0.05, 0.2, 0.5, 1.0)
AT_FDCWD, RENAME_NOREPLACE = -100, 1  # of renameat2(2)


def make_folder(folder: Path) -> Path:
    """Make `folder` and its parents, readable only by the user, or as `shared` says; raises OSError
    with the path where something else has its name. What is published in it is only there for good
    when the folder itself is, so its name is fsynced as well."""
    if not folder.is_dir():
        make_folder(folder.parent)
        try:
            folder.mkdir(mode=0o700)
            modes.set_mode_of_folder(folder)
            with contextlib.suppress(PermissionError):  # of a folder that can be used, not listed
                sync_folder(folder.parent)
        except FileExistsError:  # created meanwhile, or a file, or a dangling link
            if not folder.is_dir():
                raise NotADirectoryError(
                    errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)
                ) from None
    return folder


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds `path` to an OSError without a file name, as operations on an open file raise it."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def publish_bytes(path: Path, data: bytes) -> None:
    """Put `data` at `path`, completely or not at all; raises OSError (ENOSPC, ...), leaves no
    files."""
    make_folder(path.parent)
    again_if_cleared(_publish_once, path, data)
    sync_folder(path.parent)


def _publish_once(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        write_synced(temporary, data)


def again_if_cleared(act: Callable[..., Any], *arguments: Any) -> Any:
    """Call `act`, twice if needed, without the cell's lock: a process that has just locked the cell
    may have removed our temporary file as a leftover."""
    try:
        return act(*arguments)
    except FileNotFoundError:
        return act(*arguments)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; its synced file replaces `path` at the end, or is removed."""
    temporary = beside(path, "tmp")
    try:
        with naming(path):
            yield temporary
            os.replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename == str(temporary):
            error.filename = str(path)  # the name that the user knows
        temporary.unlink(missing_ok=True)
        raise


def publish_json(path: Path, value: Any) -> None:
    """Put `value` at `path` as JSON with sorted keys; raises ValueError for NaN and infinities."""
    publish_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def publish_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Publish at `folder` what `write` puts into the folder it gets, completely or not at all.

    An old folder is moved aside first, since no portable call swaps two. After a kill between the
    two renames, the next `lock_cell` restores the old one.
    """
    with draft_of(folder) as temporary:
        write(temporary)
        _sync_tree(temporary)
        _replace_folder(temporary, folder)


def publish_new_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """The same, but replaces nothing: raises FileExistsError where `folder` exists, even if it was
    created while `write` ran."""
    with draft_of(folder) as temporary:
        write(temporary)
        _sync_tree(temporary)
        _rename_to_new(temporary, folder)
        sync_folder(folder.parent)


@contextlib.contextmanager
def draft_of(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, for the caller to rename; it is removed after an error,
    and after a kill by the next process that makes one for the same name."""
    make_folder(folder.parent)
    clear_abandoned(folder.parent, folder.name)
    temporary = beside(folder, "tmp")
    temporary.mkdir(mode=0o700)
    try:
        modes.set_mode_of_folder(temporary)  # so that another member of a group can clear it away
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to NAME.corrupt-N, so that it can be inspected and made
    again."""
    number = 1
    while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    os.rename(path, aside)
    sync_folder(path.parent)
    return aside


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with naming(folder):
            os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot: the rename alone must suffice
            raise
    finally:
        os.close(descriptor)


def beside(path: Path, kind: str) -> Path:
    mark = f"{os.getpid()}-{_host()}{secrets.token_hex(4)}"
    return path.with_name(f".{path.name}.{kind}-{mark}")


@functools.cache
def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def clear_abandoned(folder: Path, only: str | None = None) -> None:
    """Clear what processes that are dead left directly in `folder`, for a folder without a lock.
    `only`: of what was to have this name.

    What was moved aside is not put back here, since its process may be about to publish, and goes
    only once something has its name. Raises nothing: NFS keeps files that are open, another process
    clears the same, or they are another user's.
    """
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = [] if folder.is_symlink() else sorted(os.listdir(folder))
    for name in names:
        match = TEMPORARY.fullmatch(name)
        if match and only in (None, match["name"]):
            with contextlib.suppress(OSError):
                needed = match["kind"] == "old" and not os.path.lexists(folder / match["name"])
                if not needed and _is_abandoned(folder / name, match):
                    _remove(folder / name)


def _is_abandoned(path: Path, match: re.Match[str]) -> bool:
    if match["host"] != _host():
        # Of the change, not of the contents: a rename keeps the time of these.
        return time.time() - path.lstat().st_ctime > ABANDONED_S
    try:
        os.kill(int(match["process"]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # another user's
        pass
    return False


def clear(leftover: Path, match: re.Match[str]) -> None:
    """Remove a temporary file or folder; restore what was only moved aside. With a lock alone: a
    process that lives would lose what it publishes."""
    live = leftover.with_name(match["name"])
    if match["kind"] == "old" and not os.path.lexists(live):
        os.rename(leftover, live)
    else:
        _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        left = memoryview(data)
        with naming(path):
            modes.set_mode_of_file(descriptor, path)
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
    finally:
        os.close(descriptor)  # a network file system may report a full disk only here


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync_file(Path(root) / name)
        modes.set_mode_of_folder(Path(root))
        sync_folder(Path(root))


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        with naming(path):
            modes.set_mode_of_file(descriptor, path)
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_to_new(source: Path, target: Path) -> None:
    """Rename a folder to a free name; raises FileExistsError where it exists."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    number = errno.ENOSYS
    if rename is not None:
        ends = (AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target))
        number = ctypes.get_errno() if rename(*ends, RENAME_NOREPLACE) else 0
    if number in (errno.ENOSYS, errno.EINVAL):  # the kernel or the file system cannot
        _rename_over_nothing(source, target)
    elif number:
        raise OSError(number, os.strerror(number), str(target))


def _rename_over_nothing(source: Path, target: Path) -> None:
    """Without renameat2: a rename of a folder replaces no file, no link and no folder with
    contents; at most an empty folder, created after the check, can be lost."""
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    os.rename(source, target)


def _replace_folder(new: Path, folder: Path) -> None:
    aside = beside(folder, "old")
    old: Path | None = aside
    try:
        os.rename(folder, aside)
    except FileNotFoundError:
        old = None
    try:
        os.rename(new, folder)
    except BaseException:
        if old:
            os.rename(old, folder)
        raise
    sync_folder(folder.parent)
    if old:  # already published: what cannot be removed now is removed at the next lock
        shutil.rmtree(old, ignore_errors=True)


def sha256(path: Path) -> str:
    with naming(path), open(path, "rb", buffering=0) as file:
        return rest_sha256(file)


def rest_sha256(file: IO[bytes]) -> str:
    """Of an open file, from its present position."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def patiently(look: Callable[[], Any]) -> Any:
    """Retry after ENOENT and ESTALE: a file system may show an existing file late."""
    for delay_s in RETRIES_S:
        try:
            return look()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
        time.sleep(delay_s)
    return look()


def read_patiently(path: Path) -> bytes:
    try:
        with naming(path):
            return path.read_bytes()
    except OSError as error:
        if error.errno != errno.ESTALE:  # replaced on the server between our open and our read
            raise
        return patiently(path.read_bytes)
