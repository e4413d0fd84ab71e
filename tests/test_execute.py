"""One cell from start to finish: what it leaves, what it does again and what it does not."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline import artifact, catalog, execute, failure_kinds, origin, store, trained
from pipeline.errors import Corrupt, UserError
from pipeline.orchestrate import display
from pipeline.paths import CODE, Work
from pipeline.sweep import Cell, Dataset
from pipeline.techniques import STAGES
from pipeline.training import checkpoint
from tests import cells
from tests.lab import until
from tests.test_techniques import CLOCKS, beside

QUICK = {"define": {"quick": [{"quantize": {"aware": True, "epochs": 1}}]}}


@pytest.fixture
def work(bench):
    """A work root of a test's own in which the base is done."""
    made = beside(bench, "of-this-test")
    yield made
    shutil.rmtree(made.root)


def quick(bench):
    """A technique that trains for one epoch and is quantized."""
    return bench.cells(["quick"], **QUICK)["quick"]


@pytest.fixture(scope="module")
def done(bench):
    """A technique that is done, on a work root that tests copy."""
    finished = beside(bench, "quick")
    events: list[dict] = []
    cells.run(quick(bench), finished, events.append)
    return finished, events


@pytest.fixture
def spoiled(bench, done, tmp_path):
    """A copy of the work root in which base and technique are done."""
    shutil.copytree(done[0].root, tmp_path / "work")
    return Work(tmp_path / "work")


def epochs_of(events) -> list:
    return [e["epoch"] for e in events if isinstance(e.get("epoch"), int) and e["epoch"]]


