"""Many cells at a time: each result.h5 is read once, by a few processes, in the order requested.

A process is given CHUNK cells, and gives back their rows, and for results.h5 their HDF5 files as
they are, and beside these their long arrays compressed: so the parent alone copies what there is of
a cell, once. Chunks do not depend on the number of processes, so neither do the bytes of what is
made from them.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import h5py
import numpy
from h5py import h5d, h5f, h5o, h5p, h5s, h5t

from pipeline import garbage, hardware, store, usage
from pipeline.errors import Corrupt
from pipeline.paths import CellPaths
from pipeline.report.evidence import Measured, check_results, is_row_evidence, valid_results
from pipeline.report.measured import Measurement, combined
from pipeline.report.row import Identity, Row, row
from pipeline.store import hdf5, typed

CHUNK = 50
# Starting a process costs as much as reading some hundred results.
WORTH_PROCESSES = 300
# Each needs 150 MB, and beyond four the parent, which merges, cannot keep up.
MOST_PROCESSES = 4
# Longer arrays are compressed in results.h5, and kept once where several cells have the same.
LONG_BYTES = 4096

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Request(NamedTuple):
    """`made_with`: what its sweep requires its measurement to be made with (`pipeline.done`)."""

    cell: Identity
    paths: CellPaths
    made_with: dict[str, Any]


@dataclass(frozen=True)
class Part:
    """What of results.h5 is in a file that was checked: in `image`, its bytes, `source`, which
    becomes `target`."""

    target: str
    image: bytes
    source: bytes = b"."


@dataclass
class Parts:
    """What becomes of a cell in results.h5: its own part, and those of measurements below it.

    `long`: path of a measured array in results.h5 -> its content's name in the chunk's file.
    `artifact`: the attribute of that name, where no part has it.
    """

    each: list[Part] = field(default_factory=list)
    long: dict[str, str] = field(default_factory=dict)
    artifact: str | None = None


@dataclass(frozen=True)
class Read:
    """What there is of a cell: a row for each machine that measured it; or why none, as an error;
    its job's record of usage; and where it is wanted, what becomes of it in results.h5."""

    rows: tuple[Row, ...] = ()
    error: Exception | None = None
    usage: dict[str, Any] | None = None
    parts: Parts = field(default_factory=Parts)


@dataclass(frozen=True)
class Chunk:
    """`file`: an HDF5 file with /long/NAME, the long arrays of its cells; empty where they are not
    wanted."""

    cells: list[Read]
    file: bytes = b""


def from_work(cells: Iterable[Request], earlier: Path | None = None) -> Iterator[Read]:
    """What there is of each cell, in order. `earlier`: a results.h5 whose seal was checked, for
    cells that have no result in the work root."""
    for chunk in in_chunks(partial(read_chunk, earlier=earlier), list(cells)):
        yield from chunk.cells


def from_work_merged(cells: Iterable[Request], earlier: Path | None = None) -> Iterator[Chunk]:
    """The same, with the file of each chunk."""
    return in_chunks(partial(read_chunk_merged, earlier=earlier), list(cells))


def from_results(path: Path, cells: Iterable[Identity]) -> Iterator[Row]:
    """The rows of each cell in a results.h5 whose seal was checked; raises Corrupt."""
    for rows in in_chunks(read_merged_chunk, [(path, named) for named in cells]):
        yield from rows


# --- in another process ----------------------------------------------------------------------


def read_chunk(cells: Sequence[Request], earlier: Path | None = None) -> Chunk:
    return Chunk([_read(request, earlier) for request in cells])


def read_chunk_merged(cells: Sequence[Request], earlier: Path | None = None) -> Chunk:
    with _file_in_memory() as file:
        file.create_group("long")
        return Chunk([_read(request, earlier, file) for request in cells], _image(file))


def read_merged_chunk(cells: Sequence[tuple[Path, Identity]]) -> list[Row]:
    path = cells[0][0]
    with store.open_hdf5(path, checked=True) as file:
        return [row for _, named in cells for row in _rows(named, results_of(file, named.id))]


def _rows(named: Identity, results: list[Measured]) -> tuple[Row, ...]:
    return tuple(row(named, result, one) for one, result in results)


def results_of(file: h5py.File, cell_id: str, *, everything: bool = False) -> list[Measured]:
    """A cell in an open results.h5 as each machine measured it: what a row needs, or everything."""
    wanted = (lambda name: True) if everything else is_row_evidence
    tree = hdf5.Tree.of(file["cells"][cell_id].id)
    result = store.result_in(tree, everything, wanted)
    if result.id != cell_id:
        raise Corrupt(f"{file.filename}: is of cell {result.id}")
    return check_results(list(combined(result, list(_measurements(tree, wanted)))), file.filename)


def _measurements(tree: hdf5.Tree, wanted: Callable[[str], bool]) -> Iterator[Measurement]:
    """Those that stand beside a cell's own result in a results.h5."""
    if b"measurements" not in tree.paths:
        return
    below, budget = tree.below(b"measurements"), hdf5.Budget()
    for name in sorted(below.members(), key=typed.number):  # the newest of a machine comes last
        one = below.below(name)
        values = one.below(b"measure").values(wanted, budget)
        typed.check_measured(values)
        facts = typed.parsed("facts", hdf5.attribute(one.group, b"facts"))
        yield Measurement(typed.name(name), facts, values)


