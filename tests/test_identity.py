"""What a cell's id stands for: versions of what decides weights, and of nothing else; results of
earlier versions are found and told apart; a measurement is made anew without training."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace

import pytest

from pipeline import catalog, done, measuring, store, sweep
from pipeline.orchestrate import plan, state
from pipeline.paths import Work
from pipeline.report import frames
from pipeline.sweep import Cell, Measure, Recipe
from pipeline.versions import SHARED
from tests import cells, results

GOLDEN = {  # of the shipped sweep `paper`
    "mnist/vgg16_bn/base/0": "454cfbd8a469cdf4",
    "mnist/vgg16_bn/qat-int8/0": "96fbed188e1f2d71",
    "mnist/vgg16_bn/prune-filters-0.25/0": "1dd5d5c4a64688d3",
    "mnist/vgg16_bn/small-and-int8-0.0625/0": "8ab2e1f5db01ee0e",
}


def of_version(path, **versions: int) -> dict[str, str]:
    """Technique -> id, as a netpress with these versions of stages reads the sweep file."""
    built_in = catalog.built_in()
    other = replace(built_in, versions={**built_in.versions, **versions})
    return {cell.technique: cell.id for cell in sweep.load(path, other).cells}


@pytest.fixture
def file(tmp_path):
    names = ", ".join(catalog.built_in().techniques)
    path = tmp_path / "all.yaml"
    path.write_text(f"name: all\nmodels: [vgg16_bn]\ndatasets: [digits]\ntechniques: [{names}]\n")
    return path


def aged(cell: Cell, **versions: int) -> Cell:
    """The cell as it was when its stages had these versions."""
    stages = tuple(s.at(versions.get(s.name, s.version)) for s in cell.stages)
    return replace(cell, stages=stages)


# --- versions --------------------------------------------------------------------------------


def test_the_ids_of_the_shipped_study_are_unique_and_stay():
    """If this fails, the results that people have of it are of an earlier version from now on. If
    that is meant, since a version was raised or a setting has another default, accept it here:
    `netpress plan paper --json` has the new ids."""
    paper = plan.load_sweep("paper")
    ids = {cell.name: cell.id for cell in paper.cells}
    assert len(set(ids.values())) == len(paper.cells)
    assert {name: ids[name] for name in GOLDEN} == GOLDEN


@pytest.mark.parametrize("stage", [*catalog.built_in().versions])
def test_raising_a_stages_version_renames_the_cells_that_have_it_and_no_other(file, stage):
    before = of_version(file)
    after = of_version(file, **{stage: catalog.built_in().versions[stage] + 1})
    having = {
        cell.technique
        for cell in sweep.load(file, catalog.built_in()).cells
        if stage in {s.name for s in cell.stages}
    }
    assert having and "base" not in having
    assert {name for name in before if before[name] != after[name]} == having


def test_the_version_of_a_stage_is_that_of_its_module(monkeypatch):
    from pipeline.techniques import quantize

    before = catalog.built_in().versions["quantize"]
    monkeypatch.setattr(quantize, "VERSION", quantize.VERSION + 1)
    assert catalog.built_in().versions["quantize"] == quantize.VERSION == before + 1


@pytest.mark.parametrize("part", ["data", "training"])
def test_raising_the_core_renames_every_cell(file, monkeypatch, part):
    before = of_version(file)
    monkeypatch.setitem(SHARED, part, SHARED[part] + 1)
    after = of_version(file)
    assert not {*before.values()} & {*after.values()}


@pytest.mark.parametrize("part", ["artifact", "measurement"])
def test_what_follows_from_the_weights_renames_none(file, monkeypatch, part):
    before = of_version(file)
    monkeypatch.setitem(SHARED, part, SHARED[part] + 1)
    assert of_version(file) == before


def test_a_cell_says_the_versions_that_it_is_of(file):
    by_technique = {cell.technique: cell for cell in sweep.load(file, catalog.built_in()).cells}
    core = {"data": SHARED["data"], "training": SHARED["training"]}
    assert by_technique["base"].versions == by_technique["base"].to_json()["core"] == core
    assert by_technique["qat-int8"].versions == {**core, "quantize": 2}
    assert by_technique["qat-int8"].to_json()["stages"][0]["version"] == 2


# --- earlier versions ------------------------------------------------------------------------


def test_a_cell_of_format_2_keeps_its_id_and_its_json(file):
    """That format had no versions; how it is measured, and the size of the test set, were in it."""
    [cell] = [c for c in sweep.load(file, catalog.built_in()).cells if c.technique == "qat-int8"]
    *_, old = cell.older()
    data = json.loads(json.dumps(old.to_json()))
    decides = {k: v for k, v in data.items() if k not in ("id", "technique", "family")}
    del decides["dataset"]["folder"]
    text = json.dumps(decides, sort_keys=True, separators=(",", ":"))
    assert set(decides) == {"format", "dataset", "model", "seed", "stages", "recipe", "measure"}
    assert set(decides["stages"][0]) == {"name", "settings"} and decides["format"] == 2
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == old.id
    again = Cell.from_json(old.to_json(), catalog.built_in())
    assert again == old and again.to_json() == old.to_json() and again.base_id == old.base_id
    for change in ({"measure": Measure(repeats=7)}, {"recipe": Recipe(test_images=7)}):
        assert replace(old, **change).id != old.id and replace(cell, **change).id == cell.id


def test_an_id_of_format_2_is_what_it_was():
    """As version 0.1.0 had it in reports and in work roots."""
    from tests.test_sweep import CELL

    *_, old = CELL.older()
    assert (old.id, old.base_id) == ("4c69655f810e7269", "a60b383a15d8ac8d")


def test_older_ids_are_few_differ_and_come_nearest_first(file):
    for cell in sweep.load(file, catalog.built_in()).cells:
        older = list(cell.older())
        assert 2 <= len(older) <= 17 and len({cell.id, *(c.id for c in older)}) == len(older) + 1
        assert older[-1].format == 2 and {c.format for c in older[:-1]} == {3}
        lost = [sum(cell.versions.values()) - sum(c.versions.values()) for c in older[:-1]]
        assert lost == sorted(lost) and lost[0] == 1
        assert all(c.name == cell.name for c in older)
    assert older[0].differs_from(cell) and cell.differs_from(cell) == ""


def test_a_missing_cell_says_that_an_older_version_of_it_is_done(bench):
    work = Work(bench.folder / "older")
    base, cell = bench.cells(["base", "ptq-int8"]).values()
    test_sweep = sweep.Sweep("test", (base, cell), bench.folder / "test.yaml", "")
    results.publish(base, work)
    results.publish(aged(cell, quantize=1), work)
    now = state.find(test_sweep, work).by_id
    assert now[base.id].state == "done"
    assert (now[cell.id].state, now[cell.id].reason) == (
        "missing",
        "done by an older version: quantize 1; run makes it anew",
    )
    assert {job.name for job in plan.plan(test_sweep, work, work.root).jobs} == {cell.id, "report"}


def test_where_the_base_is_of_an_older_version_too_the_cell_waits_and_says_so(tmp_path, bench):
    work = Work(tmp_path)
    base, cell = bench.cells(["base", "ptq-int8"]).values()
    for each in (base, cell):
        *_, old = each.older()
        results.publish(old, work)
    test_sweep = sweep.Sweep("test", (base, cell), bench.folder / "test.yaml", "")
    now = state.find(test_sweep, work).by_id
    reason = "done by an older version: cell format 2; run makes it anew"
    assert (now[base.id].state, now[base.id].reason) == ("missing", reason)
    assert now[cell.id].state == "waiting"
    assert now[cell.id].reason == f"its base {base.id} is missing; {reason}"


def test_a_worker_refuses_a_cell_of_another_version(tmp_path, bench):
    from pipeline import execute
    from pipeline.errors import Corrupt

    cell = aged(bench.cells(["ptq-int8"])["ptq-int8"], quantize=1)
    paths = Work(tmp_path).cell(cell.id)
    store.publish_json(paths.cell_json, cell.to_json())
    with pytest.raises(Corrupt, match=r"of another version of netpress \(quantize 1\)"):
        execute.read_cell(paths, catalog.built_in())


# --- measured anew ---------------------------------------------------------------------------


@pytest.fixture
def trained(bench, tmp_path):
    """A base that is done, in a work root of the test's own."""
    shutil.copytree(bench.work.root, tmp_path / "work")
    return Work(tmp_path / "work"), bench.base


