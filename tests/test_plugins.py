"""Plug-ins, as their authors use them: one file outside of the checkout, by the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from pipeline import catalog, execute, plugins, registry, report, store, sweep
from pipeline.errors import Corrupt, UserError
from pipeline.models import network
from pipeline.orchestrate import estimate, plan, rehearse
from pipeline.paths import CODE, Work
from pipeline.report import controls
from pipeline.sweep import Cell
from pipeline.training.checkpoint import read_model
from tests.lab import Lab

EXAMPLE = Path(__file__).with_name("plugin_example")
ADDED = "class S:\n    from pipeline.techniques.settings import StageSettings as Settings\n"
ADDED += "    @staticmethod\n    def apply(state, settings, context):\n        return state\n"


@pytest.fixture(autouse=True)
def only_built_in():
    yield
    registry.fill({})


def copied(folder: Path) -> Lab:
    lab = Lab(folder)
    for name in ("my_plugin.py", "own.yaml"):
        shutil.copy(EXAMPLE / name, folder)
    return lab


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The example's sweep, run once; nobody changes it."""
    lab = copied(tmp_path_factory.mktemp("author"))
    done = lab.run("own.yaml")
    assert done.returncode == 0, done.stderr
    return lab


def loaded(folder: Path) -> sweep.Sweep:
    return plan.load_sweep(folder / "own.yaml")


@pytest.fixture
def written(tmp_path):
    """Writes a plug-in and a sweep that names it; the error of loading the sweep."""

    def written(text: str, more: str = "") -> str:
        (tmp_path / "mine.py").write_text(text)
        (tmp_path / "own.yaml").write_text(
            "name: own\nmodels: [vgg11]\ndatasets: [digits]\n"
            f"techniques: [base]\nplugins:\n  - mine.py\n{more}"
        )
        with pytest.raises(UserError) as error:
            loaded(tmp_path)
        return str(error.value).replace(str(tmp_path.resolve()), "HERE")

    return written


# --- from one end to the other ------------------------------------------------------------------


def test_a_sweep_of_a_plug_in_runs_by_the_command_line(ran):
    rows = {row["technique"]: row for row in ran.json("report", "own.yaml")["rows"]}
    assert set(rows) == {"base", "half-zeros", "base-longer", "zeros-int8"}
    assert {(row["dataset"], row["model"]) for row in rows.values()} == {("stripes", "residual")}
    assert all(row["accuracy"] >= 0.5 for row in rows.values())
    assert (ran.folder / "reports" / "own" / "index.html").is_file()