def _read(request: Request, earlier: Path | None, file: h5py.File | None = None) -> Read:
    named, paths, made_with = request
    parts = Parts()

    def keep(content: bytes, result: store.Result, manifest: dict[str, Any]) -> None:
        if file is not None and result.id == named.id:
            _take(parts, Part(named.id, content), _by_path(result), file)
            parts.artifact = _artifact_json(manifest, paths)

    def keep_measured(content: bytes, result: store.Result, name: str) -> None:
        if file is not None:
            part = Part(f"{named.id}/measurements/{name}", content)
            _take(parts, part, _by_path(result), file)

    recorded = usage.of_cell(paths)
    try:
        results = valid_results(named.id, paths, made_with, also=keep, also_measured=keep_measured)
    except FileNotFoundError as error:
        return _read_earlier(named, earlier, file) or Read(error=error, usage=recorded)
    except Corrupt as error:
        return Read(error=error, usage=recorded)
    return Read(_rows(named, results), usage=recorded, parts=parts)


def _read_earlier(named: Identity, path: Path | None, file: h5py.File | None) -> Read | None:
    """From a results.h5: what a cell has there."""
    if path is None:
        return None
    with store.open_hdf5(path, checked=True) as source:
        if named.id not in hdf5.members(source["cells"].id):
            return None
        recorded = typed.parsed("usage", hdf5.value_in(source.id, "usage")).get(named.id)
        results = results_of(source, named.id, everything=file is not None)
        parts = Parts()
        if file is not None:
            group = source["cells"][named.id].id
            with _file_in_memory() as alone:
                h5o.copy(group, b".", alone.id, b"cell")
                part = Part(named.id, _image(alone), b"cell")
            _take(parts, part, hdf5.Tree.of(group).values(is_measured), file)
        return Read(_rows(named, results), usage=recorded, parts=parts)


def _artifact_json(manifest: dict[str, Any], paths: CellPaths) -> str:
    prefix = f"{paths.artifact.name}/"
    files = {
        name.removeprefix(prefix): entry
        for name, entry in manifest["files"].items()
        if name.startswith(prefix)
    }
    return json.dumps(files, sort_keys=True)


def _take(parts: Parts, part: Part, measured: Mapping[str, Any], file: h5py.File) -> None:
    """Adds a result, checked before, with its long arrays in the chunk's file. `measured`: its
    values, by path. Its history is not read before, which would cost as much again: whoever shows
    it reads it from there, with every check."""
    parts.each.append(part)
    for path, value in measured.items():
        if isinstance(value, numpy.ndarray) and value.nbytes >= LONG_BYTES:
            parts.long[f"{part.target}/{path}"] = _put_long(file, value)


def _by_path(result: store.Result) -> dict[str, Any]:
    return {f"measure/{name}": value for name, value in result.measured.items()}


def is_measured(path: str) -> bool:
    """Whether a path in a cell's group is of a measured value."""
    return path.startswith("measure/") or "/measure/" in path


def _put_long(file: h5py.File, value: numpy.ndarray) -> str:
    """Its content's name, under which it is in /long from now on."""
    digest = hashlib.sha256(f"{value.dtype.str} {value.shape} ".encode())
    digest.update(numpy.ascontiguousarray(value).data)
    name = digest.hexdigest()
    path = f"long/{name}".encode()
    if not file.id.links.exists(path):
        kind, space = h5t.py_create(value.dtype, logical=True), h5s.create_simple(value.shape)
        made = h5d.create(file.id, path, kind, space, _compressed(value))
        made.write(h5s.ALL, h5s.ALL, value)
    return name


def _compressed(value: numpy.ndarray) -> h5p.PropDCID:
    made = h5p.create(h5p.DATASET_CREATE)
    made.set_chunk(_chunk_shape(value))
    made.set_shuffle()
    made.set_deflate(4)
    made.set_obj_track_times(False)  # the same results give the same bytes
    return made


def _chunk_shape(value: numpy.ndarray) -> tuple[int, ...]:
    """Some megabytes of whole rows."""
    row_bytes = value.nbytes // len(value)
    return (min(len(value), max(1, (1 << 22) // row_bytes)), *value.shape[1:])


@contextlib.contextmanager
def opened(image: bytes) -> Iterator[h5f.FileID]:
    """The file of a chunk."""
    with hdf5.in_memory(image) as file:
        yield file


_opened = itertools.count()


def _file_in_memory() -> h5py.File:
    name = f"chunk {next(_opened)}"
    return h5py.File(name, "w", driver="core", backing_store=False)


def _image(file: h5py.File) -> bytes:
    file.flush()
    return file.id.get_file_image()


# --- processes -------------------------------------------------------------------------------


def in_chunks(read: Callable[[Sequence[Item]], Answer], items: list[Item]) -> Iterator[Answer]:
    """`read` of each CHUNK of items, in order; by other processes where there is much to do."""
    chunks = [items[i : i + CHUNK] for i in range(0, len(items), CHUNK)]
    processes = min(hardware.cores(), MOST_PROCESSES)
    if len(items) < WORTH_PROCESSES or processes < 2:
        yield from map(read, chunks)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), _quietly) as pool:
        waiting: deque[Future[Answer]] = deque()
        for chunk in chunks:
            waiting.append(pool.submit(read, chunk))
            if len(waiting) > 2 * processes:  # no more in memory than keeps all of them busy
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _quietly() -> None:
    """Ctrl-C is the parent's to answer; and a parent that was killed leaves none behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    garbage.seldom()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is None:  # this is no child
        return
    parent.join()
    os._exit(1)
