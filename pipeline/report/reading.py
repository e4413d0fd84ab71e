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
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import h5py
import numpy
from h5py import h5d, h5f, h5g, h5o, h5p, h5s, h5t

from pipeline import done, garbage, hardware, store, usage
from pipeline.errors import Corrupt
from pipeline.paths import CellPaths
from pipeline.report.evidence import Measured, check_results, in_work, is_row_evidence
from pipeline.report.measured import Measurement, combined, in_result
from pipeline.report.row import Identity, Row, row
from pipeline.store import hdf5, typed

CHUNK = 50
# Starting a process costs as much as reading some hundred results.
WORTH_PROCESSES = 300
# Each needs 150 MB, and beyond four the parent, which merges, cannot keep up.
MOST_PROCESSES = 4
# Longer arrays are compressed in results.h5, and kept once where several cells have the same.
LONG_BYTES = 4096

MEASUREMENTS = "measurements"  # of a cell in results.h5, the group beside its own result
COPY = b"copy"

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


def from_work(cells: Iterable[Request], earlier: Sequence[Path] = ()) -> Iterator[Read]:
    """What there is of each cell, in order. `earlier`: each a results.h5 whose seal was checked;
    the first that has a cell stands in where the work root does not have it, and what else was
    measured of the same artifact is added from all of them."""
    for chunk in in_chunks(partial(read_chunk, earlier=earlier), list(cells)):
        yield from chunk.cells


def from_work_merged(cells: Iterable[Request], earlier: Sequence[Path] = ()) -> Iterator[Chunk]:
    """The same, with the file of each chunk."""
    return in_chunks(partial(read_chunk_merged, earlier=earlier), list(cells))


def from_results(path: Path, cells: Iterable[Identity]) -> Iterator[Row]:
    """The rows of each cell in a results.h5 whose seal was checked; raises Corrupt."""
    for rows in in_chunks(read_merged_chunk, [(path, named) for named in cells]):
        yield from rows


# --- in another process ----------------------------------------------------------------------


def read_chunk(cells: Sequence[Request], earlier: Sequence[Path] = ()) -> Chunk:
    sources = [_Earlier(path) for path in earlier]
    return Chunk([_read(request, sources) for request in cells])


def read_chunk_merged(cells: Sequence[Request], earlier: Sequence[Path] = ()) -> Chunk:
    sources = [_Earlier(path) for path in earlier]
    with _file_in_memory() as file:
        file.create_group("long")
        return Chunk([_read(request, sources, file) for request in cells], _image(file))


def read_merged_chunk(cells: Sequence[tuple[Path, Identity]]) -> list[Row]:
    path = cells[0][0]
    with store.open_hdf5(path, checked=True) as file:
        return [row for _, named in cells for row in _rows(named, results_of(file, named.id))]


def _rows(named: Identity, results: list[Measured]) -> tuple[Row, ...]:
    return tuple(row(named, result, one) for one, result in results)


def results_of(file: h5py.File, cell_id: str, *, everything: bool = False) -> list[Measured]:
    """A cell in an open results.h5 as each machine measured it: what a row needs, or everything."""
    wanted, tree = _wanted(everything), hdf5.Tree.of(file["cells"][cell_id].id)
    result = store.result_in(tree, everything, wanted)
    if result.id != cell_id:
        raise Corrupt(f"{file.filename}: is of cell {result.id}")
    every = combined(result, list(_measurements(tree, wanted)), done.record_of_json(result.cell))
    return check_results(list(every), file.filename)


def measurements_of(file: h5py.File, cell_id: str) -> list[Measurement]:
    """All of a cell in an open results.h5, as far as a row needs them."""
    tree = hdf5.Tree.of(file["cells"][cell_id].id)
    own = in_result(store.result_in(tree, False, is_row_evidence))
    return [*([own] if own else []), *_measurements(tree, is_row_evidence)]


@dataclass(frozen=True)
class _Piece:
    """A measurement beside a result, and where it is in the bytes of an HDF5 file; these are empty
    where rows alone are wanted."""

    measurement: Measurement
    image: bytes = b""
    source: bytes = b"."

    @property
    def name(self) -> str:
        return self.measurement.name