def look(cell: Cell, work: Work) -> tuple[str, str | None]:
    [cell_state] = state.states(sweep.Sweep("test", (cell,), work.root / "test.yaml", ""), work)
    return cell_state.state, cell_state.reason


CHANGES = {
    "settings": ("measured with other settings", {"repeats": 2}, None),
    "artifact": ("by an earlier version of the artifact writer", {}, "artifact"),
    "measurement": ("by an earlier version of the measurement", {}, "measurement"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_cell_that_is_measured_otherwise_is_trained_and_is_not_trained_again(
    trained, monkeypatch, change
):
    work, base = trained
    reason, settings, part = CHANGES[change]
    paths, events = work.cell(base.id), []
    assert look(base, work) == ("done", None)
    if part:
        monkeypatch.setitem(SHARED, part, SHARED[part] + 1)
    cell = replace(base, measure=base.measure.model_copy(update=settings))
    assert cell.id == base.id and look(cell, work) == ("trained", reason)
    kept = (paths.model, paths.artifact / "model.onnx") if part != "artifact" else (paths.model,)
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in kept]
    history = store.read_result(paths.result).history
    cells.run(cell, work, events.append)
    assert not [e for e in events if "epoch" in e]
    made = {"artifact", "measure"} if part == "artifact" else {"measure"}
    assert {e["stage"] for e in events} == made
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in kept] == before
    assert store.read_result(paths.result).history == history
    assert json.loads(paths.cell_json.read_bytes()) == cell.to_json()
    assert store.is_done(paths, deep=True) and look(cell, work) == ("done", None)
    entries, damaged = store.measurements(paths, deep=True)
    assert not damaged and [e.number for e in entries] == [1, 2]
    assert entries[1].made_with == done.record(cell)
    cells.run(cell, work, events.append)
    assert len(store.measurements(paths)[0]) == 2
    if settings:  # what another sweep asks for is there as well: they share the cell in peace
        assert look(base, work) == ("done", None)
        cells.run(base, work, events.append)
        assert len(store.measurements(paths)[0]) == 2


