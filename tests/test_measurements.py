"""Measurements of several machines: made again, made elsewhere, told apart in the report."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from pipeline import cli, clock, done, hardware, remeasure, report, same_kind, store
from pipeline.errors import Corrupt, UserError
from pipeline.orchestrate import bench as benches
from pipeline.orchestrate import measure, plan, reported
from pipeline.paths import CODE, Work
from pipeline.report import content, figures, frames, measured, merged
from pipeline.report.metrics import METRIC
from pipeline.report.views import machine_of
from pipeline.timeline import Timeline, line
from tests import cells, results

# --- a report of two machines ----------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """They take seconds, and are not what is tested here."""
    monkeypatch.setattr(figures, "draw", lambda *given: {})


@pytest.fixture
def two(tmp_path):
    """(sweep, work root): three cells that A CPU measured, two of which a board measured as well,
    and one of these without images."""
    text = "name: test\nmodels: [vgg16_bn]\ndatasets: [digits]\ntechniques: [base, kd, ptq-int8]\n"
    (tmp_path / "test.yaml").write_text(text)
    sweep, work = plan.load_sweep(tmp_path / "test.yaml"), Work(tmp_path / "work")
    for cell in sweep.cells:
        results.publish(cell, work)
    base, half, _ = sweep.cells
    results.measure(base, work, "board", "Cortex-A72")
    results.measure(half, work, "board", "Cortex-A72", ratio=8.0, accuracy=None, agreement=None)
    return sweep, work


def test_the_machine_that_measured_most_is_shown_and_another_on_request(two):
    sweep, work = two
    _, half, tiny = sweep.cells
    document = report.as_json(report.read(sweep, work))
    assert [row["machine"] for row in document["rows"]] == ["A-CPU-2c-vnni"] * 3
    assert not document["gaps"]
    assert [m["name"] for m in document["machines"]] == ["A-CPU-2c-vnni", "board"]
    board = document["machines"][1]
    assert {"cpu": "Cortex-A72", "flags": ["asimd"], "gpu": None}.items() <= board.items()
    assert board["runtimes"] == ["onnxruntime"]
    there = report.as_json(report.read(sweep, work, machine="boa"))
    rows = {row["id"]: row for row in there["rows"]}
    assert 7 < rows[half.id]["speedup"]["batch1"] < 9 and len(rows) == 2
    elsewhere = {row["id"]: row for row in document["rows"]}[half.id]
    assert rows[half.id]["accuracy"] == elsewhere["accuracy"]  # lent, and reported as such
    assert rows[half.id]["classified_on"] == "A-CPU-2c-vnni" and elsewhere["speedup"]["batch1"] < 5
    [gap] = there["gaps"]
    assert gap["id"] == tiny.id and gap["reason"] == "not measured on board, but on A-CPU-2c-vnni"
    with pytest.raises(UserError, match=r"--machine 'bord': .*board"):
        report.read(sweep, work, machine="bord")


def test_times_of_several_machines_in_one_table_are_named(two):
    sweep, work = two
    read = report.read(sweep, work)
    assert "times and speedups are of several" not in content.counts(sweep, read)
    first, *others = read.rows
    apart = frames.Frames.of((*others, dataclasses.replace(first, machine="board")), ())
    assert (
        "are of several (cells): A-CPU-2c-vnni (2), board (1); `--machine NAME`"
        in content.counts(sweep, apart)
    )


def test_a_report_keeps_every_machine_and_compares_them(two, tmp_path):
    sweep, work = two
    paths, frames = report.build(sweep, work, tmp_path / "out")
    text, page = paths.markdown.read_text(), paths.page.read_text()
    assert "Speed by machine" in text and "| kd | board | 1 |" in text
    assert '<option value="0" selected>A CPU, 2 cores, AVX-512 VNNI</option>' in page
    assert "board (Cortex-A72, 4 cores, ASIMD)</option>" in page and "kd on board" in page
    before = {p: p.read_bytes() for p in paths.folder.rglob("*") if p.is_file()}
    shutil.rmtree(work.root)
    report.rebuild(paths.folder)
    assert {p: p.read_bytes() for p in before} == before
    report.rebuild(paths.folder, machine="board")  # from here on
    assert [row.machine for row in report.read_folder(paths.folder).rows] == ["board"] * 2
    text = paths.markdown.read_text()
    assert "not measured on board" in text and "Accuracy is as A-CPU-2c-vnni measured it" in text
    for machine, cells_of in (("A-CPU", 3), ("", 3), (None, 2)):
        shown = report.read_folder(paths.folder, machine)
        assert (len(shown.rows), len(shown.gaps)) == (cells_of, 3 - cells_of)
    report.rebuild(paths.folder, machine="")  # the default again
    assert {p: p.read_bytes() for p in before if p != paths.merged} == {
        p: data for p, data in before.items() if p != paths.merged
    }
    assert report.read_folder(paths.folder) == frames


def test_what_is_added_to_a_report_stands_beside_what_it_has(two, tmp_path):
    sweep, work = two
    paths, frames = report.build(sweep, work, tmp_path / "out")
    tiny = sweep.cells[2]
    facts = {"machine": "board", "hardware": {"cpu": "Cortex-A72", "cores": 4}}
    values = {k: v for k, v in results.measured(tiny, 2.0).items() if k.startswith("latency/")}
    for day in ("01", "02", "02"):  # what it has counts once
        at = {"measured_at": f"2026-01-{day}T12:00:00Z"}
        remeasure.put(paths, [(tiny.id, facts | at, values)])
    again = report.read_folder(paths.folder)
    assert again.machines == ["A-CPU-2c-vnni", "board"] and again.rows == frames.rows
    assert len([row for row in again.every if row.machine == "board"]) == 3
    with h5py.File(paths.merged) as file:
        assert list(file[f"cells/{tiny.id}/measurements"]) == ["board-1", "board-2"]


def test_nothing_is_added_to_a_report_that_was_damaged_meanwhile(two, tmp_path):
    sweep, work = two
    paths, _ = report.build(sweep, work, tmp_path / "out")
    content = bytearray(paths.merged.read_bytes())
    with h5py.File(paths.merged) as file:
        predictions = file[f"cells/{sweep.cells[0].id}/measure/predictions"]
        content[predictions.id.get_offset() + store.results.SEAL_BYTES] ^= 1
    paths.merged.write_bytes(content)
    with pytest.raises(Corrupt, match="is damaged, its checksum does not match"):
        put_elsewhere(paths, sweep.cells[2], 2.0)
    assert paths.merged.read_bytes() == content


def test_the_seconds_of_a_measurement_are_by_a_clock_that_nobody_sets(two):
    sweep, _ = two
    facts = remeasure._facts(sweep.cells[0], clock.now() - 2, {})
    assert 2 <= facts["seconds"] < 60


def test_times_alone_of_a_machine_that_has_accuracy_take_nothing_away(two, tmp_path):
    """As bench.py, or a measurement without the images, gives them on the same kind of machine."""
    sweep, work = two
    paths, frames = report.build(sweep, work, tmp_path / "out")
    tiny = sweep.cells[2]
    before = {row.id: row for row in frames.rows}[tiny.id]
    facts = {"machine": "A-CPU-2c", "hardware": results.FACTS["hardware"]}
    values = {k: v for k, v in results.measured(tiny, 7.0).items() if k.startswith("latency/")}
    remeasure.put(paths, [(tiny.id, facts, values)])
    after = {row.id: row for row in report.read_folder(paths.folder).rows}[tiny.id]
    assert after.accuracy == before.accuracy
    assert measured.CLASSIFIED_ON not in after.facts and after.measurement == "A-CPU-2c-1"
    speedup = METRIC["speedup_all_batch1"]
    assert speedup.of(after) != speedup.of(before)


def test_cpus_of_one_name_but_other_instructions_are_two_machines(two, tmp_path):
    """As virtual machines call all processors of a maker; a result names one of an earlier
    version, which had no instructions in it."""
    sweep, work = two
    paths, _ = report.build(sweep, work, tmp_path / "out")
    tiny = sweep.cells[2]
    hardware_ = {"cpu": "A CPU", "cores": 2, "flags": ["avx2"]}
    values = {k: v for k, v in results.measured(tiny, 7.0).items() if k.startswith("latency/")}
    facts = {"machine": hardware.machine_name("A CPU", 2, flags=["avx2"]), "hardware": hardware_}
    remeasure.put(paths, [(tiny.id, facts, values)])
    read = report.read_folder(paths.folder)
    assert {row.machine for row in read.rows} == {"A-CPU-2c-vnni"}
    assert {row.machine for row in read.every if row.id == tiny.id} == {
        "A-CPU-2c-vnni",
        "A-CPU-2c-avx2",
    }
    (here,) = report.read_folder(paths.folder, "a-cpu-2c-a").rows
    assert machine_of(here) == "A CPU, 2 cores, AVX2"
    assert here.facts[measured.CLASSIFIED_ON] == "A-CPU-2c-vnni"


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ([], "A-CPU-2c"),
        (["avx2"], "A-CPU-2c-avx2"),
        (["avx2", "avx512f"], "A-CPU-2c-avx512"),
        ("avx2 avx512f avx512_vnni", "A-CPU-2c-vnni"),
        (["avx2", "avx_vnni"], "A-CPU-2c-avxvnni"),
        (["avx512f", "avx512_vnni", "avx_vnni"], "A-CPU-2c-vnni-avxvnni"),
        (["avx512_vnni", "avx_vnni", "amx_int8"], "A-CPU-2c-amx"),
    ],
)
def test_what_an_earlier_version_named_has_todays_name(flags, name):
    described = {"cpu": "A CPU", "cores": 2, "gpu": "G", "flags": flags}
    assert hardware.machine_name("A CPU", 2, flags=flags) == name
    for recorded in ("A-CPU-2c", None, name):
        assert hardware.name_of({"machine": recorded, "hardware": described}) == name
    on_gpu = hardware.name_of({"machine": "A-CPU-2c-G", "hardware": described})
    assert on_gpu == f"{name}-G" == hardware.machine_name("A CPU", 2, "G", flags)
    assert hardware.name_of({"machine": "board", "hardware": described}) == "board"


def test_times_of_another_cpu_borrow_nothing_that_a_cpu_decides(two, tmp_path):
    sweep, work = two
    half = sweep.cells[1]
    beside = {"integer_share": 0.75, "integer_kernels": 3, "runtimes/openvino/accuracy": 0.5}
    beside |= {"runtimes/openvino/note": "in bf16"}
    results.publish(half, work, results.measured(half, **beside))
    alone = {"integer_share": None, "integer_kernels": None}  # as bench.py measures
    results.measure(half, work, "board", "Cortex-A72", accuracy=None, agreement=None, **alone)
    paths, _ = report.build(sweep, work, tmp_path / "out")
    every = report.read_folder(paths.folder).every
    rows = {row.machine: row for row in every if row.id == half.id}
    own, board = rows["A-CPU-2c-vnni"], rows["board"]
    assert (own.integer_share, own.integer_kernels) == (0.75, 3) and own.runtime_notes
    assert (board.integer_share, board.integer_kernels) == (None, None)
    assert not board.runtime_notes and board.accuracy == own.accuracy


def test_the_last_measurement_with_accuracy_is_kept_beside_times_alone():
    wanted = done._record({"repeats": 200}, None)
    older, fits = {**wanted, "measure": {"repeats": 100}}, wanted
    times = {"measurement": wanted["measurement"]}

    def chosen(*made_with):
        entries = [
            SimpleNamespace(machine="A-2c", name=str(i), made_with=made)
            for i, made in enumerate(made_with)
        ]
        return [entry.name for entry in measured.chosen(entries, wanted)]

    assert chosen(older, times) == ["0", "1"]
    assert chosen(older, older, times, times) == ["1", "3"]
    assert chosen(fits, times) == ["0"]
    assert chosen(times) == ["0"]
    assert chosen(times, older) == ["1"]


def put_elsewhere(paths, cell, ratio, day="02", machine="board"):
    """As `measure REPORT --add` puts times of another machine into a report."""
    facts = {
        "machine": machine,
        "hardware": {"cpu": "Cortex-A72", "cores": 4},
        "measured_at": f"2026-02-{day}T12:00:00Z",
    }
    every = results.measured(cell, ratio)
    values = {name: value for name, value in every.items() if name.startswith("latency/")}
    remeasure.put(paths, [(cell.id, facts, values)])


def names(paths, cell):
    with h5py.File(paths.merged) as file:
        return list(file[f"cells/{cell.id}"].get("measurements", ()))


@pytest.mark.parametrize("over", [True, False])
def test_a_new_report_keeps_what_was_added_to_the_one_before(two, tmp_path, over):
    """To the one that it replaces, or to another that --with names."""
    sweep, work = two
    base, half, tiny = sweep.cells
    old = report.build(sweep, work, tmp_path / "out")[0]
    put_elsewhere(old, half, 16.0)  # after what the work root has of the board
    put_elsewhere(old, tiny, 2.0, machine="other")
    before = report.read_folder(old.folder)
    out, earlier = (tmp_path / "out", None) if over else (tmp_path / "new", old.folder)
    for _ in range(2):  # each once
        paths, listed = report.build(sweep, work, out, earlier=earlier)
        assert names(paths, half) == ["board-1", "board-2"] and names(paths, tiny) == ["other-1"]
        assert names(paths, base) == ["board-1"]
        again = report.read_folder(paths.folder)
        assert listed == again and again.every == before.every
        assert report.read(sweep, work, earlier, out=out).every == before.every
    # Of another artifact, it is no addition.
    (work.cell(tiny.id).artifact / "model.onnx").write_bytes(b"another model")
    store.write_manifest(work.cell(tiny.id), {done.MADE_WITH: done.record(tiny)})
    report.build(sweep, work, out, earlier=earlier)
    assert names(paths, tiny) == []


def test_of_several_reports_each_gives_what_it_has(two, tmp_path):
    """The work root has nothing any more: one has the cell, and both a measurement of their own."""
    sweep, work = two
    tiny = sweep.cells[2]
    one, other = (report.build(sweep, work, tmp_path / name)[0] for name in ("one", "other"))
    put_elsewhere(one, tiny, 2.0, machine="first")
    put_elsewhere(other, tiny, 2.0, machine="second")
    shutil.rmtree(work.root)
    report.build(sweep, work, tmp_path / "other", earlier=one.folder)
    assert names(other, tiny) == ["first-1", "second-1"]
    assert len(report.read_folder(other.folder).every) == 7


def test_a_measurement_that_leads_out_of_the_file_is_refused(two, tmp_path):
    sweep, work = two
    paths, _ = report.build(sweep, work, tmp_path / "out")

    def lead_away(file):
        group = file[f"cells/{sweep.cells[0].id}/measurements/board-1/measure"]
        del group["accuracy"]
        group["accuracy"] = h5py.ExternalLink("/etc/passwd", "/accuracy")

    store.change_hdf5(paths.merged, lead_away)
    with pytest.raises(Corrupt, match="a link leads out of it"):
        merged.read(paths.merged)


# --- measured again, and elsewhere -----------------------------------------------------------


@pytest.fixture
def mine(bench, tmp_path):
    """(sweep, work root) with the base that is trained, and measured once."""
    bench.cells(["base"])
    shutil.copytree(bench.work.root, tmp_path / "work")
    shutil.copy(bench.folder / "test.yaml", tmp_path / "test.yaml")
    return plan.load_sweep(tmp_path / "test.yaml"), Work(tmp_path / "work")


def test_a_sweep_is_measured_again_and_keeps_what_it_had(mine, tmp_path, monkeypatch):
    sweep, work = mine
    monkeypatch.chdir(tmp_path)
    lines: list[str] = []
    before = done.is_done(sweep.cells[0], work)
    with cells.one_core():
        assert measure.run(sweep, work, work.root, lines.append) == 0
    entries, damaged = store.measurements(work.cell(sweep.cells[0].id), deep=True)
    assert before and [e.number for e in entries] == [1, 2] and not damaged
    assert any("measure, latency" in line for line in lines)
    # On the same kind of CPU, predictions are those of the first one.
    assert not any("train" in line or "measure, accuracy" in line for line in lines)
    first, second = (store.read_result(e.path, e.sha256) for e in entries)
    assert second.facts["accuracy_of"] == entries[0].name and "accuracy_of" not in first.facts
    for name, value in first.measured.items():
        same = np.array_equal(value, second.measured[name])
        assert same is not name.startswith("latency/") | name.endswith("test_set_seconds"), name
    [row] = report.read_folder(tmp_path / "reports" / "test").rows
    assert row.measurement == entries[1].name


def test_predictions_are_taken_from_the_same_kind_of_cpu_alone(mine):
    sweep, work = mine
    [cell] = sweep.cells
    paths, wanted = work.cell(cell.id), done.record(cell)
    entries, _ = store.measurements(paths)
    facts = store.read_result(entries[0].path).facts

    def known(facts=facts, **changed):
        return same_kind.known(paths, entries, facts, {**wanted, **changed})

    own = known()
    assert own.name == entries[0].name and "accuracy" in own.values
    assert not any(name.startswith("latency/") for name in own.values)
    for name, taken in (
        ("energy/onnxruntime/artifact/all/batch1", False),
        ("throughput/pytorch-cuda-bf16/artifact/all/batch1", False),
        ("runtimes/pytorch-cuda-bf16/accuracy", False),
        ("runtimes/openvino/accuracy", True),
        ("runtimes/openvino/test_set_seconds", False),
        ("similarity/cka", True),
    ):
        assert same_kind._is_taken(name, ["onnxruntime", "openvino"]) is taken, name
    # Times are of each measurement, whether of this machine or of another of its kind.
    times = {"test_set_seconds", "base_test_set_seconds"}
    other = known({**facts, "machine": "another-CPU-2c"})
    assert own.values.keys() == other.values.keys() and not times & own.values.keys()
    newer = {**facts["versions"], "onnxruntime": "99.0"}
    for differs in (
        {"hardware": {**facts["hardware"], "flags": ["asimd"]}},
        {"versions": newer},
        {"base_artifact": "0" * 64},
        {"dataset_fingerprint": "another"},
        {"hardware": {}},
    ):
        assert known({**facts, **differs}) is None, differs
    assert known({k: v for k, v in facts.items() if k != "base_artifact"}) is None
    assert known(measurement=99) is None and known(test_images=3) is None
    more = {**wanted["measure"], "runtimes": ["onnxruntime", "openvino"]}
    assert known(measure=more) is None
    longer = {**wanted["measure"], "seconds": 99.0}  # of the times alone
    assert known(measure=longer).values.keys() == own.values.keys()


# Nothing but these can be imported by the script: neither torch nor netpress.
ALONE = """
import runpy, sys
for name in ("torch", "h5py", "pydantic", "onnx", "pipeline"):
    sys.modules[name] = None
