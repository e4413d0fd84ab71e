"""The one table of what is reported: reports, figures and --json all read it."""

from __future__ import annotations

import math
from dataclasses import dataclass

BATCHES = ("batch1", "batch64")
THREADS = ("all", "one")
PERCENTILES = (50, 90, 99)
# What was timed: (runtime, model); the first is the deployed artifact.
TIMED = (
    ("onnxruntime", "artifact"),
    ("onnxruntime", "base"),
    ("pytorch", "simulated"),
    ("pytorch", "base"),
)

# How a stored value becomes a number of this unit.
UNITS = {"%": 100.0, "points": 100.0, "MB": 1e-6, "M": 1e-6, "min": 1 / 60, "GiB": 2**-30}
SIGNIFICANT = "three significant digits"


@dataclass(frozen=True)
class Metric:
    """One kind of number. `better`: higher, lower or ""; `format`: SIGNIFICANT or a format spec."""

    key: str
    label: str
    unit: str
    better: str
    format: str = SIGNIFICANT

    @property
    def heading(self) -> str:
        return f"{self.label}, {self.unit}" if self.unit else self.label

    def scaled(self, value: float) -> float:
        return value * UNITS.get(self.unit, 1.0)

    def show(self, value: float | None, deviation: float | None = None) -> str:
        """`value` in this unit, without it; `± deviation` where there is one; "" for a gap."""
        if value is None or math.isnan(value):
            return ""
        spec = _spec(self.format, self.scaled(value))
        text = _unsigned_zero(format(self.scaled(value), spec))
        if not deviation or math.isnan(deviation):
            return text
        return f"{text} ± {format(self.scaled(deviation), spec)}"

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


def latency_key(runtime: str, model: str, threads: str, batch: str, percentile: int) -> str:
    return f"{runtime}_{model}_{threads}_{batch}_p{percentile}_ms"


def speedup_key(kind: str, threads: str, batch: str) -> str:
    """`kind`: speedup (artifact against base artifact), speedup_over_pytorch (against the base in
    PyTorch eager), simulated_speedup (both in PyTorch eager)."""
    return f"{kind}_{threads}_{batch}"


def _latencies() -> tuple[Metric, ...]:
    return tuple(
        Metric(
            latency_key(runtime, model, threads, batch, p),
            f"{model} on {runtime}, threads: {threads}, {batch}, p{p}",
            "ms",
            "lower",
        )
        for runtime, model in TIMED
        for threads in THREADS
        for batch in BATCHES
        for p in PERCENTILES
    )


def _speedups() -> tuple[Metric, ...]:
    kinds = {
        "speedup": "faster",
        "speedup_over_pytorch": "faster than base in PyTorch eager",
        "simulated_speedup": "simulated model faster, in PyTorch eager",
    }
    return tuple(
        Metric(
            speedup_key(kind, threads, batch),
            f"{label}, batch {batch.removeprefix('batch')}",
            "×",
            "higher",
        )
        for kind, label in kinds.items()
        for threads in THREADS
        for batch in BATCHES
    )


METRICS = (
    Metric("accuracy", "accuracy", "%", "higher", ".2f"),
    Metric("base_accuracy", "accuracy of its base", "%", "higher", ".2f"),
    Metric("accuracy_drop", "drop against its base", "points", "lower", ".2f"),
    Metric("agreement", "agrees with its base", "%", "higher", ".2f"),
    Metric("stored_bytes", "stored", "MB", "lower"),
    Metric("base_stored_bytes", "base, stored", "MB", "lower"),
    Metric("stored_ratio", "smaller", "×", "higher"),
    Metric("runnable_bytes", "as run", "MB", "lower"),
    Metric("base_runnable_bytes", "base, as run", "MB", "lower"),
    Metric("parameters", "parameters", "M", "lower"),
    Metric("base_parameters", "base, parameters", "M", "lower"),
    Metric("macs", "MACs", "M", "lower"),
    Metric("base_macs", "base, MACs", "M", "lower"),
    Metric("macs_ratio", "theoretically faster", "×", "higher"),
    *_latencies(),
    *_speedups(),
    Metric("test_set_seconds", "test set", "s", "lower"),
    Metric("base_test_set_seconds", "base, test set", "s", "lower"),
    Metric("integer_share", "work in integers", "%", "", ".1f"),
    Metric("integer_kernels", "integer kernels", "", "", ",.0f"),
    Metric("subnormals", "subnormal numbers", "", "lower", ",.0f"),
    Metric("simulated_accuracy", "accuracy, simulated", "%", "higher", ".2f"),
    Metric("simulated_agreement", "simulated agrees with deployed", "%", "higher", ".2f"),
    Metric("training_seconds", "trained in", "s", "lower"),
    Metric("seconds", "made in", "s", "lower"),
    Metric("peak_memory_bytes", "peak memory", "MB", "lower"),
)
# Of two cells, or of two numbers of one: no columns of results.csv, but shown in tables.
COMPARED = (
    Metric("difference", "difference", "points", "higher", ".2f"),
    Metric("time_of_base", "of its base's time", "×", "lower"),
    Metric("epochs", "epochs", "", "lower", ",.0f"),
    Metric("wall_s", "wall time", "min", "lower", ",.1f"),
    Metric("gpu_hours", "GPU-hours", "", "lower", ",.3f"),
    Metric("cores", "cores", "", "lower"),
    Metric("gib", "memory", "GiB", "lower"),
    Metric("share_of_time", "busy", "%", "higher", ".0f"),
)
METRIC = {metric.key: metric for metric in (*METRICS, *COMPARED)}
# Whole numbers where they are stored; a mean over seeds need not be one.
COUNTS = frozenset(
    f"{base}{key}"
    for base in ("", "base_")
    for key in ("stored_bytes", "runnable_bytes", "parameters", "macs")
)
