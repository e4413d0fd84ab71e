"""The command line: exit codes, sentences, what goes where; what it calls is tested elsewhere."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from pipeline import cli, cli_output, paths, store
from pipeline.errors import Corrupt
from pipeline.orchestrate import plan
from pipeline.paths import Work
from pipeline.report import content
from tests import results

NETPRESS = [sys.executable, str(paths.CODE / "env" / "bin" / "netpress")]
SWEEP = "name: mine\nmodels: [vgg16_bn]\ndatasets: [digits]\ntechniques: [base, kd]\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder, with ./runs as the work root."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ask(here, capsys):
    def ask(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        return code, *capsys.readouterr()

    return ask


@pytest.fixture
def mine(here):
    """A sweep file, its two cells, and its work root."""
    (here / "mine.yaml").write_text(SWEEP)
    sweep = plan.load_sweep("mine.yaml")
    return sweep.cells, Work(here / "runs")


def sentence(err: str) -> str:
    [line] = err.splitlines()
    assert line.startswith("netpress: ")
    return line


@pytest.mark.parametrize(
    "arguments, said",
    [
        (
            "plna quickstart",
            "unknown command 'plna', did you mean 'plan'? (`netpress --help` shows",
        ),
        ("frobnicate", "unknown command 'frobnicate', valid: "),
        ("plan", "Missing argument 'SWEEP' (`netpress plan --help` shows the usage)"),
        ("plan quickstart more", "Got unexpected extra argument (more) (`netpress plan --help`"),
        ("plan quickstart --jsn", "No such option"),
        ("--jsn", "No such option"),
        ("run quickstart --workers 0", "0 is not in the range"),
        ("run quickstart --workers two", "'two' is not a valid integer range"),
        ("run quickstart --device tpu", "'tpu' is not one of 'auto', 'cpu', 'cuda'"),
        ("plan nothing", "nothing: no such sweep file, and no shipped sweep of this name ("),
        ("plan ../nothing.yaml", "no such sweep file"),
        ("plan quickstrat", "no shipped sweep of this name (did you mean 'quickstart'?)"),
        (
            "report nothing",
            "; expected a sweep file (YAML), or a report's folder (with results.h5)",
        ),
        ("export . x", ".: is a folder, expected a sweep file (YAML), or a report's folder"),
        ("measure /nothing", "a report's folder (with results.h5) or an exported model's"),
        ("status .", ".: is a folder, expected a sweep file"),
        (
            "status ''",
            "'': is no name, expected a sweep file (YAML), or the name of one that ships",
        ),
        ("export quickstart digits/vgg16_bn/kdd/0", "did you mean 'digits/vgg16_bn-w0.25/kd/0'?"),
        ("export quickstart kd", "no cell 'kd' in sweep quickstart; did you mean 'digits/vgg16_"),
        ("export quickstart digits/vgg16_bn/kd/0", "has no model to export yet: not run yet"),
        ("predict nowhere image.png", "nowhere"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(ask, here, arguments, said):
    code, out, err = ask(*shlex.split(arguments))
    assert (code, out) == (2, "") and said in sentence(err)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("command", ["run", "plan", "status", "report", "fetch", "export"])
def test_a_bad_sweep_file_is_one_sentence_wherever_it_is_named(ask, here, command):
    (here / "bad.yaml").write_text(SWEEP + "training: {epochs: 0}\n")
    cell = ["x"] if command == "export" else []
    code, out, err = ask(command, "bad.yaml", *cell)
    assert (code, out) == (2, "")
    assert sentence(err) == (
        "netpress: bad.yaml:5: training.epochs: 0 is out of range; expected at least 1 and at most "
        "100000"
    )
    assert sorted(path.name for path in here.iterdir()) == ["bad.yaml"]


def test_no_command_shows_the_commands_in_their_order(ask):
    code, out, _ = ask()
    assert code == 2
    names = [line.split()[0] for line in out.split("Commands:\n")[1].splitlines()]
    assert names[:5] == ["run", "plan", "rehearse", "submit", "status"]
    assert "..." not in out.split("Commands:")[1]  # every line fits into 80 columns


@pytest.mark.parametrize("command", ["run", "status", "report", "measure", "export"])
def test_an_empty_name_is_shown_in_quotes(ask, command):
    cell = ["x"] if command == "export" else []
    code, out, err = ask(command, "", *cell)
    assert (code, out) == (2, "") and sentence(err).startswith("netpress: '': is no name, expected")


def test_what_is_missing_is_fetched_for_the_sweep_by_its_name(ask, here, monkeypatch):
    monkeypatch.setenv("NETPRESS_DATA", str(here / "data"))
    code, _, err = ask("run", "mnist-cpu")
    assert code == 2 and "is missing; `netpress fetch mnist-cpu` brings it" in sentence(err)


def test_help_and_version(ask):
    assert ask("--help")[0] == 0 and ask("run", "--help")[0] == 0
    assert ask("--version") == (0, "netpress, version 0.1.0\n", "")


@pytest.mark.parametrize("what", ["techniques", "models", "datasets", "sweeps"])
def test_listings(ask, what):
    code, out, err = ask(what)
    listed = json.loads(ask(what, "--json")[1])[what]
    assert (code, err) == (0, "") and len(out.splitlines()) == len(listed) > 2
    for name, line in zip(listed, out.splitlines(), strict=True):
        assert line.split()[0] == name and listed[name] in line


def test_plan_and_status_as_one_json_object(ask, mine):
    cells, work = mine
    planned = json.loads(ask("plan", "mine.yaml", "--json")[1])
    assert [cell["id"] for cell in planned["cells"]] == [cell.id for cell in cells]
    results.publish(cells[0], work)
    results.fail(cells[1], work, "exception", "ValueError: no")
    code, out, err = ask("status", "mine.yaml", "--json")
    status = json.loads(out)
    assert (code, err) == (0, "") and status["counts"] == {"done": 1, "failed": 1}
    assert list(status["cells"][1]) == [
        "id",
        "model",
        "dataset",
        "technique",
        "seed",
        "state",
        "attempts",
        "reason",
    ]
    assert status["cells"][1]["reason"] == "exception: ValueError: no"


def test_submit_as_one_json_object_where_nothing_is_left(ask, mine):
    cells, work = mine
    for cell in cells:
        results.publish(cell, work)
    code, out, err = ask("submit", "mine.yaml", "--json")
    submitted = json.loads(out)
    assert (code, submitted["jobs"]) == (0, []) and len(submitted["cells"]) == 2
    assert submitted == json.loads(ask("submit", "mine.yaml", "--dry-run", "--json")[1])


def test_status_for_people(ask, mine):
    cells, work = mine
    results.publish(cells[0], work)
    code, out, _ = ask("status", "mine.yaml")
    assert code == 0 and "digits/vgg16_bn/base/0        done\n" in out
    assert "digits/vgg16_bn/kd/0          missing  not run yet\n\n1 done, 1 missing\n" in out


def test_a_long_json_is_printed_without_being_held_in_memory(tmp_path, monkeypatch):
    result = {"cells": [{"id": f"{n:016x}", "stages": ["train"]} for n in range(60_000)], "n": 1.5}
    monkeypatch.setattr(sys, "stdout", (tmp_path / "out").open("w"))
    tracemalloc.start()
    cli_output.show(result)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    sys.stdout.flush()
    text = (tmp_path / "out").read_text()
    assert json.loads(text) == result and peak < len(text) / 2


def test_logs_without_a_line_say_what_shows_progress(ask, mine):
    cells, work = mine
    attempt = store.new_attempt(work.cell(cells[0].id))
    attempt.log.touch()
    results.publish(cells[0], work)
    code, out, _ = ask("logs", "mine.yaml", cells[0].id)
    _, line = out.splitlines()
    assert code == 0 and line.startswith("nothing was logged; ")
    assert "`netpress status mine.yaml --watch` and `netpress top mine.yaml` show progr" in line
    attempt.log.write_text("a warning\n")
    assert "nothing was logged" not in ask("logs", "mine.yaml", cells[0].id)[1]


def test_logs_show_a_last_line_without_an_end(ask, mine):
    cells, work = mine
    attempt = store.new_attempt(work.cell(cells[0].id))
    attempt.log.write_text("begun\nMemoryError: on the w")
    results.publish(cells[0], work)
    for more in ([], ["--follow"]):
        code, out, _ = ask("logs", "mine.yaml", cells[0].id, *more)
        assert code == 0 and out.splitlines()[1:3] == ["begun", "MemoryError: on the w"]
        assert out.count("MemoryError") == 1


@pytest.mark.parametrize("configured", [True, False])
def test_resume_without_a_cluster_says_how_to_go_on(ask, here, monkeypatch, configured):
    """Slurm's commands as they end without a configuration; and a machine without them."""
    (here / "bin").mkdir()
    for name in ("squeue", "sbatch", "scontrol") if configured else ():
        (here / "bin" / name).write_text(
            f"#!/bin/sh\necho '{name}: error: resolve_ctls_from_dns_srv: Unknown host' >&2\n"
            f"echo '{name}: fatal: Could not establish a configuration source' >&2\nexit 1\n"
        )
        (here / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(here / "bin"))
    code, out, err = ask("resume", "quickstart")
    why = "no cluster is configured for them" if configured else "squeue is not on PATH"
    said = "nothing of quickstart was submitted; on this machine `netpress run quickstart` continue"
    assert (code, out) == (2, "") and said in sentence(err)
    assert why in err and "resolve_ctls" not in err
    if configured:
        code, out, _ = ask("doctor", "--profile", "generic")
        [bad] = [line for line in out.splitlines() if line.startswith("BAD")]
        assert code == 1 and "no cluster is configured" in bad and "resolve_ctls" not in bad


