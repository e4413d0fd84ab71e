"""All of it, through the command line: what a user sees, kills at chosen and at random moments,
Ctrl-C, and a data set of one's own."""

from __future__ import annotations

import contextlib
import csv
import json
import random
import re
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy
import pytest
from PIL import Image

from pipeline import store
from tests.lab import KILLED, Lab, check_whole, until, watched

pytestmark = pytest.mark.timeout(900)  # processes on a machine that others use, too

TECHNIQUES = [
    "base",
    "ptq-int8",
    "qat-int8",
    "prune-filters",
    "kd",
    "attention-transfer",
    "small-and-int8",
]
ROW = {
    "id",
    "model",
    "dataset",
    "technique",
    "seed",
    "accuracy",
    "accuracy_drop",
    "stored_bytes",
    "runnable_bytes",
    "parameters",
    "macs",
    "latency_ms",
    "speedup",
    "test_set_seconds",
}
COLUMNS = {
    "epoch",
    "loss",
    "accuracy",
    "held_out_loss",
    "held_out_accuracy",
    "learning_rate",
    "seconds",
    "images_per_second",
}
STAGES = {
    "base": {"0-train": 2},
    "ptq-int8": {},
    "qat-int8": {"0-quantize": 1},
    "prune-filters": {"1-finetune": 2},
    "kd": {"0-distill": 2},
    "attention-transfer": {"0-distill": 2},
    "small-and-int8": {"1-finetune": 2, "2-quantize": 1},
}


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


# --- what a user sees --------------------------------------------------------------------------


def test_run_makes_everything_and_says_so(smoke):
    lab, ran = smoke.lab, smoke.ran
    assert ran.returncode == 0 and "Traceback" not in ran.stderr
    report = lab.folder / "reports" / "smoke"
    assert f"Report: {report}/index.html\n" in ran.stdout
    table = ran.stdout.split("Report:")[0].splitlines()
    assert [line.split()[0] for line in table if line.split()[:1] and line.split()[0] in TECHNIQUES]
    assert max(map(len, table)) <= 80
    assert "Smallest good model: digits/vgg16_bn-w0.125/" in ran.stdout
    lines = ran.stderr.splitlines()
    assert sum(": started" in line for line in lines) == 7
    assert sum(": done after" in line for line in lines) == 7
    assert any("loss" in line and "accuracy" in line and "epoch 2/2" in line for line in lines)
    assert lab.left_behind() == []


def test_the_report_is_there(smoke):
    report = smoke.lab.folder / "reports" / "smoke"
    text = (report / "report.md").read_text()
    assert all(f" {technique} " in text for technique in TECHNIQUES)
    with open(report / "results.csv") as file:
        assert len(list(csv.DictReader(file))) == 7
    assert b"<svg" in (report / "figures" / "accuracy-bytes.svg").read_bytes()


def test_every_result_is_plain_hdf5_and_complete(smoke):
    for technique, cell_id in smoke.ids.items():
        cell = smoke.lab.work.cell(cell_id)
        check_whole(cell)
        with h5py.File(cell.result) as file:
            assert file.attrs["id"] == cell_id
            assert json.loads(file.attrs["cell"])["model"]["width"] == 0.125
            facts = json.loads(file.attrs["facts"])
            assert {"versions", "commit", "hardware", "device", "precision"} <= facts.keys()
            epochs = {name: len(group["epoch"]) for name, group in file["history"].items()}
            assert epochs == STAGES[technique]
            for group in file["history"].values():
                assert set(group) == COLUMNS
                assert all(len(c) == len(group["epoch"]) for c in group.values())
        [path] = cell.measurements.glob("*-1.h5")
        with h5py.File(path) as file:
            assert file.attrs["id"] == cell_id
            measured = file["measure"]
            assert len(measured["predictions"]) == len(measured["labels"]) == 100
            assert measured["latency/onnxruntime/artifact/one/batch64"].shape == (1,)
            assert measured["latency/pytorch/simulated/all/batch1"].shape == (1,)
            integers = measured["integer_share"][()] > 0.9
            assert integers == ("int8" in technique)
        with h5py.File(cell.metrics) as file:
            assert set(file["history"]) == set(STAGES[technique])


def test_what_is_written_is_private(smoke):
    modes = {p.name: p.stat().st_mode for p in smoke.lab.work.root.rglob("*")}
    assert [name for name, mode in modes.items() if stat.S_IMODE(mode) & 0o077] == []


def test_nothing_is_written_outside_and_no_runtime_phones_home(smoke):
    assert {p.name for p in smoke.lab.folder.iterdir()} == {"home", "runs", "reports"}
    written = {p.name for p in smoke.lab.home.rglob("*") if p.is_file()}
    assert {name for name in written if not name.startswith("fontlist-")} == set()  # matplotlib's


