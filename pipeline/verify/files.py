"""The files of a report: results.h5 in itself, and every other file against it."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy

from pipeline import same_kind, store
from pipeline.errors import Corrupt, UserError
from pipeline.measure import accuracy
from pipeline.paths import ReportPaths
from pipeline.report import chunks, made, owned, sources
from pipeline.report.merged import Published
from pipeline.report.row import Row
from pipeline.verify.check import DIFFERS, NOTE, OK, UNCHECKED, Check, same

DRAWN_BY = re.compile(rb"Matplotlib v([0-9][\w.]*)")
OTHER_DRAWING_BYTES = 64 << 20  # that a file can have more than ours: another matplotlib's figures
MOST_OTHERS = 20
BYTES = ("stored_bytes", "runnable_bytes")
OF_ARTIFACT = (*BYTES, "parameters", "macs")
IN_PAGE = re.compile(rb"data:image/svg\+xml;base64,([A-Za-z0-9+/]*)=*")


def numbers(published: Published) -> Iterator[Check]:
    """Accuracy and agreement follow from the predictions that were recorded beside them."""
    recorded = [(published.path, cell_id) for cell_id in published.frames.ids]
    known, wrong = 0, False
    for checked, differences in chunks.in_chunks(_numbers_of, recorded):
        known, wrong = known + checked, wrong or bool(differences)
        yield from differences
    if known and not wrong:
        yield Check("accuracies", OK, f"follow from the predictions in {known} results")


def _numbers_of(recorded: Sequence[tuple[Path, str]]) -> tuple[int, list[Check]]:
    """How many of these results have predictions, and what does not follow from them."""
    known = 0
    wrong: list[Check] = []
    with store.open_hdf5(recorded[0][0], checked=True) as file:
        for _, cell_id in recorded:
            every = sources.results_of(file, cell_id, everything=True)
            differences = [_differences(cell_id, result.measured) for _, result in every]
            known += any(one is not None for one in differences)
            wrong += [check for one in differences for check in one or ()]
    return known, wrong


def _differences(cell_id: str, measured: dict[str, Any]) -> list[Check] | None:
    """What does not follow from predictions; None where there are none."""
    expected = _from_predictions(measured)
    wrong = [
        Check(
            f"{cell_id} {name}",
            DIFFERS,
            f"{measured.get(name)} recorded, its predictions give {value}",
        )
        for name, value in expected.items()
        if not same(measured.get(name), value)
    ]
    return wrong if expected else None


def _from_predictions(measured: dict[str, Any]) -> dict[str, float]:
    names = ("predictions", "base_predictions", "labels")
    arrays = [a for name in names if isinstance(a := measured.get(name), numpy.ndarray)]
    if len(arrays) < len(names) or len({a.shape for a in arrays}) > 1:
        return {}
    own, base, labels = arrays
    return accuracy.of_predictions(own, base, labels)


def bases(published: Published) -> Iterator[Check]:
    """What a result says of its base is what the base's own says. Where the base's artifact was
    made anew since, bytes differ: its manifest names the versions that made it."""
    rows = {row.id: row for row in published.frames.rows}
    compared, without = 0, 0
    wrong: list[Check] = []
    for row in rows.values():
        base = rows.get(published.sweep.by_id[row.id].base_id)
        if base is None:
            without += 1
            continue
        compared += 1
        different = [name for name in OF_ARTIFACT if _of_base(row, name) != getattr(base, name)]
        another = bool(different) and _base_was_another(published, row, base)
        for name in different:
            why = f"{_of_base(row, name)} recorded, the base's own is {getattr(base, name)}"
            outcome = DIFFERS
            if another and name in BYTES:
                outcome = UNCHECKED
                why += "; it may have been measured beside another artifact of it"
            wrong.append(Check(f"{row.id} base_{name}", outcome, why))
    yield from wrong
    if compared and not any(check.outcome == DIFFERS for check in wrong):
        yield Check("sizes of bases", OK, f"are the bases' own in {compared} results")
    if without:
        yield Check("sizes of bases", UNCHECKED, f"{without} results are here without their base")


def _of_base(row: Row, name: str) -> int | None:
    size: int | None = getattr(row, f"base_{name}")
    return size


def _base_was_another(published: Published, row: Row, base: Row) -> bool:
    """Whether the base's artifact was another than the one that is recorded now, or may have been:
    results of earlier versions do not say."""
    now = store.artifact_sha256(published.artifact(base.id), folder="")
    return published.result(row.id).facts.get(same_kind.BASE_ARTIFACT) != now


def files(published: Published, paths: ReportPaths) -> Iterator[Check]:
    """Every other file is what results.h5 gives, to the byte."""
    expected = made(published, paths)
    for path, data in expected.items():
        yield Check(paths.name(path), *_compared(path, data))
    for path in paths.drawn_or_set():
        if path not in expected:
            yield Check(paths.name(path), DIFFERS, "is not part of this report")
    yield Check(paths.name(paths.listing), *_listing(paths, [*paths.always, *expected]))
    yield from _others(paths, {*paths.always, *expected, *paths.drawn_or_set()})


def _others(paths: ReportPaths, known: Container[Path]) -> Iterator[Check]:
    """What lies there and is not the report's: whoever is given the folder should know. Folders of
    models are checked with the models."""
    others = [
        Path(root) / name
        for root, folders, names in os.walk(paths.folder)
        for name in (*names, *(f for f in folders if (Path(root) / f).is_symlink()))
        if Path(root) / name not in known and paths.artifacts not in (Path(root) / name).parents
        if not (Path(root) == paths.folder and name.startswith(paths.lock.name))
    ]
    for path in sorted(others)[:MOST_OTHERS]:
        yield Check(paths.name(path), NOTE, "is not part of this report")
    if len(others) > MOST_OTHERS:
        yield Check(
            "other files", NOTE, f"{len(others) - MOST_OTHERS} more are not part of this report"
        )


def _listing(paths: ReportPaths, expected: Sequence[Path]) -> tuple[str, str]:
    """Files of models are the report's own, too; those that are not in it are counted elsewhere."""
    try:
        listed = owned.read(paths)
    except (OSError, UserError):
        return DIFFERS, "cannot be read"
    if listed is None:
        return DIFFERS, "is missing"
    wanted = set(map(paths.name, expected))
    drawn = {name for name in listed if not name.startswith(f"{paths.artifacts.name}/")}
    if odd := sorted(drawn ^ wanted):
        return DIFFERS, f"does not name {odd[0]}" if odd[0] in wanted else f"names {odd[0]}"
    return OK, ""