def test_watch_ends_when_nothing_is_left_to_do(ask, mine):
    cells, work = mine
    for cell in cells:
        results.publish(cell, work)
    assert "2 done" in ask("status", "mine.yaml", "--watch")[1]


def test_report(ask, here, mine):
    cells, work = mine
    results.publish(cells[0], work)
    code, out, _ = ask("report", "mine.yaml")
    assert code == 0 and f"Report: {here}/reports/mine/index.html" in out
    assert "digits/vgg16_bn/kd/0" in out and "not run yet" in out
    listed = json.loads(ask("report", "mine.yaml", "--json")[1])
    assert [row["id"] for row in listed["rows"]] == [cells[0].id]
    assert [gap["id"] for gap in listed["gaps"]] == [cells[1].id]
    assert ask("report", "mine.yaml", "--to", "elsewhere")[0] == 0
    assert (here / "elsewhere" / "mine" / "report.md").is_file()


@pytest.mark.parametrize(
    "option",
    ["--open", "--similarity kd", "--similarity ''", "--artifacts 0", "--mlflow tracked"],
)
def test_report_refuses_what_writes_beside_json(ask, here, mine, option):
    results.publish(mine[0][0], mine[1])
    code, out, err = ask("report", "mine.yaml", "--json", *shlex.split(option))
    assert (code, out) == (2, "")
    assert sentence(err) == (
        f"netpress: {option.split()[0]}: with --json nothing is written; expected one of the two"
    )
    assert sorted(path.name for path in here.iterdir()) == ["mine.yaml", "runs"]