def test_the_size_of_the_test_set_is_a_matter_of_measurement(trained):
    work, base = trained
    smaller = replace(base, recipe=base.recipe.model_copy(update={"test_images": 50}))
    assert look(smaller, work) == ("trained", "measured with other settings")
    cells.run(smaller, work)
    [_, entry], _ = store.measurements(work.cell(base.id))
    assert len(store.read_result(entry.path, entry.sha256).measured["labels"]) == 50


def test_killed_while_it_is_measured_a_cell_is_trained(trained):
    work, base = trained
    shutil.rmtree(work.cell(base.id).measurements)
    assert look(base, work) == ("trained", "all but its measurement")


def test_a_measurement_that_fails_loses_neither_training_nor_an_earlier_one(trained, monkeypatch):
    work, base = trained
    paths = work.cell(base.id)
    before = {
        p: p.read_bytes() for p in paths.folder.rglob("*") if p.is_file() and p.name != "lock"
    }
    again = replace(base, measure=base.measure.model_copy(update={"repeats": 2}))

    def fail(event):
        if event.get("what", "").startswith("latency"):
            raise RuntimeError("the machine was unplugged")

    with pytest.raises(RuntimeError, match="unplugged"):
        cells.run(again, work, fail)
    del before[paths.cell_json], before[paths.manifest]  # they say now what was to be measured
    assert {p: p.read_bytes() for p in before} == before and look(base, work) == ("done", None)
    attempt = store.new_attempt(paths)
    store.write_failure(attempt, store.Failure("exception", "the machine was unplugged"))
    reason = "exception: the machine was unplugged; its training is kept"
    reason = f"its measurement failed: {reason}"
    assert look(again, work) == ("failed", reason) and look(base, work) == ("done", None)


