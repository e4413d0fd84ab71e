"""Measurements of a trained cell, one file for each time that a machine measured it.

    measurements/MACHINE-N.h5      laid out as a result (`results`): /measure, and no history
    measurements/MACHINE-N.json    its manifest, published last: what no manifest names does not
                                   exist. It has the file's size and SHA-256, what the measurement
                                   was made with, and of which artifact it is

Nothing here is ever written again, so a measurement that fails, or is killed, loses no earlier one.
Whoever publishes holds the cell's lock. Looking at manifests needs neither h5py nor numpy.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import Corrupt
from pipeline.paths import SHA256, CellPaths
from pipeline.store.files import patiently, publish_bytes, read_patiently, sha256
from pipeline.store.manifest import is_sealed, sealed_json

FORMAT = 1
NAME = re.compile(r"(?P<machine>[A-Za-z0-9][A-Za-z0-9._-]{0,63})-(?P<number>[1-9][0-9]{0,8})")
MANIFEST, FILE = ".json", ".h5"
MANIFEST_BYTES = 1 << 20


@dataclass(frozen=True)
class Entry:
    """A published measurement, by its manifest. `path`: of its HDF5 file; `artifact`: as
    `artifact_sha256`; `made_with`: as in `pipeline.done`."""

    path: Path
    machine: str
    number: int
    n_bytes: int
    sha256: str
    artifact: str
    made_with: dict[str, Any]

    @property
    def name(self) -> str:
        return self.path.stem


def artifact_sha256(files: Mapping[str, Mapping[str, Any]], folder: str = "artifact/") -> str:
    """What an artifact is known by: the SHA-256 of the names and SHA-256 of its files. `files`: as
    in the manifest of its cell."""
    lines = (
        f"{name.removeprefix(folder)} {entry['sha256']}\n"
        for name, entry in sorted(files.items())
        if name.startswith(folder)
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def publish(
    cell: CellPaths, machine: str, data: bytes, artifact: str, made_with: Mapping[str, Any]
) -> Entry:
    """Publish `data`, as `results.result_bytes` made it, under the machine's next free name."""
    number = 1 + max((n for m, n in _taken(cell) if m == machine), default=0)
    path = cell.measurements / f"{machine}-{number}{FILE}"
    if not NAME.fullmatch(path.stem):
        raise ValueError(f"expected the name of a machine in a file name, got {machine!r}")
    digest = hashlib.sha256(data).hexdigest()
    publish_bytes(path, data)
    manifest = {
        "format": FORMAT,
        "id": cell.id,
        "file": {"bytes": len(data), "sha256": digest},
        "artifact": artifact,
        "made_with": dict(made_with),
    }
    publish_bytes(path.with_suffix(MANIFEST), sealed_json(manifest))
    return Entry(path, machine, number, len(data), digest, artifact, dict(made_with))


def look(cell: CellPaths, deep: bool = False) -> tuple[list[Entry], list[Corrupt]]:
    """(the whole measurements of a cell, oldest first; why others are not): by size, or with `deep`
    by checksum."""
    entries: list[Entry] = []
    damaged: list[Corrupt] = []
    folder = cell.measurements
    for name in sorted(_names(folder)):
        match = NAME.fullmatch(name.removesuffix(MANIFEST)) if name.endswith(MANIFEST) else None
        if match is None:
            continue
        try:
            entry = _read(folder, name, match["machine"], int(match["number"]))
            _check(entry, deep)
        except Corrupt as error:
            damaged.append(error)
        else:
            entries.append(entry)
    return sorted(entries, key=lambda e: (e.number, e.machine)), damaged


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _taken(cell: CellPaths) -> list[tuple[str, int]]:
    """Of files without a manifest, too: a name is used once."""
    stems = {Path(name).stem for name in _names(cell.measurements)}
    matches = (NAME.fullmatch(stem) for stem in stems)
    return [(match["machine"], int(match["number"])) for match in matches if match]


def _read(folder: Path, name: str, machine: str, number: int) -> Entry:
    path = folder / name
    data = read_patiently(path)
    try:
        if len(data) > MANIFEST_BYTES or not is_sealed(data):
            raise ValueError("its checksum does not match")
        manifest = json.loads(data)
        size, digest, artifact = (
            manifest["file"]["bytes"],
            manifest["file"]["sha256"],
            manifest["artifact"],
        )
        whole = manifest["format"] == FORMAT and manifest["id"] == folder.parent.name
        known = isinstance(size, int) and isinstance(manifest["made_with"], dict)
        if not (whole and known and SHA256.fullmatch(digest) and SHA256.fullmatch(artifact)):
            raise ValueError("it is of another cell or format")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Corrupt(f"{path}: damaged") from error
    file = folder / (name.removesuffix(MANIFEST) + FILE)
    return Entry(file, machine, number, size, digest, artifact, manifest["made_with"])


def _check(entry: Entry, deep: bool) -> None:
    try:
        status = patiently(lambda: os.lstat(entry.path))
        if not stat.S_ISREG(status.st_mode) or status.st_size != entry.n_bytes:
            raise Corrupt(f"{entry.path}: is not the file of {entry.n_bytes} bytes in its manifest")
        if deep and sha256(entry.path) != entry.sha256:
            raise Corrupt(f"{entry.path}: its SHA-256 is not the one in its manifest")
    except FileNotFoundError:
        raise Corrupt(f"{entry.path}: is missing, its manifest names it") from None