def test_the_page_is_opened_in_the_browser_that_is_named(ask, here, mine, monkeypatch):
    cells, work = mine
    results.publish(cells[0], work)
    code = (
        "import sys\nfrom pipeline import cli\n"
        "sys.exit(cli.main(['report', 'mine.yaml', '--open']))"
    )
    browser = here / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {shlex.quote(str(here))}/opened\n')
    browser.chmod(0o755)
    environment = {**os.environ, "BROWSER": str(browser), "PYTHONPATH": str(paths.CODE)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, cwd=here)
    page = here / "reports" / "mine" / "index.html"
    assert (here / "opened").read_text() == page.as_uri()


def test_export(ask, here, mine):
    cells, work = mine
    results.publish(cells[0], work)
    code, out, _ = ask("export", "mine.yaml", cells[0].id[:12])
    folder = here / "digits-vgg16_bn-base-0"
    assert (code, out) == (0, f"{folder}\n") and (folder / "model.onnx").is_file()
    assert ask("export", "mine.yaml", cells[0].name, "--to", "model")[0] == 0
    assert ask("export", "mine.yaml", cells[0].name, "--to", "model")[0] == 2


def test_export_takes_what_only_a_report_has(ask, here, mine):
    """The work root is gone: what the report has is checked against its results.h5."""
    cells, work = mine
    for cell in cells:
        results.publish(cell, work)
    assert ask("report", "mine.yaml", "--artifacts", "50")[0] == 0
    shutil.rmtree(work.root)
    for source in ("mine.yaml", "reports/mine"):
        code, out, err = ask("export", source, cells[1].id, "--to", "model")
        assert (code, out, err) == (0, f"{here}/model\n", "")
        assert (here / "model" / "model.onnx").read_bytes() == b"a model"
        shutil.rmtree(here / "model")
        assert ask("export", source, cells[1].name, "--to", "model", "--encoded")[0] == 0
        shutil.rmtree(here / "model")
    lies = here / "reports" / "mine" / "artifacts" / cells[1].id
    (lies / "model.onnx").write_bytes(b"b model")
    code, out, err = ask("export", "reports/mine", cells[1].id, "--to", "model")
    assert (code, out) == (2, "") and "model.onnx was changed, its SHA-256" in sentence(err)
    shutil.rmtree(lies)
    code, out, err = ask("export", "mine.yaml", cells[1].id, "--to", "model")
    assert code == 2 and "the report reports/mine has its result without the model" in sentence(err)
    code, out, err = ask("export", "reports/mine", "--bench", "bench")
    assert code == 2 and "reports/mine: has no model beside its base's" in sentence(err)
    (here / "reports" / "mine" / "results.h5").write_bytes(b"x")
    code, out, err = ask("export", "reports/mine", cells[1].id, "--to", "model")
    assert code == 2 and "`netpress verify reports/mine` checks the report" in sentence(err)
    assert not (here / "model").exists()


