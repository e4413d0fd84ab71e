"""The report: from what is there, gaps named, the same to the byte, nothing unescaped."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.aggregate import Report
from pipeline import gaps, report, store, usage
from pipeline.errors import UserError
from pipeline.measure.series import Series
from pipeline.orchestrate.export import export
from pipeline.orchestrate.plan import load_sweep
from pipeline.paths import CODE, Work
from pipeline.report import answer, frames, merged, tables
from pipeline.report.metrics import COMPARED, METRIC, METRICS, Metric
from pipeline.store import StageHistory
from tests import results

MINE = """name: mine
models: [vgg16_bn]
datasets: [digits]
techniques: [base, ptq-int8]
"""


@pytest.fixture
def work(tmp_path):
    return Work(tmp_path / "work")


def publish_all(sweep, work, ratio=4.0, drop=0.002):
    for cell in sweep.cells:
        results.publish(cell, work, results.measured(cell, ratio, drop))


def built(sweep, work, tmp_path):
    paths = report.build(sweep, work, tmp_path / "reports")[0]
    return paths, paths.markdown.read_text()


def promised(row):
    """Exactly the keys of DESIGN.md, with the nested ones."""
    assert {
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
    } <= set(row)
    assert set(row["latency_ms"]) == set(row["speedup"]) == {"batch1", "batch64"}
    assert all(set(times) == {"p50", "p90", "p99"} for times in row["latency_ms"].values())
    return True


def test_the_time_of_training_is_that_of_all_epochs_whoever_made_the_result(work, tmp_path):
    """A result that was measured anew long after its training."""
    sweep = results.sweep(techniques=("half",))
    for cell in sweep.cells:
        results.publish(cell, work)
        stages = [StageHistory(i, "train", {"seconds": [1800.0, 1800.0]}) for i in (0, 1)]
        data = store.result_bytes(cell.to_json(), results.FACTS, stages, results.measured(cell))
        store.publish_bytes(work.cell(cell.id).result, data)
        store.write_manifest(work.cell(cell.id))
    text = built(sweep, work, tmp_path)[1]
    assert [row.training_seconds for row in report.read(sweep, work).rows] == [7200.0] * 2
    assert "- Total training time: 4.0 hours" in text


# --- when it is made on a cluster ------------------------------------------------------------


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_text("name: [another")])
def test_the_job_of_the_report_takes_the_sweep_as_it_was(change, work, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    sweep = load_sweep(path)
    publish_all(sweep, work)
    places = (str(work.root), str(tmp_path / "reports"), str(tmp_path))
    job = Report(str(path), sweep.text, *places, umask=0o022)
    change(path)
    before = os.umask(0o077)  # as the job has it
    try:
        job()
    finally:
        os.umask(before)
    assert (tmp_path / "made.json").exists()
    made = tmp_path / "reports" / "mine"
    assert made.stat().st_mode & 0o777 == 0o755  # as the user has it
    assert (made / "sweep.yaml").read_text() == MINE
    with open(made / "results.csv", newline="") as file:
        assert {row["id"] for row in csv.DictReader(file)} == set(sweep.by_id)


# --- rows ------------------------------------------------------------------------------------


def test_rows_say_what_was_measured(work):
    sweep = results.sweep(techniques=("half",))
    base, cell = sweep.cells
    values = results.measured(cell, ratio=4.0, drop=0.002)
    results.publish(base, work)
    results.publish(cell, work, values)
    document = report.as_json(report.read(sweep, work))
    assert document["gaps"] == [] and all(promised(row) for row in document["rows"])
    own, row = document["rows"]
    assert (row["id"], row["technique"], row["seed"]) == (cell.id, "half", 0)
    assert row["accuracy"] == values["accuracy"] and math.isclose(row["accuracy_drop"], 0.002)
    assert row["stored_bytes"] == 14_725_000 and isinstance(row["stored_bytes"], int)
    samples, base_samples = (
        values[f"latency/onnxruntime/{which}/all/batch1"] for which in ("artifact", "base")
    )
    assert row["latency_ms"]["batch1"]["p50"] == numpy.median(samples)
    assert row["latency_ms"]["batch1"]["p99"] == numpy.percentile(samples, 99)
    assert row["speedup"]["batch1"] == numpy.median(base_samples) / numpy.median(samples)
    eager = numpy.median(values["latency/pytorch/base/all/batch1"])
    assert row["speedup_over_pytorch"]["batch1"] == eager / numpy.median(samples)
    assert own["accuracy_drop"] == 0 and own["speedup"] == {"batch1": 1.0, "batch64": 1.0}


def test_what_was_not_measured_is_null_and_never_nan(work):
    sweep = results.sweep()
    for cell in sweep.cells:
        bare = {
            "accuracy": 0.9,
            "stored_bytes": 1000,
            "macs": math.inf,
            "agreement": math.nan,
            "latency/onnxruntime/artifact/all/batch1": [1.0, math.nan],
        }
        results.publish(cell, work, bare, facts={})
    document = report.as_json(report.read(sweep, work))
    json.dumps(document, allow_nan=False)
    assert all(promised(row) for row in document["rows"])
    row = document["rows"][1]
    assert row["macs"] is None and row["agreement"] is None and row["accuracy_drop"] is None
    assert row["latency_ms"]["batch1"] == {"p50": None, "p90": None, "p99": None}


def test_a_row_has_every_series_that_was_measured_on_whatever_runtime_and_device(work):
    sweep = results.sweep(techniques=("half",))
    samples = numpy.array([3.0, 1.0, 2.0])
    elsewhere = {
        "latency/openvino/artifact/one/batch1": samples,
        "latency/onnxruntime@cuda/artifact/all/batch64": samples,
        "latency/onnxruntime/somebody/all/batch64": samples,
    }
    for cell in sweep.cells:
        results.publish(cell, work, results.measured(cell) | elsewhere)
    latencies = report.read(sweep, work).rows[1].latencies
    assert latencies[Series("openvino", "artifact", "one", 1)].p50 == 2.0
    assert latencies[Series("onnxruntime", "artifact", "all", 64, "cuda")].p50 == 2.0
    assert latencies[Series("onnxruntime", "artifact", "all", 64)].p50 != 2.0
    assert len(latencies) == 18


def test_one_frame_a_row_a_cell_with_every_metric(work):
    sweep = results.sweep(techniques=("half", "tiny"), seeds=(0, 1), datasets=("a", "b"))
    publish_all(sweep, work)
    cells = frames.read(sweep, work).cells
    assert len(cells) == len(sweep.cells) == cells.id.nunique() == 12
    assert {metric.key for metric in METRICS} <= set(cells.columns)
    assert cells.accuracy.notna().all() and cells.speedup_all_batch64.gt(0).all()
    order = list(zip(cells.dataset, cells.technique, cells.seed, strict=True))
    assert order == [(d, t, s) for d in "ab" for t in ("base", "half", "tiny") for s in (0, 1)]


# --- gaps ------------------------------------------------------------------------------------


def test_each_gap_has_its_reason(work):
    sweep = results.sweep(techniques=("a", "b", "c", "d"), seeds=(0, 1))
    by_name = {(cell.technique, cell.seed): cell for cell in sweep.cells}
    results.publish(by_name["base", 0], work)
    results.fail(by_name["base", 1], work, "disk_full", "no space left")
    results.fail(by_name["a", 0], work, "exception", "first")
    results.fail(by_name["a", 0], work, "out_of_memory", "asked for\n3 GB")
    store.new_attempt(work.cell(by_name["b", 0].id))
    store.publish_bytes(work.cell(by_name["c", 0].id).metrics, store.history_bytes([]))
    broken = store.new_attempt(work.cell(by_name["d", 1].id))
    broken.failure.write_text("{")
    reasons = {gap["id"]: gap["reason"] for gap in report.as_json(report.read(sweep, work))["gaps"]}
    assert {name: reasons.get(cell.id) for name, cell in by_name.items()} == {
        ("base", 0): None,
        ("base", 1): "disk full: no space left",
        ("a", 0): "out of memory: asked for 3 GB",
        ("a", 1): "its base is missing: disk full: no space left",
        ("b", 0): "started, not finished",
        ("b", 1): "its base is missing: disk full: no space left",
        ("c", 0): "started, not finished",
        ("c", 1): "its base is missing: disk full: no space left",
        ("d", 0): gaps.NOT_RUN,
        ("d", 1): "failed in attempt 1, and its failure.json cannot be read",
    }


def test_a_damaged_result_is_a_gap_and_costs_only_itself(work, tmp_path):
    sweep = results.sweep(techniques=("half", "tiny"))
    publish_all(sweep, work)
    result = work.cell(sweep.cells[1].id).result
    changed = bytearray(result.read_bytes())
    changed[-100] ^= 1
    result.write_bytes(changed)
    _, text = built(sweep, work, tmp_path)
    document = report.as_json(report.read(sweep, work))
    assert [row["technique"] for row in document["rows"]] == ["base", "tiny"]
    assert [gap["id"] for gap in document["gaps"]] == [sweep.cells[1].id]
    assert document["gaps"][0]["reason"].startswith("damaged: result.h5: its SHA-256")
    assert "## Gaps" in text and str(tmp_path) not in text


def test_another_cells_result_is_no_result(work):
    sweep = results.sweep(techniques=("half", "tiny"))
    publish_all(sweep, work)
    one, other = (work.cell(cell.id) for cell in sweep.cells[1:])
    shutil.copy(other.result, one.result)
    store.write_manifest(one)
    assert [gap["id"] for gap in report.as_json(report.read(sweep, work))["gaps"]] == [one.id]


# --- the files -------------------------------------------------------------------------------


def test_nothing_there_is_a_report_of_gaps(work, tmp_path):
    paths, text = built(results.sweep(), work, tmp_path)
    assert "0 of 2 cells" in text and text.count(gaps.NOT_RUN) == 2
    assert "There is no result yet" in text and not paths.svg("accuracy-bytes").exists()
    assert len(paths.csv.read_text().splitlines()) == 1
    assert not work.root.exists()  # looking changes nothing


def test_the_same_results_give_the_same_bytes_in_any_order(tmp_path):
    sweep = results.sweep(techniques=("half", "tiny-0.5", "tiny-0.25"), seeds=(0, 1))
    contents = []
    for name, cells in (("one", sweep.cells), ("two", sweep.cells[::-1])):
        work = Work(tmp_path / name / "work")
        for cell in cells:
            results.publish(cell, work)
        paths = report.build(sweep, work, tmp_path / name)[0]
        again = report.build(sweep, work, tmp_path / name)[0]
        assert paths == again
        contents.append([p.read_bytes() for p in (paths.page, paths.markdown, paths.csv)])
    assert contents[0] == contents[1]


def test_the_answer_is_computed(work, tmp_path):
    sweep = results.sweep(techniques=("exact", "small", "fast", "bad"))
    shapes = {
        "base": (1, 0),
        "exact": (2, 0),
        "small": (16, 0.009),
        "fast": (8, 0.01),
        "bad": (64, 0.02),
    }
    for cell in sweep.cells:
        ratio, drop = shapes[cell.technique]
        values = results.measured(cell, ratio, drop)
        if cell.technique == "fast":
            values["latency/onnxruntime/artifact/all/batch1"] = numpy.full(20, 0.1)
        results.publish(cell, work, values)
    _, text = built(sweep, work, tmp_path)
    ids = {cell.technique: cell.id for cell in sweep.cells}
    for question, technique in (
        ("Smallest without accuracy loss", "exact"),
        ("Smallest within one percentage point", "small"),
        ("Fastest within one percentage point", "fast"),
    ):
        line = next(line for line in text.splitlines() if question in line)
        assert f"`{technique}`" in line and f"export reports/test {ids[technique]}`" in line
    assert "compression ratio 16.0" in text and "0.90 percentage points below its base" in text
    assert report.best(report.read(sweep, work).rows).technique == "small"


def test_where_all_lose_too_much_the_base_is_the_answer(work, tmp_path):
    sweep = results.sweep(techniques=("bad",))
    publish_all(sweep, work, drop=0.05)
    _, text = built(sweep, work, tmp_path)
    assert text.count("the base itself, 99.00 % in 58.9 MB; no compressed model qualifies") == 3
    assert report.best(report.read(sweep, work).rows).is_base
    assert report.best([]) is None


def test_where_what_qualifies_is_larger_and_slower_it_is_not_said_that_nothing_does(work, tmp_path):
    sweep = results.sweep(techniques=("large",))
    publish_all(sweep, work, ratio=0.5, drop=0.0)
    text = built(sweep, work, tmp_path)[1]
    assert text.count("; no compressed model that qualifies is smaller.") == 2
    assert text.count("; no compressed model that qualifies is faster.") == 1


def test_how_far_the_nearest_is_from_qualifying_is_said(work):
    sweep = results.sweep(techniques=("far", "near"))
    for cell in sweep.cells:
        drop = {"far": 0.3, "near": 0.02}.get(cell.technique, 0.0)
        results.publish(cell, work, results.measured(cell, 4.0, drop))
    text = results.markdown(sweep, work)
    assert (
        text.count(
            "no compressed model qualifies; the nearest, `near`, is 2.00 percentage points below "
            "its base.\n"
        )
        == 3
    )


def test_without_the_base_there_may_be_no_answer_and_that_is_said(work):
    sweep = results.sweep(techniques=("far",))
    cell = sweep.cells[1]
    results.publish(cell, work, results.measured(cell, 4.0, 0.3))
    text = results.markdown(sweep, work)
    sentence = (
        "Smallest without accuracy loss: no measured model qualifies; the nearest, `far`, is 30.00 "
        "percentage points"
    )
    assert sentence in text and "1 of 2 cells have a result (seed: 0). 1 is missing and is" in text


def test_seeds_are_judged_by_their_mean():
    measured = results.in_memory(results.sweep())[0][1]

    def row(technique, seed, drop, size):
        named = replace(measured, technique=technique, family=technique, seed=seed)
        accuracy = None if drop is None else 1 - drop
        return replace(named, base_accuracy=1.0, accuracy=accuracy, stored_bytes=size)

    lucky = [row("lucky", 0, 0.0, 10), row("lucky", 1, 0.03, 10)]
    steady = [row("steady", 0, 0.015, 20), row("steady", 1, 0.002, 21)]
    assert report.best(lucky + steady) == steady[1]  # the seed that is itself good enough
    assert answer.smallest(lucky + steady, limit=0.05).rows == tuple(lucky)
    missing = row("missing", 0, None, 1)
    assert report.best([missing, *steady]) == steady[1]
    assert answer.fastest([replace(steady[0], latencies={})]) is None


def test_the_markdown_has_spread_hardware_simulation_and_how_to_repeat(work, tmp_path):
    sweep = results.sweep(techniques=("half",), seeds=(0, 1, 2), text="name: test\n# ```\n")
    for cell in sweep.cells:
        drop = 0.002 + 0.001 * cell.seed
        results.publish(cell, work, results.measured(cell, 4.0, drop))
    _, text = built(sweep, work, tmp_path)
    assert re.search(r"\| half \| 3 \| 98\.71 ± 0\.09 \| 0\.30 ± 0\.10 \|", text)
    assert "- CPU: A CPU, 2 cores\n- CPU flags: avx2 avx512_vnni\n" in text
    assert "onnxruntime 1.32.0" in text and "Commit: 0123456789abcdef" in text
    assert "## Simulated and deployed latency" in text and "seeds: 0, 1, 2" in text
    assert "`netpress run test.yaml`" in text
    assert text.endswith("````yaml\nname: test\n# ```\n````\n")  # a longer fence than the file's


def test_no_percentile_or_ratio_of_too_few_calls_is_printed(work, tmp_path):
    sweep = results.sweep(techniques=("half", "few"))
    artifact = "latency/onnxruntime/artifact/all/batch1"
    for cell in sweep.cells:
        values = results.measured(cell)
        values[artifact] = numpy.linspace(1, 2, 10 if cell.technique == "few" else 99)
        if cell.technique == "few":
            values["latency/pytorch/base/all/batch1"] = numpy.full(4, 3.0)
        results.publish(cell, work, values)
    _, text = built(sweep, work, tmp_path)
    shown = [line for line in text.splitlines() if line.startswith(("| few", "| technique | n |"))]
    cells = [[cell.strip() for cell in line.split("|")] for line in shown]
    timed, beside = (dict(zip(*cells[i : i + 2], strict=True)) for i in (2, 4))
    assert not any("p99" in head for head in timed)
    assert timed["all threads, batch 1, p50"] == "1.50"
    assert timed["all threads, batch 1, p90"] == "\u2013"
    assert timed["all threads, batch 64, p90"] not in ("", "\u2013")
    assert "single calls (10 to 99 calls a series)." in text
    assert "(in PyTorch 4 to 20 calls a series)" in text
    over = "speedup over the base in PyTorch, ×"
    ratios = [beside[f"{what}: {over}"] for what in ("simulated, in PyTorch", "deployed artifact")]
    assert ratios == ["\u2013", "\u2013"] and beside["simulated, in PyTorch: ms"] != "\u2013"
    row = report.as_json(report.read(sweep, work))["rows"][2]
    assert row["latency_ms"]["batch1"]["p99"] == numpy.percentile(numpy.linspace(1, 2, 10), 99)
    assert row["simulated_speedup"]["batch1"] > 0  # for programs, as it was measured


@pytest.mark.parametrize("model", ["base", "simulated"])
def test_a_speedup_over_pytorch_that_another_load_decides_is_left_out(work, tmp_path, model):
    sweep = results.sweep(techniques=("half", "busy"))
    for cell in sweep.cells:
        values = results.measured(cell)
        if cell.technique == "busy":
            values[f"latency/pytorch/{model}/all/batch1"] = numpy.full(20, 1394.0)
            values[f"latency/pytorch/{model}/all/batch64"] = numpy.full(20, 628.0)
        results.publish(cell, work, values)
    rows = report.as_json(report.read(sweep, work))["rows"]
    row = {row["technique"]: row for row in rows}["busy"]
    assert row["simulated_speedup"]["batch1"] is None and row["simulated_speedup"]["batch64"] > 0
    assert (row["speedup_over_pytorch"]["batch1"] is None) is (model == "base")
    assert row["speedup_over_pytorch"]["batch64"] > 0 and row["speedup"]["batch1"] > 0
    if model == "simulated":  # as it was measured
        assert row["simulated_latency_ms"]["batch1"]["p50"] == 1394
    _, text = built(sweep, work, tmp_path)
    assert text.count("than for one of 64: the machine was busy with something else.") == 1
    section = text.split("## Simulated and deployed latency")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith(("| half", "| busy"))]
    half, busy = ([cell.strip() for cell in line.split("|")] for line in lines)
    assert "" not in half[1:-1] and busy[1:-1].count("") == (2 if model == "base" else 1)


def test_nothing_is_said_of_a_busy_machine_where_none_was(work):
    sweep = results.sweep()
    publish_all(sweep, work)
    assert "busy with something else" not in results.markdown(sweep, work)


@pytest.mark.parametrize("seeds", [1, 5])
@pytest.mark.parametrize("techniques", [0, 2, 30])
def test_n_and_deviation_are_stated_as_far_as_there_are_any(work, seeds, techniques):
    names = tuple(f"t{i:02}" for i in range(techniques))
    sweep = results.sweep(techniques=names, seeds=tuple(range(seeds)))
    publish_all(sweep, work)
    text = results.markdown(sweep, work).split("## Results")[1].split("## Latency")[0]
    lines = [line for line in text.splitlines() if re.match(r"\| (base|t\d\d) ", line)]
    assert len(lines) == techniques + 1
    assert all(line.split(" | ")[1] == str(seeds) for line in lines)
    assert ("one seed for each technique (n = 1)" in text) == (seeds == 1)
    assert ("sample standard deviation" in text) == (" ± " in lines[0]) == (seeds == 5)


def test_what_was_shared_and_what_a_seed_decides_is_said(work):
    text = results.markdown(results.sweep(seeds=(0, 1), datasets=("a", "b")), work)
    assert "- Seeds: 0, 1; a seed determines the initial weights, the held-out split" in text
    assert "have it as teacher (4 bases in all), with the same recipe" in text
    assert "- Recipe: 2 epochs, batches of 128, peak learning rate 0.1 (linear" in text
    assert "10 % of the training set held out, full test set\n" in text
    assert "Shared" not in results.markdown(results.sweep(techniques=()), work)


def test_a_recipe_that_differs_or_takes_a_sliver_is_said(tmp_path, work):
    file = tmp_path / "own.yaml"
    file.write_text(
        "name: own\nmodels: [vgg16_bn]\ntechniques: [base]\n"
        "datasets: [{name: mnist, training: {epochs: 3, crop: 0}}, digits]\n"
        "training: {epochs: 9, train_images: 1200, test_images: 100}\n"
    )
    text = results.markdown(load_sweep(file), work)
    one, other = (line for line in text.splitlines() if line.startswith("- Recipe on"))
    assert one.startswith("- Recipe on mnist: 3 epochs, ") and "random crops" not in one
    assert (
        other.startswith("- Recipe on digits: 9 epochs, ") and "random crops with 4 pixels" in other
    )
    assert other.endswith("only 1,200 training images, only 100 test images")


def test_what_each_cell_asked_for_and_used_of_all_its_attempts(work):
    sweep = results.sweep(techniques=("half", "bad"))
    base, half, bad = sweep.cells
    results.publish(base, work)
    results.ran_as_job(base, work, wall_s=1800, job="7_0")
    results.ran_as_job(half, work, wall_s=600, job="8_1")  # preempted
    results.publish(half, work)
    results.ran_as_job(half, work, wall_s=1200, job="8_1", gpu_busy=None, gpu_memory_bytes=0)
    results.ran_as_job(bad, work, wall_s=3600, job="9")
    usages = merged.write(sweep, work, work.root / "results.h5").usages
    text = results.markdown(sweep, work, usages).split("## Resource usage")[1]
    lines = [
        line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| dig")
    ]
    assert [line[1:9] for line in lines] == [
        ["7_0", "1", "30.0", "0.500", "24", "2.50", "40", "3.00"],
        ["8_1", "2", "30.0", "0.500", "24", "2.50", "40", "3.00"],
        ["9", "1", "60.0", "1.000", "24", "2.50", "40", "3.00"],
    ]
    assert lines[0][9:] == ["5.00", "61"] and lines[1][9:] == []  # not seen, so empty
    assert "2.000 GPU-hours: wall time" in text and "- GPU-hours: 2.000\n" in text
    assert "--set cores=4" in text
    assert "## Resource usage" not in results.markdown(sweep, work)


def test_gpu_hours_without_jobs_are_those_of_cells_on_a_gpu(work):
    sweep = results.sweep()
    for cell, device in zip(sweep.cells, ("cpu", "cuda:0"), strict=True):
        results.publish(cell, work, facts={**results.FACTS, "device": device, "seconds": 1800.0})
    text = results.markdown(sweep, work)
    assert "- GPU-hours: 0.500 (total time of the cells that ran on a GPU)\n" in text


def test_usage_of_others_is_not_trusted():
    record = {
        "job": "1",
        "wall_s": "many",
        "asked": {"cores": 1, "memory_bytes": 1, "gpus": []},
        "used": {},
        "all": "x",
    }
    assert usage.of_all(record, "wall_s") == usage.gpu_hours([record, {**record, "all": {}}]) == 0


def test_cells_of_two_machines_are_counted_apart(work, tmp_path):
    sweep = results.sweep()
    for cell, cpu in zip(sweep.cells, ("First", "Second"), strict=True):
        facts = {**results.FACTS, "hardware": {"cpu": cpu, "flags": ["avx2"], "cores": 2}}
        results.publish(cell, work, facts=facts)
    _, text = built(sweep, work, tmp_path)
    assert "- CPU: First, 2 cores (1 cell); Second, 2 cores (1 cell)\n" in text


EVIL = "</td><script>alert(1)</script> | `x` **b** [l](http://x) $a$ \x1b[31m\n# title\n| a | b |"


def test_a_reason_cannot_break_out_of_the_page(work, tmp_path):
    sweep = results.sweep()
    results.publish(sweep.cells[0], work)
    results.fail(sweep.cells[1], work, "exception", EVIL)
    _, text = built(sweep, work, tmp_path)
    assert "<script" not in text and "\x1b" not in text and "\n# title" not in text
    gap = next(line for line in text.splitlines() if sweep.cells[1].id in line)
    assert len(re.findall(r"(?<!\\)\|", gap)) == 4
    assert (
        report.as_json(report.read(sweep, work))["gaps"][0]["reason"].count("<script>") == 1
    )  # JSON needs none


def test_a_technique_cannot_break_out_of_its_table(work):
    name = "<script>alert(1)</script> | _x_ **b** $a$ `c`"
    sweep = results.sweep(techniques=(name,))
    publish_all(sweep, work)
    text = results.markdown(sweep, work).split("## Results")[1]
    lines = [line for line in text.splitlines() if "alert(1)" in line]
    assert len(lines) == 3 and "<script" not in text
    assert all(
        line.startswith(r"| &lt;script&gt;alert(1)&lt;/script&gt; \| \_x\_") for line in lines
    )


@given(st.text(max_size=60))
def test_markdown_text_is_one_cell_without_markup(text):
    line = tables.markdown(["a"], [[text]]).splitlines()
    assert len(line) == 3 and len(re.findall(r"(?<!\\)(?:\\\\)*\|", line[2])) == 2
    assert "<" not in line[2] and not re.search(r"(?<!\\)(?:\\\\)*[`*\[]", line[2])


@given(st.text("a`\n ", max_size=20))
def test_inline_code_is_not_ended_by_its_text(text):
    shown = tables.code(text)
    ticks = re.match("`+", shown)[0]
    assert "\n" not in shown and shown.endswith(ticks)
    inside = shown[len(ticks) : -len(ticks)]
    assert ticks not in re.findall("`+", inside)


@pytest.mark.parametrize("text", ["=1+1", "+x", "-x", "@x", "\tx"])
def test_a_spreadsheet_runs_nothing(text):
    assert tables._csv_value("dataset", text) == f"'{text}"


def test_csv_has_raw_values_in_full(work, tmp_path):
    sweep = results.sweep()
    publish_all(sweep, work, ratio=3.0)
    paths, _ = built(sweep, work, tmp_path)
    lines = list(csv.DictReader(io.StringIO(paths.csv.read_text())))
    values = results.measured(sweep.cells[1], 3.0)
    assert [line["id"] for line in lines] == [cell.id for cell in sweep.cells]
    assert float(lines[1]["accuracy"]) == values["accuracy"]
    assert lines[1]["stored_bytes"] == str(values["stored_bytes"])
    assert "nan" not in paths.csv.read_text().lower()


# --- the terminal ----------------------------------------------------------------------------


def test_the_summary_fits_eighty_columns_and_names_gaps(work):
    sweep = results.sweep(techniques=("attention-transfer", "gone"), seeds=(0, 1))
    for cell in sweep.cells:
        if cell.technique == "gone":
            results.fail(cell, work, "exception", "[red]boom[/red]")
        else:
            results.publish(cell, work)
    out = io.StringIO()
    report.print_summary(report.read(sweep, work), out)
    lines = out.getvalue().splitlines()
    assert max(len(line) for line in lines[:5]) <= 80
    assert re.search(r"attention-transfer\s+2\s+98\.8[01]\s+0\.20\s+14\.7\s+4\.00", out.getvalue())
    assert "[red]boom[/red]" in lines[-1] and "…" not in out.getvalue()


def test_the_summary_marks_the_best_and_fits_with_long_names_too():
    long = "a-name-that-takes-half-of-the-line"
    shapes = {"exact": (2, 0), long: (16, 0.009), "bad": (64, 0.02)}
    rows = results.in_memory(
        results.sweep(techniques=tuple(shapes)),
        lambda cell: results.measured(cell, *shapes.get(cell.technique, (1, 0))),
    )[0]
    out = io.StringIO()
    report.print_summary(frames.Frames(rows, ()), out)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[:2] for line in lines if line.startswith(("1 ", "2,3 "))] == [
        ["1", "exact"],
        ["2,3", long],
    ]
    assert "3: fastest within one percentage point" in lines
    assert any(line.startswith("    bad ") for line in lines)  # the smallest, but it loses too much


def test_the_markdown_begins_with_the_picture_and_the_answers(work, tmp_path):
    sweep = results.sweep()
    publish_all(sweep, work)
    paths, text = built(sweep, work, tmp_path)
    picture = "](figures/accuracy-bytes.svg)"
    assert text.count(picture) == 1 and paths.svg("accuracy-bytes").is_file()
    assert text.index(picture) < text.index("## The answer") < text.index("## Results")


# --- numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("accuracy", 0.98765, "98.77"),
        ("accuracy_drop", -1e-7, "0.00"),
        ("stored_bytes", 0, "0"),
        ("stored_bytes", 58_900_000, "58.9"),
        ("stored_bytes", 921_400, "0.921"),
        ("stored_bytes", 3_100, "0.00310"),
        ("macs", 313_700_000, "314"),
        ("macs", 4e12, "4,000,000"),
        ("stored_ratio", 0.99999, "1.00"),
        ("stored_ratio", 999.9, "1,000"),
        ("macs", 0.0, "0"),
        ("accuracy", None, ""),
        ("accuracy", math.nan, ""),
        ("integer_kernels", 14.0, "14"),
    ],
)
def test_numbers_are_shown_in_their_unit(key, value, shown):
    assert METRIC[key].show(value) == shown


def test_a_size_has_the_same_digits_in_the_card_and_in_the_table(work, tmp_path):
    sweep = results.sweep(techniques=("tiny", "half"))
    for cell in sweep.cells:
        small = {"stored_bytes": 5485} if cell.technique == "tiny" else {}
        results.publish(cell, work, results.measured(cell, 2.0, 0.0, **small))
    paths, text = built(sweep, work, tmp_path)
    in_kb, in_mb = METRIC["stored_kilobytes"].show(5485), METRIC["stored_bytes"].show(5485)
    assert float(in_kb) == pytest.approx(1000 * float(in_mb))
    assert f"in {in_kb} kB, as accurate as its base" in text
    head = next(line for line in text.splitlines() if "stored size, " in line).split("|")
    at = next(i for i, cell in enumerate(head) if "stored size, " in cell)
    assert head[at] == " stored size, kB " and " runnable size, MB " in head
    cells = [line.split("|") for line in text.splitlines() if line.startswith(("| base", "| tiny"))]
    assert [line[at].strip() for line in cells[:2]] == ["58,900", in_kb]
    assert "5485" in paths.csv.read_text()


def test_a_deviation_has_the_decimals_of_its_mean():
    assert METRIC["stored_bytes"].show(14_800_000, 31_000) == "14.8 ± 0.0"
    assert METRIC["stored_ratio"].show(10_736.2) == "10,700"
    assert METRIC["accuracy"].show(0.98765, 0.0123) == "98.77 ± 1.23"
    assert METRIC["accuracy"].show(0.98765, 0.0) == "98.77"
    assert METRIC["stored_ratio"].say(4.0) == "4.00×"


def test_the_table_of_metrics_is_whole():
    assert len(METRIC) == len(METRICS) + len(COMPARED)
    for metric in METRIC.values():
        assert isinstance(metric, Metric) and metric.better in ("higher", "lower", "")
        assert metric.label and metric.show(0.5)


# --- export ----------------------------------------------------------------------------------


@pytest.fixture
def finished(work):
    sweep = results.sweep()
    publish_all(sweep, work)
    return sweep, sweep.cells[1]


def test_export_copies_the_artifact(finished, work, tmp_path):
    for name in ("new", "deep/er"):
        target = export(*finished, work, tmp_path / name)
        assert target == tmp_path / name
        assert (target / "model.onnx").read_bytes() == b"a model"
        assert (target / "notes" / "classes.txt").read_text() == "0\n1\n"
        assert sorted(os.listdir(target)) == ["manifest.json", "model.onnx", "notes"]


def test_export_leaves_out_what_the_manifest_does_not_name(finished, work, tmp_path):
    (work.cell(finished[1].id).artifact / "stray").write_text("x")
    assert "stray" not in os.listdir(export(*finished, work, tmp_path / "new"))


def test_export_overwrites_nothing(finished, work, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("full")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir())
    taken = ["full", "file", "empty", "link", "dangling", "loop", ".", "..", "new/..", "full/."]
    for name in [*taken, "new/../full", "new/../file", "full/../empty", "new/deep/../../full"]:
        for to in (tmp_path / name, name):
            with pytest.raises(UserError, match="exists already, expected the name of a new f"):
                export(*finished, work, to)
    assert (tmp_path / "full" / "mine").read_text() == (tmp_path / "file").read_text() == "x"
    assert sorted(os.listdir()) == before  # `new` was not made on the way


def test_export_makes_the_folder_that_it_looked_at(finished, work, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert export(*finished, work, "new/../fresh") == tmp_path / "fresh"
    assert sorted(os.listdir()) == ["fresh", "work"]


def test_export_does_not_replace_what_comes_while_it_copies(finished, work, tmp_path, monkeypatch):
    """Another process makes the folder at the last moment: here, while files are copied."""
    real = store.copy_checked

    def slow(*arguments):
        (tmp_path / "new").mkdir(exist_ok=True)
        return real(*arguments)

    monkeypatch.setattr(store, "copy_checked", slow)
    with pytest.raises(UserError, match="new: exists already"):
        export(*finished, work, tmp_path / "new")
    assert os.listdir(tmp_path / "new") == [] and sorted(os.listdir(tmp_path)) == ["new", "work"]


@pytest.mark.parametrize("name", ["x" * 300, "file/new", "loop/new", "~nobody-of-this-name/x"])
def test_export_to_what_cannot_be_is_one_sentence(finished, work, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    Path("loop").symlink_to("loop")
    with pytest.raises(UserError, match="cannot be written|no such home folder"):
        export(*finished, work, name)


def test_export_refuses_what_is_changed_or_missing(finished, work, tmp_path):
    sweep, cell = finished
    (work.cell(cell.id).artifact / "model.onnx").write_bytes(b"b model")
    with pytest.raises(UserError, match="is damaged: .*model.onnx.*SHA-256.*netpress run test"):
        export(sweep, cell, work, tmp_path / "new")
    work.cell(cell.id).manifest.unlink()
    with pytest.raises(UserError, match="has no model to export yet: started, not finished"):
        export(sweep, cell, work, tmp_path / "new")
    assert sorted(os.listdir(tmp_path)) == ["work"]


# --- what it loads ---------------------------------------------------------------------------


def test_a_report_needs_no_torch_and_loads_its_tools_late(finished, work, tmp_path):
    script = f"""
import sys
from pathlib import Path
from pipeline import report
from pipeline.paths import Work
import pipeline.orchestrate.export
assert not {{"pandas", "h5py", "numpy", "matplotlib"}} & set(sys.modules), "loaded too early"

from tests import results
report.build(results.sweep(), Work({str(work.root)!r}), Path({str(tmp_path)!r}))
assert not {{"torch", "matplotlib.pyplot"}} & set(sys.modules), "loaded without need"
"""
    subprocess.run([sys.executable, "-c", script], cwd=CODE, check=True)
    assert (tmp_path / "test" / "report.md").exists()


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_deviation_is_the_samples(values):
    deviation = answer.deviation(values)
    expected = numpy.std(values, ddof=1) if len(values) > 1 else math.nan
    assert deviation == pytest.approx(expected, abs=1e-12, nan_ok=True)
