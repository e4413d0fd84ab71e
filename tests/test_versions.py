"""Results of earlier versions: shown while there are no newer ones, told and marked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline import catalog, report, versions
from pipeline.orchestrate import state
from pipeline.paths import Work
from pipeline.report import content
from pipeline.report import versions as shown
from pipeline.sweep import Core, load
from pipeline.techniques import quantize
from tests import cells, results

CHAIN = {"tiny": [{"quantize": {"reduce_range": "off"}}]}


@pytest.fixture
def finished(bench, tmp_path):
    """A sweep whose cells are done: the base, and one that quantizes."""
    made = bench.cells(["base", "tiny"], define=CHAIN)
    cells.run(made["tiny"], bench.work)
    path = bench.folder / "test.yaml"
    return path


def again(path):
    catalog.built_in.cache_clear()
    return load(path, catalog.built_in())


def test_a_raised_version_makes_its_cells_new_and_shows_the_old(bench, finished, monkeypatch):
    before = again(finished)
    monkeypatch.setattr(quantize, "VERSION", quantize.VERSION + 1)
    try:
        sweep = again(finished)
        assert [c.id for c in sweep.cells][0] == [c.id for c in before.cells][0]  # the base
        old, new = before.cells[1], sweep.cells[1]
        assert new.id != old.id and new.base_id == old.base_id
        [_, now] = state.find(sweep, bench.work).cells
        assert now.state == "missing"
        assert now.reason == "done by an older version: quantize 2; run makes it anew"
        frames = report.read(sweep, bench.work)
        assert [row.id for row in frames.rows] == [c.id for c in before.cells]
        assert frames.gaps == ()
    finally:
        monkeypatch.undo()
        catalog.built_in.cache_clear()


def test_an_earlier_report_has_cells_of_earlier_versions(bench, finished, tmp_path, monkeypatch):
    """Also where the work root has nothing any more; a newer result goes before it."""
    before = [cell.id for cell in again(finished).cells]
    folder = report.build(again(finished), bench.work, tmp_path / "first")[0].folder
    monkeypatch.setattr(quantize, "VERSION", quantize.VERSION + 1)
    try:
        sweep, purged = again(finished), Work(tmp_path / "purged")
        assert [cell.id for cell in sweep.cells] != before
        assert [row.id for row in report.read(sweep, purged, folder).rows] == before
        paths, built = report.build(sweep, purged, tmp_path / "again", earlier=folder)
        assert [row.id for row in built.rows] == before and built.gaps == ()
        assert [row.id for row in report.read_folder(paths.folder).rows] == before
        results.publish(sweep.cells[1], purged)
        newer = [row.id for row in report.read(sweep, purged, folder).rows]
        assert newer == [before[0], sweep.cells[1].id]
    finally:
        monkeypatch.undo()
        catalog.built_in.cache_clear()


def test_rows_that_are_behind_are_told_and_marked(bench, finished):
    sweep = again(finished)
    base, row = report.read(sweep, bench.work).rows
    ahead = replace(
        row,
        id="f" * 16,
        seed=1,
        versions=tuple((n, v + (n == "quantize")) for n, v in row.versions),
    )
    assert shown.behind([base, row]) == {}
    assert shown.behind([base, row, ahead]) == {row.id: "quantize 2"}
    told = shown.sentence([base, row, ahead])
    assert told == "Results of earlier versions of netpress are marked †: tiny (quantize 2)."
    [table] = content.tables(content.Frames((base, row, ahead), ()), content.RESULTS)
    assert [line[0].text for line in table.lines] == ["base", "tiny †"]


def test_what_needs_vnni_is_told(bench, finished):
    sweep = again(finished)
    rows = report.read(sweep, bench.work).rows
    assert shown.needs(rows[:1]) == ""
    assert "the artifacts of tiny need a CPU with VNNI" in shown.needs(rows)


def test_the_shared_versions_rename_everything(bench, monkeypatch):
    sweep = bench.cells(["base", "tiny"], define=CHAIN)
    ids = {cell.id for cell in sweep.values()}
    monkeypatch.setitem(versions.SHARED, "training", versions.SHARED["training"] + 1)
    renamed = {replace(cell, core=Core()).id for cell in sweep.values()}
    assert not ids & renamed
    monkeypatch.undo()
    monkeypatch.setitem(versions.SHARED, "artifact", versions.SHARED["artifact"] + 1)
    assert {replace(cell, core=Core()).id for cell in sweep.values()} == ids
