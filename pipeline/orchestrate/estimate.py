"""Estimates the cost of a cell before it runs, and names the source of the estimate: finished cells
of the sweep, else its rehearsal on a GPU, else arithmetic for the requested kind of GPU.

A measured cell gives three numbers: the seconds outside its training (start, measurement), those
of its measurement, and the seconds of an epoch as a multiple of the computed ones, which are kept
by model. So measurements of a small data set or a narrow network apply to the others, too, and a
network of which nothing is known is estimated from its own first cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

from pipeline import models, store
from pipeline.paths import CellPaths, Work
from pipeline.sweep import Cell, Dataset, Recipe, Sweep
from pipeline.techniques import stage_epochs

SOURCE = (
    "arithmetic for one A100: 94 TFLOP an epoch of 50,000 images of 32x32 through a full-width "
    "VGG-16 at 40 % of the bf16 peak, and 2 minutes a cell for its start and its measurement; "
    "none of it was measured here"
)
OVERHEAD_S = 120.0
MEASURE_S = 90.0  # of these
EPOCH_S = 0.75  # the arithmetic above: 94.1 TFLOP / (0.4 x 312 TFLOP/s)
EPOCH_PIXELS = 50_000 * 32 * 32
TRAINING_SET = {  # name: (images, pixels an image); any other counts as CIFAR-10
    "digits": (1_347, 32 * 32),
    "mnist": (60_000, 28 * 28),
    "cifar10": (50_000, 32 * 32),
    "cifar10-jpeg": (50_000, 32 * 32),
}


def gpu_seconds(cell: Cell) -> float:
    """Estimated seconds on one GPU for `cell` alone, with its base done."""
    return OVERHEAD_S + epochs(cell) * _epoch_s(cell)


def epochs(cell: Cell) -> int:
    """Epochs of training in all stages of the cell; of a base, those of its own training, none
    where trained weights were brought."""
    if cell.is_base:
        own = cell.model.own
        return 0 if own is not None and own.weights is not None else cell.recipe.epochs
    return sum(stage_epochs(stage.settings, cell.recipe) for stage in cell.stages)


def _epoch_s(cell: Cell) -> float:
    macs = _macs(cell.model.name) or 1.0
    pixels = _pixels(cell.dataset, cell.recipe)
    return EPOCH_S * macs * cell.model.width**2 * pixels / EPOCH_PIXELS


def _macs(model: str) -> float | None:
    """Of an image, as a multiple of VGG-16's; None where nothing says so."""
    return models.entry(model).macs if model in models.names() else None


def notes(cells: Iterable[Cell]) -> list[str]:
    """What the arithmetic does not know."""
    unknown = {cell.model.name: None for cell in cells if _macs(cell.model.name) is None}
    return [
        f"the cost of {name} is not known, it counts as a VGG-16 until a cell of it is finished"
        for name in unknown
    ]


def _pixels(dataset: Dataset, recipe: Recipe) -> float:
    images, pixels = TRAINING_SET.get(dataset.name, TRAINING_SET["cifar10"])
    images = min(images, recipe.train_images or images)
    return images * (1 - recipe.holdout) * (dataset.size**2 if dataset.size else pixels)


# --- measured --------------------------------------------------------------------------------

# Peak TFLOP/s in the 16-bit format that training uses, from the data sheets (dense).
PEAK = {
    "v100": 125,
    "t4": 65,
    "a10": 125,
    "a30": 165,
    "a40": 150,
    "a100": 312,
    "l4": 121,
    "l40": 181,
    "l40s": 362,
    "h100": 989,
    "h200": 989,
    "gh200": 989,
    "b200": 2250,
    "mi200": 383,
    "mi250": 383,
}
LEAST_EPOCHS = 1
MOST_CELLS = 200  # to read; more would make `plan` slower and the mean no better


class Measured(NamedTuple):
    """A finished cell: seconds outside its training, and of these of its measurement where that is
    known; seconds an epoch, where it has any."""

    cell: Cell
    around_s: float
    measure_s: float | None
    epoch_s: float | None


@dataclass(frozen=True)
class Estimate:
    """Seconds of a job for a cell: `overhead_s` + its epochs, each `scale` times the arithmetic;
    `measure_s` of the overhead are its measurement. `scales`: of models that were measured
    themselves, by name. MACs do not say how long a network takes: small maps, depthwise
    convolutions and many layers cost more than their share."""

    overhead_s: float
    scale: float
    source: str
    scales: Mapping[str, float] = field(default_factory=dict)
    datasets: frozenset[str] = frozenset(TRAINING_SET)  # of which the size is known
    arithmetic: bool = False  # for a kind of GPU that is known
    measure_s: float = MEASURE_S

    def covers(self, cell: Cell) -> bool:
        """Whether it says enough of this cell to decide what its job requests."""
        known = self.arithmetic and _macs(cell.model.name) is not None
        return (known or cell.model.name in self.scales) and cell.dataset.name in self.datasets

    def seconds(self, cell: Cell) -> float:
        scale = self.scales.get(cell.model.name, self.scale)
        return self.overhead_s + epochs(cell) * _epoch_s(cell) * scale


