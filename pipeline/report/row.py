"""One finished cell as the report sees it: who it is, and every number, None where not measured.

Made once from a result; tables, figures and comparisons read its attributes, and `json_rows` makes
plain data of it at the very end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy

from pipeline import hardware, runtimes, store
from pipeline.measure import series as naming
from pipeline.measure.series import BATCHES, Model, Series, Threads
from pipeline.report.measured import IN_RESULT, Measurement
from pipeline.sweep import Cell

# What a base is compared with is itself.
OF_BASE = ("accuracy", "stored_bytes", "runnable_bytes", "parameters", "macs", "test_set_seconds")


@dataclass(frozen=True)
class Identity:
    """A cell, as a report names it."""

    id: str
    dataset: str
    model: str
    technique: str
    family: str
    seed: int
    is_base: bool
    versions: tuple[tuple[str, int], ...] = ()  # see Cell.versions
    anew: str = ""  # the model from fresh weights, where its bases start from others

    @property
    def setting(self) -> tuple[str, str]:
        """(data set, model): what is compared with each other."""
        return self.dataset, self.model


UNTOLD = ("versions", "anew")  # of an identity, in no table of cells
IDENTITY = tuple(field.name for field in fields(Identity) if field.name not in UNTOLD)


class Latency(NamedTuple):
    """Percentiles of one series, in milliseconds."""

    p50: float
    p90: float
    p99: float


PERCENTILES = (50, 90, 99)
NOTE_CHARACTERS = 300
NOTED = {"note": "", "left_out": "", "skipped": "skipped, "}  # kind of note -> its prefix


@dataclass(frozen=True, kw_only=True)
class Row(Identity):
    """Shares are 0..1; `base_...` is of the base that the cell starts from, of a base its own.

    `machine`: what measured it; `measurement`: as `measured.Measurement.name`; `facts`: those of
    the machine that measured, where they are of a machine.

    `other_images_of`: the data set's name where the cell was made of other images than the newest
    of that name; `dataset` is then a name of its own.
    """

    facts: Mapping[str, Any]
    machine: str = ""
    measurement: str = ""
    other_images_of: str | None = None
    accuracy: float | None
    base_accuracy: float | None
    agreement: float | None
    stored_bytes: int | None
    base_stored_bytes: int | None
    runnable_bytes: int | None
    base_runnable_bytes: int | None
    parameters: int | None
    base_parameters: int | None
    macs: int | None
    base_macs: int | None
    latencies: Mapping[Series, Latency]
    calls: Mapping[Series, int] = field(default_factory=dict)  # that a latency is of
    images_per_s: Mapping[Series, float] = field(default_factory=dict)
    joules_per_image: Mapping[Series, float] = field(default_factory=dict)
    runtime_notes: tuple[str, ...] = ()
    test_set_seconds: float | None
    base_test_set_seconds: float | None
    integer_share: float | None
    integer_kernels: float | None
    subnormals: float | None
    simulated_accuracy: float | None
    simulated_agreement: float | None
    simulated_images: float | None = None  # where they were fewer than the test set has
    held_out_accuracy: float | None
    training_seconds: float | None
    training_epochs: float | None
    seconds: float | None
    peak_memory_bytes: float | None

    @property
    def accuracy_drop(self) -> float | None:
        """What the base has more."""
        if self.accuracy is None or self.base_accuracy is None:
            return None
        return self.base_accuracy - self.accuracy

    @property
    def stored_ratio(self) -> float | None:
        """Compression ratio: the base's stored bytes over these."""
        return ratio(self.base_stored_bytes, self.stored_bytes)

    @property
    def macs_ratio(self) -> float | None:
        """MAC reduction: the base's multiply-accumulates over these."""
        return ratio(self.base_macs, self.macs)

    def latency_ms(self, series: Series, percentile: int) -> float | None:
        latency = self.latencies.get(series)
        return None if latency is None else latency[PERCENTILES.index(percentile)]

    def speedup(self, threads: Threads, batch: int) -> float | None:
        """Median latency of the base artifact over this one's."""
        if self.is_base:
            return 1.0
        artifact, base = (
            self._deployed_ms(model, threads, batch) for model in ("artifact", "base")
        )
        return ratio(base, artifact)

    def speedup_over_reference(self, threads: Threads, batch: int) -> float | None:
        """Median latency of the base's network on the reference runtime over the artifact's."""
        reference = self._reference_ms(self.reference_model, threads, batch)
        return ratio(reference, self._deployed_ms("artifact", threads, batch))

    @property
    def reference_model(self) -> Model:
        """As whose series the base's network on the reference runtime was timed."""
        return "simulated" if self.is_base else "base"

    def simulated_speedup(self, threads: Threads, batch: int) -> float | None:
        """Of the network that training works with, against the base's; both on the reference."""
        if self.is_base:
            return 1.0
        simulated, base = (self._reference_ms(m, threads, batch) for m in ("simulated", "base"))
        return ratio(base, simulated)

    def _deployed_ms(self, model: Model, threads: Threads, batch: int) -> float | None:
        return self.latency_ms(Series(runtimes.DEFAULT, model, threads, batch), 50)

    def is_disturbed(self, model: Model, threads: Threads, batch: int) -> bool:
        """Whether it took longer on the reference runtime than the largest batch. No network does
        that, so the machine was busy with something else; the reference, which is slow and timed
        in few rounds, is what that shows in."""
        ms, most = (
            self.latency_ms(Series(runtimes.REFERENCE, model, threads, size), 50)
            for size in (batch, max(BATCHES))
        )
        return ms is not None and most is not None and ms > most

    def _reference_ms(self, model: Model, threads: Threads, batch: int) -> float | None:
        """For a ratio: None where something else than the network decided it."""
        if self.is_disturbed(model, threads, batch):
            return None
        return self.latency_ms(Series(runtimes.REFERENCE, model, threads, batch), 50)


