from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import arguments, paths
from pipeline.errors import UserError
from pipeline.paths import CODE, Work

ID = "0123456789abcdef"


def test_a_cells_files_lie_in_its_folder(tmp_path):
    cell = Work(tmp_path).cell(ID)
    assert cell.id == ID and cell.folder == tmp_path / "cells" / ID
    for path in (
        cell.cell_json,
        cell.result,
        cell.metrics,
        cell.manifest,
        cell.lock,
        cell.checkpoint,
        cell.artifact,
        cell.attempts,
    ):
        assert path.parent == cell.folder
    assert cell.attempt(3).log.parent == cell.attempts / "3" and cell.attempt(3).number == 3


@given(st.text(max_size=40))
def test_no_name_leads_out_of_the_work_root(text):
    work = Work("/work-root")
    for make, parent in ((work.cell, "/work-root/cells"), (work.sweep, "/work-root/sweeps")):
        try:
            folder = make(text).folder
        except ValueError:
            continue
        assert str(folder.parent) == parent and "/" not in text and set(text) != {"."}


@pytest.mark.parametrize("bad", ["", "../x", "ABCDEF0123456789", ID + "0", ID + "\n", "."])
def test_what_is_no_cell_id_is_refused(bad):
    with pytest.raises(ValueError, match="16 hexadecimal"):
        Work("x").cell(bad)


@pytest.mark.parametrize(
    ("function", "variable", "default"),
    [
        (paths.work_root, "NETPRESS_WORK", "runs"),
        (paths.data_root, "NETPRESS_DATA", "netpress/data"),
    ],
)
def test_roots_come_from_the_environment_then_the_profile(
    function, variable, default, monkeypatch, tmp_path
):
    monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    assert str(function()).endswith(default) and function().is_absolute()
    assert str(function("$SCRATCH/netpress")) == "/scratch/me/netpress"
    monkeypatch.setenv(variable, str(tmp_path))
    assert function("/elsewhere") == tmp_path
    monkeypatch.setenv(variable, "")
    assert str(function("/elsewhere")) == "/elsewhere"


def test_home_is_expanded(monkeypatch):
    monkeypatch.delenv("NETPRESS_WORK", raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert str(paths.work_root("~/w")) == "/home/me/w"


def test_a_sweep_is_a_file_or_a_shipped_name(tmp_path, monkeypatch):
    shipped = tmp_path / "jobs" / "sweeps"
    shipped.mkdir(parents=True)
    (shipped / "quickstart.yaml").write_text("name: quickstart\n")
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    monkeypatch.setattr(paths, "CODE", tmp_path)
    assert arguments.sweep_file("quickstart") == shipped / "quickstart.yaml"
    assert arguments.sweep_file(tmp_path / "mine.yaml") == tmp_path / "mine.yaml"
    with pytest.raises(UserError, match="quikstart: no such sweep file.*quickstart"):
        arguments.sweep_file("quikstart")
    with pytest.raises(UserError, match="is a folder"):
        arguments.sweep_file(str(tmp_path))


def test_shipped_sweeps_lie_next_to_the_code():
    assert paths.shipped_sweeps() == CODE / "jobs" / "sweeps"
    assert (CODE / "pipeline" / "paths.py").is_file()


def test_reports_are_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = paths.report("quickstart")
    assert report.markdown == tmp_path / "reports" / "quickstart" / "report.md"
    assert report.svg("a").parent.parent == report.latex("a").parent.parent == report.folder
