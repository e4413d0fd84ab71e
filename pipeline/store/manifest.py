"""Manifests: a cell is done when its manifest names all its files.

A manifest has the size and the SHA-256 of every file and is published last; readers ignore a file
that no manifest names.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from pipeline.errors import Corrupt
from pipeline.paths import CellPaths
from pipeline.store.files import (
    json_bytes,
    patiently,
    publish_bytes,
    read_patiently,
    set_aside,
    sha256,
    sync_folder,
)

FORMAT = 1
SEALED = re.compile(rb',\n "seal": "(?P<seal>[0-9a-f]{64})"\n\}\n\Z')


def write_manifest(cell: CellPaths, extra: dict[str, Any] | None = None) -> None:
    """Name every file of a finished cell with its size and SHA-256: from now on it is done."""
    files = {str(p.relative_to(cell.folder)): fingerprint(p) for p in _product(cell)}
    publish_bytes(cell.manifest, manifest_bytes(cell.id, files, extra or {}))


def manifest_bytes(cell_id: str, files: dict[str, Any], extra: dict[str, Any]) -> bytes:
    """`files`: name in the cell's folder -> {"bytes", "sha256"}. It has a checksum of its own,
    since a flipped bit in a number still gives a number."""
    return sealed_json({"format": FORMAT, "id": cell_id, "files": files, "extra": extra})


def sealed_json(content: dict[str, Any]) -> bytes:
    """With a last entry, after whatever keys there are, that is the SHA-256 of the others."""
    return with_seal(json_bytes(content))


def with_seal(data: bytes) -> bytes:
    """The same of a JSON object as text, whose last line is its closing bracket."""
    seal = hashlib.sha256(data).hexdigest()
    return data.removesuffix(b"\n}\n") + f',\n "seal": "{seal}"\n}}\n'.encode()


def read_manifest(cell: CellPaths) -> dict[str, Any] | None:
    """The manifest, None where there is none; raises Corrupt."""
    try:
        data = read_patiently(cell.manifest)
    except FileNotFoundError:
        return None
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError):
        manifest = None
    if not is_sealed(data) or not _well_formed(manifest, cell):
        raise Corrupt(f"{cell.manifest}: damaged")
    return manifest


def is_sealed(data: bytes) -> bool:
    """Whether the seal, the last entry, is of all that stands before it."""
    match = SEALED.search(data)
    if match is None:
        return False
    content = data[: match.start()] + b"\n}\n"  # as it was before the seal was added
    return hashlib.sha256(content).hexdigest() == match["seal"].decode()


def is_done(cell: CellPaths, deep: bool = False) -> bool:
    """Whether all files of the cell are complete: by size, or with `deep` by checksum."""
    try:
        verify(cell, deep)
    except Corrupt:
        return False
    return True


def verify(cell: CellPaths, deep: bool = True) -> dict[str, Any]:
    """The manifest of a complete cell; raises Corrupt with the first file that differs from it."""
    manifest = read_manifest(cell)
    if manifest is None:
        raise Corrupt(f"{cell.folder}: has no manifest, so it was not finished")
    verify_files(cell, manifest, deep)
    return manifest


def verify_files(cell: CellPaths, manifest: dict[str, Any], deep: bool) -> None:
    """Raises Corrupt with the first file of the cell that differs from its manifest."""
    for name, fingerprint in manifest["files"].items():
        _verify_file(cell.folder / name, fingerprint, deep)


def retract(cell: CellPaths) -> None:
    """Take the manifest away, with the cell's lock held: what it names is about to change."""
    cell.manifest.unlink(missing_ok=True)
    sync_folder(cell.folder)


def withdraw(cell: CellPaths) -> list[Path]:
    """Set aside the manifest, then every file or folder that does not match it; returns the new
    names.

    For a cell that is Corrupt by `verify`, with its lock held. The rest is intact and is used
    again: a damaged artifact does not cost the training.
    """
    damaged = damaged_parts(cell)
    aside = [set_aside(cell.manifest)] if cell.manifest.exists() else []
    return aside + [set_aside(path) for path in damaged if path.exists()]


def damaged_parts(cell: CellPaths) -> list[Path]:
    """Top-level files and folders of the cell that do not match its manifest."""
    try:
        manifest = read_manifest(cell)
    except Corrupt:  # no file can be checked
        return [path for path in (cell.result, cell.artifact, cell.metrics) if path.exists()]
    damaged = []
    for name, fingerprint in (manifest or {"files": {}})["files"].items():
        part = cell.folder / Path(name).parts[0]
        try:
            _verify_file(cell.folder / name, fingerprint, deep=True)
        except Corrupt:
            damaged += [part] if part not in damaged else []
    return damaged


def _product(cell: CellPaths) -> list[Path]:
    artifact = sorted(p for p in cell.artifact.rglob("*") if not p.is_dir())
    if not artifact:
        raise FileNotFoundError(errno.ENOENT, "no artifact in the cell", str(cell.artifact))
    optional = [p for p in (cell.metrics, cell.model) if p.exists()]
    return [cell.cell_json, cell.result, *optional, *artifact]


def fingerprint(path: Path) -> dict[str, Any]:
    """As a manifest names a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _well_formed(manifest: Any, cell: CellPaths) -> bool:
    """Whether it is a manifest of this cell, and all names stay in its folder."""
    try:
        names = list(manifest["files"])
        return (
            manifest.keys() == {"format", "id", "files", "extra", "seal"}
            and manifest["format"] == FORMAT
            and manifest["id"] == cell.id
            and {"result.h5", "cell.json"} <= set(names)
            and all(_stays_inside(name) for name in names)
            and all(isinstance(f["bytes"], int) and f["sha256"] for f in manifest["files"].values())
        )
    except (TypeError, KeyError, AttributeError):
        return False


def _stays_inside(name: str) -> bool:
    return "\0" not in name and not {"", ".", ".."} & set(name.split("/"))


def _verify_file(path: Path, fingerprint: dict[str, Any], deep: bool) -> None:
    try:
        status = patiently(lambda: os.lstat(path))
        if not stat.S_ISREG(status.st_mode):
            raise Corrupt(f"{path}: is not a plain file")
        if status.st_size != fingerprint["bytes"]:
            expected = fingerprint["bytes"]
            raise Corrupt(f"{path}: has {status.st_size} bytes, its manifest says {expected}")
        if deep and sha256(path) != fingerprint["sha256"]:
            raise Corrupt(f"{path}: its SHA-256 is not the one in its manifest")
    except (FileNotFoundError, NotADirectoryError):
        raise Corrupt(f"{path}: is missing, its manifest names it") from None