sys.argv = ["bench.py", "--out", sys.argv[1], "--name", "my board!", "--seconds", "0.01"]
runpy.run_path("bench.py", run_name="__main__")
"""


@pytest.fixture
def elsewhere(mine, tmp_path):
    """What bench.py writes in the exported folder, with ONNX Runtime and NumPy alone."""
    sweep, work = mine
    folder = benches.export(sweep, work, tmp_path / "bench")
    path = tmp_path / "measured.json"
    clean = {"PATH": os.environ["PATH"]}
    subprocess.run([sys.executable, "-I", "-c", ALONE, path], cwd=folder, env=clean, check=True)
    return path


def test_the_same_file_is_taken_by_a_report_with_models(mine, elsewhere, tmp_path):
    sweep, work = mine
    paths, _ = report.build(sweep, work, tmp_path / "out", artifact_bytes=10**9)
    given, nothing = reported.Reported(paths), Work(tmp_path / "nothing")
    folder, target = benches.export_of(sweep, nothing, tmp_path / "again", None, [given])
    assert target == str(paths.folder)  # where measurements of its models can be added
    for file in (path.relative_to(folder) for path in folder.rglob("*") if path.is_file()):
        assert (folder / file).read_bytes() == (tmp_path / "bench" / file).read_bytes()
    remeasure.add(paths.folder, [elsewhere])
    remeasure.add(paths.folder, [elsewhere])  # which counts once
    rows = {row.machine: row for row in report.read_folder(paths.folder).every}
    assert set(rows) == {*report.read(sweep, work).machines, "my-board"}
    assert rows["my-board"].measurement == "my-board-1"
    content = json.loads(elsewhere.read_text())
    for name in ("model_sha256", "base_sha256"):
        content["cells"][0][name] = "0" * 64
        (tmp_path / "wrong.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match="is of another model than that of"):
            remeasure.add(paths.folder, [tmp_path / "wrong.json"])
        content = json.loads(elsewhere.read_text())


def named_as(path, name, **machine):
    """The file with another machine's name; None: after its CPU, as without --name."""
    content = json.loads(path.read_text())
    content["machine"] |= {"name": name, **machine}
    changed = path.with_name(f"as-{name}.json")
    changed.write_text(json.dumps(content))
    return changed