def test_a_report_that_ships_gives_its_models_away(ask, here):
    """The command in its page, in a fresh clone and in whichever folder."""
    page = (paths.shipped_reports() / "frontier" / "report.md").read_text()
    given = {path.name for path in (paths.shipped_reports() / "frontier" / "artifacts").iterdir()}
    commands = [part for part in page.split("`") if part.startswith("netpress export")]
    [command, *_] = [line for line in commands if line.split()[-1] in given]
    code, out, err = ask(*command.split()[1:], "--to", "model")
    assert (code, err) == (0, "") and (here / "model" / "model.onnx").is_file()


def test_what_is_given_away_can_be_read_and_work_stays_private(ask, here, mine):
    cells, work = mine
    results.publish(cells[0], work)
    before = os.umask(0o022)
    try:
        assert ask("export", "mine.yaml", cells[0].id)[0] == 0
        assert ask("report", "mine.yaml", "--artifacts", "50")[0] == 0
        assert ask("report", "reports/mine")[0] == 0
    finally:
        os.umask(before)
    given = [here / "digits-vgg16_bn-base-0", here / "reports"]
    paths = [path for top in given for path in (top, *top.rglob("*"))]
    assert {"index.html", "results.h5", "files.json", "model.onnx"} <= {p.name for p in paths}
    for path in paths:
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path
    kept = [path for path in work.root.rglob("*") if path.stat().st_mode & 0o077]
    assert kept == []


def test_fetch_of_what_ships(ask, mine):
    code, out, err = ask("fetch", "mine.yaml")
    assert (code, out) == (0, "") and "digits: nothing to download" in err


def test_run_gives_its_exit_code_and_finds_what_is_done(ask, mine):
    cells, work = mine
    for cell in cells:
        results.publish(cell, work)
    code, out, err = ask("run", "mine.yaml")
    assert code == 0 and "Smallest good model: digits/vgg16_bn/kd/0" in out and err == ""