def test_report_as_json_has_the_keys_that_stay(smoke):
    listed = smoke.lab.json("report", "smoke")
    assert listed.keys() == {"rows", "machines", "gaps"} and listed["gaps"] == []
    assert all(m.keys() >= {"name", "cpu", "flags", "gpu", "runtimes"} for m in listed["machines"])
    assert len(listed["machines"]) == 1
    assert [row["technique"] for row in listed["rows"]] == TECHNIQUES
    for row in listed["rows"]:
        assert row.keys() >= ROW
        assert row["latency_ms"].keys() == row["speedup"].keys() == {"batch1", "batch64"}
        assert row["latency_ms"]["batch1"].keys() == {"p50", "p90", "p99"}
    base, *rest = listed["rows"]
    assert base["speedup"] == {"batch1": 1.0, "batch64": 1.0} and base["accuracy_drop"] == 0
    assert all(row["stored_bytes"] < base["stored_bytes"] / 3 for row in rest)


def test_plan_and_status_as_json(smoke):
    planned = smoke.lab.json("plan", "smoke")
    assert planned.keys() >= {"cells", "jobs", "gpu_hours"}
    assert [job["name"] for job in planned["jobs"]] == ["report"]
    assert planned["cells"][-1]["stages"] == ["prune", "finetune", "quantize"]
    status = smoke.lab.json("status", "smoke")
    assert status["counts"] == {"done": 7}
    assert {(cell["state"], cell["attempts"], cell["reason"]) for cell in status["cells"]} == {
        ("done", 1, None)
    }


def test_a_second_run_changes_nothing(smoke):
    report = smoke.lab.folder / "reports"
    before = smoke.lab.times()
    again = smoke.lab.run("smoke")
    assert again.returncode == 0 and again.stdout == smoke.ran.stdout and again.stderr == ""
    after = smoke.lab.times()
    changed = [name for name in after if before.get(name) != after[name]]
    assert [name for name in changed if not name.startswith(report.name)] == []
    assert before.keys() == after.keys()


PLAIN = """\
import numpy, onnxruntime, sys
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
[images], [logits] = session.get_inputs(), session.get_outputs()
assert (images.type, images.shape[1:]) == ("tensor(uint8)", [1, 32, 32]), images
scores = session.run(None, {images.name: numpy.load(sys.argv[2])})[0]
print(*scores.argmax(1))
assert "torch" not in sys.modules and "pipeline" not in sys.modules
"""