def test_a_file_is_shown_in_a_report_as_in_the_work_root_and_overrides_no_other_machine(
    mine, elsewhere, tmp_path
):
    sweep, work = mine
    [base] = sweep.cells
    paths, before = report.build(sweep, work, tmp_path / "out", artifact_bytes=10**9)
    result = cells.result(work.cell(base.id))
    own = named_as(elsewhere, result.facts["machine"])  # as on the same kind of machine
    content = json.loads(elsewhere.read_text())
    (tmp_path / "twice.json").write_text(json.dumps({**content, "cells": 2 * content["cells"]}))
    first = content["cells"][0]["latency_ms"]
    first["artifact/all/batch1"] = [1e-6] * len(first["artifact/all/batch1"])
    (tmp_path / "other-values.json").write_text(json.dumps(content))
    adds = (
        lambda path: benches.addition(sweep, work, path).publish(work),
        lambda path: remeasure.add(paths.folder, [path]),
    )
    for add in adds:
        with pytest.raises(UserError, match="is called .*, as another that measured cell"):
            add(own)
        with pytest.raises(UserError, match="a cell more than once"):
            add(tmp_path / "twice.json")
        add(elsewhere)
        with pytest.raises(UserError, match="is called my-board, as another"):
            add(named_as(elsewhere, "my-board", cpu="another CPU"))
        with pytest.raises(UserError, match="is called my-board, as another"):
            add(tmp_path / "other-values.json")
        again = {**json.loads(elsewhere.read_text()), "measured_at": "2100-01-01T00:00:00Z"}
        (tmp_path / "again.json").write_text(json.dumps(again))
        add(tmp_path / "again.json")
    read = report.read(sweep, work)
    assert read.rows == before.rows == report.read_folder(paths.folder).rows
    board = {row.machine: row for row in read.every}["my-board"]
    assert board.facts["measured_at"].startswith("2100")
    assert read.every == report.read_folder(paths.folder).every
    # What came into a report before such names were refused is not shown in a machine's place.
    file = benches.read(own)
    remeasure.put(paths, [(base.id, benches.facts_of(file), benches.latencies(file.cells[0]))])
    assert report.read_folder(paths.folder).rows == before.rows


