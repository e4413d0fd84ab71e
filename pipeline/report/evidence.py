"""What a figure shows of one cell beyond its row: histories, samples, predictions, pictures.

L: layers with channels; N: images of the test set; K: the images that differ most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy

from pipeline import store
from pipeline.errors import Corrupt
from pipeline.measure import series
from pipeline.measure.series import Series
from pipeline.paths import CellPaths
from pipeline.store import StageHistory

REQUIRED = ("accuracy", "stored_bytes")
DIFFERING = "differing/"
CLASSES = ("predictions", "base_predictions", "labels")
SIMILARITY = ("cka", "svcca")
PER_PICTURE = ("index", "own", "base", "label", "distance")


@dataclass(frozen=True)
class Evidence:
    """Of one finished cell; None, or empty, for what it did not record.

    `latency`: milliseconds of each run of a series; `differing`: index, own,
    base, label and distance [K] and pixels uint8 [K, C, H, W] of those images of the test set on
    which the cell and its base differ most.
    """

    history: tuple[StageHistory, ...]
    channels: numpy.ndarray | None  # int [L]
    latency: dict[Series, numpy.ndarray]
    predictions: numpy.ndarray | None  # uint16 [N]
    base_predictions: numpy.ndarray | None  # uint16 [N]
    labels: numpy.ndarray | None  # uint16 [N]
    differing: dict[str, numpy.ndarray] | None
    similarity: dict[str, numpy.ndarray] | None = None  # cka and svcca [L + 1] with the base's

    @cached_property
    def n_bytes(self) -> int:
        """What its numbers take in memory."""
        single = (self.channels, self.predictions, self.base_predictions, self.labels)
        groups = (self.latency, self.differing or {}, self.similarity or {})
        arrays = [*(array for group in groups for array in group.values()), *single]
        return sum(a.nbytes for a in arrays if a is not None) + self.history_bytes

    @property
    def history_bytes(self) -> int:
        """Those of its history, which are objects of Python."""
        columns = [column for stage in self.history for column in stage.columns.values()]
        return 32 * sum(map(len, columns))


def of(result: store.Result) -> Evidence:
    """The evidence in a result. What is there but is not what it should be counts as not there:
    a checksum vouches for bytes, not for their sense."""
    measured = result.measured
    classes = [_array(measured.get(name), "u", 1) for name in CLASSES]
    if len({len(known) for known in classes if known is not None}) > 1:
        classes = [None] * len(CLASSES)
    own, base, labels = classes
    latency = {
        key: samples
        for name, value in measured.items()
        if (key := series.parse(name)) and (samples := _samples(value)) is not None
    }
    channels = _array(measured.get("channels"), "iu", 1)
    history, differing = tuple(result.history), _differing(measured)
    similar = _similarity(measured)
    return Evidence(history, channels, latency, own, base, labels, differing, similar)


def is_row_evidence(name: str) -> bool:
    """Whether a row is made from what is measured under this name; the rest is large."""
    return name not in CLASSES and not name.startswith(DIFFERING)


def valid_result(
    cell_id: str,
    paths: CellPaths,
    *,
    with_history: bool = False,
    also: Callable[[Any, store.Result, dict], None] = lambda file, result, manifest: None,
) -> store.Result:
    """The result that a manifest vouches for (by size, and result.h5 by its checksum); `also` as
    in store.read_result, with the manifest.

    Raises FileNotFoundError where there is no manifest, and Corrupt.
    The artifact's checksum is left to `netpress export` and `run`: a report reads no weights.
    """
    manifest = store.read_manifest(paths)
    if manifest is None:
        raise FileNotFoundError(paths.manifest)
    store.verify_files(paths, manifest, deep=False)
    expected = manifest["files"][paths.result.name]["sha256"]
    result = store.read_result(
        paths.result,
        expected,
        with_history=with_history,
        also=lambda file, result: also(file, result, manifest),
    )
    check_result(result, cell_id, paths.result)
    return result


def check_result(result: store.Result, cell_id: str, path: Path | str) -> None:
    """Raises Corrupt where it is another cell's, or lacks what every result has."""
    absent = [name for name in REQUIRED if name not in result.measured]
    if result.id != cell_id or absent:
        raise Corrupt(f"{path}: is of cell {result.id}, without {absent}")


def _array(value: Any, kinds: str, dimensions: int) -> numpy.ndarray | None:
    good = isinstance(value, numpy.ndarray) and value.dtype.kind in kinds
    return value if good and value.ndim == dimensions and value.size else None


def _samples(value: Any) -> numpy.ndarray | None:
    samples = _array(value, "f", 1)
    return samples if samples is not None and numpy.isfinite(samples).all() else None


def _similarity(measured: dict[str, Any]) -> dict[str, numpy.ndarray] | None:
    found = {name: _array(measured.get(f"similarity/{name}"), "f", 1) for name in SIMILARITY}
    known = {name: array for name, array in found.items() if array is not None}
    alike = len({len(array) for array in known.values()}) == 1
    return known if alike and len(known) == len(SIMILARITY) else None


def _differing(measured: dict[str, Any]) -> dict[str, numpy.ndarray] | None:
    pixels = _array(measured.get(f"{DIFFERING}pixels"), "u", 4)
    arrays = {name: _array(measured.get(DIFFERING + name), "iuf", 1) for name in PER_PICTURE}
    if pixels is None or pixels.dtype != numpy.uint8 or pixels.shape[1] not in (1, 3):
        return None
    known = {name: values for name, values in arrays.items() if values is not None}
    if len(known) < len(arrays) or any(len(values) != len(pixels) for values in known.values()):
        return None
    return {"pixels": pixels, **known}
