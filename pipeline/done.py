"""What is done of a cell: its weights, which its id stands for, and what was made from them.

A cell is *trained* when its weights, its artifact and its history are published: its manifest names
them, and with what the artifact was made. It is *done* when it has a measurement that was made as
its sweep requests, one of any number. Where a sweep requests something else, or a later version of
netpress writes artifacts or measures in another way, the weights are still the cell's own, and only
what is missing is made. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from pipeline import store
from pipeline.errors import Corrupt
from pipeline.paths import CellPaths, Work
from pipeline.store import MeasurementEntry
from pipeline.sweep import Cell
from pipeline.sweep.settings import RUNTIMES
from pipeline.versions import SHARED

# The record, in a manifest's `extra`, in a measurement's manifest and in facts. Before measurements
# had files of their own, a manifest's record was of both, and result.h5 had the measurement.
MADE_WITH = "made_with"
ARTIFACT = "artifact"  # its part that is of the artifact
NOT_MEASURED = "all but its measurement"


def record(cell: Cell) -> dict[str, Any]:
    """What the cell's artifact and measurement are to be made with now."""
    return _record(cell.measure.decides(), cell.recipe.test_images)


def record_of_json(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The same of what `Cell.to_json` gave."""
    return _record(cell["measure"], cell["recipe"]["test_images"])


def _record(measure: Mapping[str, Any], test_images: int | None) -> dict[str, Any]:
    return {
        ARTIFACT: SHARED["artifact"],
        "measurement": SHARED["measurement"],
        "measure": {"runtimes": list(RUNTIMES[:1]), **measure},
        "test_images": test_images,
    }


def of_artifact(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a record that is of the artifact."""
    return {ARTIFACT: record[ARTIFACT]}


# --- trained ---------------------------------------------------------------------------------


def outdated_artifact(manifest: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Why the artifact is to be made anew from the weights; None where it is not."""
    made = manifest["extra"].get(MADE_WITH)
    if not isinstance(made, dict):
        return "it does not say how it was measured"
    return _other_version(ARTIFACT, "the artifact writer", made, wanted)


def _other_version(
    part: str, maker: str, made: Mapping[str, Any], wanted: Mapping[str, Any]
) -> str | None:
    before = made.get(part)
    if before == wanted[part]:
        return None
    earlier = isinstance(before, int) and before < wanted[part]
    return f"by {'an earlier' if earlier else 'another'} version of {maker}"


# --- measured --------------------------------------------------------------------------------


def outdated(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Why a measurement that was made like this is not the one that is requested."""
    if other := _other_version("measurement", "the measurement", made, wanted):
        return other
    requested = {key: value for key, value in wanted.items() if key != ARTIFACT}
    same = {key: made.get(key) for key in requested} == requested
    return None if same else "measured with other settings"


def is_whole(made: Mapping[str, Any]) -> bool:
    """Whether a measurement that was made like this has accuracy as well: what bench.py gave has
    times alone."""
    return "measure" in made


def in_result(manifest: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the measurement in result.h5 was made with; None where there is none in it, as in all
    that were made since measurements have files of their own."""
    made = manifest["extra"].get(MADE_WITH)
    return made if isinstance(made, dict) and "measurement" in made else None


def of_this_artifact(
    entries: list[MeasurementEntry], manifest: Mapping[str, Any]
) -> list[MeasurementEntry]:
    """Those of the artifact that is there now."""
    if not entries:
        return []
    artifact = store.artifact_sha256(manifest["files"])
    return [entry for entry in entries if entry.artifact == artifact]


def lacks(
    paths: CellPaths, manifest: Mapping[str, Any], wanted: Mapping[str, Any], deep: bool = False
) -> str | None:
    """Why a trained cell is not done: its artifact is to be made anew, or a measurement is to be
    made; None where it is done. `deep`: measurements are checked by checksum, not by size."""
    if why := outdated_artifact(manifest, wanted):
        return why
    made = [before] if (before := in_result(manifest)) is not None else []
    if made and outdated(made[0], wanted) is None:
        return None  # without another look into its folder
    entries, damaged = store.measurements(paths, deep)
    made += [entry.made_with for entry in of_this_artifact(entries, manifest)]
    reasons = [outdated(each, wanted) for each in made]
    if None in reasons:
        return None
    return (reasons and reasons[-1]) or (_damaged(damaged[-1], paths) if damaged else NOT_MEASURED)


def _damaged(error: Corrupt, paths: CellPaths) -> str:
    return f"damaged: {str(error).replace(f'{paths.folder}/', '')}"


def is_current(paths: CellPaths, wanted: Mapping[str, Any], deep: bool = False) -> bool:
    """Whether the cell is trained, and measured as wanted; `deep` as in store.verify."""
    try:
        return lacks(paths, store.verify(paths, deep), wanted, deep) is None
    except Corrupt:
        return False


def is_done(cell: Cell, work: Work, deep: bool = False) -> bool:
    return is_current(work.cell(cell.id), record(cell), deep)


def is_trained(cell: Cell, work: Work, deep: bool = False) -> bool:
    """Whether only its measurement may be missing: what other cells need of their base."""
    return is_made(work.cell(cell.id), record(cell), deep)


def is_made(paths: CellPaths, wanted: Mapping[str, Any], deep: bool = False) -> bool:
    """The same, of a record: trained, and its artifact made as wanted."""
    try:
        return outdated_artifact(store.verify(paths, deep), wanted) is None
    except Corrupt:
        return False


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

    A manifest vouches for the file as it was, so it is away while that changes; a kill in between
    costs what is made from the weights, and no measurement. Raises store.Busy where a process works
    on the cell.
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
        replace_cell_json(paths, data)


def replace_cell_json(paths: CellPaths, data: bytes) -> None:
    """The same with the cell's lock held; what else the manifest names is vouched for as before."""
    try:
        manifest = store.verify(paths, deep=False)
    except Corrupt:
        manifest = None
    store.retract(paths)
    store.publish_bytes(paths.cell_json, data)
    if manifest is not None:
        files = {**manifest["files"], paths.cell_json.name: store.fingerprint(paths.cell_json)}
        again = store.manifest_bytes(paths.id, files, manifest["extra"])
        store.publish_bytes(paths.manifest, again)