ADD = "import sys; from pipeline import cli; sys.exit(cli.main(sys.argv[1:]))"


def test_what_is_added_by_several_at_once_is_there_of_each(mine, elsewhere, tmp_path):
    sweep, work = mine
    paths, _ = report.build(sweep, work, tmp_path / "out", artifact_bytes=10**9)
    content = json.loads(elsewhere.read_text())
    every = [f"board-{i}" for i in range(4)]
    for name in every:
        content["machine"]["name"] = name
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    lock = paths.lock
    lock.write_text("of a process that was killed")
    os.chmod(lock, 0o600)
    environment = {**os.environ, "PYTHONPATH": str(CODE)}
    adding = [
        subprocess.Popen(
            [sys.executable, "-c", ADD, "measure", paths.folder, "--add", f"{name}.json"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        for name in every
    ]
    assert [process.wait() for process in adding] == [0] * 4
    assert {*every} < {*report.read_folder(paths.folder).machines}
    assert not lock.exists() and not any(".tmp-" in name for name in os.listdir(paths.folder))


def test_a_report_that_another_process_changes_is_waited_for(two, tmp_path, monkeypatch):
    sweep, work = two
    paths, _ = report.build(sweep, work, tmp_path / "out")
    monkeypatch.setattr(store.locks, "WAIT_S", 0.2)
    before = paths.merged.read_bytes()
    with store.lock_folder(paths.lock):
        for change in (
            lambda: report.build(sweep, work, tmp_path / "out"),
            lambda: report.rebuild(paths.folder),
            lambda: put_elsewhere(paths, sweep.cells[2], 2.0),
        ):
            with pytest.raises(UserError, match=f"is being changed by process {os.getpid()} on"):
                change()
    assert paths.merged.read_bytes() == before
    put_elsewhere(paths, sweep.cells[2], 2.0)
    assert paths.merged.read_bytes() != before


def test_a_reports_models_are_measured_again_and_one_that_cannot_be_costs_itself(
    mine, tmp_path, monkeypatch
):
    sweep, work = mine
    paths, _ = report.build(sweep, work, tmp_path / "out", artifact_bytes=10**9)
    lines: list[str] = []
    with cells.one_core():  # the machine that it was measured on before
        assert remeasure.report(paths.folder, tmp_path / "no-images", work.cache, lines.append)
    [row] = report.read_folder(paths.folder).rows
    assert row.measurement.endswith("-2") and row.accuracy > 0.8 and len(lines) == 1

    for error in (UserError("its base cannot be made"), Corrupt("ONNX Runtime cannot run it")):

        def fails(bench, cell, error=error):
            raise error

        monkeypatch.setattr(remeasure, "_measured", fails)
        assert not remeasure.report(paths.folder, work.root, work.cache, lines.append)
        assert lines[-1].endswith(f"not measured: {error}")
    assert [row] == list(report.read_folder(paths.folder).rows)


def test_nothing_is_measured_or_added_where_one_of_several_is_wrong(
    mine, elsewhere, tmp_path, monkeypatch, capsys
):
    sweep, work = mine
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NETPRESS_WORK", str(work.root))
    other = json.loads(elsewhere.read_text())
    other["cells"][0]["model_sha256"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(other))
    (tmp_path / "empty.yaml").write_text((tmp_path / "test.yaml").read_text().replace("700", "699"))
    before = store.measurements(work.cell(sweep.cells[0].id))[0]
    paths, _ = report.build(sweep, work, tmp_path / "out", artifact_bytes=10**9)
    page, folder = paths.page.read_bytes(), str(paths.folder)
    for arguments, said in (
        (["test.yaml", "nosuch"], "nosuch: no such sweep"),
        (["test.yaml", "empty.yaml"], "nothing is trained yet"),
        ([folder, "test.yaml", "--add", str(elsewhere), "--add", "nosuch"], "nosuch: cannot be re"),
        (["test.yaml", "--add", str(elsewhere), "--add", "other.json"], "is of another model"),
        ([folder, "--add", str(elsewhere), "--add", "other.json"], "is of another model"),
    ):
        assert cli.main(["measure", *arguments]) == 2
        assert said in capsys.readouterr().err
        assert store.measurements(work.cell(sweep.cells[0].id))[0] == before
        assert paths.page.read_bytes() == page and not (tmp_path / "reports").exists()


def test_a_model_that_cannot_run_elsewhere_costs_itself(mine, tmp_path):
    sweep, work = mine
    folder = benches.export(sweep, work, tmp_path / "bench")
    request = json.loads((folder / "bench.json").read_text())
    [good] = request["cells"]
    broken = hashlib.sha256(b"no model").hexdigest()
    (folder / "models" / f"{broken}.onnx").write_bytes(b"no model")
    bad = [{**good, "model": broken}, {**good, "model": "0" * 64}]
    (folder / "bench.json").write_text(json.dumps({**request, "cells": [bad[0], good, bad[1]]}))
    path, clean = tmp_path / "measured.json", {"PATH": os.environ["PATH"]}
    command = [sys.executable, "-I", "-c", ALONE, path]
    ran = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True)
    assert ran.returncode == 1 and ran.stderr.count("  not measured: ") == 2
    assert benches.addition(sweep, work, path).publish(work) == ("my-board", 1, 0)


def test_a_folder_without_netpress_measures_and_its_file_is_taken(mine, elsewhere, tmp_path):
    sweep, work = mine
    [base] = sweep.cells
    assert benches.addition(sweep, work, elsewhere).publish(work) == ("my-board", 1, 0)
    benches.addition(sweep, work, elsewhere).publish(work)  # which counts once
    entries, _ = store.measurements(work.cell(base.id))
    assert sorted(e.machine for e in entries if e.machine == "my-board") == ["my-board"]
    assert done.is_done(base, work)  # by the measurement that it had
    [row] = report.as_json(report.read(sweep, work, machine="my-board"))["rows"]
    assert row["latency_ms"]["batch64"]["p50"] > row["latency_ms"]["batch1"]["p50"] > 0
    assert row["accuracy"] > 0.8 and row["classified_on"] != "my-board"
    with pytest.raises(UserError, match="exists already"):
        benches.export(sweep, work, tmp_path / "bench")
    content = json.loads(elsewhere.read_text())
    for change, why in (
        (lambda s: s["cells"][0].update(model_sha256="0" * 64), "is of another model than that"),
        (lambda s: s["cells"][0].update(id="0" * 16), "which is none of test's"),
        (lambda s: s["cells"].append(s["cells"][0]), "has a cell more than once"),
        (lambda s: s["cells"][0]["latency_ms"].update({"artifact/one/batch1": [-1]}), "greater"),
        (lambda s: s["machine"].update(name="../../x"), "machine.name"),
        (lambda s: s.update(format=2), "format"),
    ):
        wrong = json.loads(json.dumps(content))
        change(wrong)
        (tmp_path / "wrong.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=why):
            benches.addition(sweep, work, tmp_path / "wrong.json").publish(work)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a regular file"):
        benches.addition(sweep, work, tmp_path / "pipe").publish(work)
    assert store.measurements(work.cell(base.id))[0] == entries


def test_what_was_measured_before_is_not_overwritten(mine, elsewhere, tmp_path):
    before = elsewhere.read_bytes()
    command, clean = [sys.executable, "-I", "-c", ALONE], {"PATH": os.environ["PATH"]}
    link = tmp_path / "link.json"
    link.symlink_to("nowhere")
    for path in (elsewhere, link):
        ran = subprocess.run(
            [*command, path], cwd=tmp_path / "bench", env=clean, capture_output=True, text=True
        )
        said = f"{path}: exists already; give another file with --out, or remove this one\n"
        assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", said)
    assert elsewhere.read_bytes() == before and not link.exists()


def test_adding_a_file_says_how_many_of_its_cells_are_new(
    mine, elsewhere, tmp_path, monkeypatch, capsys
):
    sweep, work = mine
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NETPRESS_WORK", str(work.root))
    paths, _ = report.build(sweep, work, tmp_path / "out", artifact_bytes=10**9)
    capsys.readouterr()
    for target in ("test.yaml", str(paths.folder)):
        for counted in ("1 cell added", "0 cells added, 1 was there already"):
            assert cli.main(["measure", target, "--add", elsewhere.name]) == 0
            said = f"measured.json, measured on my-board: {counted}"
            assert said in capsys.readouterr().err.splitlines()


# --- where the time goes ---------------------------------------------------------------------


def test_a_timeline_gives_each_moment_to_a_phase():
    now = iter([0.0, 2.0, 3.0, 12.0, 13.0, 15.0, 20.0])
    timeline = Timeline(lambda: next(now))
    for event in (
        {"stage": "0-train"},
        {"stage": "0-train", "epoch": 0, "epochs": 1},
        {"stage": "0-train", "epoch": 1, "epochs": 1},  # the same phase: no look at the clock
        {"stage": "artifact"},
        {"stage": "measure", "what": "accuracy"},
        {"stage": "measure", "what": "latency, one thread"},
    ):
        timeline.event(event)
    seconds = timeline.seconds()
    spent = {"start": 2, "prepare": 1, "train": 9, "export": 1, "evaluate": 2, "measure": 5}
    assert seconds == spent
    assert line([seconds, {**seconds, "train": 20.0}]) == (
        "start 2 s, prepare 1 s, train 14.5 s (57%), export 1 s, evaluate 2 s, measure 5 s"
    )


def test_a_cell_records_where_its_time_went(bench):
    facts = cells.result(bench.work.cell(bench.base.id)).facts
    assert {"start", "train", "export"} <= facts["phases"].keys()
    assert {"evaluate", "measure"} <= facts["phases"].keys()
    assert all(seconds >= 0 for seconds in facts["phases"].values())
