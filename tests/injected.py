"""Faults of the file system, injected into a process of its own: the n-th write, fsync, rename,
unlink or open below a folder fails, is cut short, or is the last thing that the process does.

The process is a fork, so that a run costs no start-up. What is patched are the functions of `os`
and `io` that Python code reaches files with; what a C library writes by itself is not seen.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import Corrupt, UserError
from pipeline.store import TEMPORARY, Busy

KILLED, DONE, SENTENCE, TRACEBACK = 137, 0, 3, 9
# fails: with the system's error. short: half is written, and reported. torn: half is written,
# then the process is killed. killed: before it. power: killed, and of what was written and not
# fsynced a part is lost. names: killed, and folders, renames and removals are lost that happened
# since their folder was fsynced.
KINDS = ("fails", "short", "torn", "killed", "power", "names")
ERRORS = {
    "fsync": errno.EIO,
    "rename": errno.EIO,
    "unlink": errno.EACCES,
}  # others: the disk is full
WRITING = os.O_WRONLY | os.O_RDWR


@dataclass
class Faults:
    """`at`: the operation that goes wrong, from 0; None only counts them."""

    root: str
    at: int | None
    kind: str = "fails"
    log: list[str] = field(default_factory=list)  # what each operation is
    open: dict[int, str] = field(default_factory=dict)  # descriptor -> path
    dirty: dict[str, int] = field(default_factory=dict)  # written since it was synced: size then
    # What is in a folder since it was synced: (folder, how that is undone), oldest first.
    entries: list[tuple[str, Callable[[], None]]] = field(default_factory=list)

    def meet(self, what: str, path: object) -> bool:
        """Before an operation; whether it is to be cut short. Raises, or ends the process."""
        number = len(self.log)
        self.log.append(f"{what} {kind_of_file(os.fspath(path), self.root)}")  # type: ignore[call-overload]
        if number != self.at:
            return False
        if self.kind == "fails":
            code = ERRORS.get(what, errno.ENOSPC)
            raise OSError(code, os.strerror(code), os.fspath(path))  # type: ignore[call-overload]
        if self.kind == "power":
            for lost, synced in self.dirty.items():
                if os.path.exists(lost):
                    os.truncate(lost, (synced + max(synced, os.path.getsize(lost))) // 2)
        if self.kind == "names":
            for _, undo in reversed(self.entries):
                undo()
        if self.kind in ("killed", "power", "names") or (self.kind == "torn" and what != "write"):
            os._exit(KILLED)
        return what == "write"

    def writes(self, path: str) -> None:
        if path not in self.dirty:
            self.dirty[path] = os.path.getsize(path)

    def remember(self, what: str, path: str, target: str) -> Callable[[], None]:
        """Before an operation on a name; gives what undoes it."""
        saved = f"{self.root}.saved-{len(self.log)}"
        there = os.path.isfile(target) and not os.path.islink(target)
        if what in ("rename", "unlink") and there:
            os.link(target, saved)

        def undo() -> None:
            if what == "mkdir":
                shutil.rmtree(path, ignore_errors=True)
            if what == "rename" and os.path.lexists(target) and os.path.isdir(Path(path).parent):
                os.rename(target, path)
            if os.path.lexists(saved) and os.path.isdir(Path(target).parent):
                os.rename(saved, target)

        return undo

    def below(self, path: object) -> bool:
        try:
            return os.fspath(path).startswith(self.root)  # type: ignore[call-overload]
        except TypeError:
            return False


def kind_of_file(path: str, root: str) -> str:
    """Its name below the root, without what differs from run to run."""
    parts = [
        f"{match['name']}.{match['kind']}" if (match := TEMPORARY.fullmatch(part)) else part
        for part in path.removeprefix(root).split("/")
    ]
    return re.sub(r"[0-9a-f]{16}", "ID", "/".join(parts))


def install(faults: Faults) -> None:
    """For the rest of this process."""
    real = {name: getattr(os, name) for name in ("open", "close", "write", "fsync")}

    def opened(path, flags, mode=0o777, *, dir_fd=None):
        if faults.below(path) and flags & WRITING:
            faults.meet("open", path)
        descriptor = real["open"](path, flags, mode, dir_fd=dir_fd)
        if faults.below(path):
            faults.open[descriptor] = os.fspath(path)
        return descriptor

    def closed(descriptor):
        faults.open.pop(descriptor, None)
        real["close"](descriptor)

    def written(descriptor, data):
        path = faults.open.get(descriptor)
        if path is None:
            return real["write"](descriptor, data)
        faults.writes(path)
        if faults.meet("write", path):
            count = real["write"](descriptor, data[: max(1, len(data) // 2)])
            if faults.kind == "torn":
                os._exit(KILLED)
            return count
        return real["write"](descriptor, data)

    def synced(descriptor):
        path = faults.open.get(descriptor)
        if path is not None:
            faults.meet("fsync", path)
            faults.dirty.pop(path, None)
            faults.entries = [e for e in faults.entries if e[0] != path]
        real["fsync"](descriptor)

    os.open, os.close, os.write, os.fsync = opened, closed, written, synced  # type: ignore[assignment]
    for name in ("rename", "replace", "unlink", "remove", "mkdir", "rmdir"):
        setattr(os, name, _named(faults, name))
    builtins.open = io.open = _opener(faults)  # type: ignore[assignment]


def _whole(path: object, folder: int | None) -> object:
    """A path relative to an open folder, as one from the root."""
    return path if folder is None else os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)  # type: ignore[call-overload]


def _named(faults: Faults, name: str) -> Callable[..., None]:
    """A function of `os` that names one or two paths."""
    real = getattr(os, name)
    what = {"replace": "rename", "remove": "unlink"}.get(name, name)

    def function(path, *more, **named):
        whole = _whole(path, named.get("dir_fd"))
        if faults.below(whole):
            faults.meet(what, whole)
        if faults.kind == "names" and faults.below(path):
            target = os.fspath(more[0]) if what == "rename" else os.fspath(path)
            undo = faults.remember(what, os.fspath(path), target)
            real(path, *more, **named)
            faults.entries.append((os.path.dirname(target), undo))
        else:
            real(path, *more, **named)
        if what == "rename" and os.fspath(path) in faults.dirty:
            faults.dirty[os.fspath(more[0])] = faults.dirty.pop(os.fspath(path))

    return function


class _Raw(io.FileIO):
    """A file that Python's `open` writes through."""

    faults: Faults

    def write(self, data):
        path = os.fspath(self.name)
        self.faults.writes(path)
        if self.faults.meet("write", path):
            count = super().write(bytes(data)[: max(1, len(data) // 2)])
            if self.faults.kind == "torn":
                os._exit(KILLED)
            return count
        return super().write(data)


def _opener(faults: Faults) -> Callable[..., io.IOBase]:
    real = io.open

    def opener(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, **more):
        writing = set(mode) & set("wxa+")
        if not faults.below(file) or not writing or more.get("opener"):
            return real(file, mode, buffering, encoding, errors, newline, **more)
        faults.meet("open", file)
        raw = _Raw(file, mode.replace("b", "").replace("t", ""))
        raw.faults = faults
        faults.open[raw.fileno()] = os.fspath(file)
        if buffering == 0:
            return raw
        buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding, errors, newline)

    return opener


def run(
    act: Callable[[], object], root: Path, at: int | None = None, kind: str = "fails"
) -> tuple[int, list[str], str]:
    """`act` in a fork: (DONE, KILLED, SENTENCE or TRACEBACK; the operations, such as "open a.json";
    the traceback)."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        _child(act, Faults(str(root), at, kind), writer)
    os.close(writer)
    with open(reader, "rb") as file:
        operations, _, trace = file.read().decode(errors="replace").partition("\n\n")
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), operations.splitlines(), trace


def _child(act: Callable[[], object], faults: Faults, writer: int) -> None:
    write = os.write
    trace, code = "", TRACEBACK
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        install(faults)
        act()
        code = DONE
    except (OSError, UserError, Corrupt, Busy):
        code = SENTENCE
    except BaseException:
        trace = traceback.format_exc()
    finally:
        faults.at = None
        data = ("\n".join(faults.log) + f"\n\n{trace}").encode()
        while data:
            data = data[write(writer, data) :]
        sys.stdout.flush()
        os._exit(code)