def flip_a_bit(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


# --- what it leaves --------------------------------------------------------------------------


def test_a_finished_cell_is_complete_and_says_so_last(bench, done):
    paths = done[0].cell(quick(bench).id)
    assert sorted(p.name for p in paths.folder.iterdir()) == [
        "artifact",
        "cell.json",
        "checkpoint",
        "lock",
        "manifest.json",
        "measurements",
        "metrics.h5",
        "result.h5",
    ]
    assert sorted(os.listdir(paths.checkpoint)) == ["index.json", "model.safetensors"]
    named = store.verify(paths, deep=True)["files"]
    assert set(named) == {
        "artifact/manifest.json",
        "artifact/model.onnx",
        "cell.json",
        "checkpoint/model.safetensors",
        "metrics.h5",
        "result.h5",
    }
    files = [p for p in paths.folder.rglob("*") if p.is_file() and p.name != "lock"]
    [entry], damaged = store.measurements(paths, deep=True)
    assert entry.number == 1 and not damaged and len(os.listdir(paths.measurements)) == 2
    last = [p.name for p in sorted(files, key=lambda p: p.stat().st_mtime_ns)][-3:]
    assert last == ["manifest.json", f"{entry.name}.h5", f"{entry.name}.json"]
    assert not [p for p in paths.folder.rglob("*") if store.TEMPORARY.fullmatch(p.name)]


def test_the_result_has_the_cell_the_facts_the_history_and_the_measures(bench, done):
    cell = quick(bench)
    paths = done[0].cell(cell.id)
    result = cells.result(paths)
    assert result.id == cell.id and result.cell == cell.to_json()
    facts = result.facts
    assert facts["versions"]["torch"] == version("torch") and facts["device"] == "cpu"
    assert facts["precision"] in ("bf16", "fp32") and facts["threads"] == 1
    assert facts["seconds"] > 0 and facts["peak_memory_bytes"] > 1e8
    assert len(facts["dataset_fingerprint"]) == 64
    assert facts["machine"] and facts["runtimes"] == ["onnxruntime", "pytorch"]
    assert [(h.index, h.stage) for h in result.history] == [(0, "quantize")]
    assert result.history[0].columns["epoch"] == [1.0]
    assert store.read_history(paths.metrics) == result.history
    assert result.measured["integer_share"] == 1.0
    assert result.measured["simulated_agreement"] >= 0.999
    manifest = artifact.load(paths.artifact).manifest
    assert manifest["cell"] == cell.id and manifest["dataset"] == "digits"
    assert manifest["technique"] == "quick" and manifest["kind"] == "int8"


def test_the_base_has_learned_something(bench):
    measured = cells.result(bench.work.cell(bench.base.id)).measured
    assert measured["accuracy"] > 0.8 and measured["accuracy_drop"] == 0


def test_progress_tells_stage_epoch_loss_and_what_is_left(bench, done):
    cell, events = quick(bench), done[1]
    assert {e["cell"] for e in events} == {cell.id}
    stages = list(dict.fromkeys(e["stage"] for e in events))
    assert stages == ["0-quantize", "artifact", "measure"]
    [last] = [e for e in events if e.get("loss") is not None]
    assert last["epoch"] == last["epochs"] == 1 and last["seconds_left"] == 0
    assert last["loss"] > 0 and 0 <= last["accuracy"] <= 1
    assert json.loads(json.dumps(events)) == events


# --- what it does not do again ---------------------------------------------------------------


def test_what_is_done_returns_at_once_and_changes_nothing(bench, done):
    paths, events = done[0].cell(quick(bench).id), []
    before = {p: p.stat().st_mtime_ns for p in paths.folder.rglob("*") if p.name != "lock"}
    cells.run(quick(bench), done[0], events.append)
    assert events == []
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.parametrize("damaged", ["artifact/model.onnx", "result.h5", "manifest.json"])
def test_what_is_damaged_is_set_aside_and_made_again_without_training(bench, spoiled, damaged):
    cell = quick(bench)
    paths, events = spoiled.cell(cell.id), []
    weights, model = paths.model.read_bytes(), (paths.artifact / "model.onnx").read_bytes()
    history = store.read_history(paths.metrics)
    flip_a_bit(paths.folder / damaged)
    assert not store.is_done(paths, deep=True)
    cells.run(cell, spoiled, events.append)
    assert epochs_of(events) == [] and store.is_done(paths, deep=True)
    assert paths.model.read_bytes() == weights
    assert (paths.artifact / "model.onnx").read_bytes() == model
    assert store.read_result(paths.result).history == history
    aside = {p.name for p in paths.folder.iterdir() if ".corrupt-" in p.name}
    assert f"{damaged.split('/')[0]}.corrupt-1" in aside and "manifest.json.corrupt-1" in aside


def test_the_seconds_of_a_cell_are_those_of_all_its_attempts(bench, spoiled, monkeypatch):
    cell = quick(bench)
    result = spoiled.cell(cell.id).result
    before = store.read_result(result)
    index = spoiled.cell(cell.id).checkpoint / "index.json"
    (entry,) = json.loads(index.read_bytes())
    kept = entry["state"]["facts"]
    trained_s = sum(s for stage in before.history for s in stage.columns["seconds"])
    assert 0 < trained_s < kept["seconds"] < before.facts["seconds"]
    clock = SimpleNamespace(now=lambda: 1e9)
    monkeypatch.setattr(execute, "clock", clock)  # this attempt only writes, in no time
    for expected_s in (kept["seconds"], trained_s):
        result.unlink()
        cells.run(cell, spoiled)
        assert store.read_result(result).facts["seconds"] == pytest.approx(expected_s)
        entry["state"].pop("facts", None)  # as in earlier versions
        index.write_text(json.dumps([entry]))


@pytest.mark.parametrize("earlier", [False, True])
def test_writing_an_artifact_anew_leaves_the_facts_of_the_training(bench, spoiled, earlier):
    cell = quick(bench)
    paths = spoiled.cell(cell.id)
    before = store.read_result(paths.result)
    trainers = {**before.facts, "device": "cuda", "threads": 9, "started": "2026-01-01T00:00:00Z"}
    index = paths.checkpoint / "index.json"
    (entry,) = json.loads(index.read_bytes())
    if earlier:  # its result alone says how the weights were trained
        del entry["state"]["facts"]
        data = store.result_bytes(before.cell, trainers, before.history, before.measured)
        paths.result.write_bytes(data)
        store.write_manifest(paths, store.read_manifest(paths)["extra"])
    else:
        entry["state"]["facts"] |= {name: trainers[name] for name in ("device", "threads")}
        entry["state"]["facts"]["started"] = trainers["started"]
        paths.result.unlink()
    index.write_text(json.dumps([entry]))
    flip_a_bit(paths.artifact / "model.onnx")
    cells.run(cell, spoiled)
    after = store.read_result(paths.result).facts
    assert (after["device"], after["threads"]) == ("cuda", 9)
    assert after["started"] == trainers["started"]
    assert {"prepare", "train", "export"} <= after["phases"].keys()
    assert after["phases"]["train"] == pytest.approx(before.facts["phases"]["train"], abs=2)


def test_damaged_weights_are_trained_anew_and_come_out_the_same(bench, spoiled):
    cell = quick(bench)
    paths, events = spoiled.cell(cell.id), []
    weights = paths.model.read_bytes()
    flip_a_bit(paths.model)
    cells.run(cell, spoiled, events.append)
    assert epochs_of(events) == [1] and store.is_done(paths, deep=True)
    assert paths.model.read_bytes() == weights
    assert "checkpoint.corrupt-1" in os.listdir(paths.folder)


class Killed(BaseException):
    """Stands for a kill at a moment that the cell reports."""


@pytest.mark.parametrize("at", ["artifact", "measure"])
def test_killed_after_training_it_goes_on_from_there(bench, done, work, at):
    cell, events = quick(bench), []

    def listen(event):
        if event["stage"] == at:
            raise Killed

    with pytest.raises(Killed):
        cells.run(cell, work, listen)
    assert work.cell(cell.id).manifest.exists() == (at == "measure")  # it is trained by then
    cells.run(cell, work, events.append)
    mine, whole = work.cell(cell.id), done[0].cell(cell.id)
    assert epochs_of(events) == [] and store.is_done(mine, deep=True)
    assert mine.model.read_bytes() == whole.model.read_bytes()
    assert (mine.artifact / "model.onnx").read_bytes() == (
        whole.artifact / "model.onnx"
    ).read_bytes()
    assert curves(mine) == curves(whole)


IN_STEPS = {
    "chosen": [
        {"prune": {"criterion": "taylor", "parameters_kept": 0.25, "steps": 2, "images": 100}},
        {"finetune": {"epochs": 1}},
    ],
    "rounded": [{"quantize": {"aware": True, "epochs": 1}}, {"encode": {"rounding": 0.001}}],
}


@pytest.mark.parametrize("technique", IN_STEPS)
def test_killed_between_stages_it_ends_with_the_same_weights(bench, technique):
    cell = bench.cells([technique], define=IN_STEPS)[technique]
    whole = beside(bench, f"{technique}-whole")
    cells.run(cell, whole)
    for index in range(1, len(cell.stages)):

        def listen(event, index=index):
            if str(event["stage"]).startswith(f"{index}-"):
                raise Killed

        work = beside(bench, f"{technique}-killed-{index}")
        with pytest.raises(Killed):
            cells.run(cell, work, listen)
        cells.run(cell, work)
        weights = [one.cell(cell.id).model.read_bytes() for one in (whole, work)]
        assert weights[0] == weights[1], cell.stages[index].name


def curves(paths) -> list:
    return [
        (h.index, h.stage, {k: v for k, v in h.columns.items() if k not in CLOCKS})
        for h in store.read_history(paths.metrics)
    ]


def test_a_damaged_checkpoint_costs_the_epochs_since_the_one_before(bench, work):
    cell = bench.cells(["base-longer"])["base-longer"]
    paths, events = work.cell(cell.id), []

    def listen(event):
        if event.get("epoch") == 1 and "loss" in event:  # an epoch is left out while one is written
            until((paths.checkpoint / "state-1.safetensors").exists)
            time.sleep(0.2)
        if event.get("epoch") == 2:
            raise Killed

    with pytest.raises(Killed):
        cells.run(cell, work, listen)
    assert sorted(os.listdir(paths.checkpoint))[1:] == [
        "state-1.safetensors",
        "state-2.safetensors",
    ]
    flip_a_bit(paths.checkpoint / "state-2.safetensors")
    run = execute._Run(cell, work, paths, work.root, "cpu", events.append)
    run.staged()
    run.checkpoints.close()
    assert epochs_of(events) == [1, 2, 3]  # 1: where it goes on from
    assert "state-2.safetensors.corrupt-1" in os.listdir(paths.checkpoint)


def test_training_begins_anew_where_images_changed(bench, work, tmp_path, capsys):
    cell, events = of_pictures(tmp_path, ["base"], 2)["base"], []
    paths = work.cell(cell.id)

    def listen(event):
        if event.get("epoch") == 1 and "loss" in event:
            until((paths.checkpoint / "state-1.safetensors").exists)
            raise Killed

    with pytest.raises(Killed):
        cells.run(cell, work, listen)
    draw(tmp_path / "pictures", 14)
    cells.run(cell, work, events.append)
    assert epochs_of(events) == [1, 2] and [e["epoch"] for e in events if "epoch" in e][0] == 0
    aside = "state-1.safetensors: was trained on other images than those that are there now; set"
    assert aside in capsys.readouterr().err
    as_new = beside(bench, "never-killed")
    cells.run(cell, as_new)
    assert paths.model.read_bytes() == as_new.cell(cell.id).model.read_bytes()


def test_weights_that_are_published_are_not_made_of_other_images_as_well(bench, work, tmp_path):
    cell = of_pictures(tmp_path, ["base"], 1)["base"]
    cells.run(cell, work)
    paths = work.cell(cell.id)
    store.write_manifest(paths, {"made_with": {"artifact": 0}})  # by an earlier version
    draw(tmp_path / "pictures", 14)
    before = paths.manifest.read_bytes(), paths.model.read_bytes()
    with pytest.raises(UserError, match=rf"changed since {cell.name} \({cell.id}\) was trained"):
        cells.run(cell, work)
    assert before == (paths.manifest.read_bytes(), paths.model.read_bytes())


# --- the base --------------------------------------------------------------------------------


def test_without_its_base_a_cell_says_which_it_needs(bench, work):
    cell = quick(bench)
    shutil.rmtree(work.cell(cell.base_id).folder)
    with pytest.raises(trained.NoBase, match=f"its base {cell.base_id} is not there") as told:
        cells.run(cell, work)
    assert failure_kinds.failure_of(told.value)[0] == "no_base"


@pytest.mark.parametrize("damaged", ["result.h5", "checkpoint/model.safetensors"])
def test_a_damaged_base_is_not_built_upon(bench, work, damaged):
    cell = quick(bench)
    flip_a_bit(work.cell(cell.base_id).folder / damaged)
    with pytest.raises(trained.NoBase, match=r"is not there or damaged: .*SHA-256"):
        cells.run(cell, work)


def draw(folder: Path, count: int) -> None:
    """What a folder holds is no part of a cell's id."""
    from PIL import Image

    random = np.random.default_rng(count)
    for part in ("train", "test"):
        for name in ("dark", "bright"):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = random.integers(0, 100, (16, 16), np.uint8) + 100 * (name == "bright")
                Image.fromarray(pixels.astype(np.uint8)).save(folder / part / name / f"{i}.png")


def of_pictures(folder: Path, techniques: list[str], epochs: int) -> dict[str, Cell]:
    draw(folder / "pictures", 12)
    return cells.cells(
        folder,
        techniques,
        datasets=[{"name": "mine", "folder": str(folder / "pictures")}],
        training={"epochs": epochs, "batch_size": 4, "crop": 0},
    )


def test_a_base_that_saw_other_images_is_not_built_upon(bench, work, tmp_path):
    by_technique = of_pictures(tmp_path, ["base", "ptq-int8"], 1)
    cells.run(by_technique["base"], work)
    draw(tmp_path / "pictures", 14)
    with pytest.raises(UserError, match="mine: its images changed since the base") as told:
        cells.run(by_technique["ptq-int8"], work)
    kind, reason = failure_kinds.failure_of(told.value)
    assert kind == "exception" and reason.startswith("mine: its images changed")


def test_where_a_folder_lies_does_not_decide_the_cell(bench):
    cell = quick(bench)
    assert replace(cell, dataset=Dataset(name="digits", folder="/elsewhere")).id == cell.id


# --- cell.json -------------------------------------------------------------------------------


def test_a_cell_is_read_back_from_its_folder(bench, done):
    cell = quick(bench)
    assert execute.read_cell(done[0].cell(cell.id), catalog.built_in()) == cell


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"[" * 100_000, b"\xff"])
def test_what_is_no_cell_is_corrupt(bench, spoiled, content):
    paths = spoiled.cell(quick(bench).id)
    paths.cell_json.write_bytes(content)
    with pytest.raises(Corrupt, match=r"cell\.json"):
        execute.read_cell(paths, catalog.built_in())


