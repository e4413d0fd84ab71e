"""Many cells at a time: each result.h5 is read once, by a few processes, in the order requested.

A process is given a chunk of cells, and gives back their rows, and for results.h5 their HDF5 files
as they are, and beside these their long arrays compressed: so the parent alone copies what there is
of a cell, once.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy
from h5py import h5d, h5f, h5p, h5s, h5t

from pipeline import store, usage
from pipeline.errors import Corrupt
from pipeline.report import chunks, sources
from pipeline.report.evidence import Measured, check_results
from pipeline.report.measured import combined
from pipeline.report.row import Identity, Row, row
from pipeline.report.sources import Earlier, Found, Piece, Request
from pipeline.store import hdf5

# Longer arrays are compressed in results.h5, and kept once where several cells have the same.
LONG_BYTES = 4096


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


def from_work(cells: Iterable[Request], earlier: Sequence[Path] = ()) -> Iterator[Read]:
    """What there is of each cell, in order. `earlier`: each a results.h5 whose seal was checked;
    the first that has a cell stands in where the work root does not have it, and what else was
    measured of the same artifact is added from all of them."""
    for chunk in chunks.in_chunks(partial(read_chunk, earlier=earlier), list(cells)):
        yield from chunk.cells


def from_work_merged(cells: Iterable[Request], earlier: Sequence[Path] = ()) -> Iterator[Chunk]:
    """The same, with the file of each chunk."""
    return chunks.in_chunks(partial(read_chunk_merged, earlier=earlier), list(cells))


def from_results(path: Path, cells: Iterable[Identity]) -> Iterator[Row]:
    """The rows of each cell in a results.h5 whose seal was checked; raises Corrupt."""
    for rows in chunks.in_chunks(read_merged_chunk, [(path, named) for named in cells]):
        yield from rows


# --- in another process ----------------------------------------------------------------------


def read_chunk(cells: Sequence[Request], earlier: Sequence[Path] = ()) -> Chunk:
    places = [Earlier(path) for path in earlier]
    return Chunk([_read(request, places) for request in cells])


def read_chunk_merged(cells: Sequence[Request], earlier: Sequence[Path] = ()) -> Chunk:
    places = [Earlier(path) for path in earlier]
    with sources.file_in_memory() as file:
        file.create_group("long")
        return Chunk([_read(request, places, file) for request in cells], sources.image_of(file))


def read_merged_chunk(cells: Sequence[tuple[Path, Identity]]) -> list[Row]:
    path = cells[0][0]
    with store.open_hdf5(path, checked=True) as file:
        return [
            row for _, named in cells for row in _rows(named, sources.results_of(file, named.id))
        ]


def _rows(named: Identity, results: list[Measured]) -> tuple[Row, ...]:
    return tuple(row(named, result, one) for one, result in results)


def _read(request: Request, earlier: Sequence[Earlier], file: h5py.File | None = None) -> Read:
    named, paths, made_with = request
    everything = file is not None
    try:
        found, added = _found(request, earlier, everything)
        pieces = _numbered(found.pieces, added)
        measurements = [piece.measurement for piece in pieces]
        every = list(combined(found.result, measurements, made_with))
        rows = _rows(named, check_results(every, paths.result))
    except (FileNotFoundError, Corrupt) as error:
        return Read(error=error, usage=usage.of_cell(paths))
    parts = Parts() if file is None else _parts(found, pieces, file)
    return Read(rows, usage=found.usage, parts=parts)


def _found(
    request: Request, earlier: Sequence[Earlier], everything: bool
) -> tuple[Found, list[Piece]]:
    """A cell, and what else was measured of the same artifact."""
    cell_id, paths = request.cell.id, request.paths
    try:
        found = sources.of_work(request, everything)
    except FileNotFoundError:
        there = (source.cell(cell_id, everything) for source in earlier)
        first = next((one for one in there if one is not None), None)
        if first is None:
            raise
        found = first
    known = [found.result.facts, *(piece.measurement.facts for piece in found.pieces)]
    added: list[Piece] = []
    for source in earlier:
        added += source.measured(cell_id, found.artifact, known, everything)
        known += [piece.measurement.facts for piece in added]
    if added:  # what the work root has, and does not show, is no addition
        shown = {piece.name for piece in found.pieces}
        hidden = sources.facts_in_work(paths, shown)
        added = [piece for piece in added if piece.measurement.facts not in hidden]
    return found, added


def _numbered(own: list[Piece], added: list[Piece]) -> list[Piece]:
    """All of them, oldest first: those of a machine are numbered by when they were made."""
    if not added:
        return own
    pieces: list[Piece] = []
    last: dict[str, int] = {}
    every = sorted([*own, *added], key=lambda p: str(p.measurement.facts.get("measured_at", "")))
    for piece in every:
        machine, _, number = piece.name.rpartition("-")
        last[machine] = max(int(number), last.get(machine, 0) + 1)
        one = replace(piece.measurement, name=f"{machine}-{last[machine]}")
        pieces.append(replace(piece, measurement=one))
    return pieces


def _parts(found: Found, pieces: Iterable[Piece], file: h5py.File) -> Parts:
    parts, cell_id = Parts(artifact=found.named_by), found.result.id
    own = Part(cell_id, found.image, found.source)
    _take(parts, own, found.result.measured, file)
    for piece in pieces:
        part = Part(f"{cell_id}/{sources.MEASUREMENTS}/{piece.name}", piece.image, piece.source)
        _take(parts, part, piece.measurement.measured, file)
    return parts


# --- what becomes of it ----------------------------------------------------------------------


def _take(parts: Parts, part: Part, measured: Mapping[str, Any], file: h5py.File) -> None:
    """Adds a result, checked before, with its long arrays in the chunk's file. `measured`: its
    values, by name. Its history is not read before, which would cost as much again: whoever shows
    it reads it from there, with every check."""
    parts.each.append(part)
    for name, value in measured.items():
        if isinstance(value, numpy.ndarray) and value.nbytes >= LONG_BYTES:
            parts.long[f"{part.target}/measure/{name}"] = _put_long(file, value)


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
