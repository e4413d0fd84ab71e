"""Where a cell's result is read from: the work root, or an earlier results.h5."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import h5py
from h5py import h5g, h5o

from pipeline import done, store, usage
from pipeline.errors import Corrupt
from pipeline.paths import CellPaths
from pipeline.report.evidence import Measured, check_results, in_work, is_row_evidence
from pipeline.report.measured import Measurement, combined, in_result
from pipeline.report.row import Identity
from pipeline.store import hdf5, typed

MEASUREMENTS = "measurements"  # of a cell in results.h5, the group beside its own result
COPY = b"copy"


class Request(NamedTuple):
    """`made_with`: what its sweep requires its measurement to be made with (`pipeline.done`)."""

    cell: Identity
    paths: CellPaths
    made_with: dict[str, Any]


@dataclass(frozen=True)
class Piece:
    """A measurement beside a result, and where it is in the bytes of an HDF5 file; these are empty
    where rows alone are wanted."""

    measurement: Measurement
    image: bytes = b""
    source: bytes = b"."

    @property
    def name(self) -> str:
        return self.measurement.name


@dataclass(frozen=True)
class Found:
    """What one place has of a cell: its result and, as in `Piece`, its bytes, the files of its
    artifact, the measurements beside it, and its job's record of usage. `named_by`: the attribute
    that says so of the artifact, where the bytes do not."""

    result: store.Result
    artifact: Any
    pieces: list[Piece]
    usage: dict[str, Any] | None
    image: bytes = b""
    source: bytes = b"."
    named_by: str | None = None


# --- the work root ------


def of_work(request: Request, everything: bool) -> Found:
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
    return Found(
        result,
        files,
        [Piece(one, content.get(one.name, b"")) for one in whole],
        usage.of_cell(paths),
        content.get("", b""),
        named_by=json.dumps(files, sort_keys=True),
    )


def facts_in_work(paths: CellPaths, shown: Container[str]) -> list[dict[str, Any]]:
    """Those of the measurements in the work root that are not shown, as far as they can be read."""
    facts = []
    for entry in store.measurements(paths)[0]:
        if entry.name not in shown:
            with contextlib.suppress(Corrupt, FileNotFoundError):
                facts.append(store.read_result(entry.path, with_history=False).facts)
    return facts


def _artifact_files(manifest: dict[str, Any], paths: CellPaths) -> dict[str, Any]:
    prefix = f"{paths.artifact.name}/"
    return {
        name.removeprefix(prefix): entry
        for name, entry in manifest["files"].items()
        if name.startswith(prefix)
    }


# --- a results.h5 ------


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


@dataclass
class Earlier:
    """A results.h5 whose seal was checked. What of a cell cannot be read in it counts as not
    there: it may be a report's own of before, which a new one replaces."""

    path: Path

    @cached_property
    def usages(self) -> dict[str, Any]:
        with store.open_hdf5(self.path, checked=True) as file:
            return typed.parsed("usage", hdf5.value_in(file.id, "usage"))

    def cell(self, cell_id: str, everything: bool) -> Found | None:
        """What there is of a cell."""
        try:
            with self._group(cell_id) as group:
                return None if group is None else self._cell(group, cell_id, everything)
        except Corrupt:
            return None

    def _cell(self, group: h5g.GroupID, cell_id: str, everything: bool) -> Found:
        tree, wanted = hdf5.Tree.of(group), _wanted(everything)
        result = store.result_in(tree, everything, wanted)
        if result.id != cell_id:
            raise Corrupt(f"{self.path}: is of cell {result.id}")
        return Found(
            result,
            _artifact_of(group),
            [_piece(group, one, everything) for one in _measurements(tree, wanted)],
            self.usages.get(cell_id),
            _copied(group, without=MEASUREMENTS) if everything else b"",
            COPY,
        )

    def measured(
        self, cell_id: str, artifact: Any, known: Container[Any], everything: bool
    ) -> list[Piece]:
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


def _piece(group: h5g.GroupID, one: Measurement, everything: bool) -> Piece:
    if not everything:
        return Piece(one)
    return Piece(one, _copied(h5g.open(group, f"{MEASUREMENTS}/{one.name}".encode())), COPY)


def _copied(group: h5g.GroupID, without: str | None = None) -> bytes:
    """An HDF5 file with a group as COPY, without one of its members."""
    with file_in_memory() as alone:
        h5o.copy(group, b".", alone.id, COPY)
        if without is not None and without in alone[COPY]:
            del alone[COPY][without]
        return image_of(alone)


# --- HDF5 files in memory ------


_opened = itertools.count()


def file_in_memory() -> h5py.File:
    name = f"chunk {next(_opened)}"
    return h5py.File(name, "w", driver="core", backing_store=False)


def image_of(file: h5py.File) -> bytes:
    file.flush()
    return file.id.get_file_image()
