"""results.h5: all that a report is made from, in one file that can be shared.

    /                           attributes format, netpress (version), name, called (how the user
                                names the sweep), and machine and similarity_of (the id of a
                                cell), where they were chosen to be shown
    /text                       the sweep file
    /order                      JSON: ids of the sweep's cells, in its order
    /gaps                       JSON: [{cell, reason}]
    /tuned                      JSON: {technique: what it is a candidate of}; where there are any
    /usage                      JSON: {id: the record of its job's usage, where it ran in one}
    /cells/ID/                  attributes and members as in the cell's result.h5, in the report's
                                order, its technique called as in this sweep, and the attribute
                                artifact: JSON {file of its artifact: {bytes, sha256}}; long arrays
                                are compressed, and those that are the same in several cells
                                (labels, predictions of a base) are there once, under all of their
                                names

Written from a work root in one pass, or read back without one: page, tables and figures then come
out the same to the byte. A file of others is not trusted: its checksum is no signature.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
from h5py import h5g, h5o, h5p

from pipeline import __version__, catalog, store, strict_yaml, usage
from pipeline.errors import UserError
from pipeline.gaps import Gap
from pipeline.paths import Work, checked_name
from pipeline.report import content, evidence, frames, reading, sources, tuned
from pipeline.report.evidence import Evidence
from pipeline.report.frames import Frames
from pipeline.report.measured import Measurement
from pipeline.report.reading import Chunk, Parts, Read
from pipeline.report.row import identity
from pipeline.store import hdf5, typed
from pipeline.sweep import Cell, Sweep
from pipeline.usage import Used

FORMAT = 2  # in 1, a cell has one measurement, in /measure
READABLE = (1, 2)
MACHINE, SIMILARITY_OF = "machine", "similarity_of"
TEXT_BYTES = 2 * strict_yaml.MAX_BYTES  # of a sweep file
MEMBERS = {"text", "order", "gaps", "usage", "cells"}
TUNED = "tuned"


@dataclass(frozen=True)
class Published:
    """A sweep and its results, in `path`. `usages`: a cell's id -> its job's record of usage;
    `similarity_of`: the id of the cell whose layers were chosen to be compared."""

    path: Path
    sweep: Sweep
    frames: Frames
    usages: dict[str, dict[str, Any]]
    similarity_of: str | None = None

    def evidence(self, cell_id: str) -> Evidence | None:
        """What figures show of a cell; None for one without a result. Raises Corrupt."""
        if cell_id not in self._measurements:
            return None
        return evidence.of(self.result(cell_id))

    def artifact(self, cell_id: str) -> dict[str, dict[str, Any]]:
        """The files of a cell's artifact: name -> {"bytes", "sha256"}. Raises Corrupt."""
        with store.open_hdf5(self.path, checked=True) as file:
            text = hdf5.attribute(file["cells"][cell_id].id, b"artifact")
            return typed.parsed("artifact", text)

    def result(self, cell_id: str) -> store.Result:
        """All that was recorded of a cell that has a result, of its row's machine. Raises
        Corrupt."""
        measurement = self._measurements[cell_id]
        with store.open_hdf5(self.path, checked=True) as file:
            results = sources.results_of(file, cell_id, everything=True)
        return next(result for one, result in results if one.name == measurement)

    def measurements(self, cell_id: str) -> list[Measurement]:
        """All of a cell that has a result, without what is large. Raises Corrupt."""
        with store.open_hdf5(self.path, checked=True) as file:
            return sources.measurements_of(file, cell_id)

    @property
    def used(self) -> Used | None:
        return usage.total(self.usages.values())

    def on(self, machine: str | None) -> Published:
        """The same with the rows of one machine; as `Frames.on`."""
        return replace(self, frames=_compared(self.frames.on(machine, self.sweep), self.sweep))

    @cached_property
    def _measurements(self) -> dict[str, str]:
        """Id of a cell with a row -> the name of its measurement."""
        return {row.id: row.measurement for row in self.frames.rows}


def _compared(shown: Frames, sweep: Sweep) -> Frames:
    """With the candidates that were not chosen set apart."""
    return replace(shown, set_apart=tuned.set_apart(sweep, shown.rows))


# --- writing ---------------------------------------------------------------------------------


