"""What the data sets that come from the internet have in common: checksums and fetching."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import store
from pipeline.data.cache import lock
from pipeline.data.entries import source_key
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.sweep import Dataset

SILENCE_S = 60.0  # a server that says nothing for so long is given up


def key(dataset: Dataset, folder: Path, checksums: dict[str, str]) -> str:
    """Changes with the files (by size and time, content is checked when they are decoded)."""
    _require(dataset.name, folder, checksums)
    stats = [(folder / name).stat() for name in checksums]
    files = [[name, s.st_size, s.st_mtime_ns] for name, s in zip(checksums, stats, strict=True)]
    return source_key(dataset.name, dataset.size, files)


def verify(name: str, folder: Path, checksums: dict[str, str], kind: str) -> None:
    """Raises UserError naming the first file that is missing or is not the original."""
    _require(name, folder, checksums)
    if damaged := _damaged(folder, checksums, kind):
        raise UserError(
            f"{damaged[0]}: damaged, its {kind.upper()} is not the original's; "
            "`netpress fetch SWEEP` brings it anew"
        )


def fetch(
    name: str,
    folder: Path,
    checksums: dict[str, str],
    kind: str,
    download: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Download what is missing or damaged, then verify all of it."""
    damaged = _damaged(folder, checksums, kind)
    for path in damaged:
        say(f"{name}: {path} is damaged, renamed to {store.set_aside(path).name}")
    if not _missing(folder, checksums):
        say(f"{name}: {folder} is complete, checksums verified")
        return
    with lock(folder / ".fetch.lock"):  # two downloads at once would write one file
        if _missing(folder, checksums):
            say(f"{name}: downloading to {folder}")
            _patiently(name, download)
    verify(name, folder, checksums, kind)
    say(f"{name}: {folder} is complete, checksums verified")


def _patiently(name: str, download: Callable[[], None]) -> None:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_S)
    try:
        download()
    # torchvision raises RuntimeError for checksums, OSError for the network and the disk
    except (RuntimeError, OSError, HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{name}: the download failed ({reason}); "
            "call `netpress fetch SWEEP` again, on a machine with internet"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _missing(folder: Path, checksums: dict[str, str]) -> list[Path]:
    return [folder / name for name in checksums if not (folder / name).is_file()]


def _require(name: str, folder: Path, checksums: dict[str, str]) -> None:
    if missing := _missing(folder, checksums):
        raise UserError(
            f"{name}: {missing[0]} is missing; `netpress fetch SWEEP` brings it, "
            "or set NETPRESS_DATA to the folder that has it"
        )


def _damaged(folder: Path, checksums: dict[str, str], kind: str) -> list[Path]:
    there = [folder / name for name in checksums if (folder / name).is_file()]
    return [path for path in there if _checksum(path, kind) != checksums[path.name]]


def _checksum(path: Path, kind: str) -> str:
    digest = hashlib.new(kind, usedforsecurity=False)
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()