def test_notes_go_to_standard_error(ask, here):
    (here / "noted.yaml").write_text(SWEEP + "define: {tiny: [finetune]}\n")
    code, out, err = ask("plan", "noted.yaml", "--json")
    assert code == 0 and json.loads(out)["cells"]
    assert sentence(err).startswith("netpress: note: noted.yaml:5: define.tiny: defined, but no")


@pytest.mark.parametrize(
    "error, code, said",
    [
        (Corrupt("result.h5: damaged"), 1, "netpress: result.h5: damaged"),
        (KeyboardInterrupt(), 130, "netpress: stopped"),
        (OSError(28, "No space left on device", "/full"), 1, "netpress: /full: No space left on"),
        (PermissionError(13, "Permission denied", "/mine"), 1, "netpress: /mine: Permission"),
    ],
)
def test_what_the_world_does_is_one_sentence(ask, monkeypatch, error, code, said):
    def fails(*_):
        raise error

    monkeypatch.setattr(plan, "load_sweep", fails)
    exit_code, out, err = ask("plan", "quickstart")
    assert (exit_code, out) == (code, "") and said in err and "Traceback" not in err


@pytest.mark.parametrize("kind", ["a file", "a loop", "a dead link", "/dev/null", "below a file"])
@pytest.mark.parametrize("variable", ["NETPRESS_WORK", "NETPRESS_DATA"])
@pytest.mark.parametrize("command", ["run", "status", "report", "fetch"])
def test_a_root_that_is_no_folder_is_one_sentence(
    ask, here, mine, monkeypatch, command, kind, variable
):
    (here / "a file").write_text("mine")
    (here / "a loop").symlink_to("a loop")
    (here / "a dead link").symlink_to("nowhere")
    root = here / kind.replace("below a file", "a file/x")  # /dev/null is absolute
    monkeypatch.setenv(variable, str(root))
    before = sorted(here.iterdir())
    code, out, err = ask(command, "mine.yaml")
    assert (code, out) == (2, "") and f"{root}: " in sentence(err) and variable in err
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["plan", "x" * 300], f"{'x' * 300}: File name too long"),
        (["plan", "x" * 300 + "/y.yaml"], "File name too long"),
        (["plan", "/dev/null"], "/dev/null: is not a plain file, expected a sweep file"),
        (["plan", "loop"], "loop: no such sweep file"),
        (["plan", "mine.yaml/x"], "no such sweep file"),
        (["plan", "~nobody-of-this-name/x.yaml"], "there is no such home folder"),
        (["export", "mine.yaml", "digits/vgg16_bn/base/0", "--to", "~nobody-of-this-name"], "home"),
        (["export", "mine.yaml", "digits/vgg16_bn/base/0", "--to", "x" * 300], "File name too lo"),
        (["plan", "mine.yaml", "--profile", "~nobody-of-this-name"], "no such home folder"),
        (["plan", "mine.yaml", "--profile", "x" * 300], "File name too long"),
        (["report", "mine.yaml", "--to", "mine.yaml"], "mine.yaml is not a folder; remove it"),
        (["report", "mine.yaml", "--to", "/proc/x"], "in /proc; run this in a folder that you may"),
        (["report", "mine.yaml", "--to", "/proc/1/x"], "/proc/1/x/mine: the report cannot be wr"),
        (["report", "mine.yaml", "--to", "loop"], "loop"),
        (["report", "mine.yaml", "--to", "x" * 300], "File name too long"),
        (["report", "mine.yaml", "--artifacts", "nan"], "'nan' is not a number of megabytes"),
        (["top", "mine.yaml", "--interval", "nan"], "'nan' is not a number of seconds"),
        (["status", "mine.yaml", "--watch", "--interval", "inf"], "not in the range"),
        (["status", "mine.yaml", "--interval", "5"], "expected --watch as well"),
        (["status", "mine.yaml", "--watch", "--json"], "not with --watch"),
        (["doctor", "--set", "minutes=abc"], "minutes"),
        (["report", "mine.yaml", "--artifacts", "inf"], "'inf' is not a number of megabytes"),
        (["report", "mine.yaml", "--artifacts", "1e400"], "'1e400' is not a number of megabytes"),
        (["plan", "mine.yaml", "--set", "minutes=" + "[" * 100_000], "nested more than 32 levels"),
        (["plan", "mine.yaml", "--set", f"options={'[' * 500}{']' * 500}"], "nested more than 32"),
        (["plan", "mine.yaml", "--set", f"node.gpus={'[' * 34}{']' * 34}"], "nested more than 32"),
    ],
)
def test_what_a_path_or_a_value_cannot_be_is_one_sentence(ask, here, mine, arguments, said):
    cells, work = mine
    results.publish(cells[0], work)
    (here / "loop").symlink_to("loop")
    before = sorted(here.rglob("*"))
    code, out, err = ask(*arguments)
    assert (code, out) == (2, "") and said in sentence(err) and len(err) < 1000
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("root", ["/proc/x", "/proc/1/x", "/sys/x"])
def test_a_work_root_that_cannot_be_written_changes_nothing(ask, here, mine, monkeypatch, root):
    cells, work = mine
    for cell in cells:
        results.publish(cell, work)
    assert ask("report", "mine.yaml")[0] == 0
    before = {p: p.stat().st_mtime_ns for p in here.rglob("*") if p.is_file()}
    monkeypatch.setenv("NETPRESS_WORK", root)
    for command in ("run", "submit", "fetch", "rehearse"):
        code, out, err = ask(command, "mine.yaml")
        assert (code, out) == (2, "") and root in err.splitlines()[-1], command
        assert {p: p.stat().st_mtime_ns for p in here.rglob("*") if p.is_file()} == before


