"""What a figure shows of one cell beyond its row: histories, samples, predictions, pictures.

L: layers with channels; N: images of the test set; K: the images that differ most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy

from pipeline import done, store
from pipeline.errors import Corrupt
from pipeline.measure import series
from pipeline.measure.series import Series
from pipeline.paths import CellPaths
from pipeline.report import measured
from pipeline.store import StageHistory

DIFFERING = "differing/"
PAIRS = "similarity/cka_pairs"
Measured = tuple[measured.Measurement, store.Result]
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
    # CKA of M of these layers (lines) with each of the same M of the base.
    similarity_pairs: numpy.ndarray | None = None

    @cached_property
    def n_bytes(self) -> int:
        """What its numbers take in memory."""
        classes = (self.predictions, self.base_predictions, self.labels)
        single = (self.channels, self.similarity_pairs, *classes)
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
    values = result.measured
    classes = [_array(values.get(name), "u", 1) for name in CLASSES]
    if len({len(known) for known in classes if known is not None}) > 1:
        classes = [None] * len(CLASSES)
    own, base, labels = classes
    latency = {
        key: samples
        for name, value in values.items()
        if (key := series.parse(name)) and (samples := _samples(value)) is not None
    }
    channels = _array(values.get("channels"), "iu", 1)
    history, differing = tuple(result.history), _differing(values)
    similar = _similarity(values)
    pairs = _pairs(values, similar)
    return Evidence(history, channels, latency, own, base, labels, differing, similar, pairs)


def is_row_evidence(name: str) -> bool:
    """Whether a row is made from what is measured under this name; the rest is large."""
    return name not in CLASSES and name != PAIRS and not name.startswith(DIFFERING)


def in_work(
    cell_id: str,
    paths: CellPaths,
    wanted: Mapping[str, Any],
    *,
    also: Callable[[bytes, store.Result, dict], None] = lambda content, result, manifest: None,
    also_measured: Callable[[bytes, store.Result, str], None] = lambda content, result, name: None,
) -> tuple[store.Result, list[measured.Measurement]]:
    """A cell's result, without its history, and the measurements beside it that are shown: what a
    manifest vouches for (by size, and HDF5 files by their checksum). `wanted`: `done.record` of the
    cell. `also` as in store.read_result, with the manifest; `also_measured`: the same of
    measurements, by name.

    Raises FileNotFoundError where it is not trained, or has no measurement, and Corrupt.
    The artifact's checksum is left to `netpress export` and `run`: a report reads no weights.
    """
    manifest = store.read_manifest(paths)
    if manifest is None:
        raise FileNotFoundError(paths.manifest)
    store.verify_files(paths, manifest, deep=False)
    result = store.read_result(
        paths.result,
        manifest["files"][paths.result.name]["sha256"],
        with_history=False,
        also=lambda content, result: also(content, result, manifest),
    )
    if result.id != cell_id:
        raise Corrupt(f"{paths.result}: is of cell {result.id}")
    entries, damaged = store.measurements(paths)
    whole, more = _measurements(
        measured.chosen(done.of_this_artifact(entries, manifest), wanted), cell_id, also_measured
    )
    if any("accuracy" in values for values in (result.measured, *(m.measured for m in whole))):
        return result, whole
    if damaged or more:
        raise (*damaged, *more)[-1]
    raise FileNotFoundError(paths.measurements)


def _measurements(
    chosen: Iterable[store.MeasurementEntry],
    cell_id: str,
    also: Callable[[bytes, store.Result, str], None],
) -> tuple[list[measured.Measurement], list[Corrupt]]:
    """(those that can be read, why others cannot): a damaged one costs itself."""
    whole: list[measured.Measurement] = []
    damaged: list[Corrupt] = []
    for entry in chosen:

        def keep(content: bytes, result: store.Result, name: str = entry.name) -> None:
            if result.id == cell_id:
                also(content, result, name)

        try:
            read = store.read_result(entry.path, entry.sha256, with_history=False, also=keep)
            if read.id != cell_id:
                raise Corrupt(f"{entry.path}: is of cell {read.id}")
        except FileNotFoundError:
            damaged.append(Corrupt(f"{entry.path}: is missing, its manifest names it"))
        except Corrupt as error:
            damaged.append(error)
        else:
            whole.append(measured.Measurement(entry.name, read.facts, read.measured))
    return whole, damaged


def check_results(measurements: list[Measured], path: Path | str) -> list[Measured]:
    """Raises Corrupt where there is none, or one lacks what every result has."""
    if not measurements:
        raise Corrupt(f"{path}: has no measurement")
    for one, result in measurements:
        absent = [name for name in measured.REQUIRED if name not in result.measured]
        if absent:
            raise Corrupt(f"{path}: {one.name or 'its measurement'} is without {absent}")
    return measurements


def _array(value: Any, kinds: str, dimensions: int) -> numpy.ndarray | None:
    good = isinstance(value, numpy.ndarray) and value.dtype.kind in kinds
    return value if good and value.ndim == dimensions and value.size else None


def _samples(value: Any) -> numpy.ndarray | None:
    samples = _array(value, "f", 1)
    return samples if samples is not None and numpy.isfinite(samples).all() else None


def _similarity(values: Mapping[str, Any]) -> dict[str, numpy.ndarray] | None:
    arrays = {name: _array(values.get(f"similarity/{name}"), "f", 1) for name in SIMILARITY}
    known = {name: array for name, array in arrays.items() if array is not None}
    alike = len({len(array) for array in known.values()}) == 1
    return known if alike and len(known) == len(SIMILARITY) else None


def _pairs(
    values: Mapping[str, Any], similar: Mapping[str, numpy.ndarray] | None
) -> numpy.ndarray | None:
    """A square, of no more layers than there are; results of earlier versions have none."""
    pairs = _array(values.get(PAIRS), "f", 2)
    if pairs is None or similar is None or len(pairs) > len(similar["cka"]):
        return None
    return pairs if pairs.shape[0] == pairs.shape[1] else None


def _differing(values: Mapping[str, Any]) -> dict[str, numpy.ndarray] | None:
    pixels = _array(values.get(f"{DIFFERING}pixels"), "u", 4)
    arrays = {name: _array(values.get(DIFFERING + name), "iuf", 1) for name in PER_PICTURE}
    if pixels is None or pixels.dtype != numpy.uint8 or pixels.shape[1] not in (1, 3):
        return None
    known = {name: array for name, array in arrays.items() if array is not None}
    if len(known) < len(arrays) or any(len(array) != len(pixels) for array in known.values()):
        return None
    return {"pixels": pixels, **known}
