"""Thousands of finished cells in seconds: one real result, changed in place and sealed again.

Sizes are those of VGG-16 on MNIST or CIFAR-10: three times 10,000 predictions, 16 times 100
latency samples, two stages of 20 epochs: 150 kB a result. Predictions differ from cell to cell.
"""

from __future__ import annotations

import hashlib
import json

import numpy

from pipeline import store
from pipeline.paths import CellPaths, Work
from pipeline.sweep import Cell, Sweep
from tests import results

IMAGES, SAMPLES, EPOCHS = 10_000, 100, 20
COLUMNS = ("epoch", "loss", "held_out_accuracy", "learning_rate", "seconds", "images_per_second")
ID = "template-of-cell"  # as long as an id
CELL_BYTES = 1500  # at least a cell as JSON


def sweep(count: int) -> Sweep:
    """`count` cells: bases and 99 techniques on each; of one data set and model."""
    techniques = [f"technique-{i:04}" for i in range(99)]
    return results.sweep("many", techniques, seeds=range(count // 100))


def publish(requested: Sweep, work: Work) -> None:
    """A finished cell for each requested cell, not synced to disk, which takes the most time."""
    template = _Template()
    for cell in requested.cells:
        _write(work.cell(cell.id), template.of(cell))


class _Template:
    """A result's bytes, with marks where another cell's differs, all of the same length."""

    def __init__(self):
        random = numpy.random.default_rng(0)
        some = results.sweep(techniques=("half",)).cells[1]
        self.labels = random.integers(0, 10, IMAGES).astype(numpy.uint16)
        self.own, self.base = self.labels + 10, self.labels + 20
        self.said = {"id": ID, "mark": "x" * CELL_BYTES}
        measured = results.measured(some)
        measured |= {n: random.uniform(1, 2, SAMPLES) for n in measured if n.startswith("latency/")}
        measured |= dict(labels=self.labels, predictions=self.own, base_predictions=self.base)
        columns = {name: random.random(EPOCHS).tolist() for name in COLUMNS}
        history = [store.StageHistory(i, n, columns) for i, n in enumerate(("prune", "finetune"))]
        self.data = store.result_bytes(self.said, results.FACTS, history, measured)
        for mark in self.marks(*self.values()):
            assert self.data.count(mark) == 1, "a mark is not there, or not the only one"

    def values(self):
        return ID, json.dumps(self.said, sort_keys=True), self.own, self.base

    @staticmethod
    def marks(cell_id: str, cell_json: str, own: numpy.ndarray, base: numpy.ndarray) -> list[bytes]:
        return [cell_json.encode(), b"\0" + cell_id.encode(), own.tobytes(), base.tobytes()]

    def of(self, cell: Cell) -> bytes:
        cell_json = json.dumps(cell.to_json(), sort_keys=True)
        length = len(json.dumps(self.said, sort_keys=True))
        assert len(cell_json) <= length
        own, base = self.predictions(int(cell.id, 16)), self.predictions(cell.seed)
        new = self.marks(cell.id, cell_json.ljust(length), base if cell.is_base else own, base)
        data = self.data
        for old, now in zip(self.marks(*self.values()), new, strict=True):
            data = data.replace(old, now)
        return store.sealed(data)

    def predictions(self, number: int) -> numpy.ndarray:
        """Wrong on 100 images; on others for another number."""
        predictions = self.labels.copy()
        predictions[(number % IMAGES + numpy.arange(100) * 97) % IMAGES] = number % 10
        return predictions


def _write(paths: CellPaths, data: bytes) -> None:
    paths.artifact.mkdir(parents=True)
    files = {"result.h5": data, "cell.json": b"{}", "artifact/model.onnx": b"a model"}
    entries = {}
    for name, content in files.items():
        (paths.folder / name).write_bytes(content)
        entries[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    paths.manifest.write_bytes(store.manifest_bytes(paths.id, entries, {}))
