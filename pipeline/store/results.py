"""Results of cells and of sweeps, in HDF5.

A cell's HDF5 files are built and read in memory, as bytes: none is ever open on disk, so a kill
leaves no partial file and no HDF5 file lock is needed on a network file system. Only the merged
results of a whole sweep are too large for that: they are written under a temporary name like any
other file, without a lock. The first 512 bytes (the HDF5 user block, which every HDF5 reader skips)
hold the SHA-256 of the rest, because HDF5 itself reads most flipped bits as silently different
numbers.

Layout of result.h5 (metrics.h5 has only /history):
    /                       attributes cell (JSON), id, facts (JSON)
    /history/I-STAGE/METRIC [epochs] float64
    /measure/NAME           scalar, string or [n]; a name may have slashes

h5py and numpy are imported where they are used: planning and status need neither.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from pipeline.errors import Corrupt, UserError
from pipeline.store import files

if TYPE_CHECKING:
    import h5py

    from pipeline.store import hdf5

SEAL_BYTES = 512
HISTORY_BYTES = 1 << 24  # as lists, numbers take four times as much
SEAL = b"netpress sha256 "

Value = TypeVar("Value")


@dataclass
class StageHistory:
    """What one stage recorded: columns {metric: [epochs] floats}."""

    index: int
    stage: str
    columns: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """A published result: the resolved cell, facts, histories, and what was measured."""

    id: str
    cell: dict[str, Any]
    facts: dict[str, Any]
    history: list[StageHistory]
    measured: dict[str, Any]


def history_bytes(history: Sequence[StageHistory]) -> bytes:
    """metrics.h5: the histories alone."""
    return _hdf5_bytes(lambda file: _put_history(file, history))


def cell_text(cell: dict[str, Any]) -> str:
    """The attribute `cell` of a result: Cell.to_json() as text."""
    return json.dumps(cell, sort_keys=True, allow_nan=False)


def result_bytes(
    cell: dict[str, Any],
    facts: dict[str, Any],
    history: Sequence[StageHistory],
    measured: dict[str, Any],
    *,
    cell_id: str | None = None,
) -> bytes:
    """result.h5. `cell` is Cell.to_json(); `measured` has scalars, strings and arrays by name.

    Raises ValueError or TypeError for values that would not be read back unchanged.
    """

    from pipeline.store import hdf5

    def fill(file: h5py.File) -> None:
        file.attrs["id"] = cell.get("id", "") if cell_id is None else cell_id
        file.attrs["cell"] = cell_text(cell)
        file.attrs["facts"] = json.dumps(facts, sort_keys=True, allow_nan=False)
        _put_history(file, history)
        group = file.create_group("measure")
        for name in sorted(measured):
            hdf5.put(group, name, measured[name])

    return _hdf5_bytes(fill)


def read_result(
    path: Path,
    expected_sha256: str | None = None,
    *,
    with_history: bool = True,
    also: Callable[[bytes, Result], None] = lambda content, result: None,
) -> Result:
    """Raises FileNotFoundError, or Corrupt where the file is damaged or is not one of ours.

    `also` gets the file's content, without other members and links to other files, and the result.
    """
    data = files.read_patiently(path)
    if expected_sha256 and hashlib.sha256(data).hexdigest() != expected_sha256:
        raise Corrupt(f"{path}: its SHA-256 is not the one in its manifest")

    def get(tree: hdf5.Tree) -> Result:
        if set(tree.members()) != {b"history", b"measure"}:
            raise ValueError("it has other members than history and measure")
        result = result_in(tree, with_history)
        also(data, result)
        return result

    return _from_hdf5(path, data, get)


def read_history(path: Path) -> list[StageHistory]:
    """The histories of a metrics.h5 or result.h5; raises as read_result."""
    return _from_hdf5(path, files.read_patiently(path), _get_history)


def publish_hdf5(path: Path, fill: Callable[[Any], None]) -> None:
    """Publish at `path` the HDF5 file that `fill` writes into, with its checksum, completely or not
    at all. For files too large for memory; raises OSError (ENOSPC, ...)."""
    import h5py

    files.make_folder(path.parent)
    with files.replacing(path) as temporary:
        files.write_synced(temporary, b"")  # private from its first byte on
        with (
            _named_errors(path),
            h5py.File(temporary, "w", userblock_size=SEAL_BYTES, locking=False) as file,
        ):
            fill(file)
        with open(temporary, "r+b", buffering=0) as raw:
            raw.write(_seal_of(_body_sha256(raw)))
            os.fsync(raw.fileno())
    files.sync_folder(path.parent)


def change_hdf5(path: Path, change: Callable[[Any], None]) -> None:
    """Publish `path` anew, with what `change` does to an open copy of it. Raises as `check_seal`,
    for a new seal would vouch for the damage, and as `publish_hdf5`."""
    import h5py

    check_seal(path)
    with files.replacing(path) as temporary:
        files.write_synced(temporary, b"")
        shutil.copyfile(path, temporary)
        with _named_errors(path), h5py.File(temporary, "r+", locking=False) as file:
            change(file)
        with open(temporary, "r+b", buffering=0) as raw:
            raw.write(_seal_of(_body_sha256(raw)))
            os.fsync(raw.fileno())
    files.sync_folder(path.parent)


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """The system's error, as an OSError of `path`: HDF5 wraps it in a long message, and in errors
    of several types."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        match = re.search(r"\berrno = (\d+)", str(error))
        if match is None:
            raise
        raise OSError(int(match[1]), os.strerror(int(match[1])), str(path)) from error


