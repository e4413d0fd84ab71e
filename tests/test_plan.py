"""The plan: what a sweep comes to, without torch, without touching anything."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import catalog, paths, store, sweep
from pipeline.errors import UserError
from pipeline.orchestrate import estimate, plan, state
from pipeline.paths import Work
from pipeline.report import controls
from pipeline.sweep import Measure
from pipeline.techniques import CONTROLS
from tests import cost, results

SHIPPED = sorted(path.stem for path in paths.shipped_sweeps().glob("*.yaml"))
NOTED = {"paper-cpu": "prune.criterion l1 ranks filters by their weights"}  # what it is to show


@pytest.fixture
def planned(tmp_path):
    def planned(name: str = "quickstart") -> plan.Plan:
        return plan.plan(plan.load_sweep(name), Work(tmp_path / "work"), Path("/data"))

    return planned


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_sweep_is_valid_and_opens_with_its_header(name):
    sweep_ = plan.load_sweep(name)
    assert sweep_.name in (name, name.rpartition("-")[0])  # one report for several
    assert sweep_.cells and len(sweep_.notes) == (name in NOTED)
    assert all(NOTED[name] in note for note in sweep_.notes)
    head = sweep_.text.split("\nname:")[0].splitlines()
    assert all(line.startswith("#") for line in head)
    assert f"netpress run {name}" in "\n".join(head)
    sentence = plan.listing("sweeps")[name]
    said = " ".join(line.removeprefix("#").strip() for line in head)
    assert said.startswith(f"{sentence} ") and sentence.endswith(".") and len(sentence) < 120


def test_the_shipped_sweeps_are_those_of_the_design():
    seven = {
        "base",
        "ptq-int8",
        "qat-int8",
        "prune-filters",
        "kd",
        "attention-transfer",
        "small-and-int8",
    }
    quick, paper = plan.load_sweep("quickstart").cells, plan.load_sweep("paper").cells
    assert len(quick) == 7 and {cell.family for cell in quick} == seven
    assert {(c.dataset.name, c.model.label) for c in quick} == {("digits", "vgg16_bn-w0.25")}
    assert {cell.dataset.name for cell in paper} == {"mnist", "cifar10"}
    assert {cell.seed for cell in paper} == {0, 1, 2}
    columns = Counter(cell.model.label for cell in paper)
    assert columns == {"vgg16_bn": 168, "resnet18": 168}
    # Those of techniques that are not the study's, and of the sweep `references`.
    controlled = CONTROLS - {"sparse-random", "scratch-e", "base-anew"}
    assert {cell.family for cell in paper} == seven | {"attention-transfer-kd"} | controlled


def test_the_paper_has_every_control_at_the_operating_points_of_what_it_controls():
    points: dict[str, set] = {}
    for cell in plan.load_sweep("paper").cells:
        point = tuple(sorted(controls.operating_point(cell).items()))
        points.setdefault(cell.family, set()).add(point)
    assert points["prune-filters"] == points["prune-random"] == points["pruned-from-scratch"]
    assert points["student-alone"] == points["kd"] == points["attention-transfer"]
    assert {family: len(distinct) for family, distinct in points.items() if len(distinct) > 1} == {
        "prune-filters": 4,
        "prune-random": 4,
        "pruned-from-scratch": 4,
        "small-and-int8": 4,
        "kd": 2,
        "attention-transfer": 2,
        "attention-transfer-kd": 2,
        "student-alone": 2,
    }


@pytest.mark.parametrize("name, cells", [("frontier", 2 * 3 * 30), ("frontier-cpu", 23)])
def test_the_frontier_has_every_technique_below_8_bits_at_points_that_trace_it(name, cells):
    """What is coded there ends in `encode`; what bytes can be traded in has several points, its
    control the same; on a laptop nothing is downloaded and the network is small."""
    sweep_ = plan.load_sweep(name)
    points = Counter(cell.family for cell in sweep_.cells)
    families = set(catalog.built_in().techniques)
    coded = {f for f in families if catalog.built_in().techniques[f][-1:] == [{"encode": {}}]}
    assert len(coded) == 10 and coded | {"base", "ptq-int8", "sparse-random"} <= set(points)
    assert len(sweep_.cells) == cells and len({cell.id for cell in sweep_.cells}) == cells
    plain = {cell.family for cell in sweep_.cells if "encode" not in {s.name for s in cell.stages}}
    assert plain == {"base", "ptq-int8", "sparse-random"}
    several = {f for f, count in points.items() if count > points["base"]}
    traced = {"deep-compression", "int8-rounded", "rate", "small-and-rate", "small-dense-coded"}
    assert several == traced | {"sparse-random"}
    assert points["sparse-random"] == points["deep-compression"]
    used = {(cell.dataset.name, cell.model.label) for cell in sweep_.cells}
    assert used == (
        {("digits", "vgg16_bn-w0.25")}
        if name == "frontier-cpu"
        else {("cifar10-jpeg", "vgg16_bn"), ("cifar10-jpeg", "resnet20")}
    )


def test_every_technique_there_is_can_be_resolved(tmp_path):
    file = tmp_path / "all.yaml"
    names = ", ".join(catalog.built_in().techniques)
    file.write_text(f"name: all\nmodels: [vgg16_bn]\ndatasets: [digits]\ntechniques: [{names}]\n")
    sweep_ = plan.load_sweep(file)
    assert [cell.technique for cell in sweep_.cells] == list(catalog.built_in().techniques)
    for cell in sweep_.cells:
        assert (
            sweep.Cell.from_json(json.loads(json.dumps(cell.to_json())), catalog.built_in()) == cell
        )


def test_the_plan_has_the_keys_that_stay(planned):
    data = json.loads(json.dumps(planned().to_json()))
    assert {"cells", "jobs", "gpu_hours"} <= set(data)
    for cell in data["cells"]:
        assert list(cell) == ["id", "model", "dataset", "technique", "seed", "stages"]
    for job in data["jobs"]:
        assert list(job) == ["name", "cells", "depends_on", "script"]
    assert [cell["stages"] for cell in data["cells"]][:2] == [["train"], ["quantize"]]
    assert 0 < data["gpu_hours"] < 10 and "none of it was measured" in data["gpu_hours_source"]


def test_a_job_waits_for_its_base_and_the_report_for_all(planned):
    plan_ = planned()
    base, *techniques, report = plan_.jobs
    assert base.depends_on == () and base.cells == (plan_.sweep.cells[0].id,)
    assert {job.depends_on for job in techniques} == {(base.name,)}
    assert report.cells == () and set(report.depends_on) == {job.name for job in plan_.jobs[:-1]}
    assert report.script == "netpress report quickstart"


def test_what_is_done_costs_no_job(tmp_path):
    sweep_, work = results.sweep(techniques=("half",)), Work(tmp_path / "work")
    base, half = sweep_.cells
    before = plan.plan(sweep_, work, tmp_path)
    results.publish(base, work)
    after = plan.plan(sweep_, work, tmp_path)
    assert [job.name for job in after.jobs] == [half.id, "report"]
    assert after.jobs[0].depends_on == () and after.gpu_hours < before.gpu_hours
    assert len(after.to_json()["cells"]) == 2
    assert sum(line.endswith("done") for line in after.lines()) == 1


def test_a_plan_without_a_profile_is_about_this_machine(planned):
    """No command that nobody types, and no time of a GPU that is not there."""
    lines = list(planned().lines())
    assert lines[-3:] == [
        "7 cells, 0 done; `netpress run quickstart` makes the other 7 and then the",
        "  report, on this machine",
        "for a SLURM cluster, --profile NAME shows the jobs and their cost",
    ]
    assert planned().to_json()["jobs"][0]["script"] and planned().to_json()["gpu_hours"] > 0


def test_lines_of_a_table_end_where_the_terminal_does(planned):
    every, narrow = list(planned("paper").lines()), list(planned("paper").lines(80))
    assert max(map(len, every)) > 80 >= max(map(len, narrow))
    assert " ".join(" ".join(every).split()) == " ".join(" ".join(narrow).split())
    rows = narrow[: narrow.index("")]
    assert all(len(line.split()[0]) == 16 or line.startswith(18 * " ") for line in rows[1:])
    listed = list(plan.listing("techniques").items())
    assert list(plan.aligned(("", ""), listed)) == list(plan.aligned(("", ""), listed, 1000))
    assert max(map(len, plan.aligned(("", ""), listed, 60))) <= 60


def test_what_lacks_only_a_measurement_costs_no_training(tmp_path):
    sweep_, work = results.sweep(techniques=("half",)), Work(tmp_path / "work")
    for cell in sweep_.cells:
        results.publish(cell, work)
    other = [replace(cell, measure=Measure(repeats=7)) for cell in sweep_.cells]
    asked = replace(sweep_, cells=tuple(other))
    assert {s.state for s in state.states(asked, work)} == {"trained"}
    planned = plan.plan(asked, work, tmp_path)
    assert len(planned.jobs) == 3 and planned.gpu_hours == 0


def test_the_script_of_a_job_runs_as_it_stands(planned):
    """Here only as far as it reports that there is nothing to do yet: cell.json is not there."""
    script = planned().jobs[0].script
    assert shlex.split(script)[-5:-1] == ["--work", shlex.split(script)[-4], "--data", "/data"]
    completed = subprocess.run(
        ["sh", "-c", f"{script.rsplit(' ', 1)[0]} --help"], capture_output=True, text=True, cwd="/"
    )
    assert completed.returncode == 0 and "python -m jobs.compress" in completed.stdout


def test_planning_touches_nothing(planned, tmp_path):
    planned("paper")
    assert list(tmp_path.iterdir()) == []


def test_estimates_follow_the_work(planned):
    cells = {cell.technique: cell for cell in plan.load_sweep("paper").cells if cell.seed == 0}
    assert estimate.epochs(cells["base"]) == 60 and estimate.epochs(cells["ptq-int8"]) == 0
    assert estimate.gpu_seconds(cells["base"]) > estimate.gpu_seconds(cells["qat-int8"])
    assert estimate.gpu_seconds(cells["ptq-int8"]) == estimate.OVERHEAD_S
    narrow = plan.load_sweep("quickstart").cells[0]
    assert estimate.gpu_seconds(narrow) < estimate.OVERHEAD_S + 5


# --- naming a cell ---------------------------------------------------------------------------


def test_a_cell_has_many_names():
    sweep_ = plan.load_sweep("quickstart")
    kd = next(cell for cell in sweep_.cells if cell.technique == "kd")
    for name in (
        kd.id,
        kd.id[:10],
        "digits/vgg16_bn-w0.25/kd/0",
        "vgg16_bn-w0.25/digits/kd/0",
        "vgg16_bn/digits/kd/0",
        "digits/vgg16_bn/kd/0",
    ):
        assert plan.find_cell(sweep_, name) is kd


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "no cell '' in sweep paper; expected an id, or dataset/model/technique/seed"),
        ("zz", "no cell 'zz' in sweep paper; expected an id"),
        (
            "mnist/vgg16_bn/qat-in8/0",
            "did you mean 'mnist/vgg16_bn/qat-int8/0'? (`netpress plan paper`",
        ),
        ("mnist/vgg16_bn/base/7", "no cell 'mnist/vgg16_bn/base/7' in sweep paper; did you mean"),
    ],
)
def test_a_cell_that_is_not_there(text, said):
    with pytest.raises(UserError) as raised:
        plan.find_cell(plan.load_sweep("paper"), text)
    assert said in str(raised.value)


def test_the_advice_for_a_reports_cells_names_the_sweep_as_it_was_called(tmp_path):
    merged = tmp_path / "ref" / "results.h5"
    store.publish_bytes(merged, b"")
    for name in ("references-cpu", "mine.yaml"):
        sweep_ = dataclasses.replace(results.sweep(), path=merged / name)
        with pytest.raises(UserError, match=f"`netpress plan {name}` lists them"):
            plan.find_cell(sweep_, "zz")


def test_a_beginning_that_several_cells_share():
    sweep_ = results.sweep(techniques=("a", "b", "c"), seeds=range(20))
    first = {}
    for cell in sweep_.cells:
        first.setdefault(cell.id[0], []).append(cell)
    start, cells = max(first.items(), key=lambda item: len(item[1]))
    with pytest.raises(UserError) as raised:
        plan.find_cell(sweep_, start)
    assert f"{shlex.quote(start)}" in str(raised.value) and "matches " in str(raised.value)
    assert f"{cells[0].id} ({cells[0].name})" in str(raised.value)


def test_a_width_may_be_left_out_where_that_is_clear():
    sweep_ = results.sweep(models=(("vgg16_bn", 1.0), ("vgg16_bn", 0.5), ("vgg11", 0.5)))
    wide, narrow, other = sweep_.cells[:3]
    assert plan.find_cell(sweep_, "digits/vgg16_bn/base/0") is wide
    assert plan.find_cell(sweep_, "digits/vgg16_bn-w0.5/base/0") is narrow
    assert plan.find_cell(sweep_, "digits/vgg11/base/0") is other
    sweep_ = results.sweep(models=(("vgg16_bn", 0.25), ("vgg16_bn", 0.5)))
    with pytest.raises(UserError, match="matches .*w0.25/base/0.*w0.5/base/0.*name one of them"):
        plan.find_cell(sweep_, "digits/vgg16_bn/base/0")


# --- without torch, and cheap ----------------------------------------------------------------

HEAVY = ["torch", "numpy", "pandas", "h5py", "onnxruntime", "matplotlib", "submitit", "asyncio"]
LOOK = f"""
import json, resource, sys
count = 0
def note(frame, event, function):
    global count
    count += event in ("call", "c_call")
