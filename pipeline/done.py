"""What is done of a cell: its weights, which its id stands for, and what was made from them.

The manifest of a finished cell records what its artifact and its measurement were made with. Where
a sweep asks for something else now, or a later version of netpress writes artifacts or measures in
another way, the weights are still the cell's own, and only the rest is made anew. Imports nothing
heavy.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from pipeline import store
from pipeline.errors import Corrupt
from pipeline.paths import CellPaths, Work
from pipeline.sweep import Cell
from pipeline.sweep.cell import RUNTIMES
from pipeline.versions import SHARED

MADE_WITH = "made_with"  # the record, in a manifest's `extra` and in a result's facts


def record(cell: Cell) -> dict[str, Any]:
    """What the cell's artifact and measurement are to be made with now."""
    return _record(cell.measure.decides(), cell.recipe.test_images)


def record_of_json(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The same of what `Cell.to_json` gave."""
    return _record(cell["measure"], cell["recipe"]["test_images"])


def _record(measure: Mapping[str, Any], test_images: int | None) -> dict[str, Any]:
    return {
        "artifact": SHARED["artifact"],
        "measurement": SHARED["measurement"],
        "measure": {"runtimes": list(RUNTIMES[:1]), **measure},
        "test_images": test_images,
    }


def outdated(manifest: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Why what the manifest names is to be made anew from the weights; None where it is not."""
    made = manifest["extra"].get(MADE_WITH)
    if made == wanted:
        return None
    if not isinstance(made, dict):
        return "it does not say how it was measured"
    for part, maker in (("artifact", "the artifact writer"), ("measurement", "the measurement")):
        before = made.get(part)
        if before != wanted[part]:
            earlier = isinstance(before, int) and before < wanted[part]
            return f"by {'an earlier' if earlier else 'another'} version of {maker}"
    return "measured with other settings"


def is_current(paths: CellPaths, wanted: Mapping[str, Any], deep: bool = False) -> bool:
    """Whether the cell is finished, and made with what is wanted; `deep` as in store.verify."""
    try:
        return outdated(store.verify(paths, deep), wanted) is None
    except Corrupt:
        return False


def is_done(cell: Cell, work: Work, deep: bool = False) -> bool:
    return is_current(work.cell(cell.id), record(cell), deep)


def older(cell: Cell, work: Work, begun: Container[str]) -> Cell | None:
    """The newest earlier version of the cell that is finished. `begun`: ids that may have a folder,
    so that nothing is looked for that nobody made."""
    for candidate in cell.older() if begun else ():
        try:
            if candidate.id in begun and store.is_done(work.cell(candidate.id)):
                return candidate
        except PermissionError:  # another user's
            continue
    return None


def publish_cell(paths: CellPaths, data: bytes) -> None:
    """cell.json, from which a worker knows what to do. Written anew where it differs: where images
    lie, what a technique is called and how it is measured are no part of the id.

    A manifest vouches for the file as it was, so it goes first: a cell is finished or it is not.
    Raises store.Busy where a process works on the cell.
    """
    try:
        if paths.cell_json.read_bytes() == data:
            return
    except FileNotFoundError:
        pass
    if not paths.manifest.exists():
        store.publish_bytes(paths.cell_json, data)
        return
    with store.lock_cell(paths):
        store.retract(paths)
        store.publish_bytes(paths.cell_json, data)