def test_its_transform_keeps_what_its_stage_made_zero(ran):
    ids = ran.ids("own.yaml")
    loaded(ran.folder)
    state = read_model(ran.work.cell(ids["half-zeros"]).model)
    assert [transform.name for transform in state.spec.transforms] == ["zeroed"]
    weight = state.network.module.inner.weight
    assert float((weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    base = read_model(ran.work.cell(ids["base"]).model).network.module.inner.weight
    assert not (weight == base)[weight != 0].all()  # the others were trained
    plain = network.plain(state).network.module.inner.weight
    assert (plain == weight).all()


def test_its_artifact_predicts_where_the_plug_in_is_not(ran, tmp_path):
    to = tmp_path / "model"
    assert (
        ran.ask("export", "own.yaml", ran.ids("own.yaml")["half-zeros"], "--to", to).returncode == 0
    )
    pixels = np.zeros((8, 8), np.uint8)
    pixels[1::2] = 200
    Image.fromarray(pixels).save(tmp_path / "lying.png")
    elsewhere = Lab(tmp_path / "elsewhere")
    predictions = elsewhere.json("predict", to, tmp_path / "lying.png")["predictions"]
    assert predictions[0]["class"] in ("lying", "standing")


def test_a_report_is_read_where_the_plug_in_is_not(ran, tmp_path):
    shutil.copytree(ran.folder / "reports" / "own", tmp_path / "elsewhere" / "own")
    lab = Lab(tmp_path / "elsewhere")
    folder = lab.folder / "own"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    again = lab.ask("report", "own")
    assert again.returncode == 0, again.stderr
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert before == after and "half-zeros" in again.stdout
    assert lab.ask("verify", "own", "--no-speed").returncode == 0


def test_reading_a_report_runs_nothing_of_the_file_that_it_names(ran, tmp_path):
    """Even where a file with this name, or a copy of it, is there."""
    code = (
        "import sys; from pathlib import Path; from pipeline import report\n"
        f"print(len(report.read_folder(Path({str(ran.folder / 'reports' / 'own')!r})).rows))\n"
        "print([name for name in sys.modules if name.startswith('netpress_plugin')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=CODE, check=True
    )
    assert done.stdout.split("\n")[:2] == ["4", "[]"]


def test_what_controls_compare_is_the_same_without_the_plug_in(ran):
    own_sweep = loaded(ran.folder)
    registry.fill({})
    for cell in own_sweep.cells:
        read = Cell.from_json(json.loads(json.dumps(cell.to_json())), catalog.reading())
        assert read.id == cell.id and read.base_id == cell.base_id
        assert read.to_json() == cell.to_json()
        assert controls.epochs(read) == controls.epochs(cell)
        assert controls.operating_point(read) == controls.operating_point(cell)
    by = {cell.technique: cell for cell in own_sweep.cells}
    assert controls.operating_point(by["half-zeros"]) == {"part": 0.5}
    assert controls.epochs(by["half-zeros"]) == 4 and controls.epochs(by["zeros-int8"]) == 3
    assert controls.belong(by["half-zeros"], by["base-longer"])


def test_a_stranger_cannot_say_just_anything_about_a_stage(ran):
    cell = next(cell for cell in loaded(ran.folder).cells if cell.technique == "half-zeros")
    for about in ({}, {"epochs": "many"}, {"epochs": -1, "fresh": False, "operating_point": {}}):
        data = json.loads(json.dumps(cell.to_json()))
        data["stages"][0]["about"] = about
        with pytest.raises(ValueError):
            Cell.from_json(data, catalog.reading())


# --- identity -----------------------------------------------------------------------------------


def test_an_edited_plug_in_gives_new_cells_and_the_place_does_not(ran, tmp_path):
    first = {cell.technique: cell for cell in loaded(ran.folder).cells}
    copied(tmp_path / "other")
    moved = {cell.technique: cell for cell in loaded(tmp_path / "other").cells}
    assert {k: c.id for k, c in moved.items()} == {k: c.id for k, c in first.items()}
    file = tmp_path / "other" / "my_plugin.py"
    file.write_text(file.read_text() + "# an edit\n")
    edited = loaded(tmp_path / "other")
    assert not {cell.id for cell in edited.cells} & {cell.id for cell in first.values()}
    records = edited.cells[0].to_json()["plugins"]
    assert records == [{"source": str(file.resolve()), "sha256": store.sha256(file)}]


def test_a_plug_in_is_part_of_the_cells_that_use_it_alone(tmp_path):
    copied(tmp_path)
    text = (tmp_path / "own.yaml").read_text().replace("models: [residual]", "models: [vgg11]")
    text = text.replace("datasets: [stripes]", "datasets: [digits]")
    text += "  own-kd:\n    - distill: {student: residual}\n    - finetune\n"
    text += "  plain-kd:\n    - distill: {student: vgg13}\n"
    kd = "base-longer, plain-kd, own-kd, "
    (tmp_path / "own.yaml").write_text(text.replace("base-longer, ", kd))
    cells = {cell.technique: cell for cell in loaded(tmp_path).cells}
    (tmp_path / "plain.yaml").write_text(
        text.replace("plugins: [my_plugin.py]\n", "")
        .replace("half-zeros, base-longer, zeros-int8", "base-longer")
        .partition("define")[0]
    )
    plain = {cell.technique: cell for cell in plan.load_sweep(tmp_path / "plain.yaml").cells}
    assert cells["base"].id == plain["base"].id == cells["half-zeros"].base_id
    assert cells["base-longer"].id == plain["base-longer"].id
    assert "plugins" not in json.dumps(cells["plain-kd"].to_json())
    for name, used in (("zeros-int8", [True, False]), ("own-kd", [True, False])):
        assert [bool(stage.plugins) for stage in cells[name].stages] == used


def test_a_rehearsal_is_of_the_same_plug_in(ran):
    own_sweep = loaded(ran.folder)
    for cell, small in zip(own_sweep.cells, rehearse.sliver(own_sweep).cells, strict=True):
        assert small.plugins == cell.plugins and small.id != cell.id
        assert [s.plugins for s in small.stages] == [s.plugins for s in cell.stages]


def test_a_job_reads_the_copy_and_refuses_another(ran, tmp_path):
    work = Work(tmp_path / "runs")
    own_sweep = loaded(ran.folder)
    cell = own_sweep.cells[0]
    store.make_folder(work.cell(cell.id).folder)
    store.publish_json(work.cell(cell.id).cell_json, cell.to_json())
    with pytest.raises(UserError, match="is not there"):
        execute.read_cell(work.cell(cell.id), catalog.built_in())
    plugins.keep(own_sweep.plugins, work)
    assert execute.read_cell(work.cell(cell.id), catalog.built_in()) == cell
    copy = work.plugin(own_sweep.plugins[0].sha256)
    copy.write_text(copy.read_text() + "\n")
    with pytest.raises(UserError, match="is another file than this cell was made for"):
        execute.read_cell(work.cell(cell.id), catalog.built_in())
    plugins.keep(own_sweep.plugins, work)
    assert execute.read_cell(work.cell(cell.id), catalog.built_in()) == cell


def test_the_report_of_a_job_is_of_the_plug_in_as_it_was(ran, tmp_path):
    """Days may pass, and the file may be the user's next idea, or gone."""
    copied(tmp_path)
    own_sweep, work = loaded(tmp_path), Work(tmp_path / "runs")
    plugins.keep(own_sweep.plugins, work)
    (tmp_path / "my_plugin.py").unlink()
    named = {plugin.source: plugin.sha256 for plugin in own_sweep.plugins}
    again = plan.load_again(own_sweep.path, own_sweep.text, work, named)
    assert [cell.id for cell in again.cells] == [cell.id for cell in own_sweep.cells]


# --- messages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x = 1\n\ny = x.z\n", "HERE/mine.py:3: cannot be imported: AttributeError"),
        ("def f(:\n", "HERE/mine.py:1: cannot be imported: SyntaxError"),
        ("import sys\nsys.exit(3)\n", "HERE/mine.py:2: cannot be imported: SystemExit"),
        ("x = 1\n", "HERE/mine.py: adds nothing; expected one of STAGES, TECHNIQUES, MODELS"),
        (ADDED + "STAGES = {'prune': S}\n", "the stage 'prune' is in netpress already"),
        ("MODELS = {'vgg11': (1, '')}\n", "MODELS: 'vgg11': lacks spec, build, graph"),
        ("MODELS = ['a']\n", "MODELS: expected a dict, name: row"),
        ("STAGES = {'s': 'os'}\n", "STAGES: 's': expected an object of this file, got 'os'"),
        ("class S:\n    Settings = apply = 1\nSTAGES = {'s': S}\n", "its Settings derive from"),
        (
            "TECHNIQUES = {'t': ('', [{'prun': {}}])}\n",
            "'t': unknown stage 'prun'; there are train",
        ),
        ("TECHNIQUES = {'t': [{'prune': {}}]}\n", "'t': expected (a line about it, [{stage:"),
        ("TRANSFORMS = {'t': int}\n", "expected a class of pipeline.models.transforms.Transform"),
        ("DATASETS = {'../d': (1, '')}\n", "expected a name of letters, digits"),
    ],
)
def test_what_is_wrong_with_a_plug_in_is_one_sentence(written, text, problem):
    message = written(text)
    assert "own.yaml:6: plugins[0]: " in message and problem in message and "\n" not in message


