"""The code that jobs run: what was there when they were submitted."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from pipeline import checkout, origin, store
from pipeline.orchestrate import snapshot
from pipeline.paths import CODE, Work
from pipeline.store import files


@pytest.fixture
def code(tmp_path):
    """A small checkout at a commit."""
    folder = tmp_path / "checkout"
    for name in ("pipeline/a.py", "jobs/b.py", "sbatch/c.yaml", "env/run", "setup.cfg", "README"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "env/run").chmod(0o755)
    (folder / "pipeline/__pycache__").mkdir()
    (folder / "pipeline/__pycache__/a.pyc").write_text("compiled")
    git = ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e@x"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    return folder


def test_a_snapshot_is_what_jobs_need_at_its_commit(code, tmp_path):
    work = Work(tmp_path / "work")
    taken = snapshot.of(work, code=code)
    assert not work.root.exists()  # a plan only names it
    snapshot.make(taken)
    names = {p.relative_to(taken.folder).as_posix() for p in taken.folder.rglob("*") if p.is_file()}
    kept = {"pipeline/a.py", "jobs/b.py", "sbatch/c.yaml", "env/run", "setup.cfg"}
    assert names == {*kept, "snapshot.json"}
    assert os.access(taken.folder / "env/run", os.X_OK)
    assert not os.access(taken.folder / "setup.cfg", os.X_OK)
    assert (taken.folder.stat().st_mode & 0o777, taken.folder.parent.name) == (0o700, "code")
    commit = checkout.commit(code)
    assert commit and not commit.endswith("+") and checkout.commit(taken.folder) == commit
    assert checkout.snapshot_id(taken.folder) == taken.id and checkout.snapshot_id(code) is None
    # A job that submits others has its own snapshot to give, not a copy of it.
    again = snapshot.of(work, code=taken.folder)
    assert (again.folder, again.source, again.commit) == (taken.folder, code, commit)


def test_a_snapshot_is_made_once_and_completed_where_it_was_purged(code, tmp_path):
    work = Work(tmp_path / "work")
    first = snapshot.of(work, code=code)
    snapshot.make(first)
    made = (first.folder / "jobs/b.py").stat().st_ino
    (code / "README").write_text("of no job's concern, but the commit has a + now")
    snapshot.make(snapshot.of(work, code=code))
    assert len(list((work.root / "code").iterdir())) == 2
    subprocess.run(["git", "-C", str(code), "checkout", "-q", "README"], check=True)
    snapshot.make(snapshot.of(work, code=code))
    assert (first.folder / "jobs/b.py").stat().st_ino == made
    (first.folder / "jobs/b.py").unlink()
    snapshot.make(snapshot.of(work, code=code))
    assert (first.folder / "jobs/b.py").read_text() == "jobs/b.py"
    shutil.rmtree(first.folder)
    first.folder.mkdir()  # left by a purge
    snapshot.make(snapshot.of(work, code=code))
    assert snapshot._is_whole(first.folder)
    assert not [p for p in (work.root / "code").iterdir() if store.TEMPORARY.fullmatch(p.name)]


def test_what_a_killed_submission_left_of_another_snapshot_goes(code, tmp_path):
    work = Work(tmp_path / "work")
    other = work.code("0" * 16)
    child = os.fork()
    if not child:
        files.beside(other, "tmp").mkdir(parents=True)
        os._exit(0)
    os.waitpid(child, 0)
    mine = files.beside(other, "tmp")  # of a process that is still at it
    mine.mkdir()
    snapshot.make(taken := snapshot.of(work, code=code))
    assert {p.name for p in other.parent.iterdir()} == {mine.name, taken.folder.name}


def test_any_change_of_what_jobs_run_is_another_snapshot(code, tmp_path):
    work = Work(tmp_path / "work")
    before = snapshot.of(work, code=code)
    (code / "jobs/b.py").write_text("changed")
    after = snapshot.of(work, code=code)
    assert before.id != after.id and after.commit == f"{before.commit}+"
    assert snapshot.of(work, live=True, code=code).folder == code


def test_what_runs_is_told(code, tmp_path):
    taken = snapshot.of(Work(tmp_path), code=code).to_json()
    live = snapshot.Code(CODE, "0" * 40).to_json()
    shown = list(snapshot.lines([taken, taken, None, live]))
    assert len(shown) == 2 and f"commit {taken['commit'][:10]} of {code}, snapshot " in shown[0]
    assert f"Code: {CODE} itself, at commit 0000000000 when it was submitted" in shown[1]
    now = checkout.commit()
    assert ("the checkout is at" in shown[1]) == (now != "0" * 40)
    assert origin.loaded().facts()["snapshot"] is None
