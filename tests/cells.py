"""Small real cells on the digits that ship with scikit-learn, and a base for all tests to share."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from pipeline import catalog, done, store, sweep
from pipeline.paths import CODE, CellPaths, Work
from pipeline.sweep import Cell

MODEL = {"name": "vgg11_bn", "width": 0.125}  # 145,000 parameters in 8 convolutions
TRAINING = {"epochs": 3, "batch_size": 32, "learning_rate": 0.05, "train_images": 700}
MEASURE = {"repeats": 1, "seconds": 0.1}


def cells(folder: Path, techniques, **more) -> dict[str, Cell]:
    """Technique -> cell, through a sweep file as a user writes it; `more` are other keys of it."""
    content = {
        "name": "test",
        "models": [MODEL],
        "datasets": ["digits"],
        "techniques": list(techniques),
        "training": TRAINING,
        "measure": MEASURE,
    } | more
    path = folder / "test.yaml"
    path.write_text(yaml.safe_dump(content))
    return {cell.technique: cell for cell in sweep.load(path, catalog.built_in()).cells}


def run(cell: Cell, work: Work, progress=lambda event: None) -> None:
    """The cell in this process, on one core: two threads of a busy machine wait for each other."""
    from pipeline import execute

    with one_core(), store.lock_cell(work.cell(cell.id)):
        execute.run_cell(cell, work, work.root, device="cpu", threads=1, progress=progress)


@contextlib.contextmanager
def one_core():
    """On one of this process's cores; see also tests/conftest.py."""
    if not hasattr(os, "sched_setaffinity"):  # macOS: it takes longer
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass
class Bench:
    """A work root in which the base is done, and the states that tests made of it so far."""

    folder: Path
    work: Work
    base: Cell
    made: dict = field(default_factory=dict)

    @staticmethod
    def trained(folder: Path) -> Bench:
        work, base = Work(folder / "work"), cells(folder, ["base"])["base"]
        run(base, work)
        return Bench(folder, work, base)

    def cells(self, techniques, **more) -> dict[str, Cell]:
        """Cells that stand on this base."""
        return cells(self.folder, techniques, **more)


@contextlib.contextmanager
def small_disk(folder: Path, size: str):
    """`folder` as a file system of its own that really fills."""
    folder.mkdir()
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root can mount a tiny file system")
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def python(*arguments: str, **more) -> subprocess.CompletedProcess:
    """This interpreter in a process of its own, where the code of this checkout is."""
    environment = {**os.environ, "PYTHONPATH": str(CODE), **more.pop("env", {})}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=CODE,
        env=environment,
        **more,
    )


def result(paths: CellPaths) -> store.Result:
    """What was trained and measured, by the machine that came first, with its history."""
    from pipeline.report import measured

    manifest = store.verify(paths)
    trained = store.read_result(paths.result)
    entries, damaged = store.measurements(paths, deep=True)
    assert not damaged
    measurements = [
        measured.Measurement(entry.name, one.facts, one.measured)
        for entry in done.of_this_artifact(entries, manifest)
        for one in [store.read_result(entry.path, entry.sha256)]
    ]
    wanted = done.record_of_json(trained.cell)
    return next(iter(measured.combined(trained, measurements, wanted)))[1]
