"""Checks whether the images in a sweep's folders are still those that its results were made from.

A folder's images are not in a cell's id, so results stay valid when they change; but a change must
be reported, and cells of different images must not be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import data, store
from pipeline.errors import Corrupt, UserError
from pipeline.paths import Work
from pipeline.sweep import Cell, Dataset

MOST_NAMED = 3
OTHER_NAME = "another name for this data set in the sweep file"


@dataclass(frozen=True)
class Changed:
    """Cells of a data set that were made from other images than the present ones; `certain`: their
    pixels differ, else only names, sizes or times of files do."""

    dataset: Dataset
    place: Path
    cells: tuple[Cell, ...]
    certain: bool

    @property
    def line(self) -> str:
        count = len(self.cells)
        more = f" and {count - MOST_NAMED} more" if count > MOST_NAMED else ""
        named = ", ".join(cell.id for cell in self.cells[:MOST_NAMED])
        cells = f"{'1 cell was' if count == 1 else f'{count} cells were'} made ({named}{more})"
        change = "changed" if self.certain else "may have changed (names, sizes or times of files)"
        return f"{self.dataset.name}: the images in {self.place} {change} since {cells}"


Records = dict[Cell, dict[str, Any]]


def notes(cells: Iterable[Cell], work: Work, data_root: Path) -> list[str]:
    """Lines for the user about images that changed, or may have changed, since cells were made;
    decodes nothing. A folder that is not on this machine, and results that do not record their
    images, count as unchanged."""
    lines = []
    for dataset, members in _by_folder(cells).items():
        records = {c: recorded for c in members if (recorded := _in_manifest(c, work))}
        try:
            now = data.current(dataset, data_root, work.cache) if records else None
        except UserError as error:
            lines.append(f"{error}; its results were made from other images")
            continue
        if now is not None:
            lines += [changed.line for changed in _compared(dataset, records, now, data_root)]
    return lines


def check(
    cells: Iterable[Cell],
    work: Work,
    data_root: Path,
    say: Callable[[str], None],
    remedy: str = OTHER_NAME,
    decode: bool = True,
) -> None:
    """Raises UserError where images are not those that cells were made from, measured or not;
    `remedy`: the alternative for the user. Where names, sizes or times of files differ, all images
    are decoded; with `decode` False (as on a login node) the difference is only reported."""
    for dataset, members in _by_folder(cells).items():
        records = {c: recorded for c in members if (recorded := _recorded(c, work))}
        now = data.current(dataset, data_root, work.cache) if records else None
        if now is None:
            continue
        if (
            decode
            and now.fingerprint is None
            and any(r.get("key") != now.key for r in records.values())
        ):
            data.decode(dataset, data_root, work.cache, say)
            now = data.current(dataset, data_root, work.cache) or now
        for changed in _compared(dataset, records, now, data_root):
            if changed.certain:
                raise UserError(f"{changed.line}; expected the same images, or {remedy}")
            say(f"{changed.line}; `netpress fetch SWEEP` reads them and settles it")


def _by_folder(cells: Iterable[Cell]) -> dict[Dataset, list[Cell]]:
    folders: dict[Dataset, list[Cell]] = {}
    for cell in cells:
        if data.is_folder(cell.dataset):
            folders.setdefault(cell.dataset, []).append(cell)
    return folders


def _recorded(cell: Cell, work: Work) -> dict[str, Any]:
    """As `_in_manifest`; where that has nothing, as in result.h5, which always did. Empty of a cell
    without a manifest: the states of its training say themselves what they were made from."""
    if recorded := _in_manifest(cell, work):
        return recorded
    paths = work.cell(cell.id)
    try:
        paths.manifest.stat()
        facts = store.read_result(paths.result, with_history=False).facts
    except (FileNotFoundError, PermissionError, Corrupt):
        return {}
    return {"fingerprint": facts.get("dataset_fingerprint")}


def _in_manifest(cell: Cell, work: Work) -> dict[str, Any]:
    """The key and the fingerprint of the images that a cell was made from; empty where its manifest
    has none, as in earlier versions."""
    try:
        manifest = store.read_manifest(work.cell(cell.id))
    except (Corrupt, PermissionError):
        return {}
    recorded = (manifest or {"extra": {}})["extra"].get("images")
    return recorded if isinstance(recorded, dict) else {}


def _compared(
    dataset: Dataset, records: Records, now: data.Current, data_root: Path
) -> Iterator[Changed]:
    from pipeline.data.folder import place

    changed: list[Cell] = []
    unclear: list[Cell] = []
    for cell, recorded in records.items():
        before = recorded.get("fingerprint")
        if before is None or recorded.get("key") == now.key or before == now.fingerprint:
            continue
        (unclear if now.fingerprint is None else changed).append(cell)
    for cells, certain in ((changed, True), (unclear, False)):
        if cells:
            yield Changed(dataset, place(dataset, data_root), tuple(cells), certain)