def test_a_cell_in_the_folder_of_another_is_refused(bench, spoiled):
    """It would write where another process may hold the lock."""
    cell = quick(bench)
    shutil.copy(spoiled.cell(cell.base_id).cell_json, spoiled.cell(cell.id).cell_json)
    with pytest.raises(Corrupt, match=f"is cell {cell.base_id}, expected {cell.id}"):
        execute.read_cell(spoiled.cell(cell.id), catalog.built_in())


# --- how it failed ---------------------------------------------------------------------------


def raised(act) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: B017 - each is another
        act()
    return caught.value


def fill(disk: Path) -> None:
    with open(disk / "file", "wb") as file:
        file.write(bytes(1 << 21))


def test_memory_that_ran_out_is_told_from_other_errors():
    huge = 1 << 50
    for act in (lambda: torch.empty(huge), lambda: np.empty(huge), lambda: bytearray(huge)):
        kind, reason = failure_kinds.failure_of(raised(act))
        assert kind == "out_of_memory" and "Error: " in reason and "\n" not in reason


def test_memory_of_a_gpu_is_told_from_memory_of_the_machine():
    gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert failure_kinds.failure_of(gpu)[0] == "gpu_out_of_memory"
    wrapped = Corrupt("a model cannot be read")
    wrapped.__cause__ = RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
    assert failure_kinds.failure_of(wrapped)[0] == "gpu_out_of_memory"
    for line in ("CUDA error: out of memory\nCUDA kernel errors might be", "CUDA out of memory."):
        unusable = UserError("device: cannot use 'cuda' here")
        unusable.__cause__ = RuntimeError(line)  # of a GPU that others fill up
        assert failure_kinds.failure_of(unusable)[0] == "gpu_out_of_memory"
    assert failure_kinds.failure_of(MemoryError("of CUDA.bin"))[0] == "out_of_memory"


