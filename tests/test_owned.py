"""A report replaces and removes its own files, and nobody else's."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from pipeline import report, store
from pipeline.errors import UserError
from pipeline.paths import ReportPaths, Work
from pipeline.report.owned import KEY, Owned, read
from pipeline.store import files as files_module
from tests import results

pytestmark = pytest.mark.usefixtures("made_once")


@pytest.fixture
def sweep():
    return results.sweep(techniques=())


@pytest.fixture
def work(sweep, tmp_path):
    work = Work(tmp_path / "work")
    for cell in sweep.cells:
        results.publish(cell, work)
    return work


@pytest.fixture
def made(sweep, work, tmp_path) -> ReportPaths:
    return report.build(sweep, work, tmp_path / "reports", 10**9)[0]


@pytest.fixture
def docs(tmp_path) -> Path:
    """A folder of the user's, with files of the kinds that a report has."""
    folder = tmp_path / "docs"
    (folder / "deep").mkdir(parents=True)
    for name in ("thesis.svg", "thesis.pdf", "thesis.tex", "notes", "deep/er"):
        (folder / name).write_text("mine")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_the_list_names_all_that_a_report_has(made):
    assert read(made) == set(files(made.folder))
    assert json.loads(made.listing.read_bytes())[KEY] == sorted(files(made.folder))


def test_two_that_make_the_same_report_at_once_are_in_nobodys_way(made):
    """The second looked at the folder before the first claimed a figure, and claims it after that
    was written."""
    first, second = Owned.of(made), Owned.of(made)
    first.claim(["figures/new.svg"])
    (made.figures / "new.svg").write_text("drawn")
    second.claim(["figures/new.svg"])
    (made.figures / "theirs.svg").write_text("drawn by hand")
    with pytest.raises(UserError, match=r"theirs.svg: is there already"):
        second.claim(["figures/theirs.svg"])