if "--count" in sys.argv:
    sys.argv.remove("--count")
    sys.setprofile(note)
from pipeline.cli import main
code = main(sys.argv[1:])
sys.setprofile(None)
used = resource.getrusage(resource.RUSAGE_SELF)
heavy = sorted(set({HEAVY}) & set(sys.modules))
found = dict(code=code, heavy=heavy, modules=len(sys.modules), calls=count)
print(json.dumps(found | dict(cpu_s=used.ru_utime + used.ru_stime)), file=sys.stderr)
"""
# Function calls, imports included, are 550,000 for `plan paper --json` and its 336 cells under
# Python 3.11, of which each cell has 540. They were 130,000 more with submitit and a look for every
# cell's folder. A module that is not needed is seen in both.
MOST_MODULES, MOST_CALLS = 372, 560_000


def look(tmp_path, *arguments: str) -> tuple[dict, str]:
    """What a command in a process of its own took, and its standard output."""
    env = {**os.environ, "PYTHONPATH": str(paths.CODE), "NETPRESS_WORK": str(tmp_path / "work")}
    ended = subprocess.run(
        [sys.executable, "-c", LOOK, *arguments],
        env=env,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    usage = json.loads(ended.stderr.splitlines()[-1])
    assert (usage["code"], usage["heavy"]) == (0, []), ended.stderr
    return usage, ended.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        "plan paper",
        "plan paper --json",
        "status paper",
        "techniques",
        "models",
        "datasets",
        "sweeps",
        "--help",
    ],
)
def test_looking_imports_little_and_calls_little(arguments, tmp_path):
    usage, _ = look(tmp_path, *arguments.split(), "--count")
    assert usage["modules"] < MOST_MODULES and usage["calls"] < MOST_CALLS, usage
    assert list(tmp_path.iterdir()) == []


def test_help_needs_no_models(tmp_path):
    """pydantic takes half of the time of the shortest command."""
    usage, _ = look(tmp_path, "--help", "--count")
    assert usage["modules"] < 200 and usage["calls"] < 120_000, usage


@pytest.mark.alone
def test_a_plan_costs_in_proportion_to_its_cells(tmp_path):
    seven = plan.load_sweep("quickstart").text

    def cpu_s(seeds: int) -> float:
        file = tmp_path / f"seeds-{seeds}.yaml"
        listed = ", ".join(map(str, range(seeds)))
        file.write_text(seven.replace("seeds: [0]", f"seeds: [{listed}]"))
        usage, out = look(tmp_path, "plan", str(file), "--json")
        assert len(json.loads(out)["cells"]) == 7 * seeds
        return usage["cpu_s"]

    assert cost.growth(cpu_s, 250, rounds=2) < cost.MOST_GROWTH


def test_cells_that_nobody_began_are_looked_for_together(tmp_path):
    """However many there are, the file system is queried as often."""

    def asked(seeds: int) -> Counter[str]:
        cells = results.sweep(techniques=("half", "third"), seeds=range(seeds))
        calls = cost.calls(lambda: state.find(cells, Work(tmp_path / "work")))
        names = {"open", "stat", "lstat", "listdir", "scandir"}
        return Counter({name: calls[name] for name in names & set(calls)})

    (tmp_path / "work" / "cells").mkdir(parents=True)
    assert asked(40) == asked(1) and asked(1)["listdir"] == 2  # of cells, and of other sweeps


def test_cells_that_may_not_be_listed_are_looked_at_one_by_one(tmp_path, monkeypatch):
    sweep, work = results.sweep(techniques=("half",)), Work(tmp_path / "work")
    results.publish(sweep.cells[0], work)

    def refuse(work):
        raise PermissionError

    monkeypatch.setattr(Work, "begun", refuse)
    assert [s.state for s in state.states(sweep, work)] == ["done", "missing"]
