"""What the README tells a newcomer to type and to write is there."""

from __future__ import annotations

import csv
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.cli import netpress
from pipeline.orchestrate import plan

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks() -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)


def test_the_example_is_a_valid_sweep(tmp_path):
    (tmp_path / "mine.yaml").write_text(blocks()[0])
    cells = plan.load_sweep(str(tmp_path / "mine.yaml")).cells
    labels = {cell.technique for cell in cells}
    assert {"base", "ptq-int8", "kd", "tiny", "prune-filters-0.125"} <= labels
    excluded = [c for c in cells if (c.model.label, c.technique) == ("vgg11_bn-w0.5", "kd")]
    assert excluded == []


def test_a_folder_of_images_is_given_as_the_readme_says(tmp_path):
    folder = tmp_path / "images" / "leaves"
    for part in ["train/oak", "train/elm", "test/oak", "test/elm"]:
        (folder / part).mkdir(parents=True)
    example = {"name": "x", "models": ["vgg11_bn"], "techniques": ["base"], "seeds": [0]}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(example) + blocks()[1])
    (cell,) = plan.load_sweep(str(tmp_path / "x.yaml")).cells
    assert (cell.dataset.name, cell.dataset.size) == ("leaves", 32)
    assert cell.dataset.folder == str(folder)


def test_an_own_network_is_named_as_the_readme_says(tmp_path):
    (tmp_path / "nets.py").write_text("def build(**arguments): ...\n")
    (tmp_path / "ours.safetensors").touch()
    example = {"name": "x", "datasets": ["digits"], "techniques": ["base"], "seeds": [0]}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(example) + blocks()[2])
    cells = plan.load_sweep(str(tmp_path / "x.yaml")).cells
    assert [cell.model.name for cell in cells] == ["mine", "squeeze", "ours"]
    assert cells[0].model.own.arguments == {"width": 32} and cells[2].model.own.weights


def test_the_commands_are_those_that_there_are():
    named = set(re.findall(r"netpress ([a-z]+) (?:SWEEP|ARTIFACT|REPORT)", README))
    named |= {"doctor", "techniques", "models", "datasets", "sweeps"}
    assert named == set(netpress.commands)


def test_the_alias_makes_the_commands_that_are_printed_work_in_every_folder(tmp_path):
    """Pasted in the checkout; bash expands an alias from the next line on."""
    [alias] = re.findall(r"^    (alias netpress=.*)$", README, re.MULTILINE)
    script = f"shopt -s expand_aliases\n{alias}\ncd {tmp_path}\nnetpress sweeps\n"
    ran = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "") and "quickstart " in ran.stdout


def test_the_images_of_the_example_are_made_before_they_are_read():
    made = README.index("    env/run python -m tests.photographs photos\n")
    assert made < README.index("netpress fetch photos.yaml")


def test_the_two_commands_of_the_beginning_work_as_they_are_written():
    """The first names a sweep that ships; the second is what the continuous integration calls."""
    main, tests = re.findall(r"^    (env/run .*?) *#", README, re.MULTILINE)
    assert main.startswith("env/run netpress run ")
    assert len(plan.load_sweep(main.split()[-1]).cells) > 1
    called = [line.strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()]
    assert any(line.startswith(f"{tests} ") for line in called)


def test_the_files_and_sweeps_that_it_names_are_there():
    files = re.findall(r"`((?:env|jobs|pipeline)/[\w./-]*|[A-Z]+|setup\.cfg)`", README)
    files = [f for f in files if "/" in f or f in ("LICENSE", "setup.cfg")]
    assert len(files) > 8
    assert [f for f in files if not (ROOT / f).exists()] == []
    sweeps = {path.stem for path in (ROOT / "jobs" / "sweeps").glob("*.yaml")}
    assert len(sweeps) > 10 and [name for name in sweeps if f"`{name}`" not in README] == []


def test_the_results_at_its_beginning_are_those_of_the_report_that_ships():
    with (ROOT / "reports/frontier/results.csv").open() as file:
        rows = {(r["dataset"], r["model"], r["technique"]): r for r in csv.DictReader(file)}
    lines = re.findall(r"^\| (\S+) \| (\S+), (\S+) \| (.*) \|$", README, re.MULTILINE)
    assert len(lines) >= 3
    for dataset, model, technique, cells in lines:
        row = rows[dataset, model, technique]
        stored, smaller, faster, accuracy = cells.split(" | ")
        number, unit = stored.split()
        assert float(number) * {"kB": 1e3, "MB": 1e6}[unit] == pytest.approx(
            float(row["stored_bytes"]), rel=0.005
        )
        for shown, name in ((smaller, "stored_ratio"), (faster, "speedup_all_batch1")):
            ratio = float(shown.rstrip("\u00d7").replace(",", ""))
            assert ratio == pytest.approx(float(row[name]), rel=0.005), technique
        assert float(accuracy) == pytest.approx(-100 * float(row["accuracy_drop"]), abs=0.005)