def test_a_file_that_is_not_there_and_one_named_twice(written):
    mine = ADDED + "STAGES = {'s': S}\n"
    assert "plugins[1]: HERE/none.py: is not there; expected" in written(mine, "  - none.py\n")
    assert "'mine.py' stands here twice" in written(mine, "  - mine.py\n")


def test_a_name_that_two_plug_ins_have(written, tmp_path):
    (tmp_path / "two.py").write_text(ADDED + "STAGES = {'s': S}\n")
    message = written(ADDED + "STAGES = {'s': S}\n#\n", "  - two.py\n")
    assert message.endswith(
        "two.py: the stage 's' is in mine.py already; give this one another name"
    )


def test_listings_mark_what_a_plug_in_adds(ran):
    for what, name, *named in (
        ("techniques", "half-zeros", "own.yaml"),
        ("models", "residual", "--plugins", "my_plugin.py"),
        ("datasets", "stripes", "own.yaml"),
    ):
        plain = ran.json(what)[what]
        listed = ran.json(what, *named)[what]
        assert name not in plain and set(listed) == {*plain, name}
        assert listed[name].endswith(" (plug-in my_plugin.py)")


def test_a_plan_says_what_it_does_not_know_the_cost_of(tmp_path):
    copied(tmp_path)
    file = tmp_path / "my_plugin.py"
    assert estimate.notes(loaded(tmp_path).cells) == []
    cheap = sum(map(estimate.gpu_seconds, loaded(tmp_path).cells))
    file.write_text(file.read_text().replace('"one residual block", 0.003', '"one residual block"'))
    own_sweep = loaded(tmp_path)
    assert sum(map(estimate.gpu_seconds, own_sweep.cells)) > cheap
    made = plan.plan(own_sweep, Work(tmp_path / "runs"), tmp_path)
    note = "the cost of residual is not known, it counts as a VGG-16 until a cell of it is finished"
    assert made.to_json()["notes"] == [note]