def write(
    sweep: Sweep,
    work: Work,
    path: Path,
    earlier: Sequence[Path] = (),
    machine: str | None = None,
    similarity_of: str | None = None,
) -> Published:
    """Publish `path` from what there is of `sweep`, and return what is in it. `earlier`: as in
    `reading.from_work`; one can be `path` itself. `machine`: by its whole name, the one shown.

    The same results give the same bytes, whatever the order in which they came. Raises OSError
    where it cannot be written, UserError where layers of `similarity_of` were not compared; what
    was there before is then still there.
    """
    cells = frames.in_order(sweep)
    requests = [frames.request(cell, work) for cell in cells]
    published: list[Published] = []

    def fill(file: h5py.File) -> None:
        _put_sweep(file, sweep)
        if machine is not None:
            file.attrs[MACHINE] = machine
        chunks = reading.from_work_merged(requests, earlier)
        read = list(zip(cells, _put_cells(file, chunks, sweep), strict=True))
        result = frames.framed(read, work)
        usages = {cell.id: one.usage for cell, one in read if one.usage is not None}
        _put_json(file, "gaps", [_gap_json(gap) for gap in result.gaps])
        _put_json(file, "usage", usages)
        shown = _compared(result.on(machine, sweep), sweep)
        if similarity_of is not None:
            _put_similarity_of(file, shown, similarity_of)
        published.append(Published(path, sweep, shown, usages, similarity_of))

    store.publish_hdf5(path, fill)
    return published[0]


def _put_sweep(file: h5py.File, sweep: Sweep) -> None:
    attributes = {
        "format": FORMAT,
        "netpress": __version__,
        "name": sweep.name,
        "called": content.name(sweep),
    }
    for name, value in attributes.items():
        file.attrs[name] = value
    hdf5.put(file, "text", sweep.text)
    _put_json(file, "order", [cell.id for cell in sweep.cells])
    if sweep.tuned:
        _put_json(file, TUNED, dict(sweep.tuned))


def _put_json(file: h5py.File, name: str, value: Any) -> None:
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    try:
        typed.check_json(name, text)
    except ValueError as error:
        raise UserError(f"{error}; leave some cells out of the sweep") from error
    hdf5.put(file, name, text)


def _put_cells(file: h5py.File, chunks: Iterator[Chunk], sweep: Sweep) -> list[Read]:
    """Copies what chunks have to /cells; returns what there is of each cell.

    A result names its technique as the sweep did that it was made in; here it has the name that
    this sweep gives it.
    """
    every: list[Read] = []
    target = file.create_group("cells", track_order=True).id
    first: dict[str, bytes] = {}
    for chunk in chunks:
        with reading.opened(chunk.file) as long:
            for read in chunk.cells:
                if read.rows:
                    cell_id = read.rows[0].id
                    copy = _put_cell(target, cell_id, read.parts, long, first)
                    text = store.cell_text(sweep.by_id[cell_id].to_json())
                    hdf5.put_attribute(copy, b"cell", text)
        every += [replace(read, parts=Parts()) for read in chunk.cells]
    return every


def _put_cell(
    target: hdf5.Group, cell_id: str, parts: Parts, long: hdf5.Group, first: dict[str, bytes]
) -> hdf5.Group:
    """The cell's group. `first`: the name of a long array's content -> where it is in `target`
    already."""
    for part in parts.each:
        with hdf5.in_memory(part.image) as source:
            h5o.copy(source, part.source, target, part.target.encode(), lcpl=_groups_above())
    for path, content_name in sorted(parts.long.items()):
        place = path.encode()
        target.unlink(place)  # what it took, the next takes
        if content_name in first:
            target.links.create_hard(place, target, first[content_name])
        else:
            h5o.copy(long, f"long/{content_name}".encode(), target, place)
            first[content_name] = place
    copy = h5g.open(target, cell_id.encode())
    if parts.artifact is not None:
        hdf5.put_attribute(copy, b"artifact", parts.artifact)
    return copy


@functools.cache
def _groups_above() -> h5p.PropLCID:
    """How a link is made together with the groups above it."""
    made = h5p.create(h5p.LINK_CREATE)
    made.set_create_intermediate_group(True)
    return made


def _gap_json(gap: Gap) -> dict[str, Any]:
    return {"cell": gap.cell.to_json(), "reason": gap.reason}


def show(published: Published, machine: str | None, similarity_of: str | None) -> Published:
    """Have results.h5 remember which machine, and whose layers, are shown; "" forgets it. Raises as
    `Frames.on` and `write`."""
    name = machine and published.frames.named(machine)

    def put(file: h5py.File) -> None:
        for key, value in ((MACHINE, name), (SIMILARITY_OF, similarity_of)):
            if value == "":
                file.attrs.pop(key, None)
        if name:
            file.attrs[MACHINE] = name
        if similarity_of:
            _put_similarity_of(file, read(published.path, name).frames, similarity_of)

    store.change_hdf5(published.path, put)
    return read(published.path)


