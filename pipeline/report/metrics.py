"""The one table of what is reported: reports, figures and --json all read it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from pipeline import runtimes
from pipeline.measure.series import BATCHES, Model, Series, Threads
from pipeline.report.row import PERCENTILES, Row

THREADS: tuple[Threads, ...] = ("all", "one")  # in the order of the columns
# What was timed: (runtime, model); the first is the deployed artifact.
TIMED: tuple[tuple[str, Model], ...] = (
    ("onnxruntime", "artifact"),
    ("onnxruntime", "base"),
    ("pytorch", "simulated"),
    ("pytorch", "base"),
)
# Kinds of speedup, in the names of columns and of --json.
SPEEDUP = "speedup"  # artifact against base artifact
OVER_REFERENCE = "speedup_over_pytorch"  # artifact against the base's network
SIMULATED = "simulated_speedup"  # both on the reference runtime

# How a stored value becomes a number of this unit.
UNITS = {
    "%": 100.0,
    "points": 100.0,
    "MB": 1e-6,
    "kB": 1e-3,
    "M": 1e-6,
    "mJ": 1e3,
    "min": 1 / 60,
    "GiB": 2**-30,
}
SIZES = ("MB", "kB")
SIGNIFICANT = "three significant digits"
# From how many calls on a percentile is printed: one outlier of ten would be the 99th.
LEAST_CALLS = {90: 20, 99: 100}
LEAST_OF_RATIO = 5  # calls of the two medians of the network in PyTorch, which is slow


@dataclass(frozen=True)
class Metric:
    """One kind of number. `better`: higher, lower or ""; `format`: SIGNIFICANT or a format spec;
    `read`: how a row has it, where that is not an attribute named `key`; `timed`: the series that
    a row's is made of, and `least_calls`: from how many calls of each on it is printed."""

    key: str
    label: str
    unit: str
    better: str
    format: str = SIGNIFICANT
    read: Callable[[Row], float | None] | None = None
    timed: Callable[[Row], tuple[Series, ...]] = lambda row: ()
    least_calls: int = 1

    def of(self, row: Row) -> float | None:
        """What a row has of it; None where it was not measured."""
        return getattr(row, self.key) if self.read is None else self.read(row)

    def is_few(self, row: Row) -> bool:
        """Whether a row has it of too few calls to be printed; files for programs have it."""
        few = any(row.calls.get(series, 0) < self.least_calls for series in self.timed(row))
        return few and self.of(row) is not None

    @property
    def heading(self) -> str:
        return f"{self.label}, {self.unit}" if self.unit else self.label

    def scaled(self, value: float) -> float:
        return value * UNITS.get(self.unit, 1.0)

    def show(self, value: float | None, deviation: float | None = None) -> str:
        """`value` in this unit, without it; `± deviation` where there is one; "" for a gap."""
        if value is None or math.isnan(value):
            return ""
        if self.format == SIGNIFICANT and self.unit in SIZES and math.isfinite(value):
            value = float(f"{value:.2e}")  # of the bytes: the same digits in whatever unit
        scaled = self.scaled(value)
        if self.format == SIGNIFICANT and math.isfinite(scaled):
            scaled = float(f"{scaled:.2e}")  # also above a thousand
        text = _unsigned_zero(format(scaled, _spec(self.format, scaled)))
        spread = self.show_deviation(value, deviation)
        return f"{text} ± {spread}" if spread else text

    def show_deviation(self, value: float, deviation: float | None) -> str:
        """The deviation alone, with the digits of `value`; "" where there is none."""
        if not deviation or math.isnan(deviation):
            return ""
        return format(self.scaled(deviation), _spec(self.format, self.scaled(value)))

    def say(self, value: float | None) -> str:
        """`value` with its unit, for a sentence."""
        return f"{self.show(value)}{self.unit if self.unit == '×' else ' ' + self.unit}".rstrip()


def _spec(form: str, scaled: float) -> str:
    if form != SIGNIFICANT:
        return form
    if scaled == 0 or math.isinf(scaled):
        return ",.0f"
    magnitude = int(f"{scaled:.2e}".partition("e")[2])  # after rounding: 0.9999 is 1.00
    return f",.{min(6, max(0, 2 - magnitude))}f"


def _unsigned_zero(text: str) -> str:
    return text.lstrip("-") if not text.strip("-0.,") else text


def latency_key(series: Series, percentile: int) -> str:
    where = f"{series.runtime}_{series.model}_{series.threads}_batch{series.batch}"
    return f"{where}_p{percentile}_ms"


def speedup_key(kind: str, threads: Threads, batch: int) -> str:
    """`kind`: SPEEDUP, OVER_REFERENCE or SIMULATED."""
    return f"{kind}_{threads}_batch{batch}"


def _latency(series: Series, percentile: int) -> Metric:
    return Metric(
        latency_key(series, percentile),
        f"{series.model} on {series.runtime}, threads: {series.threads}, batch{series.batch}, "
        f"p{percentile}",
        "ms",
        "lower",
        read=lambda row: row.latency_ms(series, percentile),
        timed=lambda row: (series,),
        least_calls=LEAST_CALLS.get(percentile, 1),
    )


def _latencies() -> tuple[Metric, ...]:
    return tuple(
        _latency(Series(runtime, model, threads, batch), p)
        for runtime, model in TIMED
        for threads in THREADS
        for batch in BATCHES
        for p in PERCENTILES
    )


