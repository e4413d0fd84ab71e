"""Atomic publication, manifests, locks and the HDF5 results.

A result is either absent or complete. Bytes go to a temporary name in the same folder, are
flushed and fsynced, renamed, and the folder is fsynced. The manifest, with size and SHA-256 of
every file, comes last; a file that no manifest names does not exist for readers.

A cell's HDF5 files are built and read in memory, as bytes: none is ever open on disk, so no kill
leaves half of one and no HDF5 file lock is asked of a network file system. Only the results of a
whole sweep, merged, are too large for that: they are written under a temporary name like any other
file, and locked by nobody. The first 512 bytes (the HDF5 user block, which every HDF5 reader skips)
hold the SHA-256 of the rest, because HDF5 itself reads most flipped bits as silently different
numbers.

Layout of result.h5 (metrics.h5 has /history alone):
    /                       attributes cell (JSON), id, facts (JSON)
    /history/I-STAGE/METRIC [epochs] float64
    /measure/NAME           scalar, string or [n]; a name may have slashes

h5py and numpy are imported where they are used: planning and status need neither.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import hdf5
from pipeline.errors import Corrupt, UserError
from pipeline.paths import AttemptPaths, CellPaths

FORMAT = 1
TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<kind>tmp|old)-\d+-[0-9a-f]{8}")
SEAL_BYTES = 512
SEAL = b"netpress sha256 "
# NFS may show a rename seconds late: a file that is known to exist is asked for again.
RETRIES_S = (0.05, 0.2, 0.5, 1.0)


class Busy(Exception):
    """Another process works on this cell."""


# --- publication -----------------------------------------------------------------------------


def private() -> None:
    """Everything that this process creates from now on is for its user alone."""
    os.umask(0o077)


def make_folder(folder: Path) -> Path:
    """Make `folder` and its parents, readable by the user alone."""
    if not folder.is_dir():
        make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
    return folder


def publish_bytes(path: Path, data: bytes) -> None:
    """Put `data` at `path`, whole or not at all; raises OSError (ENOSPC, ...), leaves no trace."""
    make_folder(path.parent)
    _again_if_cleared(_publish_once, path, data)
    sync_folder(path.parent)


def _publish_once(path: Path, data: bytes) -> None:
    with _replacing(path) as temporary:
        _write_synced(temporary, data)


def _again_if_cleared(act: Callable[..., Any], *arguments: Any) -> Any:
    """For those who do not hold the cell: a process that locked it just now may have taken our
    temporary for a dead one's."""
    try:
        return act(*arguments)
    except FileNotFoundError:
        return act(*arguments)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, whose synced file takes its place in the end, or goes."""
    temporary = _beside(path, "tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a write that finds no room names no file
        raise


def publish_json(path: Path, value: Any) -> None:
    """Put `value` at `path` as JSON with sorted keys; raises ValueError for NaN and infinities."""
    publish_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def publish_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Put what `write` leaves in the folder it is given at `folder`, whole or not at all.

    An old folder is moved aside first, since no portable call swaps two. Killed between the two
    renames, the old one is brought back by the next `lock_cell`.
    """
    with _draft_of(folder) as temporary:
        write(temporary)
        _sync_tree(temporary)
        _replace_folder(temporary, folder)


@contextlib.contextmanager
def _draft_of(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, to be renamed in the end; it goes where that fails."""
    make_folder(folder.parent)
    temporary = _beside(folder, "tmp")
    temporary.mkdir(mode=0o700)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to NAME.corrupt-N, so that it can be looked at and redone."""
    number = 1
    while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    os.rename(path, aside)
    sync_folder(path.parent)
    return aside


def new_attempt(cell: CellPaths, job: str | None = None) -> AttemptPaths:
    """The next free attempts/N/, in which it says from the first moment which job it is made in.

    Two processes never get the same one: a rename onto a folder that holds something fails.
    """
    return _again_if_cleared(_new_attempt_once, cell, job)


def _new_attempt_once(cell: CellPaths, job: str | None) -> AttemptPaths:
    last = last_attempt(cell)
    attempt = cell.attempt(last.number + 1 if last else 1)
    with _draft_of(attempt.folder) as draft:
        _write_synced(AttemptPaths(draft).usage, json_bytes({"job": job}))
        while not _moved_to_free_name(draft, attempt.folder):
            attempt = cell.attempt(attempt.number + 1)
    return attempt


def _moved_to_free_name(folder: Path, name: Path) -> bool:
    try:
        os.rename(folder, name)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def last_attempt(cell: CellPaths) -> AttemptPaths | None:
    """The attempt with the highest number, or None before the first."""
    try:
        numbers = [int(name) for name in os.listdir(cell.attempts) if name.isdecimal()]
    except FileNotFoundError:
        return None
    return cell.attempt(max(numbers)) if numbers else None


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}-{os.getpid()}-{secrets.token_hex(4)}")


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)  # a network file system may report a full disk only here


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot: their rename has to do
            raise
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync_file(Path(root) / name)
        os.chmod(root, 0o700)
        sync_folder(Path(root))


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fchmod(descriptor, 0o600)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace_folder(new: Path, folder: Path) -> None:
    old = _beside(folder, "old")
    try:
        os.rename(folder, old)
    except FileNotFoundError:
        old = None
    try:
        os.rename(new, folder)
    except BaseException:
        if old:
            os.rename(old, folder)
        raise
    sync_folder(folder.parent)
    if old:  # published already: what cannot be removed now goes at the next lock
        shutil.rmtree(old, ignore_errors=True)


