"""The rows and gaps of `report --json`: plain data, in which a missing number is null."""

from __future__ import annotations

from typing import Any

from pipeline.report import images
from pipeline.report.frames import Frames
from pipeline.report.metrics import (
    BATCHES,
    COUNTS,
    METRIC,
    PERCENTILES,
    latency_key,
    speedup_key,
)

# Beside the keys that DESIGN.md promises; all of them are metrics of the one table.
EXTRA = (
    "base_accuracy",
    "agreement",
    "base_stored_bytes",
    "stored_ratio",
    "macs_ratio",
    "integer_share",
    "integer_kernels",
    "subnormals",
    "simulated_accuracy",
    "simulated_agreement",
    "base_test_set_seconds",
    "training_seconds",
    "seconds",
    "peak_memory_bytes",
)


def rows(frames: Frames) -> list[dict[str, Any]]:
    return [_row(values) for values in frames.cells.to_dict("records")]


def gaps(frames: Frames) -> list[dict[str, Any]]:
    return [{"id": gap.cell.id, "name": gap.cell.name, "reason": gap.reason} for gap in frames.gaps]


def _row(values: dict[str, Any]) -> dict[str, Any]:
    def number(key: str) -> float | int | None:
        value = values[METRIC[key].key]
        if value != value:
            return None
        return int(value) if key in COUNTS else float(value)

    def latency(runtime: str, model: str, threads: str) -> dict[str, dict[str, float | None]]:
        return {
            b: {f"p{p}": number(latency_key(runtime, model, threads, b, p)) for p in PERCENTILES}
            for b in BATCHES
        }

    def speedup(kind: str, threads: str) -> dict[str, float | None]:
        return {batch: number(speedup_key(kind, threads, batch)) for batch in BATCHES}

    return {
        "id": values["id"],
        "model": values["model"],
        "dataset": values["dataset"],
        "technique": values["technique"],
        "seed": int(values["seed"]),
        "accuracy": number("accuracy"),
        "accuracy_drop": number("accuracy_drop"),
        "stored_bytes": number("stored_bytes"),
        "runnable_bytes": number("runnable_bytes"),
        "parameters": number("parameters"),
        "macs": number("macs"),
        "latency_ms": latency("onnxruntime", "artifact", "all"),
        "speedup": speedup("speedup", "all"),
        "test_set_seconds": number("test_set_seconds"),
        # From here on: not promised, but useful.
        "family": values["family"],
        "is_base": bool(values["is_base"]),
        images.APART: values[images.APART] or None,
        **{key: number(key) for key in EXTRA},
        "latency_ms_one_thread": latency("onnxruntime", "artifact", "one"),
        "speedup_one_thread": speedup("speedup", "one"),
        "speedup_over_pytorch": speedup("speedup_over_pytorch", "all"),
        "simulated_latency_ms": latency("pytorch", "simulated", "all"),
        "simulated_speedup": speedup("simulated_speedup", "all"),
    }