def test_a_data_set_that_does_not_work_costs_its_own_cells(tmp_path):
    lab = copied(tmp_path)
    file = tmp_path / "my_plugin.py"
    file.write_text(file.read_text().replace('return "stripes-1"', 'return {}["my key"]'))
    lab.sweep("base", more="plugins: [my_plugin.py]\n")
    sweep_file = tmp_path / "tiny.yaml"
    sweep_file.write_text(sweep_file.read_text().replace("[digits]", "[stripes, digits]"))
    problem = "data set stripes of plug-in my_plugin.py: key: KeyError: 'my key'"
    done = lab.run("tiny.yaml")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"{problem}; its cells will fail" in done.stderr
    states = {cell["dataset"]: cell for cell in lab.json("status", "tiny.yaml")["cells"]}
    assert states["digits"]["state"] == "done" and states["stripes"]["state"] == "failed"
    assert problem in states["stripes"]["reason"]
    fetched = lab.ask("fetch", "tiny.yaml")
    assert fetched.returncode == 2 and problem in fetched.stderr


# --- installed ----------------------------------------------------------------------------------

ENTRIES = """\
[netpress.stages]
zeros = my_plugin:Zeros
[netpress.transforms]
zeroed = my_plugin:Zeroed
[netpress.techniques]
half-zeros = my_rows:HALF
[netpress.models]
residual = my_rows:RESIDUAL
[netpress.datasets]
stripes = my_rows:STRIPES
"""
ROWS = """\
from my_plugin import DATASETS, TECHNIQUES
HALF = TECHNIQUES["half-zeros"]
RESIDUAL = ("my_plugin:Residuals", "one residual block", 0.003)
STRIPES = DATASETS["stripes"]
"""


def install(folder: Path, version: str = "1.0", entries: str = ENTRIES) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(EXAMPLE / "my_plugin.py", folder)
    (folder / "my_rows.py").write_text(ROWS)
    info = folder / f"netpress_example-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: netpress-example\nVersion: {version}\n"
    )
    (info / "entry_points.txt").write_text(entries)


@pytest.fixture
def package(tmp_path):
    """A user's folder, and the environment in which the example is installed."""
    install(tmp_path / "site")
    lab = Lab(tmp_path / "user")
    text = (EXAMPLE / "own.yaml").read_text().replace("plugins: [my_plugin.py]\n", "")
    text = text.replace("half-zeros, base-longer, zeros-int8", "half-zeros").partition("define")[0]
    (lab.folder / "own.yaml").write_text(text)
    return lab, {"PYTHONPATH": f"{tmp_path / 'site'}:{CODE}"}