def _speedups() -> tuple[Metric, ...]:
    kinds = {
        SPEEDUP: ("speedup", Row.speedup),
        OVER_REFERENCE: ("speedup over the base in PyTorch eager", Row.speedup_over_reference),
        SIMULATED: ("speedup of the simulated network in PyTorch eager", Row.simulated_speedup),
    }
    return tuple(
        Metric(
            speedup_key(kind, threads, batch),
            f"{label}, batch {batch}",
            "×",
            "higher",
            read=partial(_speedup, read, threads, batch),
            timed=partial(_in_pytorch, kind, threads, batch),
            least_calls=LEAST_OF_RATIO,
        )
        for kind, (label, read) in kinds.items()
        for threads in THREADS
        for batch in BATCHES
    )


def _speedup(read: Callable, threads: Threads, batch: int, row: Row) -> float | None:
    return read(row, threads, batch)


def _in_pytorch(kind: str, threads: Threads, batch: int, row: Row) -> tuple[Series, ...]:
    """What a speedup is made of that was timed there; a base's simulated one is 1 by definition."""
    of: dict[str, tuple[Model, ...]] = {
        OVER_REFERENCE: (row.reference_model,),
        SIMULATED: () if row.is_base else ("simulated", "base"),
    }
    models = of.get(kind, ())
    return tuple(Series(runtimes.REFERENCE, model, threads, batch) for model in models)


def joules_key(batch: int) -> str:
    return f"joules_per_image_batch{batch}"


def _energies() -> tuple[Metric, ...]:
    """Of the CPU's packages and their memory, on all threads; where RAPL tells it."""
    return tuple(
        Metric(
            joules_key(batch),
            f"energy an image, batch {batch}",
            "mJ",
            "lower",
            read=partial(_joules, Series(runtimes.DEFAULT, "artifact", "all", batch)),
        )
        for batch in BATCHES
    )


def _joules(series: Series, row: Row) -> float | None:
    return row.joules_per_image.get(series)


METRICS = (
    Metric("accuracy", "accuracy", "%", "higher", ".2f"),
    Metric("base_accuracy", "base accuracy", "%", "higher", ".2f"),
    Metric("accuracy_drop", "accuracy drop", "points", "lower", ".2f"),
    Metric("agreement", "agreement with the base", "%", "higher", ".2f"),
    Metric("stored_bytes", "stored size", "MB", "lower"),
    Metric("base_stored_bytes", "base stored size", "MB", "lower"),
    Metric("stored_ratio", "compression ratio", "×", "higher"),
    Metric("runnable_bytes", "runnable size", "MB", "lower"),
    Metric("base_runnable_bytes", "base runnable size", "MB", "lower"),
    Metric("parameters", "parameters", "M", "lower"),
    Metric("base_parameters", "base parameters", "M", "lower"),
    Metric("macs", "MACs", "M", "lower"),
    Metric("base_macs", "base MACs", "M", "lower"),
    Metric("macs_ratio", "MAC reduction", "×", "higher"),
    *_latencies(),
    *_speedups(),
    Metric("test_set_seconds", "test-set time", "s", "lower"),
    Metric("base_test_set_seconds", "base test-set time", "s", "lower"),
    Metric("integer_share", "int8 share of MACs", "%", "", ".1f"),
    Metric("integer_kernels", "integer kernels", "", "", ",.0f"),
    Metric("subnormals", "subnormal numbers", "", "lower", ",.0f"),
    Metric("simulated_accuracy", "simulated accuracy", "%", "higher", ".2f"),
    Metric("held_out_accuracy", "accuracy on held-out images", "%", "higher", ".2f"),
    Metric("simulated_agreement", "agreement of simulated and deployed", "%", "higher", ".2f"),
    Metric("training_epochs", "epochs of its own", "", "lower", ",.0f"),
    Metric("training_seconds", "training time", "s", "lower"),
    Metric("seconds", "total time", "s", "lower"),
    Metric("peak_memory_bytes", "peak memory", "MB", "lower"),
    *_energies(),
)
# Of two cells, of two numbers of one, or of one GPU: no columns of results.csv, but in tables.
COMPARED = (
    Metric("stored_kilobytes", "stored size", "kB", "lower", read=lambda row: row.stored_bytes),
    Metric(
        "runnable_kilobytes", "runnable size", "kB", "lower", read=lambda row: row.runnable_bytes
    ),
    Metric("gpu_ms", "latency on a GPU", "ms", "lower"),
    Metric("gpu_speedup", "speedup on a GPU", "×", "higher"),
    Metric("images_per_s", "throughput on a GPU", "images/s", "higher", ",.0f"),
    Metric("image_joules", "energy an image on a GPU", "mJ", "lower"),
    Metric("difference", "difference", "points", "higher", ".2f"),
    Metric("relative_latency", "relative latency", "×", "lower"),
    Metric("epochs", "epochs", "", "lower", ",.0f"),
    Metric("wall_s", "wall time", "min", "lower", ",.1f"),
    Metric("gpu_hours", "GPU-hours", "", "lower", ",.3f"),
    Metric("cores", "cores", "", "lower"),
    Metric("gib", "memory", "GiB", "lower"),
    Metric("share_of_time", "utilization", "%", "higher", ".0f"),
    Metric("share_of_base", "share of the base", "%", "lower", ".1f"),
)
METRIC = {metric.key: metric for metric in (*METRICS, *COMPARED)}
# A size in MB -> the same in kB, for a table in which one of them is below so many bytes.
IN_KILOBYTES = {"stored_bytes": "stored_kilobytes", "runnable_bytes": "runnable_kilobytes"}
LEAST_IN_MB = 0.0995e6


def of_size(stored_bytes: float) -> Metric:
    """The stored size for a sentence about one model: in kB below 1 MB. A column of a table has one
    unit, see `IN_KILOBYTES`."""
    metric = METRIC["stored_bytes"]
    return replace(metric, unit="kB") if stored_bytes < 0.9995e6 else metric