@dataclass(frozen=True)
class _Found:
    """What one place has of a cell: its result and, as in `_Piece`, its bytes, the files of its
    artifact, the measurements beside it, and its job's record of usage. `named_by`: the attribute
    that says so of the artifact, where the bytes do not."""

    result: store.Result
    artifact: Any
    pieces: list[_Piece]
    usage: dict[str, Any] | None
    image: bytes = b""
    source: bytes = b"."
    named_by: str | None = None


def _read(request: Request, earlier: Sequence[_Earlier], file: h5py.File | None = None) -> Read:
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
    request: Request, earlier: Sequence[_Earlier], everything: bool
) -> tuple[_Found, list[_Piece]]:
    """A cell, and what else was measured of the same artifact."""
    cell_id, paths = request.cell.id, request.paths
    try:
        found = _of_work(request, everything)
    except FileNotFoundError:
        there = (source.cell(cell_id, everything) for source in earlier)
        first = next((one for one in there if one is not None), None)
        if first is None:
            raise
        found = first
    known = [found.result.facts, *(piece.measurement.facts for piece in found.pieces)]
    added: list[_Piece] = []
    for source in earlier:
        added += source.measured(cell_id, found.artifact, known, everything)
        known += [piece.measurement.facts for piece in added]
    if added:  # what the work root has, and does not show, is no addition
        shown = {piece.name for piece in found.pieces}
        hidden = _facts_in_work(paths, shown)
        added = [piece for piece in added if piece.measurement.facts not in hidden]
    return found, added


def _of_work(request: Request, everything: bool) -> _Found:
    """Raises as `evidence.in_work`."""
    named, paths, made_with = request
    content: dict[str, bytes] = {}
    manifests: list[dict[str, Any]] = []

    def keep(data: bytes, result: store.Result, manifest: dict[str, Any]) -> None:
        manifests.append(manifest)
        if everything:
            content[""] = data

    def keep_measured(data: bytes, result: store.Result, name: str) -> None:
        if everything:
            content[name] = data

    result, whole = in_work(named.id, paths, made_with, also=keep, also_measured=keep_measured)
    files = _artifact_files(manifests[0], paths)
    return _Found(
        result,
        files,
        [_Piece(one, content.get(one.name, b"")) for one in whole],
        usage.of_cell(paths),
        content.get("", b""),
        named_by=json.dumps(files, sort_keys=True),
    )


def _facts_in_work(paths: CellPaths, shown: Container[str]) -> list[dict[str, Any]]:
    """Those of the measurements in the work root that are not shown, as far as they can be read."""
    facts = []
    for entry in store.measurements(paths)[0]:
        if entry.name not in shown:
            with contextlib.suppress(Corrupt, FileNotFoundError):
                facts.append(store.read_result(entry.path, with_history=False).facts)
    return facts


def _numbered(own: list[_Piece], added: list[_Piece]) -> list[_Piece]:
    """All of them, oldest first: those of a machine are numbered by when they were made."""
    if not added:
        return own
    pieces: list[_Piece] = []
    last: dict[str, int] = {}
    every = sorted([*own, *added], key=lambda p: str(p.measurement.facts.get("measured_at", "")))
    for piece in every:
        machine, _, number = piece.name.rpartition("-")
        last[machine] = max(int(number), last.get(machine, 0) + 1)
        one = replace(piece.measurement, name=f"{machine}-{last[machine]}")
        pieces.append(replace(piece, measurement=one))
    return pieces


def _parts(found: _Found, pieces: Iterable[_Piece], file: h5py.File) -> Parts:
    parts, cell_id = Parts(artifact=found.named_by), found.result.id
    own = Part(cell_id, found.image, found.source)
    _take(parts, own, found.result.measured, file)
    for piece in pieces:
        part = Part(f"{cell_id}/{MEASUREMENTS}/{piece.name}", piece.image, piece.source)
        _take(parts, part, piece.measurement.measured, file)
    return parts


# --- an earlier results.h5 -------------------------------------------------------------------