def test_an_installed_plug_in_needs_no_line_in_the_sweep(package, tmp_path):
    lab, installed = package
    done = lab.run("own.yaml", **installed)
    assert done.returncode == 0, done.stderr
    rows = lab.json("report", "own.yaml", **installed)["rows"]
    assert [row["technique"] for row in rows] == ["base", "half-zeros"]
    description = lab.json("models", **installed)["models"]["residual"]
    assert description == "one residual block (plug-in netpress-example 1.0)"
    assert "residual" not in lab.json("models")["models"]
    assert lab.json("report", "reports/own")["rows"] == rows  # where it is not installed
    ids = set(lab.ids("own.yaml", **installed).values())
    install(tmp_path / "site", "1.1")
    assert not ids & set(lab.ids("own.yaml", **installed).values())
    [one, *_] = ids
    worker = [
        sys.executable,
        "-m",
        "jobs.compress",
        "--work",
        lab.work.root,
        "--data",
        tmp_path,
        one,
    ]
    lab.work.cell(one).manifest.unlink()
    told = subprocess.run(
        list(map(str, worker)), **lab._facts(installed), capture_output=True
    ).stdout
    assert "netpress-example 1.0: this cell needs it, but here 1.1 is installed" in told


def test_an_installed_plug_in_that_is_broken_costs_only_those_that_name_it(package, tmp_path):
    lab, installed = package
    install(tmp_path / "site", entries="[netpress.techniques]\nhalf-zeros = no_such_module:HALF\n")
    (lab.folder / "plain.yaml").write_text(
        "name: plain\nmodels: [vgg11]\ndatasets: [digits]\ntechniques: [base]\n"
    )
    assert lab.ask("plan", "plain.yaml", **installed).returncode == 0
    text = (lab.folder / "plain.yaml").read_text().replace("base", "half-zeros")
    (lab.folder / "plain.yaml").write_text(text)
    told = lab.ask("plan", "plain.yaml", **installed)
    assert told.returncode == 2 and "Traceback" not in told.stderr
    assert "half-zeros = no_such_module:HALF cannot be imported: ModuleNotFoundError" in told.stderr


def test_an_installed_plug_in_that_ends_the_process_is_told(package, tmp_path):
    lab, installed = package
    (tmp_path / "site" / "my_plugin.py").write_text("import sys\nsys.exit(0)\n")
    told = lab.ask("plan", "own.yaml", **installed)
    assert told.returncode == 2 and "Traceback" not in told.stderr
    assert "half-zeros = my_rows:HALF cannot be imported: SystemExit: 0" in told.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path / "site")
        with pytest.raises(UserError, match="my_plugin:Zeros: cannot be imported: SystemExit: 0"):
            registry.resolved("my_plugin:Zeros")  # a path in a row


def test_an_editable_plug_in_counts_by_its_code_as_well(tmp_path, monkeypatch):
    """Its author changes it without a new version."""
    site = tmp_path / "site"
    install(site)
    info = site / "netpress_example-1.0.dist-info"
    there = metadata.PathDistribution(info)
    monkeypatch.syspath_prepend(site)
    assert plugins._of_distribution(there).plugin.version == "1.0"
    (info / "direct_url.json").write_text('{"url": "file:///h", "dir_info": {"editable": true}}')
    versions = set()
    for edit in ("", "# an edit\n", "# another\n"):
        file = site / "my_plugin.py"
        file.write_text(file.read_text() + edit)
        versions.add(plugins._of_distribution(there).plugin.version)
    assert len(versions) == 3 and all(v.startswith("1.0+sha256.") for v in versions)
    (site / "my_rows.py").unlink()  # broken: told where one of its rows is used
    assert plugins._of_distribution(there).plugin.version not in versions
    assert "my_plugin" not in sys.modules


def test_no_file_of_results_names_code_that_netpress_would_run(ran):
    """What a report has of a plug-in is data: its name, its SHA-256, what its stages reported."""
    with h5py.File(ran.folder / "reports" / "own" / "results.h5") as file:
        cells = [json.loads(cell.attrs["cell"]) for cell in file["cells"].values()]
    assert all(set(plugin) == {"source", "sha256"} for cell in cells for plugin in cell["plugins"])
    with pytest.raises((UserError, Corrupt, ValueError)):
        Cell.from_json(cells[-1], catalog.built_in())
    assert len(report.read_folder(ran.folder / "reports" / "own").rows) == len(cells)