def test_the_exported_model_works_with_and_without_netpress(smoke, tmp_path):
    cell = smoke.lab.work.cell(smoke.ids["qat-int8"])
    name = "digits/vgg16_bn-w0.125/qat-int8/0"
    exported = smoke.lab.ask("export", "smoke", name, "--to", tmp_path / "model")
    assert (exported.returncode, exported.stdout) == (0, f"{tmp_path}/model\n")
    pixels = numpy.random.default_rng(0).integers(0, 256, (3, 32, 32), numpy.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    numpy.save(tmp_path / "images.npy", pixels[:, None])
    images = [tmp_path / f"{i}.png" for i in range(3)]
    predicted = smoke.lab.ask("predict", tmp_path / "model", *images)
    rows = smoke.lab.json("predict", tmp_path / "model", *images)["predictions"]
    assert predicted.returncode == 0 and predicted.stderr == ""
    assert [line.split()[:2] for line in predicted.stdout.splitlines()] == [
        [row["image"], row["class"]] for row in rows
    ]
    plain = subprocess.run(
        [sys.executable, "-I", "-c", PLAIN, tmp_path / "model/model.onnx", tmp_path / "images.npy"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert plain.stdout.split() == [row["class"] for row in rows], plain.stderr
    assert store.sha256(tmp_path / "model/model.onnx") == store.sha256(cell.artifact / "model.onnx")


# --- killed anywhere, goes on --------------------------------------------------------------------

# Where, and whose process: (renamed to a path that ends so, for the nth time, when, whose).
# `small-and-int8` keeps a state after pruning, after each of two epochs of fine-tuning, after that
# stage, and after the epoch of training as integers.
STRIKES = [
    ("checkpoint/state-2.safetensors", 1, "before", "worker"),  # the first epoch is not kept yet
    ("checkpoint/index.json", 1, "after", "parent"),  # the first epoch was kept this instant
    ("metrics.h5", 1, "before", "worker"),  # the second was kept, its metrics were not
    ("checkpoint/model.safetensors", 1, "after", "worker"),  # trained, but no index records it
    ("artifact", 1, "before", "parent"),  # the artifact was written, under another name
    ("manifest.json", 1, "before", "worker"),  # the result is there, the manifest is not
]


def same(lab: Lab, other: Lab, cell_id: str) -> None:
    assert lab.products(cell_id) == other.products(cell_id)
    assert lab.history(cell_id) == other.history(cell_id)


def test_killed_at_any_moment_it_ends_with_the_same_bits(tmp_path, smoke):
    """At chosen moments, and beside it, on another core, at random ones."""
    with ThreadPoolExecutor(2) as pool:
        chains = [
            pool.submit(chain, Lab(tmp_path / chain.__name__), smoke)
            for chain in (killed_at_chosen_moments, killed_at_random_moments)
        ]
    for chain in chains:
        chain.result()


def killed_at_chosen_moments(lab: Lab, smoke) -> None:
    cell_id = smoke.ids["small-and-int8"]
    lab.have(smoke.lab, without=[cell_id])
    sweep_file, cell = lab.sweep("base", "small-and-int8"), lab.work.cell(cell_id)
    kept: dict[str, list[float]] = {}  # how long each epoch took that was kept before a kill
    with watched(lab.work) as looks:
        for renamed, nth, when, victim in STRIKES:
            at = {"renamed": f"{cell_id}/{renamed}", "nth": nth, "when": when, "victim": victim}
            ran = lab.run(sweep_file, STRIKE=json.dumps(at))
            assert ran.returncode == (KILLED if victim == "parent" else 1), (at, ran.stderr)
            until(lambda: not lab.left_behind())
            check_whole(cell)
            assert not store.is_done(cell)
            now = seconds(cell)
            assert {stage: now.get(stage, [])[: len(kept[stage])] for stage in kept} == kept, at
            kept = now
        assert lab.run(sweep_file).returncode == 0
    assert seconds(cell) == kept  # nothing was trained again
    same(lab, smoke.lab, cell_id)
    assert len(looks) > 100
    assert [p.name for p in cell.folder.rglob(".*")] == []  # no half of anything stays
    assert [p.name for p in cell.folder.rglob("*.corrupt-*")] == []  # a kill damages nothing


def seconds(cell) -> dict[str, list[float]]:
    """How long each epoch took: no two trainings of one would take the same."""
    if not cell.metrics.exists():
        return {}
    history = store.read_history(cell.metrics)
    return {f"{stage.index}-{stage.stage}": stage.columns["seconds"] for stage in history}


def killed_at_random_moments(lab: Lab, smoke) -> None:
    cell_id = smoke.ids["qat-int8"]
    lab.have(smoke.lab, without=[cell_id])
    sweep_file = lab.sweep("base", "qat-int8")
    usage = json.loads(smoke.lab.work.cell(cell_id).attempt(1).usage.read_bytes())
    chance = random.Random(4)
    with watched(lab.work):
        for _ in range(2):
            with lab.start(sweep_file) as process:
                process.await_line(": started")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=chance.uniform(0.2, 1.1) * usage["wall_s"])
                process.strike(signal.SIGKILL)
            until(lambda: not lab.left_behind())
            check_whole(lab.work.cell(cell_id))
        assert lab.run(sweep_file).returncode == 0
    same(lab, smoke.lab, cell_id)


# --- Ctrl-C --------------------------------------------------------------------------------------


def test_interrupted_it_says_how_to_go_on_and_goes_on(lab, smoke):
    cell_id = smoke.ids["base"]
    sweep_file = lab.sweep("base")
    for words, group, left in [
        (("0-train",), True, ("missing", "started, not finished")),
        (("measure",), False, ("trained", "all but its measurement")),
    ]:
        with lab.start(sweep_file) as process:
            process.await_line(*words)
            assert process.strike(signal.SIGINT, group) == 130  # as a terminal does, and as `kill`
        assert process.said.endswith(
            "netpress: stopped; `netpress run tiny.yaml` goes on from the last finished epoch\n"
        )
        assert "Traceback" not in process.said and lab.left_behind() == []
        check_whole(lab.work.cell(cell_id))
        [state] = lab.json("status", sweep_file)["cells"]
        assert (state["state"], state["reason"]) == left
    ran = lab.run(sweep_file)
    assert ran.returncode == 0 and "0-train" not in ran.stderr.split("artifact")[0].split(" epoch")
    same(lab, smoke.lab, cell_id)


# --- a data set of one's own ---------------------------------------------------------------------


def test_a_folder_of_images_is_a_data_set(lab):
    colours = {"green": (20, 200, 30), "red": (220, 30, 20), "blue": (20, 40, 210)}
    for part, count in [("train", 40), ("test", 10)]:
        for name, colour in colours.items():
            draw(lab.folder / "pictures" / part / name, colour, count)
    sweep_file = lab.sweep("base", name="mine", dataset="{name: colours, folder: pictures}")
    training = "training: {epochs: 4, batch_size: 16, learning_rate: 0.02}"
    text = (lab.folder / sweep_file).read_text()
    (lab.folder / sweep_file).write_text(re.sub("training: .*", training, text))
    ran = lab.run(sweep_file)
    assert ran.returncode == 0, ran.stderr
    assert lab.json("report", sweep_file)["rows"][0]["accuracy"] == 1.0
    images = [lab.folder / "pictures" / "test" / name / "0.png" for name in colours]
    artifact = lab.work.cell(lab.ids(sweep_file)["base"]).artifact
    predictions = lab.json("predict", artifact, *images)["predictions"]
    assert [row["class"] for row in predictions] == list(colours)


def draw(folder, colour, count: int) -> None:
    folder.mkdir(parents=True)
    noise = numpy.random.default_rng(len(folder.name)).integers(-20, 20, (count, 16, 16, 3))
    for i, pixels in enumerate((noise + colour).clip(0, 255).astype(numpy.uint8)):
        Image.fromarray(pixels).save(folder / f"{i}.png")