@pytest.mark.parametrize(
    "line",
    [
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "Triton Error [CUDA]: out of memory",
        "CUDA driver error: out of memory",
    ],
)
def test_memory_of_a_gpu_is_known_by_the_words_of_each_library(line):
    assert failure_kinds.failure_of(RuntimeError(line))[0] == "gpu_out_of_memory"
    of_host = RuntimeError("CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED")
    assert failure_kinds.failure_of(of_host)[0] == "exception"


def test_a_convolution_without_an_algorithm_lacks_memory_where_the_gpu_is_full(monkeypatch):
    error = RuntimeError("GET was unable to find an engine to execute this computation")
    if not torch.cuda.is_available():
        assert failure_kinds.failure_of(error)[0] == "exception"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    for free, kind in ((300 << 20, "gpu_out_of_memory"), (8 << 30, "exception")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, 80 << 30))
        assert failure_kinds.failure_of(error)[0] == kind


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
def test_a_gpu_that_cannot_be_used_ends_the_cell_and_names_the_node(bench, work):
    [cell] = bench.cells(["base"], seeds=[5]).values()
    store.publish_json(work.cell(cell.id).cell_json, cell.to_json())
    roots = ("--work", str(work.root), "--data", str(work.root), "--threads", "1")
    command = ("-m", "jobs.compress", *roots, "--device", "cuda", cell.id)
    ran = cells.python(*command, env={"SLURMD_NODENAME": "n7"})
    failure = store.read_failure(work.cell(cell.id).attempt(1))
    assert ran.returncode == 1 and (failure.kind, failure.node) == ("no_gpu", "n7")
    assert failure.line.startswith("no usable GPU: device: cannot use 'cuda' here (")
    assert "\n" not in failure.reason and not work.cell(cell.id).metrics.exists()