def _put_similarity_of(file: h5py.File, shown: Frames, cell_id: str) -> None:
    measurement = {row.id: row.measurement for row in shown.compared().rows}
    if cell_id not in measurement:
        raise UserError(f"--similarity {cell_id}: has no result that is shown")
    results = sources.results_of(file, cell_id, everything=True)
    result = next(result for one, result in results if one.name == measurement[cell_id])
    if evidence.of(result).similarity_pairs is None:
        raise UserError(
            f"--similarity {cell_id}: its layers were not compared with each of its base's, which "
            "an earlier version did not; `netpress measure` measures it again"
        )
    file.attrs[SIMILARITY_OF] = cell_id


# --- reading ---------------------------------------------------------------------------------


def read(path: Path, shown: str | None = None) -> Published:
    """What `write` put into `path`, without a work root. `shown`: the machine, as `Frames.on`; ""
    for the one that measured most, None for the one that the file remembers.

    Raises FileNotFoundError; UserError where another version of netpress wrote it; Corrupt for
    everything else that is not such a file, whole.
    """
    with store.open_hdf5(path) as file:
        _check(file, path)
        remembered, similarity_of = (
            hdf5.attribute(file.id, name.encode()) if name in file.attrs else None
            for name in (MACHINE, SIMILARITY_OF)
        )
        machine = remembered if shown is None else shown or None
        missing, usages = _json(file, "gaps"), _json(file, "usage")
        sweep = _sweep(file, path, {gap["cell"]["id"]: gap["cell"] for gap in missing})
    gaps = {gap["cell"]["id"]: gap["reason"] for gap in missing}
    cells = frames.in_order(sweep)
    rows = reading.from_results(path, [identity(c) for c in cells if c.id not in gaps])
    result = Frames.of(rows, [Gap(c, gaps[c.id]) for c in cells if c.id in gaps])
    return Published(path, sweep, result, usages, similarity_of).on(machine)


def ids_in(path: Path) -> frozenset[str]:
    """Of the cells with a result, in a file whose seal was checked; raises as `read`."""
    with store.open_hdf5(path, checked=True) as file:
        _check(file, path)
        return frozenset(hdf5.members(file["cells"].id))


def _check(file: h5py.File, path: Path) -> None:
    made = hdf5.number_attribute(file.id, b"format")
    if made not in READABLE:
        formats = " and ".join(map(str, READABLE))
        raise UserError(f"{path}: format {made}, this netpress reads {formats}")
    if set(hdf5.members(file.id)) - {TUNED} != MEMBERS:
        raise ValueError(f"its members are not {', '.join(sorted(MEMBERS))}")


def _sweep(file: h5py.File, path: Path, missing: dict[str, dict[str, Any]]) -> Sweep:
    """With its cells in its own order: those with a result, and `missing` (id -> cell as JSON)."""
    name, called, version = (
        hdf5.attribute(file.id, each) for each in (b"name", b"called", b"netpress")
    )
    done = hdf5.members(file["cells"].id)
    order = _json(file, "order")
    if sorted(order) != sorted([*done, *missing]):
        raise ValueError("its cells are not those of its sweep")
    known = catalog.reading()
    cells = []
    for cell_id in order:
        stored = missing.get(cell_id) or _cell_json(file, cell_id)
        try:
            cells.append(Cell.from_json(stored, known))
        except ValueError as error:
            this = "other code" if version == __version__ else __version__
            raise UserError(
                f"{path}: made by netpress {version[:20]}, this is {this}: {error}"
            ) from error
    if [cell.id for cell in cells] != order:
        raise ValueError("a cell has another one's id")
    # A path below a file: none is there, so that the sweep is called what it was called.
    text = _text(file, "text", TEXT_BYTES)
    candidates = _json(file, TUNED) if TUNED in hdf5.members(file.id) else {}
    place = path / Path(called).name
    return Sweep(checked_name(name), tuple(cells), place, text, tuned=candidates)


def _cell_json(file: h5py.File, cell_id: str) -> dict[str, Any]:
    return typed.parsed("cell", hdf5.attribute(file["cells"][cell_id].id, b"cell"))


def _json(file: h5py.File, name: str) -> Any:
    return typed.parsed(name, _text(file, name, typed.JSON_BYTES))


def _text(file: h5py.File, name: str, most_bytes: int) -> str:
    text = hdf5.value_in(file.id, name, most_bytes)
    if not isinstance(text, str):
        raise ValueError(f"{name} is no text")
    return text
