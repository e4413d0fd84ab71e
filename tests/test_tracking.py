"""Histories in trackers: each epoch once, and nothing that a tracker does can fail a cell."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import track
from pipeline import catalog, store, sweep, tracking
from pipeline.errors import UserError
from pipeline.orchestrate import plan, state, top
from pipeline.paths import Work
from pipeline.tracking import reported
from tests import cells

STUB = """
import json, os, sys
class Run:
    def log(self, values, step):
        with open(os.environ["SEEN"], "a") as file:
            file.write(json.dumps([step, sorted(values)]) + chr(10))
    def finish(self): pass
def init(**facts):
    {begins}
    return Run()
"""


@pytest.fixture
def trained(bench, tmp_path):
    """A work root with the history of a base."""
    work, cell = Work(tmp_path / "work"), bench.base
    paths = work.cell(cell.id)
    paths.folder.mkdir(parents=True)
    for name in ("cell_json", "metrics"):
        shutil.copy(getattr(bench.work.cell(cell.id), name), getattr(paths, name))
    return cell, work


def tracked(trained, monkeypatch, begins: str) -> list[list]:
    """What a package `wandb` that begins with this line was given."""
    cell, work = trained
    packages = work.root.parent / "packages"
    packages.mkdir(exist_ok=True)
    (packages / "wandb.py").write_text(STUB.format(begins=begins))
    seen = work.root.parent / "seen"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(packages), os.environ["PYTHONPATH"]]))
    monkeypatch.setenv("SEEN", str(seen))
    with track.beside(work.cell(cell.id), work, "sweep", ["wandb"]) as beside:
        beside.event({"stage": "0-train", "epoch": 1, "epochs": 2})
    return [json.loads(line) for line in seen.read_text().splitlines()] if seen.exists() else []


def test_each_epoch_is_tracked_once(trained, monkeypatch):
    cell, work = trained
    first = tracked(trained, monkeypatch, "pass")
    assert [step for step, _ in first] == list(range(1, cell.recipe.epochs + 1))
    assert "0-train/loss" in first[0][1] and "0-train/held_out_accuracy" in first[0][1]
    assert tracked(trained, monkeypatch, "pass") == first  # a cell that is resumed
    paths = work.cell(cell.id)
    wandb = json.loads(paths.tracked.read_bytes())["wandb"]
    assert wandb["step"] == len(first) and not paths.tracked_lock.exists()
    paths.tracked.write_text(json.dumps({"wandb": len(first)}))  # of an earlier version
    assert tracked(trained, monkeypatch, "pass") == first


def test_a_training_that_begins_anew_is_tracked_anew(trained, monkeypatch):
    """Its states were set aside, since images changed."""
    cell, work = trained
    first = tracked(trained, monkeypatch, "pass")
    metrics = work.cell(cell.id).metrics
    history = store.read_history(metrics)
    for stage in history:
        stage.columns["seconds"] = [s + 1e-3 for s in stage.columns["seconds"]]
    store.publish_bytes(metrics, store.history_bytes(history))
    assert tracked(trained, monkeypatch, "pass") == [*first, *first]


class Nowhere:
    """Stands for a tracker's service."""

    def add(self, step, values):
        pass

    def close(self):
        pass


def test_trackers_that_write_at_once_keep_each_other_s_steps(trained):
    cell, work = trained
    paths = work.cell(cell.id)
    names = [f"tracker-{i}" for i in range(8)]
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: track._export(Nowhere(), paths, name), names))
    steps = json.loads(paths.tracked.read_bytes())
    assert {name: each["step"] for name, each in steps.items()} == dict.fromkeys(
        names, cell.recipe.epochs
    )


@pytest.mark.parametrize(
    ("begins", "said"),
    [
        ("raise RuntimeError('no' + chr(10) + 'network')", "tracking: wandb ended: no network"),
        ("import a_package_that_is_not_there", "tracking: wandb needs the package wandb"),
        ("os.abort()", ""),
        ("import time; time.sleep(600)", "not all was written"),
    ],
)
def test_no_tracker_fails_a_cell(trained, monkeypatch, capfd, begins, said):
    monkeypatch.setattr(track, "END_S", 4.0 if "sleep" in begins else track.END_S)
    assert tracked(trained, monkeypatch, begins) == []
    told = capfd.readouterr().err
    assert said in told and "Traceback" not in told


def test_a_package_that_is_missing_is_told_before_anything_runs(monkeypatch):
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(UserError, match="tracking: mlflow needs the package mlflow") as error:
        tracking.require(["mlflow"])
    assert "netpress[tracking]" in str(error.value) and "\n" not in str(error.value)