@dataclass
class _Earlier:
    """A results.h5 whose seal was checked. What of a cell cannot be read in it counts as not
    there: it may be a report's own of before, which a new one replaces."""

    path: Path

    @cached_property
    def usages(self) -> dict[str, Any]:
        with store.open_hdf5(self.path, checked=True) as file:
            return typed.parsed("usage", hdf5.value_in(file.id, "usage"))

    def cell(self, cell_id: str, everything: bool) -> _Found | None:
        """What there is of a cell."""
        try:
            with self._group(cell_id) as group:
                return None if group is None else self._cell(group, cell_id, everything)
        except Corrupt:
            return None

    def _cell(self, group: h5g.GroupID, cell_id: str, everything: bool) -> _Found:
        tree, wanted = hdf5.Tree.of(group), _wanted(everything)
        result = store.result_in(tree, everything, wanted)
        if result.id != cell_id:
            raise Corrupt(f"{self.path}: is of cell {result.id}")
        return _Found(
            result,
            _artifact_of(group),
            [_piece(group, one, everything) for one in _measurements(tree, wanted)],
            self.usages.get(cell_id),
            _copied(group, without=MEASUREMENTS) if everything else b"",
            COPY,
        )

    def measured(
        self, cell_id: str, artifact: Any, known: Container[Any], everything: bool
    ) -> list[_Piece]:
        """Measurements of the same artifact, but those whose facts are known."""
        try:
            with self._group(cell_id) as group:
                if group is None or not group.links.exists(MEASUREMENTS.encode()):
                    return []
                if _artifact_of(group) != artifact:
                    return []
                tree = hdf5.Tree.of(group)
                every = _measurements(tree, _wanted(everything), known)
                return [_piece(group, one, everything) for one in every]
        except Corrupt:
            return []

    @contextlib.contextmanager
    def _group(self, cell_id: str) -> Iterator[h5g.GroupID | None]:
        with store.open_hdf5(self.path, checked=True) as file:
            cells = file["cells"].id
            there = cells.links.exists(cell_id.encode())
            yield file["cells"][cell_id].id if there else None


def _wanted(everything: bool) -> Callable[[str], bool]:
    return (lambda name: True) if everything else is_row_evidence


def _artifact_of(group: h5g.GroupID) -> Any:
    return typed.parsed("artifact", hdf5.attribute(group, b"artifact"))


def _measurements(
    tree: hdf5.Tree, wanted: Callable[[str], bool], known: Container[Any] = ()
) -> Iterator[Measurement]:
    """Those that stand beside a cell's own result in a results.h5, but those whose facts are
    known."""
    if MEASUREMENTS.encode() not in tree.paths:
        return
    below, budget = tree.below(MEASUREMENTS.encode()), hdf5.Budget()
    for name in sorted(below.members(), key=typed.number):  # the newest of a machine comes last
        one = below.below(name)
        facts = typed.parsed("facts", hdf5.attribute(one.group, b"facts"))
        if facts not in known:
            values = one.below(b"measure").values(wanted, budget)
            typed.check_measured(values)
            yield Measurement(typed.name(name), facts, values)


def _piece(group: h5g.GroupID, one: Measurement, everything: bool) -> _Piece:
    if not everything:
        return _Piece(one)
    return _Piece(one, _copied(h5g.open(group, f"{MEASUREMENTS}/{one.name}".encode())), COPY)


def _copied(group: h5g.GroupID, without: str | None = None) -> bytes:
    """An HDF5 file with a group as COPY, without one of its members."""
    with _file_in_memory() as alone:
        h5o.copy(group, b".", alone.id, COPY)
        if without is not None and without in alone[COPY]:
            del alone[COPY][without]
        return _image(alone)


# --- what becomes of it ----------------------------------------------------------------------


def _artifact_files(manifest: dict[str, Any], paths: CellPaths) -> dict[str, Any]:
    prefix = f"{paths.artifact.name}/"
    return {
        name.removeprefix(prefix): entry
        for name, entry in manifest["files"].items()
        if name.startswith(prefix)
    }


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
