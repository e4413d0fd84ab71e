"""Reads and copies files of unknown origin: only regular files of bounded size.

Opening a pipe would wait for a writer, and a device or a sparse file can be read for ever. So a
file is opened without blocking, and checked before its first byte is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import Corrupt

BLOCK = 1 << 20


@contextlib.contextmanager
def open_regular(path: Path, most_bytes: int) -> Iterator[tuple[BinaryIO, int]]:
    """(the open file, its size); Corrupt where it is not regular or has more than `most_bytes`,
    OSError where it cannot be opened."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        size = _checked_size(path, os.fstat(descriptor), most_bytes)
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            yield file, size
    finally:
        os.close(descriptor)


def _checked_size(path: Path, status: os.stat_result, most_bytes: int) -> int:
    if not stat.S_ISREG(status.st_mode):
        raise Corrupt(f"{path}: is not a regular file")
    if status.st_size > most_bytes:
        raise Corrupt(f"{path}: has {status.st_size} bytes, expected at most {most_bytes}")
    return status.st_size


def read_regular(path: Path, most_bytes: int) -> bytes:
    """All of a file; raises as `open_regular`."""
    with open_regular(path, most_bytes) as (file, size):
        return _rest(file, size)


def read_checked(path: Path, size: int, sha256: str) -> bytes:
    """All of a file that must have this size and checksum; raises as `open_regular`.

    The checksum is computed block by block before the file is read into memory, so that a wrong
    file costs no memory; and again for the bytes that are returned.
    """
    with open_regular(path, sys.maxsize) as (file, actual):
        if actual != size:
            raise Corrupt(f"{path}: changed since it was written ({actual} bytes, then {size})")
        if _sha256(file, size) == sha256:
            file.seek(0)
            data = _rest(file, size)
            if hashlib.sha256(data).hexdigest() == sha256:
                return data
    raise Corrupt(f"{path}: changed since it was written (its SHA-256 differs)")


def copy_checked(source: Path, to: Path, size: int, sha256: str) -> None:
    """Copy a file that must have this size and checksum; after an error, do not use the file at
    `to`. Raises as `open_regular`."""
    with open_regular(source, size) as (file, _), open(to, "xb") as copy:
        digest, left = hashlib.sha256(), size
        while left and (block := file.read(min(BLOCK, left))):
            digest.update(block)
            copy.write(block)
            left -= len(block)
    if left or digest.hexdigest() != sha256:
        raise Corrupt(f"{source}: its SHA-256 is not the one in its manifest")


def _sha256(file: BinaryIO, size: int) -> str:
    digest, left = hashlib.sha256(), size
    while left and (block := file.read(min(BLOCK, left))):  # no further, even if the file grows
        digest.update(block)
        left -= len(block)
    return digest.hexdigest()


def _rest(file: BinaryIO, size: int) -> bytes:
    parts, left = [], size
    while left and (block := file.read(left)):
        parts.append(block)
        left -= len(block)
    return b"".join(parts)