def test_tensorboard_reads_what_is_written(trained):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    cell, work = trained
    history = store.read_history(work.cell(cell.id).metrics)
    run = tracking.Run(cell.id, "base", "sweep", work.tracking("tensorboard") / "base", {})
    writer = tracking.opened("tensorboard", run)
    tracking.add_new(writer, history, 0)
    writer.close()
    read = accumulator.EventAccumulator(str(run.folder)).Reload()
    losses = [event.value for event in read.Scalars("0-train/loss")]
    assert losses == pytest.approx(list(history[0].columns["loss"]))


MLFLOW = """
from types import SimpleNamespace
SERVER = {}  # run's id -> what it was given
class MlflowClient:
    def __init__(self, tracking_uri): pass
    def get_experiment_by_name(self, name): return SimpleNamespace(experiment_id="1")
    def create_run(self, experiment, run_name, tags):
        run_id = str(len(SERVER))
        SERVER[run_id] = SimpleNamespace(
            info=SimpleNamespace(run_id=run_id), data=SimpleNamespace(tags=tags), metrics=[]
        )
        return SERVER[run_id]
    def search_runs(self, experiments, filter_string):
        cell = filter_string.split("'")[1]
        return [r for r in SERVER.values() if r and r.data.tags["netpress.cell"] == cell]
    def delete_run(self, run_id): SERVER[run_id] = None
    def set_tag(self, run_id, key, value): SERVER[run_id].data.tags[key] = value
    def set_terminated(self, run_id): pass
    def log_batch(self, run_id, params=(), metrics=()):
        if metrics and FULL: raise OSError("disk full")
        SERVER[run_id].metrics += metrics
FULL = True
entities = SimpleNamespace(Param=lambda *given: given, Metric=lambda *given: given)
"""


def test_a_run_that_a_report_began_and_did_not_complete_is_written_anew(
    trained, tmp_path, monkeypatch
):
    cell, work = trained
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "mlflow.py").write_text(MLFLOW)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    package = importlib.import_module("mlflow")
    asked = sweep.Sweep("test", (cell,), tmp_path / "test.yaml", "")
    row = {"id": cell.id, "dataset": "digits", "model": "vgg11_bn", "technique": "base", "seed": 0}
    row["accuracy"] = 0.9

    def write() -> int:
        return reported.write(asked, work, [row], tmp_path / "to")

    with pytest.raises(OSError, match="disk full"):
        write()
    package.FULL = False
    assert write() == 1 and write() == 0
    [run] = [run for run in package.SERVER.values() if run]
    assert [metric[:2] for metric in run.metrics] == [("accuracy", 0.9)]
    # A live one, or of an earlier version: it is left as it is.
    del run.data.tags["netpress.report"]
    assert write() == 0 and [run] == [run for run in package.SERVER.values() if run]
    monkeypatch.delitem(sys.modules, "mlflow")


def test_trackers_are_no_part_of_a_cell(tmp_path):
    plain = cells.cells(tmp_path, ["base"])["base"]
    followed = cells.cells(tmp_path, ["base"], tracking=["wandb", "wandb"])["base"]
    assert plain.to_json() == followed.to_json()
    read = sweep.load(tmp_path / "test.yaml", catalog.built_in())
    assert read.tracking == ("wandb",)
    options = plan.track_options(read.name, read.tracking)
    assert options == ["--sweep", "test", "--track", "wandb"] and not plan.track_options("test", ())


def test_top_shows_where_a_running_cell_is(trained):
    cell, work = trained
    now = top.of(cell, work.cell(cell.id))
    epochs = cell.recipe.epochs
    assert (now.stage, now.epoch, now.epochs, now.left_s) == ("measures", epochs, epochs, 0.0)
    assert now.loss and now.accuracy is not None and now.images_per_second > 0
    longer = replace(cell, recipe=cell.recipe.model_copy(update={"epochs": 2 * epochs}))
    now = top.of(longer, work.cell(cell.id))
    assert now.stage == "0-train" and now.epochs == 2 * epochs and now.left_s > 0
    states = state.SweepState((state.CellState(cell, "running", 1, None),))
    head, row, _, counts = top.lines(states, work)
    assert head.split()[:3] == ["CELL", "DATASET/MODEL/TECHNIQUE/SEED", "STAGE"]
    assert row.startswith(cell.id[:8]) and f"{epochs}/{epochs}" in row and counts == "1 running"
    empty = top.of(cell, Work(Path("/nowhere")).cell(cell.id))
    assert empty.stage == "starts" and empty.loss is None
