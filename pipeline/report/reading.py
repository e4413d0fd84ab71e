"""Many cells at a time: each result.h5 is read once, by a few processes, in the order requested.

A process is given CHUNK cells, and gives back their rows, and for results.h5 their numbers as an
HDF5 file in memory, which costs the parent one copy a cell. Chunks do not depend on the number of
processes, so neither do the bytes of what is made from them.
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy
from h5py import h5d, h5f, h5g, h5o, h5p, h5s, h5t

from pipeline import garbage, hardware, store, usage
from pipeline.errors import Corrupt
from pipeline.paths import CellPaths
from pipeline.report.evidence import check_result, is_row_evidence, valid_result
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
Request = tuple[Identity, CellPaths]


@dataclass(frozen=True)
class Read:
    """What there is of a cell: its row; or why not, as an error; and its job's record of usage.

    `long`: name of a measured array -> its content's name in the chunk's file.
    """

    row: Row | None = None
    error: Exception | None = None
    usage: dict[str, Any] | None = None
    long: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Chunk:
    """`file`: an HDF5 file with /ID of every cell that has a row, without its long arrays, and
    /long/NAME; empty where it is not wanted."""

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
    """The row of each cell in a results.h5 whose seal was checked; raises Corrupt."""
    for rows in in_chunks(read_merged_chunk, [(path, named) for named in cells]):
        yield from rows


# --- in another process ----------------------------------------------------------------------


def read_chunk(cells: Sequence[Request], earlier: Path | None = None) -> Chunk:
    return Chunk([_read(named, paths, earlier) for named, paths in cells])


def read_chunk_merged(cells: Sequence[Request], earlier: Path | None = None) -> Chunk:
    with _file_in_memory() as file:
        file.create_group("long")
        return Chunk([_read(named, paths, earlier, file) for named, paths in cells], _image(file))


def read_merged_chunk(cells: Sequence[tuple[Path, Identity]]) -> list[Row]:
    path = cells[0][0]
    with store.open_hdf5(path, checked=True) as file:
        return [row(named, result_of(file, named.id)) for _, named in cells]


def result_of(file: h5py.File, cell_id: str, *, everything: bool = False) -> store.Result:
    """A cell's result in an open results.h5: what a row needs, or everything."""
    wanted = (lambda name: True) if everything else is_row_evidence
    tree = hdf5.Tree.of(file["cells"][cell_id].id)
    result = store.result_in(tree, everything, wanted)
    check_result(result, cell_id, file.filename)
    return result


def _read(
    named: Identity, paths: CellPaths, earlier: Path | None, file: h5py.File | None = None
) -> Read:
    long: dict[str, str] = {}

    def keep(source: hdf5.Group, result: store.Result, manifest: dict[str, Any]) -> None:
        if file is not None and result.id == named.id:
            long.update(_merge(source, result, file))
            copy = h5g.open(file.id, named.id.encode())
            hdf5.put_attribute(copy, b"artifact", _artifact_json(manifest, paths))

    recorded = usage.of_cell(paths)
    try:
        result = valid_result(named.id, paths, also=keep)
    except FileNotFoundError as error:
        return _read_earlier(named, earlier, file) or Read(error=error, usage=recorded)
    except Corrupt as error:
        return Read(error=error, usage=recorded)
    return Read(row(named, result), usage=recorded, long=long)


def _read_earlier(named: Identity, path: Path | None, file: h5py.File | None) -> Read | None:
    """From a results.h5: what a cell has there."""
    if path is None:
        return None
    with store.open_hdf5(path, checked=True) as source:
        if named.id not in hdf5.members(source["cells"].id):
            return None
        recorded = typed.parsed("usage", hdf5.value_in(source.id, "usage")).get(named.id)
        result = result_of(source, named.id, everything=file is not None)
        long = {} if file is None else _merge(source["cells"][named.id].id, result, file)
        return Read(row(named, result), usage=recorded, long=long)


def _artifact_json(manifest: dict[str, Any], paths: CellPaths) -> str:
    prefix = f"{paths.artifact.name}/"
    files = {
        name.removeprefix(prefix): entry
        for name, entry in manifest["files"].items()
        if name.startswith(prefix)
    }
    return json.dumps(files, sort_keys=True)


def _merge(source: hdf5.Group, result: store.Result, file: h5py.File) -> dict[str, str]:
    """Copies a result into the chunk's file. Its history is not read before, which would cost as
    much again: whoever shows it reads it from there, with every check."""
    h5o.copy(source, b".", file.id, result.id.encode())
    measure, long = h5g.open(file.id, f"{result.id}/measure".encode()), {}
    for name, value in result.measured.items():
        if isinstance(value, numpy.ndarray) and value.nbytes >= LONG_BYTES:
            measure.unlink(name.encode())
            long[name] = _put_long(file, value)
    return long


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