# --- one process at a time -------------------------------------------------------------------


SUPERSEDE_S = 60.0


@contextlib.contextmanager
def lock_cell(
    cell: CellPaths, job: str | None = None, lives: Callable[[str], bool] | None = None
) -> Iterator[Callable[[], bool]]:
    """Hold the cell alone; raises Busy when another process does, and clears what a dead one left.

    The lock goes with its process, however that ends. The lock file itself stays: removing it
    would let two processes hold two different files of one name. Some network file systems keep
    locks to one machine; so the file also says who has it, until that one lets it go. A holder on
    another machine, in a job that is not `job`, our own, is asked for with `lives`. An earlier run
    of our own job has to give way: it may go on working on a node that the scheduler has lost.
    What is yielded tells whether it is still ours; a holder that it denies ends at once.
    """
    descriptor = _open_lock(cell)
    mine = f"process {os.getpid()} on {socket.gethostname()}" + (f" in job {job}" if job else "")
    try:
        holder = _holder(descriptor)
        other = HOLDER.fullmatch(holder)
        away = other is not None and other["host"] != socket.gethostname()
        again = away and job is not None and other["job"] == job
        if not (_take(descriptor) or (again and _supersede(descriptor, mine))):
            raise Busy(f"cell {cell.id} is being worked on by {holder or 'another process'}")
        # Only the scheduler can tell whether it lives.
        if away and not again and lives and other["job"] and lives(other["job"]):
            raise Busy(f"cell {cell.id} is being worked on by {holder}")
        _sign(descriptor, mine)
        _clear_leftovers(cell.folder)
        yield lambda: _signed(cell.lock) in (mine, None)
        if _holder(descriptor) == mine:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _supersede(descriptor: int, mine: str) -> bool:
    """Sign for the lock that an earlier run of our job has, and wait for it to see that and end."""
    _sign(descriptor, mine)
    deadline = time.monotonic() + SUPERSEDE_S
    while not (taken := _take(descriptor)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return taken


def _sign(descriptor: int, mine: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{mine}\n".encode(), 0)
    os.fsync(descriptor)  # for who looks from another machine


def _signed(lock: Path) -> str | None:
    """What the file says now, opened anew so that a network file system looks; None: cannot say."""
    try:
        return lock.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


# What the lock file says of its holder. One that was killed leaves it there.
HOLDER = re.compile(r"process (?P<pid>\d+) on (?P<host>\S+)(?: in job (?P<job>\S+))?")


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 200, 0).decode(errors="replace").strip()


def _open_lock(cell: CellPaths) -> int:
    try:
        make_folder(cell.folder)
        return os.open(cell.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except PermissionError:
        raise UserError(
            f"{cell.folder}: not writable, it may belong to another user; "
            "set NETPRESS_WORK to a folder of your own"
        ) from None


def _clear_leftovers(folder: Path) -> None:
    """Remove temporaries of a process that died; bring back what it had only moved aside."""
    for root, folders, names in os.walk(folder):
        for name in sorted([*folders, *names]):
            if match := TEMPORARY.fullmatch(name):
                _clear(Path(root) / name, Path(root) / match["name"], match["kind"])
        folders[:] = [name for name in folders if not TEMPORARY.fullmatch(name)]


def _clear(leftover: Path, live: Path, kind: str) -> None:
    if kind == "old" and not live.exists():
        os.rename(leftover, live)
    elif leftover.is_dir():
        shutil.rmtree(leftover)
    else:
        leftover.unlink()


# --- manifests -------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    with open(path, "rb", buffering=0) as file:
        return _rest_sha256(file)


def _rest_sha256(file) -> str:
    """Of an open file, from where it stands."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def write_manifest(cell: CellPaths, extra: dict[str, Any] | None = None) -> None:
    """Name every file of a finished cell with its size and SHA-256: from now on it is done."""
    files = {str(p.relative_to(cell.folder)): _fingerprint(p) for p in _product(cell)}
    publish_bytes(cell.manifest, manifest_bytes(cell.id, files, extra or {}))


def manifest_bytes(cell_id: str, files: dict[str, Any], extra: dict[str, Any]) -> bytes:
    """`files`: name in the cell's folder -> {"bytes", "sha256"}. Sealed by a checksum of its own:
    a flipped bit in a number is a number, too."""
    said = {"format": FORMAT, "id": cell_id, "files": files, "extra": extra}
    return json_bytes({**said, "seal": hashlib.sha256(json_bytes(said)).hexdigest()})


def read_manifest(cell: CellPaths) -> dict[str, Any] | None:
    """The manifest, None where there is none; raises Corrupt."""
    try:
        data = _read(cell.manifest)
    except FileNotFoundError:
        return None
    try:
        manifest = json.loads(data)
        # What is not written exactly as we write it was changed by somebody.
        intact = data == manifest_bytes(*(manifest[key] for key in ("id", "files", "extra")))
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        intact = False
    if not intact or not _well_formed(manifest, cell):
        raise Corrupt(f"{cell.manifest}: damaged")
    return manifest


def is_done(cell: CellPaths, deep: bool = False) -> bool:
    """Whether the cell has its whole product: by size (shallow), or by checksum (deep)."""
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


def withdraw(cell: CellPaths) -> list[Path]:
    """Set aside the manifest, then every product that does not match it; returns their new names.

    For a cell that `verify` calls Corrupt, with its lock held. What is left is sound and is used
    again: a damaged artifact does not cost the training.
    """
    damaged = damaged_parts(cell)
    aside = [set_aside(cell.manifest)] if cell.manifest.exists() else []
    return aside + [set_aside(path) for path in damaged if path.exists()]


def damaged_parts(cell: CellPaths) -> list[Path]:
    """Top-level files and folders of the cell that do not match its manifest."""
    try:
        manifest = read_manifest(cell)
    except Corrupt:  # nothing vouches for anything
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


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _well_formed(manifest: Any, cell: CellPaths) -> bool:
    """A manifest of this cell, with names that stay in its folder, whoever wrote it."""
    try:
        names = list(manifest["files"])
        return (
            manifest["id"] == cell.id
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
        found = _patiently(lambda: os.lstat(path))
        if not stat.S_ISREG(found.st_mode):
            raise Corrupt(f"{path}: is not a plain file")
        if found.st_size != fingerprint["bytes"]:
            expected = fingerprint["bytes"]
            raise Corrupt(f"{path}: has {found.st_size} bytes, its manifest says {expected}")
        if deep and sha256(path) != fingerprint["sha256"]:
            raise Corrupt(f"{path}: its SHA-256 is not the one in its manifest")
    except (FileNotFoundError, NotADirectoryError):
        raise Corrupt(f"{path}: is missing, its manifest names it") from None


def _patiently(ask: Callable[[], Any]) -> Any:
    """Ask again after ENOENT and ESTALE: for what is known to exist, on a file system that lags."""
    for delay_s in RETRIES_S:
        try:
            return ask()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
        time.sleep(delay_s)
    return ask()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno != errno.ESTALE:  # replaced on the server between our open and our read
            raise
        return _patiently(path.read_bytes)


# --- HDF5 ------------------------------------------------------------------------------------


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

    Raises ValueError or TypeError for what would not be read back as it is.
    """

    def fill(file):
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
    also: Callable[[Any, Result], None] = lambda file, result: None,
) -> Result:
    """Raises FileNotFoundError, or Corrupt where the file is damaged or is not one of ours.

    `also` is given the open file, in which nothing else is and no link leads out, and the result.
    """
    data = _read(path)
    if expected_sha256 and hashlib.sha256(data).hexdigest() != expected_sha256:
        raise Corrupt(f"{path}: its SHA-256 is not the one in its manifest")

    def get(file) -> Result:
        if {name.split(b"/")[0] for name in hdf5.links(file.id)} != {b"history", b"measure"}:
            raise ValueError("it has other members than history and measure")
        result = result_in(file, with_history)
        also(file, result)
        return result

    return _from_hdf5(path, data, get)


def read_history(path: Path) -> list[StageHistory]:
    """The histories of a metrics.h5 or result.h5; raises as read_result."""
    return _from_hdf5(path, _read(path), _get_history)


def publish_hdf5(path: Path, fill: Callable[[Any], None]) -> None:
    """Put what `fill` writes into the open HDF5 file it is given at `path`, sealed, whole or not
    at all. For what is too large for memory; raises OSError (ENOSPC, ...)."""
    import h5py

    make_folder(path.parent)
    with _replacing(path) as temporary:
        _write_synced(temporary, b"")  # private from its first byte on
        whole = {"userblock_size": SEAL_BYTES, "locking": False}
        with _named_errors(path), h5py.File(temporary, "w", **whole) as file:
            fill(file)
        with open(temporary, "r+b", buffering=0) as raw:
            raw.write(_seal_of(_body_sha256(raw)))
            os.fsync(raw.fileno())
    sync_folder(path.parent)


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """What the system said, as an OSError of `path`: HDF5 wraps it in a page of its own words, and
    in errors of several types."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        said = re.search(r"\berrno = (\d+)", str(error))
        if said is None:
            raise
        raise OSError(int(said[1]), os.strerror(int(said[1])), str(path)) from error


@contextlib.contextmanager
def open_hdf5(path: Path, *, checked: bool = False) -> Iterator[Any]:
    """A published HDF5 file, open for reading where it lies; for those too large for memory.

    `checked`: by `check_seal` before. Raises FileNotFoundError, and Corrupt
    for what is no file of ours, also where reading in the `with` finds out.
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


def _body_sha256(raw) -> str:
    """Of what follows the seal; leaves the file at its beginning, where that belongs."""
    raw.seek(SEAL_BYTES)
    found = _rest_sha256(raw)
    raw.seek(0)
    return found


@contextlib.contextmanager
def _as_corrupt(path: Path) -> Iterator[None]:
    """A checksum is no signature: h5py has no error of its own for a file built to mislead it."""
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


def _from_hdf5(path: Path, data: bytes, get: Callable[[Any], Any]) -> Any:
    import h5py

    if data[:SEAL_BYTES] != _seal(data[SEAL_BYTES:]):
        raise Corrupt(f"{path}: is damaged, its checksum does not match")
    with _as_corrupt(path), h5py.File(hdf5.in_memory(data)) as file:
        return get(file)


def _put_history(file, history: Sequence[StageHistory]) -> None:
    import numpy

    root = file.create_group("history")
    for stage in history:
        if len({len(column) for column in stage.columns.values()}) > 1:
            raise ValueError(f"the columns of stage {stage.index}-{stage.stage} differ in length")
        group = root.create_group(f"{stage.index}-{stage.stage}")
        for name, column in sorted(stage.columns.items()):
            group.create_dataset(name, data=numpy.asarray(column, dtype=numpy.float64))


def result_in(
    file, with_history: bool = True, wanted: Callable[[str], bool] = lambda name: True
) -> Result:
    """The result in an open file or group; of what was measured, that whose name is `wanted`.
    Without history: of each stage how long its epochs took, and nothing else.

    Raises one of many errors for what is none: use it in `open_hdf5`.
    """
    texts = {name: file.attrs[name] for name in ("id", "cell", "facts")}
    cell, facts = json.loads(texts["cell"]), json.loads(texts["facts"])
    measured = dict(hdf5.datasets(hdf5.group_in(file.id, "measure"), wanted))
    history = _get_history(file, lambda name: with_history or name == "seconds")
    return Result(str(texts["id"]), cell, facts, history, measured)


def _get_history(file, wanted: Callable[[str], bool] = lambda name: True) -> list[StageHistory]:
    stages = []
    root = hdf5.group_in(file.id, "history")
    for name in hdf5.members(root):
        index, _, stage = name.partition("-")
        columns = {k: v.tolist() for k, v in hdf5.datasets(hdf5.group_in(root, name), wanted)}
        stages.append(StageHistory(int(index), stage, columns))
    return sorted(stages, key=lambda s: s.index)