def identity(cell: Cell) -> Identity:
    return Identity(
        cell.id,
        cell.dataset.name,
        cell.model.label,
        cell.technique,
        cell.family,
        cell.seed,
        cell.is_base,
        tuple(cell.versions.items()),
        cell.model.anew if cell.model.start is not None else "",
    )


def row(cell: Identity, result: store.Result, one: Measurement | None = None) -> Row:
    """The row of a cell, from its result as it was measured once (`measured.combined`)."""
    measured = {name: result.measured.get(name) for name in MEASURED}
    if cell.is_base:
        measured |= {f"base_{name}": measured[name] for name in OF_BASE}
    numbers: dict[str, Any] = {name: _typed(name, value) for name, value in measured.items()}
    kinds = _by_kind(result.measured)
    samples = _samples(kinds.get(naming.LATENCY, {}))
    return Row(
        **vars(cell),
        **numbers,
        facts=result.facts,
        machine=hardware.name_of(result.facts),
        measurement=one.name if one else IN_RESULT,
        latencies=_latencies(samples),
        calls={series: ms.size for series, ms in samples.items()},
        images_per_s=_numbers(kinds.get(naming.THROUGHPUT, {}), naming.THROUGHPUT),
        joules_per_image=_numbers(kinds.get(naming.ENERGY, {}), naming.ENERGY),
        runtime_notes=_runtime_notes(kinds.get("runtimes", {})),
        training_seconds=_training_seconds(result),
        training_epochs=_training_epochs(result),
        seconds=_number(result.facts.get("seconds")),
        peak_memory_bytes=_number(result.facts.get("peak_memory_bytes")),
    )


# Fields that are read from /measure under their own name.
MEASURED = tuple(
    field.name
    for field in fields(Row)
    if field.name
    not in {
        *IDENTITY,
        *UNTOLD,
        "facts",
        "machine",
        "measurement",
        "other_images_of",
        "latencies",
        "calls",
        "images_per_s",
        "joules_per_image",
        "runtime_notes",
        "training_seconds",
        "training_epochs",
        "seconds",
        "peak_memory_bytes",
    }
)
# Whole numbers where they are stored; a mean over seeds need not be one.
COUNTS = frozenset(
    f"{base}{name}"
    for base in ("", "base_")
    for name in ("stored_bytes", "runnable_bytes", "parameters", "macs")
)


def ratio(above: float | None, below: float | None) -> float | None:
    """None where one is missing, or there is nothing to divide by."""
    return None if above is None or below is None or below <= 0 else above / below


def _by_kind(measured: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What stands before the first slash -> the values of these names."""
    kinds: dict[str, dict[str, Any]] = {}
    for name, value in measured.items():
        kind, slash, _ = name.partition("/")
        if slash:
            kinds.setdefault(kind, {})[name] = value
    return kinds


def _samples(measured: Mapping[str, Any]) -> dict[Series, numpy.ndarray]:
    """Of every series in which something was measured, and nothing that is not finite; ms."""
    named = {naming.parse(name): value for name, value in measured.items()}
    arrays = {s: numpy.asarray(v, dtype=float).ravel() for s, v in named.items() if s is not None}
    return {s: ms for s, ms in arrays.items() if ms.size and numpy.isfinite(ms).all()}


def _latencies(samples: Mapping[Series, numpy.ndarray]) -> dict[Series, Latency]:
    same_length: dict[int, dict[Series, numpy.ndarray]] = {}
    for series, ms in samples.items():
        same_length.setdefault(ms.size, {})[series] = ms
    latencies: dict[Series, Latency] = {}
    for group in same_length.values():  # together, since a call costs more than its work
        values = numpy.percentile(list(group.values()), PERCENTILES, axis=1).T.tolist()
        latencies |= {key: Latency(*ms) for key, ms in zip(group, values, strict=True)}
    return latencies


def _numbers(measured: Mapping[str, Any], kind: str) -> dict[Series, float]:
    """Of every series that has one of this kind."""
    named = {naming.parse(name, kind): _number(value) for name, value in measured.items()}
    return {series: n for series, n in named.items() if series is not None and n is not None}


def _runtime_notes(measured: Mapping[str, Any]) -> tuple[str, ...]:
    """What a runtime did otherwise than its name implies, or left out, and why it was skipped:
    `NAME: why`."""
    notes = []
    for name, value in sorted(measured.items()):
        _, _, rest = name.partition("/")
        runtime, _, what = rest.rpartition("/")
        if what in NOTED and isinstance(value, str):
            note = f"{runtime}: {NOTED[what]}{value}"
            notes.append(" ".join(note.split())[:NOTE_CHARACTERS])
    return tuple(notes)


def _training_seconds(result: store.Result) -> float | None:
    """Of all epochs of all stages; None where one is not recorded."""
    columns = (stage.columns.get("seconds", ()) for stage in result.history)
    seconds = [_number(value) for column in columns for value in column]
    known = [value for value in seconds if value is not None]
    return float(sum(known)) if len(known) == len(seconds) else None


def _training_epochs(result: store.Result) -> float | None:
    """Of the cell's own stages; None where nothing was recorded, as of an older report."""
    return float(sum(len(stage.columns.get("seconds", ())) for stage in result.history)) or None


def _typed(name: str, value: Any) -> float | int | None:
    number = _number(value)
    return int(number) if number is not None and name in COUNTS else number


def _number(value: Any) -> float | None:
    """None for what was not measured, is no number, or is infinite."""
    if isinstance(value, (bool, int, float)) and -math.inf < value < math.inf:
        return float(value)
    return None