def test_memory_that_ran_out_inside_of_another_error_is_found():
    def wrapped():
        try:
            torch.empty(1 << 60)
        except RuntimeError as error:
            raise Corrupt("a model cannot be read") from error

    assert failure_kinds.failure_of(raised(wrapped))[0] == "out_of_memory"


def test_a_full_disk_is_told_from_other_errors(tmp_path):
    with cells.small_disk(tmp_path / "disk", "1m") as disk:
        error = raised(lambda: fill(disk))
        assert error.errno == errno.ENOSPC
        expected = ("disk_full", f"No space left on device in {disk}")
        assert failure_kinds.failure_of(error, disk) == expected
        error.filename = str(disk / "file")
        assert failure_kinds.failure_of(error) == expected


def test_other_errors_are_named_in_one_line():
    reasons = {
        ValueError("first\nsecond"): "ValueError: first",
        KeyError("name"): "KeyError: 'name'",
        RuntimeError(""): "RuntimeError: no message",
        UserError("data: expected other"): "data: expected other",
        PermissionError(errno.EACCES, "no"): "PermissionError: [Errno 13] no",
    }
    for error, reason in reasons.items():
        assert failure_kinds.failure_of(error) == ("exception", reason)
    assert len(failure_kinds.failure_of(ValueError("x" * 10_000))[1]) < 600


