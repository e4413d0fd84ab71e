"""Decoded data sets on disk, checked by SHA-256 at every load.

    CACHE/data/NAME-KEY/arrays/{train,test}_{pixels,labels}.npy, manifest.json
    CACHE/data/NAME-KEY/lock

Pixels are uint8 [N, C, H, W], labels int64 [N]. Whoever comes first decodes, with the lock held;
the others wait for it. The folder may be removed at any time: it is made again. Arrays from MAPPED
bytes on are mapped files, of which memory holds what is used: also while they are decoded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline import store
from pipeline.data import entries
from pipeline.data.entries import FORMAT
from pipeline.errors import Corrupt, UserError

WAIT_S = 3600.0  # for whom nobody can ask whether it is still at work
MAPPED = 1 << 30
ARRAYS = ("train_pixels", "train_labels", "test_pixels", "test_labels")


@dataclass(frozen=True, eq=False)
class Decoded:
    """A whole data set: pixels uint8 [N, C, H, W], labels int64 [N]; `classes` names the labels,
    `notes` are lines for the user about its images."""

    classes: tuple[str, ...]
    train_pixels: np.ndarray
    train_labels: np.ndarray
    test_pixels: np.ndarray
    test_labels: np.ndarray
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    def sizes(self) -> list[int]:
        """Training images of each class."""
        return np.bincount(self.train_labels, minlength=len(self.classes)).tolist()

    def digests(self) -> dict[str, str]:
        return {name: digest(getattr(self, name)) for name in ARRAYS}


@dataclass(frozen=True, eq=False)
class Checked:
    """Decoded, its fingerprint (entries.fingerprint_of), and the key of its files."""

    data: Decoded
    fingerprint: str
    key: str


_scratch: ContextVar[Path | None] = ContextVar("scratch", default=None)


@contextlib.contextmanager
def scratch(home: Path | None) -> Iterator[None]:
    """Meanwhile `empty` may write below the cache HOME."""
    token = _scratch.set(home)
    try:
        yield
    finally:
        _scratch.reset(token)


def room() -> int | None:
    """Bytes that are free where `empty` writes; None where it takes memory."""
    home = _scratch.get()
    if home is None:
        return None
    store.make_folder(home)
    return shutil.disk_usage(home).free


def empty(shape: tuple[int, ...]) -> np.ndarray:
    """A uint8 array to be filled: from MAPPED bytes on a file without a name, which goes with the
    array. Raises OSError where the disk has no room for it."""
    home, size = _scratch.get(), math.prod(shape)
    if home is None or size < MAPPED:
        return np.empty(shape, np.uint8)
    store.make_folder(home)
    with tempfile.TemporaryFile(dir=home) as file:
        os.posix_fallocate(file.fileno(), 0, size)  # a full disk would kill whoever writes later
        return np.memmap(file, np.uint8, "r+", shape=shape)


def load(home: Path, name: str, key: str, decode: Callable[[], Decoded]) -> Checked:
    """The data set of this name and key: from the cache where it is sound, else by `decode()`."""
    with contextlib.suppress(Corrupt):
        if kept := _read(entries.arrays(home, name, key), key):
            return kept
    return _load_alone(home, name, key, decode)


def is_there(home: Path, name: str, key: str) -> bool:
    """Whether the cache has something under this name and key, sound or not."""
    return entries.arrays(home, name, key).exists()


def sizes(home: Path, name: str, key: str) -> dict[str, int] | None:
    """Class -> training images, of what is in the cache; None where it has nothing sound."""
    folder = entries.arrays(home, name, key)
    try:
        classes = json.loads((folder / "manifest.json").read_bytes())["classes"]
        counts = np.bincount(_array(folder / "train_labels.npy"), minlength=len(classes))
        return dict(zip(map(str, classes), counts.tolist(), strict=True))
    except (OSError, ValueError, LookupError, TypeError, EOFError):  # it is made anew when loaded
        return None


def digest(array: np.ndarray) -> str:
    """SHA-256 of type, shape and content, whatever a version of numpy writes around them."""
    sha256 = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    sha256.update(np.ascontiguousarray(array).data)
    return sha256.hexdigest()


def _load_alone(home: Path, name: str, key: str, decode: Callable[[], Decoded]) -> Checked:
    arrays = entries.arrays(home, name, key)
    with lock(arrays.with_name("lock")):
        _clear_leftovers(arrays.parent)
        try:
            kept = _read(arrays, key)  # another process may have made it while this one waited
        except Corrupt:
            store.set_aside(arrays)
            kept = None
        if kept is None:
            data = decode()
            digests = data.digests()
            store.publish_folder(arrays, lambda folder: _write(folder, key, data, digests))
            if max(getattr(data, name).nbytes for name in ARRAYS) >= MAPPED:
                # What it was decoded into is a file of its own, of no more use.
                published = {name: _array(arrays / f"{name}.npy") for name in ARRAYS}
                data = Decoded(data.classes, **published, notes=data.notes)
            kept = Checked(data, entries.fingerprint_of(data.classes, digests), key)
        return kept


def _write(folder: Path, key: str, data: Decoded, digests: dict[str, str]) -> None:
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", getattr(data, name), allow_pickle=False)
    manifest = {"format": FORMAT, "key": key, "classes": list(data.classes), "sha256": digests}
    if data.notes:
        manifest["notes"] = list(data.notes)
    (folder / "manifest.json").write_bytes(store.json_bytes(manifest))


def _read(folder: Path, key: str) -> Checked | None:
    """None where there is none; raises Corrupt."""
    try:
        text = (folder / "manifest.json").read_bytes()
    except FileNotFoundError:
        if folder.exists():
            raise Corrupt(f"{folder}: has no manifest") from None
        return None
    try:
        manifest = json.loads(text)
        intact = text == store.json_bytes(manifest) and manifest["key"] == key
        arrays = {name: _array(folder / f"{name}.npy") for name in ARRAYS}
        notes = tuple(map(str, manifest.get("notes", ())))
        data = Decoded(tuple(manifest["classes"]), **arrays, notes=notes)
        digests = data.digests()
        intact = intact and manifest["sha256"] == digests
    # A damaged manifest or array header fails in as many ways as there are lines in its parser;
    # a disk or a memory that fails says nothing about the file.
    except Exception as error:
        if isinstance(error, (OSError, MemoryError)) and not isinstance(error, FileNotFoundError):
            raise
        raise Corrupt(f"{folder}: {error}") from error
    if not intact:
        raise Corrupt(f"{folder}: does not match its checksums")
    return Checked(data, entries.fingerprint_of(data.classes, digests), key)


def _array(path: Path) -> np.ndarray:
    # Mapped first, which fails where the header promises more than the file has: reading would ask
    # for as much memory as a damaged header says. A copy on write, since PyTorch knows no array
    # that cannot be written.
    mapped = np.load(path, mmap_mode="c", allow_pickle=False)
    return mapped if mapped.nbytes >= MAPPED else np.load(path, allow_pickle=False)


def _clear_leftovers(folder: Path) -> None:
    """With the lock held: what a killed builder left there is of no use."""
    for left in [path for path in folder.iterdir() if store.TEMPORARY.fullmatch(path.name)]:
        shutil.rmtree(left)


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock file at `path` alone, waiting for it; it goes with its process. UserError after
    WAIT_S, where only a process on another machine can tell whether it still holds it."""
    try:
        store.make_folder(path.parent)
        descriptor = store.open_own(path, os.O_RDWR)
    except PermissionError:
        raise UserError(
            f"{path.parent}: not writable; set NETPRESS_WORK and NETPRESS_DATA to folders of yours"
        ) from None
    try:
        held = store.FileLock(path, descriptor, store.this_process())
        deadline = time.monotonic() + WAIT_S
        while not held.take():
            if held.claim and time.monotonic() > deadline:
                raise UserError(f"{path}: held for {WAIT_S:.0f} s by another process{held.remedy}")
            time.sleep(0.1)
        try:
            yield
        finally:
            held.release()
    finally:
        os.close(descriptor)