def test_a_damaged_measurement_costs_itself_and_is_named(trained):
    work, base = trained
    paths = work.cell(base.id)
    [entry], _ = store.measurements(paths)
    entry.path.write_bytes(entry.path.read_bytes()[:-1])
    state, reason = look(base, work)
    assert state == "trained" and reason.startswith(f"damaged: measurements/{entry.path.name}: is")
    whole = frames.read(sweep.Sweep("test", (base,), work.root / "test.yaml", ""), work)
    assert not whole.rows and whole.gaps[0].reason == reason
    cells.run(base, work)
    assert look(base, work) == ("done", None)
    assert [e.number for e in store.measurements(paths)[0]] == [2]


def put_into_result(cell: Cell, work: Work, result: store.Result) -> bytes:
    """Work roots that are older than measurements with files of their own; returns result.h5."""
    paths = work.cell(cell.id)
    shutil.rmtree(paths.measurements)
    facts = {k: v for k, v in result.facts.items() if k not in ("machine", "runtimes")}
    facts |= {done.MADE_WITH: done.record(cell)}
    as_it_was = store.result_bytes(cell.to_json(), facts, result.history, result.measured)
    store.publish_bytes(paths.result, as_it_was)
    store.write_manifest(paths, {done.MADE_WITH: done.record(cell)})
    return as_it_was


def test_an_earlier_measurement_stays_that_of_its_artifact(trained):
    """A process was killed between a new artifact and the new result.h5."""
    work, base = trained
    paths = work.cell(base.id)
    put_into_result(base, work, cells.result(paths))
    artifact = store.artifact_sha256(store.verify(paths)["files"])
    for model in (b"another", b"a third"):
        measuring.keep_earlier(paths)
        (paths.artifact / "model.onnx").write_bytes(model)
    [entry], _ = store.measurements(paths)
    assert entry.artifact == artifact


def test_what_an_earlier_version_measured_in_result_h5_counts(trained):
    work, base = trained
    paths = work.cell(base.id)
    result = cells.result(paths)
    as_it_was = put_into_result(base, work, result)
    assert look(base, work) == ("done", None)
    other = replace(base, measure=base.measure.model_copy(update={"repeats": 2}))
    assert look(other, work) == ("trained", "measured with other settings")
    test_sweep = sweep.Sweep("test", (base,), work.root / "test.yaml", "")
    [row] = frames.read(test_sweep, work).rows
    assert row.accuracy == result.measured["accuracy"] and row.measurement == ""
    assert row.machine == result.facts["machine"] and row.speedup("all", 1) == 1
    cells.run(other, work)
    assert paths.result.read_bytes() == as_it_was
    assert look(other, work) == look(base, work) == ("done", None)
    store.retract(paths)  # as where a process was killed that was about to write it anew
    cells.run(other, work)
    assert "accuracy" not in store.read_result(paths.result).measured
    assert look(other, work) == look(base, work) == ("done", None)  # both are still there
    again = frames.read(test_sweep, work).rows
    assert [row.accuracy for row in again] == [row.accuracy]


def test_cell_json_is_not_changed_under_a_manifest(trained):
    """What vouches for the file is made anew with it; while a process works on it, neither is."""
    work, base = trained
    paths = work.cell(base.id)
    before = paths.cell_json.read_bytes()
    done.publish_cell(paths, before)
    assert store.is_done(paths, deep=True)
    with store.lock_cell(paths), pytest.raises(store.Busy):
        done.publish_cell(paths, b"{}")
    assert paths.cell_json.read_bytes() == before and store.is_done(paths, deep=True)
    done.publish_cell(paths, b"{}")
    assert paths.cell_json.read_bytes() == b"{}" and store.is_done(paths, deep=True)


def test_a_record_is_the_same_from_a_cell_and_from_its_json(bench):
    assert done.record_of_json(bench.base.to_json()) == done.record(bench.base)
    more = replace(bench.base, measure=Measure(runtimes=("onnxruntime", "openvino")))
    assert done.record_of_json(json.loads(json.dumps(more.to_json()))) == done.record(more)
    assert done.record(more)["measure"]["runtimes"] == ["onnxruntime", "openvino"]
