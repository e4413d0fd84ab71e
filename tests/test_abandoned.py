"""What killed processes left is cleared without a lock, and never at the cost of others."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import re
import stat
import subprocess
import time
from pathlib import Path

import pytest

from pipeline import store
from pipeline.store import files
from tests import injected


@pytest.fixture(scope="module")
def dead() -> int:
    ended = subprocess.Popen(["true"])
    ended.wait()
    return ended.pid


@pytest.fixture
def host(monkeypatch):
    """Sets the name of this machine."""

    def use(name: str) -> str:
        monkeypatch.setattr(files.socket, "gethostname", lambda: name)
        files._host.cache_clear()
        return files._host()

    yield use
    monkeypatch.undo()
    files._host.cache_clear()


def folder_with(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "state").write_text(text)
    return path


def left_by(path: Path, kind: str, process: int) -> Path:
    """The name of what `process` of this machine leaves of `path`."""
    return path.with_name(files.beside(path, kind).name.replace(f"-{os.getpid()}-", f"-{process}-"))


@pytest.mark.parametrize("name", ["this", "another"])
def test_a_folder_moved_aside_is_not_put_back_in_the_middle_of_a_publication(
    tmp_path, dead, host, name
):
    """It was made days ago, and its process, on another machine or in another container, is about
    to rename the new one."""
    host(name)
    folder = tmp_path / "a"
    aside = folder_with(left_by(folder, "old", dead), "before")
    os.utime(aside, (1, 1))
    host("this")
    with files.draft_of(folder) as new:
        (new / "state").write_text("after")
        assert not folder.exists() and (aside / "state").read_text() == "before"
        os.rename(new, folder)


def test_what_was_moved_aside_goes_a_day_later_when_its_successor_is_there(
    tmp_path, host, monkeypatch
):
    """By the time of its rename: the folder itself may have been written long before."""
    host("another")
    folder = folder_with(tmp_path / "a", "after")
    aside = folder_with(left_by(folder, "old", 1), "before")
    os.utime(aside, (1, 1))
    host("this")
    files.clear_abandoned(tmp_path)
    assert aside.exists()
    day = time.time() + files.ABANDONED_S + 60
    monkeypatch.setattr(files.time, "time", lambda: day)
    files.clear_abandoned(tmp_path)
    assert not aside.exists() and (folder / "state").read_text() == "after"


def test_what_a_dead_process_of_this_machine_moved_aside_goes(tmp_path, dead):
    folder = folder_with(tmp_path / "a", "after")
    aside = folder_with(left_by(folder, "old", dead), "before")
    store.publish_folder(folder, lambda new: (new / "state").write_text("again") and None)
    assert not aside.exists() and os.listdir(tmp_path) == ["a"]


def alike() -> tuple[str, str]:
    """Two names of machines whose digests begin with the same 16 bits."""
    seen: dict[str, str] = {}
    for i in itertools.count():
        digest = hashlib.sha256(f"node{i}".encode()).hexdigest()[:4]
        if digest in seen:
            return seen[digest], f"node{i}"
        seen[digest] = f"node{i}"
    raise AssertionError


def test_a_process_is_looked_for_on_its_own_machine_alone(tmp_path, dead, host):
    """Among 300 machines two share 16 bits with a probability of a half."""
    one, other = alike()
    host(one)
    path = left_by(tmp_path / "a", "tmp", dead)
    path.write_text("being written")
    host(other)
    files.clear_abandoned(tmp_path)
    assert path.exists()
    host(one)
    files.clear_abandoned(tmp_path)
    assert not path.exists()


@pytest.mark.parametrize("digits", [0, 4])
def test_names_of_before_say_too_little_and_go_by_their_age(tmp_path, dead, host, digits):
    now = host("this")
    path = tmp_path / f".a.tmp-{dead}-{now[:digits]}01234567"
    path.write_text("half")
    match = store.TEMPORARY.fullmatch(path.name)
    assert match and match["name"] == "a" and match["host"] == (now[:digits] or None)
    files.clear_abandoned(tmp_path)
    assert path.exists()


def test_tidying_fails_no_caller(tmp_path, dead):
    """Whatever call fails while leftovers are removed, the publication is done."""
    met = []
    for at in range(3):
        root = tmp_path / str(at)
        root.mkdir()
        folder_with(left_by(root / "a", "tmp", dead), "half")

        def act(folder=root / "a"):
            store.publish_folder(folder, lambda new: (new / "state").write_text("whole") and None)

        code, operations, trace = injected.run(act, root, at, "fails")
        met.append(operations[at].split()[0])
        if met[-1] != "mkdir":
            assert (code, trace) == (injected.DONE, ""), operations
            assert (root / "a" / "state").read_text() == "whole"
    assert met == ["unlink", "rmdir", "mkdir"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.ESTALE, errno.EIO])
def test_a_folder_that_is_not_listed_is_published_in(tmp_path, monkeypatch, code):
    """Such as one that others may write in and not read."""

    def refused(path):
        raise OSError(code, os.strerror(code), os.fspath(path))

    monkeypatch.setattr(files.os, "listdir", refused)
    with files.draft_of(tmp_path / "a") as new:
        assert re.fullmatch(r"\.a\.tmp-\d+-[0-9a-f]{16}", new.name)
        assert stat.S_ISDIR(new.stat().st_mode)
        os.rename(new, tmp_path / "a")