def test_the_next_report_clears_what_a_killed_one_left(sweep, work, made, tmp_path):
    """Of a dead process of this machine; not of a living one, nor of one of another machine."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    host = files_module._host()
    left = [
        made.folder / f".results.h5.tmp-{ended.pid}-{host}00000000",
        made.figures / f".latency.svg.tmp-{ended.pid}-{host}00000000",
    ]
    kept = [
        made.folder / f".results.h5.tmp-{os.getpid()}-{host}00000000",
        made.folder / f".results.h5.tmp-{ended.pid}-00000000",
    ]
    folder = made.artifacts / f".{'0' * 16}.tmp-{ended.pid}-{host}00000000"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"half")
    for path in (*left, *kept):
        path.write_bytes(b"half")
    report.build(sweep, work, tmp_path / "reports", 10**9)
    assert not any(path.exists() for path in (*left, folder))
    assert all(path.exists() for path in kept)


@pytest.mark.parametrize("name", ["figures", "tables", "artifacts"])
@pytest.mark.parametrize("first", [True, False])
def test_a_link_in_the_place_of_a_folder_is_refused(name, first, sweep, work, docs, tmp_path):
    out, before = tmp_path / "reports", files(docs)
    paths = ReportPaths(out / sweep.name)
    if not first:
        report.build(sweep, work, out, 10**9)
        os.rename(paths.folder / name, tmp_path / "away")
    paths.folder.mkdir(parents=True, exist_ok=True)
    (paths.folder / name).symlink_to(docs)
    were = files(paths.folder)
    for most_bytes in (None, 0, 10**9):
        with pytest.raises(UserError, match=f"{name}: is a link"):
            report.build(sweep, work, out, most_bytes)
    if not first:
        with pytest.raises(UserError, match=f"{name}: is a link"):
            report.rebuild(paths.folder)
    assert files(docs) == before and files(paths.folder) == were


def test_a_link_in_the_place_of_a_model_is_refused(sweep, work, made, docs):
    before, cell = files(docs), made.artifact(sweep.cells[0].id)
    for name in files(cell):
        (cell / name).unlink()
    (cell / "notes").rmdir()
    cell.rmdir()
    cell.symlink_to(docs)
    with pytest.raises(UserError, match=f"{cell.name}: is a link"):
        report.build(sweep, work, made.folder.parent, 0)
    assert files(docs) == before


def test_the_whole_folder_may_be_a_link(sweep, work, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / sweep.name).symlink_to(tmp_path / "elsewhere")
    report.build(sweep, work, tmp_path / "reports")
    assert (tmp_path / "elsewhere" / "index.html").is_file()


@pytest.mark.parametrize(
    "name", ["index.html", "report.md", "results.csv", "results.h5", "sweep.yaml", "files.json"]
)
def test_a_first_report_replaces_no_file_of_a_stranger(name, sweep, work, tmp_path):
    folder = tmp_path / "reports" / sweep.name
    folder.mkdir(parents=True)
    (folder / name).write_text('["mine"]')
    for _ in range(2):
        with pytest.raises(UserError, match=name):
            report.build(sweep, work, tmp_path / "reports")
        assert files(folder) == {name: b'["mine"]'}


@pytest.mark.parametrize("name", ["figures/latency.svg", "tables/results-digits-vgg16_bn.tex"])
def test_nor_one_that_has_the_name_of_a_figure_or_a_table(name, sweep, work, tmp_path):
    path = tmp_path / "reports" / sweep.name / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    for _ in range(2):
        with pytest.raises(UserError, match=f"{name}: is there already, and no file of this rep"):
            report.build(sweep, work, tmp_path / "reports")
        assert path.read_text() == "mine"
    path.unlink()
    report.build(sweep, work, tmp_path / "reports")
    assert path.read_text() != "mine"


def test_what_the_user_put_into_a_report_stays(sweep, work, made):
    cell = made.artifact(sweep.cells[0].id)
    mine = ["notes", "figures/x.svg", "figures/x.pdf", "tables/x.tex", "artifacts/x"]
    mine += ["artifacts/0123456789abcdef/model.onnx"]
    for name in mine:
        (made.folder / name).parent.mkdir(exist_ok=True)
        (made.folder / name).write_text("mine")
    for most_bytes in (None, 10**9, 0):
        report.build(sweep, work, made.folder.parent, most_bytes)
    report.rebuild(made.folder)
    assert all((made.folder / name).read_text() == "mine" for name in mine)
    assert not cell.exists() and not any("artifacts" in name for name in read(made))


def test_a_model_is_not_replaced_while_another_file_lies_with_it(sweep, work, made):
    cell = made.artifact(sweep.cells[0].id)
    (cell / "deep").mkdir()
    (cell / "deep" / "mine").write_text("mine")
    with pytest.raises(UserError, match="deep/mine: is there already, and no file of this report"):
        report.build(sweep, work, made.folder.parent, 10**9)
    report.build(sweep, work, made.folder.parent, 0)
    assert files(cell) == {"deep/mine": b"mine"}


def test_what_an_earlier_report_made_goes(sweep, work, made):
    for cell in sweep.cells:
        work.cell(cell.id).result.write_bytes(b"damaged")
    before = set(files(made.folder))
    report.build(sweep, work, made.folder.parent)
    after = set(files(made.folder))
    assert {name.partition("/")[0] for name in before - after} == {"figures", "tables", "artifacts"}
    assert read(made) == after and not any("/" in name for name in after)


def test_killed_after_any_file_the_next_report_knows_what_is_its_own(sweep, work, tmp_path):
    """The names of a report are in the list before their files are there, and until they go."""
    out = tmp_path / "reports"
    for number in range(1, 200, 6):
        child = os.fork()
        if not child:
            _die_at(number)
            report.build(sweep, work, out, 10**9)
            os._exit(0)
        died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        paths = ReportPaths(out / sweep.name)
        assert final(paths) <= (read(paths) or set()), number
        if died == 0:
            break
    assert 10 < number < 199
    made = report.build(sweep, work, out, 10**9)[0]
    assert read(made) == final(made)


def final(paths: ReportPaths) -> set[str]:
    """All files but temporaries, and the lock of a dead process."""
    there = files(paths.folder) if paths.folder.exists() else {}
    passing = (".tmp-", ".old-", paths.lock.name)
    return {name for name in there if not any(part in name for part in passing)}


def _die_at(number: int) -> None:
    """This process ends in place of its number-th rename or removal of a file."""
    made = iter(range(1, 10_000))

    def wrap(real):
        return lambda *a, **k: os._exit(9) if next(made) == number else real(*a, **k)

    os.replace, os.rename, os.unlink = map(wrap, (os.replace, os.rename, os.unlink))


def test_a_list_of_a_stranger_leads_nowhere(sweep, work, made, docs, tmp_path):
    listed = [*read(made), "../../docs/notes", str(docs / "notes"), "figures/../../../docs/notes"]
    listed += ["figures/.", "artifacts/0123456789abcdef/../../../../docs/notes", "mine"]
    listed += ["artifacts/0123456789abcdef/link/notes"]
    (made.artifacts / "0123456789abcdef").mkdir()
    (made.artifacts / "0123456789abcdef" / "link").symlink_to(docs)
    (made.folder / "mine").write_text("mine")
    store.publish_json(made.listing, {KEY: listed})
    before = files(docs)
    report.build(sweep, work, made.folder.parent, 0)
    assert files(docs) == before and (made.folder / "mine").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"netpress_report": 1}', "[" * 100_000])
def test_what_is_no_list_is_a_sentence(text, sweep, work, made):
    made.listing.write_text(text)
    with pytest.raises(UserError, match="files.json: is not the list"):
        report.build(sweep, work, made.folder.parent)


@pytest.mark.parametrize("kind", ["pipe", "sparse", "full"])
def test_a_list_that_cannot_be_read_whole_is_a_sentence(kind, sweep, work, made):
    made.listing.unlink()
    if kind == "pipe":
        os.mkfifo(made.listing)  # which nobody writes to
    elif kind == "sparse":
        with open(made.listing, "wb") as file:
            file.truncate(20 << 30)
    else:
        made.listing.write_text('{"netpress_report": [' + "[]," * 5_000_000 + "[]]}")
    for make in (
        lambda: report.rebuild(made.folder),
        lambda: report.build(sweep, work, made.folder.parent),
    ):
        with pytest.raises(UserError, match="files.json: is not the list"):
            make()


def test_a_report_without_a_list_is_made_anew_and_loses_nothing(sweep, work, made):
    before = files(made.folder)
    made.listing.unlink()
    (made.figures / "old.svg").write_text("whose?")
    report.rebuild(made.folder)
    assert (made.figures / "old.svg").read_text() == "whose?"
    assert read(made) == {name for name in before if not name.startswith("artifacts/")}


def test_names_that_another_process_adds_meanwhile_stay(sweep, made):
    mine = Owned.of(made)
    other = Owned.of(made)
    other.claim(["figures/theirs.svg"])
    mine.remove(["figures/latency.svg"])
    mine.publish()
    assert "figures/theirs.svg" in read(made) and "figures/latency.svg" not in read(made)


def test_a_folder_in_the_place_of_a_file_is_named_before_anything_is_written(sweep, work, tmp_path):
    folder = tmp_path / "reports" / sweep.name
    (folder / "index.html").mkdir(parents=True)
    with pytest.raises(UserError, match="index.html: is a folder, expected a file"):
        report.build(sweep, work, tmp_path / "reports")
    assert os.listdir(folder) == ["index.html"]