def test_a_full_disk_leaves_what_was_kept_and_no_result(bench, tmp_path):
    cell = bench.base
    with cells.small_disk(tmp_path / "disk", "2500k") as disk:
        work = Work(disk / "work")
        shutil.copytree(bench.work.cache, work.cache)
        error = raised(lambda: cells.run(cell, work))
        assert failure_kinds.failure_of(error)[0] == "disk_full"
        paths = work.cell(cell.id)
        assert not paths.manifest.exists()
        assert not [p for p in disk.rglob("*") if store.TEMPORARY.fullmatch(p.name)]
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        events: list[dict] = []
        cells.run(cell, work, events.append)
        assert store.is_done(paths, deep=True)
        assert paths.model.read_bytes() == bench.work.cell(cell.id).model.read_bytes()
    assert len(epochs_of(events)) < 4  # it went on from what it had


def test_nothing_writes_once_a_failed_attempt_has_returned(bench, work):
    """The writer of checkpoints is a thread of its own; the lock is given away after this."""
    cell = bench.cells(["base-longer"])["base-longer"]

    def listen(event):
        # With a loss: a tick within the last step says epoch 1, too, and nothing is kept by then.
        if event.get("epoch") == 1 and "loss" in event:
            raise ValueError("in the middle of writing")

    with pytest.raises(ValueError, match="in the middle"):
        cells.run(cell, work, listen)
    paths = work.cell(cell.id)
    assert "state-1.safetensors" in os.listdir(paths.checkpoint)
    assert checkpoint.Checkpointer(paths.checkpoint, paths.metrics).load().training.epoch == 1


