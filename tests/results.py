"""Results for tests, made by the real store: random numbers, shaped as execute.py's."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
from pydantic import BaseModel

from pipeline import done, store
from pipeline.paths import Work
from pipeline.report.evidence import Evidence, of
from pipeline.report.row import Row, identity, row
from pipeline.store import StageHistory
from pipeline.sweep import Cell, Dataset, Measure, Model, Recipe, Stage, Sweep

BASE = {
    "stored_bytes": 58_900_000,
    "runnable_bytes": 58_950_000,
    "parameters": 14_728_266,
    "macs": 313_700_000,
    "test_set_seconds": 12.5,
}
FACTS = {
    "versions": {"python": "3.11.7", "torch": "2.14.1", "onnxruntime": "1.32.0"},
    "commit": "0123456789abcdef",
    "hardware": {"cpu": "A CPU", "flags": ["avx2", "avx512_vnni"], "cores": 2, "gpu": None},
    "device": "cpu",
    "precision": "bf16",
    "seconds": 61.5,
    "peak_memory_bytes": 1_200_000_000,
}


class Strength(BaseModel):
    """Settings of a stage that exists in tests only."""

    factor: float


def sweep(
    name="test",
    techniques=("half",),
    seeds=(0,),
    datasets=("digits",),
    models=(("vgg16_bn", 1.0),),
    text="name: test\n",
    checked=True,
) -> Sweep:
    """Cells as sweep.load would give them, bases first; a name ending in -0.5 is a grid point.
    `checked`: names of data sets and models are such as a sweep file may have."""
    dataset, model = (kind if checked else kind.model_construct for kind in (Dataset, Model))
    cells = [
        Cell(
            dataset(name=d),
            model(name=m, width=w),
            technique,
            _family(technique),
            seed,
            _stages(technique),
            Recipe(epochs=2),
            Measure(),
        )
        for technique in ("base", *techniques)
        for d in datasets
        for m, w in models
        for seed in seeds
    ]
    return Sweep(name, tuple(cells), Path(f"{name}.yaml"), text)


def _family(technique: str) -> str:
    return re.sub(r"-[0-9.]+$", "", technique)


def _stages(technique: str) -> tuple[Stage, ...]:
    if technique == "base":
        return ()
    return (Stage("shrink", Strength(factor=zlib.crc32(technique.encode()) / 2**32)),)


def measured(cell: Cell, ratio: float = 4.0, drop: float = 0.002, **changed: Any) -> dict[str, Any]:
    """What execute.py measures: `ratio` times smaller and faster, `drop` less accurate."""
    random = numpy.random.default_rng(int(cell.id, 16) % 2**32)
    ratio, drop = (1.0, 0.0) if cell.is_base else (ratio, drop)
    base_accuracy = 0.99 + 1e-4 * (cell.seed % 5)
    values: dict[str, Any] = {f"base_{key}": value for key, value in BASE.items()}
    values |= {key: type(value)(value / ratio) for key, value in BASE.items()}
    values |= {
        "base_accuracy": base_accuracy,
        "accuracy": base_accuracy - drop,
        "accuracy_drop": drop,
        "agreement": 1 - drop,
        "simulated_accuracy": base_accuracy - drop,
        "simulated_agreement": 0.9998,
        "integer_share": 0.0,
        "integer_kernels": 0,
        "subnormals": 0,
        "predictions": random.integers(0, 10, 50).astype(numpy.uint16),
        "channels": random.integers(8, 512, 13),
    }
    timed = (
        ("onnxruntime", "artifact", 1 / ratio),
        ("onnxruntime", "base", 1),
        ("pytorch", "simulated", 2.5),
        ("pytorch", "base", 2),
    )
    for runtime, model, factor in timed:
        for threads in ("one", "all"):
            for batch, ms in (("batch1", 5.0), ("batch64", 200.0)):
                samples = factor * ms * random.uniform(0.98, 1.1, 20)
                values[f"latency/{runtime}/{model}/{threads}/{batch}"] = samples
    return values | changed


def history() -> list[StageHistory]:
    columns = {"epoch": [1.0, 2.0], "loss": [1.5, 0.25], "accuracy": [0.5, 0.75]}
    return [StageHistory(0, "train", columns), StageHistory(1, "finetune", columns)]


# --- what figures show -----------------------------------------------------------------------


def trained(epochs: int = 8, stages: tuple[str, ...] = ("finetune",)) -> list[StageHistory]:
    """Stages that learn as networks do: fast at first, the second from where the first ended."""
    histories = []
    for index, stage in enumerate(stages):
        done = numpy.arange(1, epochs + 1) + index * epochs
        columns = {
            "epoch": numpy.arange(1.0, epochs + 1),
            "loss": 2.3 * numpy.exp(-0.7 * done) + 0.01,
            "held_out_accuracy": 0.99 - 0.8 * numpy.exp(-0.6 * done),
            "held_out_loss": 2.3 * numpy.exp(-0.6 * done) + 0.03,
        }
        histories.append(StageHistory(index, stage, {k: v.tolist() for k, v in columns.items()}))
    return histories


def recorded(
    cell: Cell,
    ratio: float = 4.0,
    drop: float = 0.002,
    images: int = 1000,
    classes: int = 10,
    channels: int = 3,
    **changed: Any,
) -> dict[str, Any]:
    """`measured` with labels, predictions of that accuracy, the channels of VGG-16, and
    the images that differ most."""
    widths = numpy.array([64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512])
    values = measured(cell, ratio, drop)
    labels = numpy.arange(images) % classes
    own = _wrong(labels, values["accuracy"], classes, seed=int(cell.id, 16) % 2**32)
    base = own if cell.is_base else _wrong(labels, values["base_accuracy"], classes, cell.seed)
    kept = numpy.ones(13) if cell.is_base else numpy.linspace(0.9, 1 / ratio, 13)
    values |= {
        "labels": labels.astype(numpy.uint16),
        "predictions": own,
        "base_predictions": base,
        "channels": (widths * kept).round().astype(numpy.int64),
    }
    if not cell.is_base:
        values |= _differing(own, base, labels, channels)
    return values | changed


def _wrong(labels: numpy.ndarray, accuracy: float, classes: int, seed: int) -> numpy.ndarray:
    random = numpy.random.default_rng(seed)
    wrong = random.choice(len(labels), round((1 - accuracy) * len(labels)), replace=False)
    predictions = labels.copy()
    predictions[wrong] = (predictions[wrong] + random.integers(1, classes, len(wrong))) % classes
    return predictions.astype(numpy.uint16)


def _differing(own, base, labels, channels: int, count: int = 16) -> dict[str, numpy.ndarray]:
    """Pictures with a bright bar that stands where the label says."""
    index = numpy.argsort(own == base, kind="stable")[:count]
    pixels = numpy.full((len(index), channels, 32, 32), 40, numpy.uint8)
    for picture, i in zip(pixels, index, strict=True):
        picture[:, :, 3 * labels[i] % 32 :][..., :3] = 220
        picture[0, :8] += 20
    return {
        "differing/index": index.astype(numpy.int64),
        "differing/pixels": pixels,
        "differing/own": own[index],
        "differing/base": base[index],
        "differing/label": labels[index].astype(numpy.uint16),
        "differing/distance": numpy.linspace(9, 1, len(index), dtype=numpy.float32),
    }


def in_memory(
    sweep: Sweep,
    values: Callable[[Cell], dict[str, Any]] = recorded,
    history: Callable[[Cell], list[StageHistory]] = lambda cell: trained(),
) -> tuple[tuple[Row, ...], Callable[[str], Evidence | None]]:
    """The rows of a sweep, and the evidence of its cells, without a file."""
    from pipeline.report import frames  # with pandas, which processes of test_local do without

    by_id = {cell.id: cell for cell in sweep.cells}
    ordered = frames.in_order(sweep)
    rows = [row(identity(c), store.Result(c.id, {}, FACTS, [], values(c))) for c in ordered]

    def evidence(cell_id: str) -> Evidence | None:
        cell = by_id[cell_id]
        return of(store.Result(cell_id, {}, FACTS, history(cell), values(cell)))

    return frames.Frames.of(rows, ()).rows, evidence


# --- what lies on disk -----------------------------------------------------------------------


def publish(cell: Cell, work: Work, values: dict[str, Any] | None = None, facts=FACTS) -> None:
    """A finished cell, as execute.py leaves it."""
    paths = work.cell(cell.id)
    store.publish_json(paths.cell_json, cell.to_json())
    data = store.result_bytes(cell.to_json(), facts, history(), values or measured(cell))
    store.publish_bytes(paths.result, data)
    store.publish_bytes(paths.metrics, store.history_bytes(history()))
    store.publish_folder(paths.artifact, _artifact)
    store.write_manifest(paths, {done.MADE_WITH: done.record(cell)})


def measure(cell: Cell, work: Work, machine: str, cpu: str, **values: Any) -> None:
    """One more measurement of a finished cell; without accuracy where `values` say None of it."""
    paths = work.cell(cell.id)
    facts = {
        "machine": machine,
        "hardware": {"cpu": cpu, "flags": ["asimd"], "cores": 4, "gpu": None},
        "versions": {"onnxruntime": "1.32.0"},
        "runtimes": ["onnxruntime"],
        "measured_at": "2026-01-31T12:00:00Z",
    }
    measurement = {
        name: value for name, value in measured(cell, **values).items() if value is not None
    }
    data = store.result_bytes(cell.to_json(), facts, [], measurement)
    artifact = store.artifact_sha256(store.verify(paths)["files"])
    made_with = done.record(cell)
    store.publish_measurement(paths, machine, data, artifact, made_with)


def _artifact(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"a model")
    (folder / "manifest.json").write_text("{}\n")
    (folder / "notes").mkdir()
    (folder / "notes" / "classes.txt").write_text("0\n1\n")


def markdown(sweep: Sweep, work: Work, usages: dict[str, Any] | None = None) -> str:
    """report.md, without figures."""
    from pipeline.report import frames, sections, text

    report_frames = frames.read(sweep, work)
    measured = sections.measured(sweep, report_frames)
    return text.report(sweep, report_frames, {}, usages or {}, measured)


def ran_as_job(cell: Cell, work: Work, wall_s=3600.0, job="7_0", gpus=1, **used: Any) -> None:
    """One more attempt at a cell, with its resource usage."""
    gib = 2**30
    usage = {
        "job": job,
        "ended": "now",
        "wall_s": wall_s,
        "training_s": wall_s / 2,
        "epochs": 2,
        "request": {"cores": 24, "memory_bytes": 40 * gib, "gpus": gpus},
        "used": {
            "memory_bytes": 3 * gib,
            "cores": 2.5,
            "gpu_memory_bytes": 5 * gib,
            "gpu_busy": 0.61,
            **used,
        },
    }
    store.publish_json(store.new_attempt(work.cell(cell.id)).usage, usage)


def fail(cell: Cell, work: Work, kind: str, reason: str) -> None:
    attempt = store.new_attempt(work.cell(cell.id))
    store.write_failure(attempt, store.Failure(kind, reason))