def test_a_home_folder_of_nobody_as_a_root_is_one_sentence(ask, mine, monkeypatch):
    monkeypatch.setenv("NETPRESS_WORK", "~nobody-of-this-name/work")
    code, out, err = ask("status", "mine.yaml")
    assert (code, out) == (2, "") and "no such home folder" in sentence(err)


@pytest.mark.parametrize("folder", ['"a\\0b"', "~nobody-of-this-name/x", "x" * 300, "loop"])
def test_a_folder_of_images_that_cannot_be_is_named_with_its_line(ask, here, folder):
    (here / "loop").symlink_to("loop")
    data = f"[{{name: pets, folder: {folder}}}]"
    (here / "mine.yaml").write_text(SWEEP.replace("[digits]", data))
    code, out, err = ask("plan", "mine.yaml")
    assert (code, out) == (2, "") and "mine.yaml:3: datasets[0].folder: " in sentence(err)


def test_a_report_that_cannot_be_written_is_refused_before_the_work(ask, here, mine):
    (here / "reports" / "mine" / "index.html").mkdir(parents=True)
    code, out, err = ask("run", "mine.yaml")
    assert (code, out) == (2, "") and "index.html: is a folder" in sentence(err)
    assert not (here / "runs").exists()


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_disk_that_fails_while_a_report_is_written_is_one_sentence(
    ask, here, mine, monkeypatch, call
):
    (here / "reports" / "mine").mkdir(parents=True)

    def fails(*_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fails)
        code, out, err = ask("report", "mine.yaml")
    assert (code, out) == (1, "") and "Input/output error" in sentence(err)
    assert f"{here}/reports/mine/" in err