@contextlib.contextmanager
def open_hdf5(path: Path, *, checked: bool = False) -> Iterator[Any]:
    """A published HDF5 file, open for reading on disk; for files too large for memory.

    `checked`: `check_seal` was called before. Raises FileNotFoundError, and Corrupt for a file that
    is not one of ours, also where only reading in the `with` shows it.
    """
    import h5py

    if not checked:
        check_seal(path)
    with _as_corrupt(path), h5py.File(path, "r", locking=False) as file:
        yield file


def check_seal(path: Path) -> None:
    """Raises Corrupt where the file differs from what was published, FileNotFoundError."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise Corrupt(f"{path}: is not a plain file")
    with open(path, "rb", buffering=0) as raw:
        if raw.read(SEAL_BYTES) != _seal_of(_body_sha256(raw)):
            raise Corrupt(f"{path}: is damaged, its checksum does not match")


def _body_sha256(raw: IO[bytes]) -> str:
    """Of the bytes after the seal; leaves the file positioned at the seal."""
    raw.seek(SEAL_BYTES)
    digest = files.rest_sha256(raw)
    raw.seek(0)
    return digest


@contextlib.contextmanager
def _as_corrupt(path: Path) -> Iterator[None]:
    """A checksum is not a signature, and h5py raises errors of many types for a malicious file."""
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise Corrupt(f"{path}: cannot be read as a netpress result: {error}") from error


def _hdf5_bytes(fill: Callable[[Any], None]) -> bytes:
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=SEAL_BYTES) as file:
        fill(file)
    return sealed(buffer.getvalue())


def sealed(data: bytes) -> bytes:
    """An HDF5 file with its checksum in its first SEAL_BYTES, whatever was in them before."""
    body = data[SEAL_BYTES:]
    return _seal(body) + body


def _seal(body: bytes) -> bytes:
    return _seal_of(hashlib.sha256(body).hexdigest())


def _seal_of(digest: str) -> bytes:
    return (SEAL + digest.encode() + b"\n").ljust(SEAL_BYTES, b"\0")


def _from_hdf5(path: Path, data: bytes, get: Callable[[hdf5.Tree], Value]) -> Value:
    from pipeline.store import hdf5

    if data[:SEAL_BYTES] != _seal(data[SEAL_BYTES:]):
        raise Corrupt(f"{path}: is damaged, its checksum does not match")
    with _as_corrupt(path), hdf5.in_memory(data) as file:
        return get(hdf5.Tree.of(file, hdf5.Image.of(data, SEAL_BYTES)))


def _put_history(file: h5py.File, history: Sequence[StageHistory]) -> None:
    import numpy

    root = file.create_group("history")
    for stage in history:
        if len({len(column) for column in stage.columns.values()}) > 1:
            raise ValueError(f"the columns of stage {stage.index}-{stage.stage} differ in length")
        group = root.create_group(f"{stage.index}-{stage.stage}")
        for name, column in sorted(stage.columns.items()):
            group.create_dataset(name, data=numpy.asarray(column, dtype=numpy.float64))


def result_in(
    tree: hdf5.Tree, with_history: bool = True, wanted: Callable[[str], bool] = lambda name: True
) -> Result:
    """The result in an open file or group, with the measured values whose name is `wanted`.
    Without history: only the durations of each stage's epochs.

    Raises errors of many types for other contents: use it in `open_hdf5`.
    """
    from pipeline.store import hdf5, typed

    cell_id, cell, facts = (hdf5.attribute(tree.group, n) for n in (b"id", b"cell", b"facts"))
    measured = tree.below(b"measure").values(wanted)
    typed.check_measured(measured)
    history = _get_history(tree, lambda name: with_history or name == "seconds")
    parsed = typed.parsed("cell", cell), typed.parsed("facts", facts)
    return Result(cell_id, *parsed, history, measured)


def _get_history(
    tree: hdf5.Tree, wanted: Callable[[str], bool] = lambda name: True
) -> list[StageHistory]:
    from pipeline.store import hdf5, typed

    stages, root = [], tree.below(b"history")
    budget = hdf5.Budget(HISTORY_BYTES)
    for name in root.members():
        index, _, stage = name.decode().partition("-")
        columns: dict[str, list[float]] = {}
        for key, value in root.below(name).values(wanted, budget).items():
            length = len(next(iter(columns.values()))) if columns else None
            columns[key] = typed.column(stage, key, value, length)
        stages.append(StageHistory(int(index[:9]), stage, columns))
    return sorted(stages, key=lambda s: s.index)