def best(
    sweep: Sweep,
    work: Work,
    gpu: str | None = "a100:1",
    rehearsed: Sweep | None = None,
    rehearsal: Work | None = None,
) -> Estimate:
    """The best available estimate for the cells of a sweep on `gpu` (as a profile names it)."""
    source = "from {} finished cells of this sweep"
    own = _from_cells(_finished(sweep.cells, work, on_gpu=bool(gpu)), source)
    if own:
        return own
    if rehearsed is not None and rehearsal is not None:
        source = "from {} cells rehearsed on a GPU"
        measured = _from_cells(_finished(rehearsed.cells, rehearsal, on_gpu=True), source)
        if measured:
            return measured
    return by_hardware(gpu)


def by_hardware(gpu: str | None) -> Estimate:
    """Arithmetic for a kind of GPU; one that is not in the table counts as an A100."""
    kind, _, part = (gpu or "").partition(":")[0].lower().partition(".")
    if kind not in PEAK or part:
        known = _unknown(gpu)
        return Estimate(OVERHEAD_S, 1.0, f"{known}, so as for an A100: {SOURCE}")
    if kind == "a100":
        return Estimate(OVERHEAD_S, 1.0, SOURCE, arithmetic=True)
    factor = PEAK["a100"] / PEAK[kind]
    peak = f"one {kind.upper()} of {PEAK[kind]} TFLOP/s peak"
    return Estimate(OVERHEAD_S, factor, SOURCE.replace("one A100", peak), arithmetic=True)


def _unknown(gpu: str | None) -> str:
    if not gpu:
        return "no GPU is requested"
    return "any kind of GPU is requested" if gpu.isdigit() else f"{gpu!r} is not in the table"


def _finished(cells: Iterable[Cell], work: Work, on_gpu: bool = False) -> Iterator[Measured]:
    """Measurements of the cells that are done."""
    count = 0
    for cell in cells:
        folder = work.cell(cell.id)
        attempt = store.last_attempt(folder)
        if count >= MOST_CELLS or attempt is None or not store.is_done(folder):
            continue
        usage = _of_training(folder, attempt.number, cell)
        if usage is None or usage.used is None or not usage.ended:
            continue
        wall_s, training_s, trained = usage.wall_s, usage.training_s, usage.epochs
        if wall_s is None or training_s is None or trained is None:
            continue
        if usage.used.gpu_memory_bytes or not on_gpu:
            count += 1
            epoch_s = training_s / trained if trained >= LEAST_EPOCHS else None
            measure_s, apart_s = _of_measurement(folder, attempt.number, usage)
            yield Measured(cell, wall_s - training_s + apart_s, measure_s, epoch_s)


def _of_measurement(
    folder: CellPaths, last: int, training: store.Usage
) -> tuple[float | None, float]:
    """(seconds that the measurement took, None where that is not known; those of them that were not
    in the attempt that trained)."""
    if (inside_s := _measured_s(training)) is not None:
        return inside_s, 0.0
    own = store.read_usage(folder.attempt(last))
    if own is None or own.wall_s is None or _measured_s(own) is None:
        return None, 0.0
    return own.wall_s, own.wall_s


def _measured_s(usage: store.Usage) -> float | None:
    phases = usage.phases or {}
    return phases.get("evaluate", 0.0) + phases["measure"] if "measure" in phases else None


def _of_training(folder: CellPaths, last: int, cell: Cell) -> store.Usage | None:
    """What the last attempt that trained used: later ones may have measured again."""
    usage = store.read_usage(folder.attempt(last))
    for number in range(last - 1, 0, -1):
        if usage is not None and (usage.epochs or not epochs(cell)):
            break
        usage = store.read_usage(folder.attempt(number)) or usage
    return usage


def _from_cells(measured: Iterable[Measured], source: str) -> Estimate | None:
    """`source` has a place for the number of cells."""
    rows = list(measured)
    scales: dict[str, list[float]] = {}
    for one in rows:
        if one.epoch_s is not None:
            scale = one.epoch_s / _epoch_s(one.cell)
            scales.setdefault(one.cell.model.name, []).append(scale)
    if not scales:
        return None
    around_s = fmean(one.around_s for one in rows)
    known = [one.measure_s for one in rows if one.measure_s is not None]
    return Estimate(
        around_s,
        fmean(scale for of_model in scales.values() for scale in of_model),
        source.format(len(rows)),
        {name: fmean(of_model) for name, of_model in scales.items()},
        frozenset({*TRAINING_SET, *(one.cell.dataset.name for one in rows)}),
        measure_s=min(around_s, fmean(known) if known else MEASURE_S),
    )