def test_a_defect_shows_its_traceback(ask, monkeypatch):
    monkeypatch.setattr(plan, "load_sweep", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ask("plan", "quickstart")


def test_what_is_written_is_private_to_the_user(ask, here):
    before = os.umask(0)
    try:
        ask("models")
        (here / "file").touch()
        assert (here / "file").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


# --- in processes of their own ---------------------------------------------------------------


def test_the_command_works_from_anywhere(here):
    completed = subprocess.run([*NETPRESS, "plan", "quickstart"], capture_output=True, text=True)
    assert completed.returncode == 0 and "digits/vgg16_bn-w0.25/kd/0" in completed.stdout
    assert "7 cells, 0 done" in completed.stdout and completed.stderr == ""
    completed = subprocess.run([*NETPRESS, "plan", "nothing"], capture_output=True, text=True)
    assert (
        completed.returncode == 2 and completed.stdout == "" and "Traceback" not in completed.stderr
    )


@pytest.mark.parametrize(
    "arguments", ["plan large.yaml", "plan large.yaml --json", "report mine.yaml"]
)
def test_a_reader_that_leaves_is_no_error(mine, here, arguments):
    seeds = ", ".join(map(str, range(3000)))
    (here / "large.yaml").write_text(SWEEP + f"seeds: [{seeds}]\n")
    process = subprocess.Popen(
        [*NETPRESS, *arguments.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() in (0, 1)
    process.stderr.close()


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A line of bash, in which `netpress` is this checkout's."""
    function = f'netpress() {{ {shlex.join(NETPRESS)} "$@"; }}; {line}'
    env = {**os.environ, **environment}
    return subprocess.run(["bash", "-c", function], capture_output=True, text=True, env=env)


def test_a_terminal_that_cannot_show_all_characters_costs_no_report(mine, here):
    cells, work = mine
    for cell in cells:
        results.publish(cell, work)
    for command in ("run", "report"):
        ran = shell(f"netpress {command} mine.yaml", PYTHONIOENCODING="ascii")
        assert (ran.returncode, ran.stderr) == (0, "") and "Report: " in ran.stdout


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-", "2>&-", "> /dev/full"])
def test_nobody_to_show_it_to_is_no_failure(mine, here, closed):
    cells, work = mine
    for cell in cells:
        results.publish(cell, work)
    ran = shell(f"netpress run mine.yaml {closed}")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (here / "reports" / "mine" / "index.html").is_file()
    if "full" not in closed:
        ran = shell(f"netpress status mine.yaml {closed}; netpress plan mine.yaml --json {closed}")
        assert (ran.returncode, ran.stderr) == (0, "")


def test_a_full_disk_under_standard_output_is_one_sentence(mine):
    ran = shell("netpress status mine.yaml > /dev/full")
    assert ran.returncode == 1
    assert ran.stderr == "netpress: standard output: No space left on device\n"


@pytest.mark.parametrize("name", ["my sweep.yaml", "it's $HOME.yaml", "-dash.yaml", "a;b.yaml"])
def test_commands_that_are_shown_can_be_pasted(ask, here, name):
    """Those in the table, the report and the sentences, as bash takes them."""
    (here / name).write_text(SWEEP)
    sweep = plan.load_sweep(name)
    for cell in sweep.cells:
        results.publish(cell, Work(here / "runs"))
    _, out, _ = ask("run", "--", name)
    [command] = [line for line in out.splitlines() if "netpress export" in line]
    assert shell(command).returncode == 0
    page = (here / "reports" / "mine" / "report.md").read_text()
    shutil.rmtree(here / "digits-vgg16_bn-kd-0")
    export = next(part for part in page.split("`") if part.startswith("netpress export"))
    assert shell(export).returncode == 0
    _, _, err = ask("export", "--", name, "kdd")
    listing = next(part for part in err.split("`") if part.startswith("netpress plan"))
    assert "digits/vgg16_bn/kd/0" in shell(listing).stdout
    assert content.repeat(sweep) == f"netpress run {plan.quoted(sweep)}"


def test_the_commands_of_a_plan_can_be_pasted(ask, here, monkeypatch):
    (here / "my sweep.yaml").write_text(SWEEP)
    monkeypatch.setenv("NETPRESS_WORK", str(here / "my work"))
    scripts = [
        job["script"] for job in json.loads(ask("plan", "my sweep.yaml", "--json")[1])["jobs"]
    ]
    assert scripts[-1] == "netpress report 'my sweep.yaml'"
    assert all(str(here / "my work") in shlex.split(script) for script in scripts[:-1])


def test_an_interrupted_run_says_how_to_go_on(mine, here):
    """The real worker, interrupted while it imports what it needs."""
    process = subprocess.Popen([*NETPRESS, "run", "mine.yaml"], stderr=subprocess.PIPE, text=True)
    cells, work = mine
    while not work.cell(cells[0].id).cell_json.exists() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert "netpress: stopped; `netpress run mine.yaml` goes on from the last finished epoch" in err
    assert not store.is_done(work.cell(cells[0].id))
    assert Path("reports").exists() is False