def _compared(path: Path, expected: bytes) -> tuple[str, str]:
    try:
        data = store.read_regular(path, len(expected) + OTHER_DRAWING_BYTES)
    except OSError as error:
        return DIFFERS, f"cannot be read ({error.strerror})"
    except Corrupt as error:
        return DIFFERS, str(error).removeprefix(f"{path}: ")
    if data == expected:
        return OK, ""
    if drawn := _other_drawing(data, expected):
        return UNCHECKED, drawn
    return DIFFERS, "is not what results.h5 gives"


def _other_drawing(data: bytes, expected: bytes) -> str:
    """Where only another matplotlib drew the figure, or those in the page: which one. Its lines of
    the same numbers are not the same bytes."""
    theirs, ours = _drawn_by(data), _drawn_by(expected)
    if not theirs or not ours or theirs == ours:
        return ""
    if IN_PAGE.search(expected) and IN_PAGE.sub(b"", data) != IN_PAGE.sub(b"", expected):
        return ""
    return f"drawn by matplotlib {theirs}, here is {ours}"


def _drawn_by(data: bytes) -> str:
    """What a figure says, or the first one of a page; "" where none says it."""
    if picture := IN_PAGE.search(data):
        whole = len(picture[1]) // 4 * 4  # somebody may have cut it
        data = base64.b64decode(picture[1][:whole])
    version = DRAWN_BY.search(data)
    return version[1].decode() if version else ""