def test_the_commit_is_that_of_this_checkout():
    commit = origin.commit()
    head = subprocess.run(
        ["git", "-C", str(CODE), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    if head.returncode or not (CODE / ".git").exists():
        assert commit is None
    else:
        assert commit.rstrip("+") == head.stdout.strip()


def test_the_origin_is_that_of_the_start(bench, work, monkeypatch):
    """A checkout or an update while a cell is trained is not what made it."""
    cell = bench.cells(["base-longer"])["base-longer"]
    before = origin.loaded()

    def listen(event):
        if event.get("epoch") == 1:
            monkeypatch.setattr(origin, "commit", lambda: "another")
            monkeypatch.setattr(origin, "code_sha256", lambda: "0" * 64)

    cells.run(cell, work, listen)
    facts = store.read_result(work.cell(cell.id).result).facts
    assert facts["commit"] == before.commit and facts["versions"] == before.versions
    assert facts["code_sha256"] == before.code != "0" * 64
    assert facts["changed_meanwhile"] == ["commit", "code"]


def test_the_sources_have_a_checksum_of_names_and_content(tmp_path, monkeypatch):
    monkeypatch.setattr(origin, "CODE", tmp_path)
    checksums = []
    for name, text in (("a.py", "1"), ("a.py", "2"), ("deeper/b.py", "3"), ("notes.txt", "4")):
        path = tmp_path / "pipeline" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        checksums.append(origin.code_sha256())
    assert len(set(checksums[:3])) == 3 and checksums[3] == checksums[2]


def test_a_package_that_went_away_costs_no_result(monkeypatch):
    monkeypatch.setattr(origin, "PACKAGES", ("numpy", "no-such-package"))
    assert origin.versions()["no-such-package"] == "not installed"


# --- the job ---------------------------------------------------------------------------------

SPOKEN = '''
    """A stage that prints, and then does what its setting says."""

    import os
    import subprocess

    from pipeline.sweep import Frozen


    class Settings(Frozen):
        end: str = "well"


    def apply(state, settings, context):
        print("printed by Python")
        os.write(1, b"written by a library\\n")
        subprocess.run(["echo", "said by a child"], check=True)
        if settings.end == "badly":
            raise ValueError("no such\\nfilter")
        if settings.end == "tells":
            context.tick({"what": "half", "epochs": 4, "loss": float("nan"), "own": context})
            context.tick({"stage": "measure", "epoch": 2, "epochs": 4, "seconds_left": "many"})
        if settings.end == "exits":
            raise SystemExit(0)
        return state
'''
# What a plug-in of a user would do: one line in the registry, before the job begins.
MAIN = """
import sys
from pipeline.techniques import STAGES
STAGES["spoken"] = "my_spoken"
from jobs.compress import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def spoken(tmp_path, monkeypatch):
    """The stage, registered here and in the jobs that tests start."""
    (tmp_path / "my_spoken.py").write_text(textwrap.dedent(SPOKEN))
    (tmp_path / "my_job.py").write_text(MAIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(STAGES, "spoken", "my_spoken")
    catalog.built_in.cache_clear()
    yield tmp_path
    catalog.built_in.cache_clear()


def job(folder: Path, work: Work, *ids: str) -> subprocess.CompletedProcess:
    environment = {"PYTHONPATH": f"{CODE}{os.pathsep}{folder}"}
    roots = ["--work", str(work.root), "--data", str(work.root), "--threads", "1"]
    return cells.python(str(folder / "my_job.py"), *roots, *ids, env=environment)


def test_a_failing_cell_does_not_stop_the_next_and_each_explains_itself(bench, work, spoken):
    chains = {"good": [{"spoken": {}}], "bad": [{"spoken": {"end": "badly"}}]}
    by_name = bench.cells(["bad", "good"], define=chains)
    for cell in by_name.values():
        store.publish_json(work.cell(cell.id).cell_json, cell.to_json())
    with cells.one_core():
        ran = job(spoken, work, by_name["bad"].id, "0123456789abcdef", by_name["good"].id)
    assert ran.returncode == 1

    events = [json.loads(line) for line in ran.stdout.splitlines()]  # nothing but events
    ends = {e["cell"]: e for e in events if e["stage"] in ("done", "failed", "busy")}
    assert ends[by_name["bad"].id] == {
        "cell": by_name["bad"].id,
        "stage": "failed",
        "kind": "exception",
        "reason": "ValueError: no such",
    }
    assert ends["0123456789abcdef"]["stage"] == "failed"
    assert "cell.json" in ends["0123456789abcdef"]["reason"]
    assert ends[by_name["good"].id]["stage"] == "done" and ends[by_name["good"].id]["seconds"] > 0

    for name, cell in by_name.items():
        if name != "base":
            log = work.cell(cell.id).attempt(1).log.read_text()
            for line in ("printed by Python", "written by a library", "said by a child"):
                assert line in log and line not in ran.stdout + ran.stderr
    failed = work.cell(by_name["bad"].id)
    failure = json.loads(failed.attempt(1).failure.read_bytes())
    assert (failure["kind"], failure["reason"]) == ("exception", "ValueError: no such")
    assert "my_spoken.py" in failure["traceback"] and "ValueError" in failure["traceback"]
    assert "Traceback" in failed.attempt(1).log.read_text() and not failed.manifest.exists()
    assert store.is_done(work.cell(by_name["good"].id), deep=True)
    assert not work.cell(by_name["good"].id).attempt(1).failure.exists()
    assert work.cell(by_name["good"].id).attempt(1).log.stat().st_mode & 0o77 == 0

    with store.lock_cell(failed):
        ran = job(spoken, work, by_name["bad"].id)
    assert ran.returncode == 1 and json.loads(ran.stdout)["stage"] == "busy"
    assert "is being worked on by" in json.loads(ran.stdout)["reason"]
    assert store.last_attempt(failed).number == 1  # it did not even begin

    ran = job(spoken, work, by_name["good"].id)
    assert ran.returncode == 0 and json.loads(ran.stdout)["stage"] == "done"


def test_what_a_stage_tells_of_itself_has_its_name_and_known_keys(bench, work, spoken):
    chains = {"tells": [{"spoken": {"end": "tells"}}]}
    cell, events = bench.cells(["tells"], define=chains)["tells"], []
    run = execute._Run(cell, work, work.cell(cell.id), work.root, "cpu", events.append)
    run.staged()
    run.checkpoints.close()
    assert events[1:] == [
        {"cell": cell.id, "stage": "0-spoken", "what": "half", "epochs": 4},
        {"cell": cell.id, "stage": "0-spoken", "epoch": 2, "epochs": 4},
    ]
    assert [display.tersely(event) for event in events[1:]] == ["spoken, half", "spoken 2/4"]


def test_a_stage_that_ends_its_process_costs_its_own_cell(bench, work, spoken):
    by_name = bench.cells(
        ["ends", "good"], define={"ends": [{"spoken": {"end": "exits"}}], "good": [{"spoken": {}}]}
    )
    for cell in by_name.values():
        store.publish_json(work.cell(cell.id).cell_json, cell.to_json())
    with cells.one_core():
        ran = job(spoken, work, by_name["ends"].id, by_name["good"].id)
    assert ran.returncode == 1
    failure = store.read_failure(work.cell(by_name["ends"].id).attempt(1))
    assert failure.line == "exception: SystemExit: 0" and "my_spoken.py" in failure.traceback
    assert store.is_done(work.cell(by_name["good"].id))


def test_what_strikes_before_an_attempt_is_an_event_too(tmp_path):
    (tmp_path / "file").write_text("no folder")
    work = Work(tmp_path / "file")
    ran = cells.python(
        "-m",
        "jobs.compress",
        "--work",
        str(work.root),
        "--data",
        str(tmp_path),
        "0123456789abcdef",
        "../../etc",
    )
    assert ran.returncode == 1
    events = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [e["stage"] for e in events] == ["failed", "failed"]
    assert "expected a cell id of 16 hexadecimal digits" in events[1]["reason"]


def test_a_job_is_told_what_to_run():
    ran = subprocess.run(
        [sys.executable, "-m", "jobs.compress"], cwd=CODE, capture_output=True, text=True
    )
    assert ran.returncode == 2 and "--work" in ran.stderr and ran.stdout == ""
