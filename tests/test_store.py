"""A result is either absent or complete: killed, out of space, flipped bits, two processes."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline import store
from pipeline.errors import Corrupt, UserError
from pipeline.paths import CODE, Work
from pipeline.store import StageHistory, files
from tests import results

ID = "0123456789abcdef"
FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture
def cell(tmp_path):
    return Work(tmp_path / "work").cell(ID)


@pytest.fixture
def done(tmp_path):
    """A finished cell, as execute.py leaves it."""
    work, sweep = Work(tmp_path / "work"), results.sweep()
    results.publish(sweep.cells[0], work)
    return work.cell(sweep.cells[0].id)


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*") if store.TEMPORARY.fullmatch(p.name)]


# --- publication -----------------------------------------------------------------------------


@given(st.binary(max_size=3000), st.binary(max_size=3000))
@FEW
def test_bytes_are_published_whole_and_replace_what_was_there(tmp_path, first, second):
    path = tmp_path / "a" / "b"
    store.publish_bytes(path, first)
    assert path.read_bytes() == first
    store.publish_bytes(path, second)
    assert path.read_bytes() == second and os.listdir(path.parent) == ["b"]


def test_json_is_canonical_and_has_no_nan(tmp_path):
    path = tmp_path / "x.json"
    store.publish_json(path, {"b": 1, "a": ["é", None]})
    assert path.read_text() == '{\n "a": [\n  "é",\n  null\n ],\n "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        store.publish_json(path, {"a": float("nan")})
    assert "null" in path.read_text()


def test_what_is_published_is_the_users_alone(tmp_path):
    old = os.umask(0)
    try:
        store.publish_bytes(tmp_path / "new" / "file", b"x")
        store.publish_folder(tmp_path / "folder", lambda f: (f / "file").write_text("x"))
    finally:
        os.umask(old)
    for path in (tmp_path / "new", tmp_path / "folder"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert stat.S_IMODE((path / "file").stat().st_mode) == 0o600


def test_private_covers_what_others_write(tmp_path):
    old = os.umask(0)
    try:
        store.private()
        (tmp_path / "log").write_text("x")
        assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600
    finally:
        os.umask(old)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002, 0o077])
def test_what_is_shared_follows_the_users_umask(tmp_path, umask, monkeypatch):
    monkeypatch.setattr("pipeline.store.modes._users_umask", None)  # as in a new process
    lab = tmp_path / "lab"
    lab.mkdir()
    lab.chmod(0o2777)  # a group's folder: what is made in it is the group's as well
    old = os.umask(umask)
    try:
        store.private()
        store.private()  # as commands that call others do
        with store.shared():
            store.publish_bytes(lab / "new" / "file", b"x")
            store.publish_folder(lab / "folder", lambda f: (f / "file").write_text("x"))
            store.publish_new_folder(lab / "other", lambda f: (f / "file").write_text("x"))
            store.publish_hdf5(lab / "new" / "x.h5", lambda file: None)
        store.publish_bytes(lab / "private" / "file", b"x")
    finally:
        os.umask(old)
    shared = [lab / "new/file", lab / "folder/file", lab / "other/file", lab / "new/x.h5"]
    for path in shared:
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, path
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o2000 | 0o777 & ~umask, path
    assert stat.S_IMODE((lab / "private/file").stat().st_mode) == 0o600
    assert stat.S_IMODE((lab / "private").stat().st_mode) & 0o777 == 0o700


def test_a_folder_is_replaced_whole(tmp_path):
    folder = tmp_path / "artifact"
    store.publish_folder(folder, lambda f: (f / "old").write_text("1"))
    store.publish_folder(folder, lambda f: (f / "new").write_text("2"))
    assert os.listdir(folder) == ["new"] and os.listdir(tmp_path) == ["artifact"]


@pytest.mark.parametrize("rename", [files._rename_to_new, files._rename_over_nothing])
@pytest.mark.parametrize("kind", ["file", "empty", "full", "link", "dangling"])
def test_a_new_folder_takes_the_place_of_nothing(tmp_path, monkeypatch, rename, kind):
    """Whatever has the name by the time of the rename, with the system's help and without."""
    monkeypatch.setattr(files, "_rename_to_new", rename)
    folder = tmp_path / "new"
    (tmp_path / "other").mkdir()

    def write(new):
        (new / "a").write_text("a")
        if kind in ("empty", "full"):
            folder.mkdir()
        if kind in ("link", "dangling"):
            folder.symlink_to("other" if kind == "link" else "nowhere")
        if kind in ("file", "full"):
            (folder / "mine" if kind == "full" else folder).write_text("mine")

    with pytest.raises(FileExistsError):
        store.publish_new_folder(folder, write)
    assert not (folder / "a").exists() and leftovers(tmp_path) == []
    mine = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert mine == (["mine"] if kind in ("file", "full") else [])
    store.publish_new_folder(tmp_path / "free", lambda new: (new / "a").write_text("a"))
    assert (tmp_path / "free" / "a").read_text() == "a"


@pytest.mark.parametrize("kind", ["file", "dangling", "loop"])
def test_what_is_in_the_way_of_a_folder_is_named(tmp_path, kind):
    way = tmp_path / "way"
    if kind == "file":
        way.write_text("mine")
    else:
        way.symlink_to("nowhere" if kind == "dangling" else "way")
    with pytest.raises(OSError) as caught:
        store.publish_bytes(way / "deep" / "file", b"x")
    assert caught.value.filename == str(way)


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_an_error_of_an_open_file_names_it(tmp_path, monkeypatch, call):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError) as caught:
        store.publish_bytes(tmp_path / "file", b"x")
    assert Path(caught.value.filename).name.lstrip(".").startswith("file")


def test_a_writer_that_fails_changes_nothing(tmp_path):
    folder = tmp_path / "artifact"
    store.publish_folder(folder, lambda f: (f / "old").write_text("1"))

    def fail(inside: Path) -> None:
        (inside / "half").write_text("2")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        store.publish_folder(folder, fail)
    assert os.listdir(folder) == ["old"] and os.listdir(tmp_path) == ["artifact"]


def test_a_temporary_that_another_process_swept_is_written_again(tmp_path, monkeypatch):
    path, replace = tmp_path / "file", os.replace
    swept = []

    def sweep_first(source, target):
        if not swept:
            swept.append(source)
            os.unlink(source)
        replace(source, target)

    monkeypatch.setattr(os, "replace", sweep_first)
    store.publish_bytes(path, b"x")
    assert path.read_bytes() == b"x" and len(swept) == 1


@pytest.fixture
def tiny(tmp_path):
    """A file system of one MB, which fills for real."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root can mount a tiny file system")
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_an_oserror_and_leaves_nothing(tiny):
    path, big = tiny / "file", bytes(2 << 20)
    store.publish_bytes(path, b"old")
    with pytest.raises(OSError) as caught:
        store.publish_bytes(path, big)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == b"old" and os.listdir(tiny) == ["file"]


def test_a_full_disk_keeps_the_old_folder(tiny):
    folder = tiny / "checkpoint"
    store.publish_folder(folder, lambda f: (f / "a").write_bytes(b"old"))
    with pytest.raises(OSError) as caught:
        store.publish_folder(folder, lambda f: (f / "a").write_bytes(bytes(2 << 20)))
    assert caught.value.errno == errno.ENOSPC
    assert (folder / "a").read_bytes() == b"old" and os.listdir(tiny) == ["checkpoint"]


PUBLISHER = """
    import sys
    from pathlib import Path
    from pipeline import store

    root, number = Path(sys.argv[1]), 0
    while True:
        number += 1
        body = bytes([number % 256]) * 200_000
        store.publish_bytes(root / "file", body)
        store.publish_folder(root / "folder", lambda f: [
            (f / name).write_bytes(body) for name in ("a", "b")] and None)
        print(number, flush=True)
"""


def whole(data: bytes) -> bool:
    return len(data) == 200_000 and data == data[:1] * len(data)


def test_killed_at_any_moment_every_file_is_absent_or_complete(cell):
    random.seed(1)
    for _ in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PUBLISHER), str(cell.folder)],
            cwd=CODE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(CODE)},
        )
        process.stdout.readline()  # it has published once
        time.sleep(random.uniform(0, 0.04))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with store.lock_cell(cell):
            assert leftovers(cell.folder) == []
            assert whole((cell.folder / "file").read_bytes())
            # Moved aside and not yet replaced is brought back: it is never absent after a lock.
            a, b = ((cell.folder / "folder" / name).read_bytes() for name in ("a", "b"))
            assert whole(a) and a == b


CALLS = ("mkdir", "open", "write", "fsync", "fchmod", "chmod", "close", "replace", "rename")


def at_call(number: int, what) -> None:
    """From now on, in this process: run `what` instead of the number-th system call of CALLS."""
    made = iter(range(1, 10_000))

    def wrap(real):
        return lambda *a, **k: what() if next(made) == number else real(*a, **k)

    for name in CALLS:
        setattr(os, name, wrap(getattr(os, name)))


def in_child(action) -> int:
    """Run `action` in a forked process; its exit code, 0 when it came to its end."""
    child = os.fork()
    if not child:
        try:
            action()
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def publish_both(cell, text: str) -> None:
    store.publish_bytes(cell.result, text.encode())
    store.publish_folder(cell.artifact, lambda f: [(f / n).write_text(text) for n in "ab"] and None)


def published(cell) -> tuple[str, str]:
    a, b = ((cell.artifact / name).read_text() for name in "ab")
    assert a == b and len(os.listdir(cell.artifact)) == 2
    return cell.result.read_text(), a


def test_killed_at_each_system_call_old_or_new_is_there(cell):
    publish_both(cell, "old")
    for number in range(1, 200):

        def die_there(number=number):
            at_call(number, lambda: os.kill(os.getpid(), signal.SIGKILL))
            publish_both(cell, "new")

        code = in_child(die_there)
        with store.lock_cell(cell):
            assert published(cell) in [("old", "old"), ("new", "old"), ("new", "new")]
            assert leftovers(cell.folder) == []
        if code == 0:
            break
        publish_both(cell, "old")
    assert 20 < number < 199


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_an_error_at_each_system_call_surfaces_and_leaves_old_or_new(cell, error):
    publish_both(cell, "old")
    for number in range(1, 200):

        def fail():
            raise OSError(error, os.strerror(error))

        def fail_there(number=number, fail=fail):
            at_call(number, fail)
            publish_both(cell, "new")

        code = in_child(fail_there)
        assert code in (0, error)
        assert published(cell) in [("old", "old"), ("new", "old"), ("new", "new")]
        # An error after the new folder is there leaves the old one to the next lock.
        assert all(".old-" in name for name in leftovers(cell.folder))
        with store.lock_cell(cell):
            assert leftovers(cell.folder) == []
        if code == 0:
            break
        publish_both(cell, "old")
    assert 20 < number < 199


def test_a_folder_that_was_only_moved_aside_comes_back(cell):
    store.publish_folder(cell.checkpoint, lambda f: (f / "state").write_text("epoch 7"))
    os.rename(cell.checkpoint, cell.folder / ".checkpoint.old-123-0a1b2c3d")
    with store.lock_cell(cell):
        assert (cell.checkpoint / "state").read_text() == "epoch 7"
    assert leftovers(cell.folder) == []


def test_leftovers_of_a_dead_process_go_at_the_next_lock(cell):
    store.make_folder(cell.attempt(1).folder)
    for name in (".result.h5.tmp-1-00000000", "attempts/1/.failure.json.tmp-2-ffffffff"):
        (cell.folder / name).write_text("half")
    (cell.folder / ".artifact.tmp-3-00000000").mkdir()
    (cell.folder / ".artifact.tmp-3-00000000" / "model.onnx").write_text("half")
    (cell.folder / ".mine.tmp").write_text("not one of ours")
    with store.lock_cell(cell):
        assert leftovers(cell.folder) == []
    assert (cell.folder / ".mine.tmp").exists()


# --- locks and attempts ----------------------------------------------------------------------


LOCKER = """
    import sys, time
    from pathlib import Path
    from pipeline import store
    from pipeline.paths import CellPaths

    with store.lock_cell(CellPaths(Path(sys.argv[1]))):
        print("locked", flush=True)
        time.sleep(60)
"""


def test_a_cell_has_one_worker_and_a_killed_one_lets_go(cell):
    command = [sys.executable, "-c", textwrap.dedent(LOCKER), str(cell.folder)]
    process = subprocess.Popen(command, cwd=CODE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"locked\n"
    with pytest.raises(store.Busy, match=f"process {process.pid} on "), store.lock_cell(cell):
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    with store.lock_cell(cell):
        assert cell.lock.exists()


def test_a_lock_that_is_a_link_is_not_followed(cell, tmp_path):
    (tmp_path / "victim").write_text("precious")
    store.make_folder(cell.folder)
    cell.lock.symlink_to(tmp_path / "victim")
    with pytest.raises(OSError), store.lock_cell(cell):
        pass
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_another_users_cell_is_one_sentence(cell):
    with store.lock_cell(cell):
        pass
    reader, writer = os.pipe()
    child = os.fork()
    if not child:  # the other user
        os.close(reader)
        os.setuid(12345)
        try:
            with store.lock_cell(cell):
                os.write(writer, b"locked")
        except UserError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        assert "NETPRESS_WORK" in pipe.read()


def test_attempts_are_numbered_and_never_shared(cell):
    assert store.last_attempt(cell) is None
    assert [store.new_attempt(cell).number for _ in range(11)] == list(range(1, 12))
    (cell.attempts / "notes").mkdir()
    assert store.last_attempt(cell).number == 11
    assert store.new_attempt(cell).folder == cell.attempts / "12"


def test_an_attempt_says_which_job_it_is_made_in_and_is_never_there_without(cell, monkeypatch):
    attempt = store.new_attempt(cell, "12_3")
    assert json.loads(attempt.usage.read_bytes()) == {"job": "12_3"}

    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store.files, "write_synced", full)
    with pytest.raises(OSError, match="No space left"):
        store.new_attempt(cell, "12_4")
    assert os.listdir(cell.attempts) == ["1"]


def test_an_attempt_is_made_though_another_process_clears_its_draft(cell, monkeypatch):
    write = store.files.write_synced

    def cleared(path, data):
        write(path, data)
        monkeypatch.undo()
        with store.lock_cell(cell):
            assert not path.exists()

    monkeypatch.setattr(store.files, "write_synced", cleared)
    assert store.new_attempt(cell, "12_3").number == 1
    assert os.listdir(cell.attempts) == ["1"]


def test_two_processes_never_get_one_attempt(cell):
    script = """
        import sys
        from pathlib import Path
        from pipeline import store
        from pipeline.paths import CellPaths
        for _ in range(40):
            print(store.new_attempt(CellPaths(Path(sys.argv[1]))).number)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(cell.folder)]
    both = [subprocess.Popen(command, cwd=CODE, stdout=subprocess.PIPE) for _ in range(2)]
    numbers = [int(n) for process in both for n in process.communicate()[0].split()]
    assert sorted(numbers) == list(range(1, 81))


# --- manifests -------------------------------------------------------------------------------


def test_done_is_what_the_manifest_says(done):
    manifest = store.verify(done)
    artifact = {"model.onnx", "manifest.json", "notes/classes.txt"}
    named = {"cell.json", "result.h5", "metrics.h5", *(f"artifact/{name}" for name in artifact)}
    assert set(manifest["files"]) == named
    entry = manifest["files"]["result.h5"]
    assert entry == {"bytes": done.result.stat().st_size, "sha256": store.sha256(done.result)}
    assert store.is_done(done) and store.is_done(done, deep=True)


def test_without_a_manifest_nothing_exists(done):
    done.manifest.unlink()
    assert not store.is_done(done) and store.read_manifest(done) is None
    with pytest.raises(Corrupt, match="no manifest"):
        store.verify(done)


def test_a_manifest_names_the_final_weights(done):
    store.publish_bytes(done.model, b"weights")
    store.write_manifest(done, {"note": 1})
    assert "checkpoint/model.safetensors" in store.read_manifest(done)["files"]
    assert store.read_manifest(done)["extra"] == {"note": 1}


def test_no_manifest_without_an_artifact(done):
    shutil.rmtree(done.artifact)
    with pytest.raises(FileNotFoundError, match="no artifact"):
        store.write_manifest(done)


@given(data=st.data())
@FEW
def test_a_flipped_bit_anywhere_is_found(done, data):
    names = [*store.read_manifest(done)["files"], "manifest.json"]
    path = done.folder / data.draw(st.sampled_from(names))
    before = path.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(before) - 1))
    changed = bytearray(before)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)
    try:
        with pytest.raises(Corrupt):
            store.verify(done)
    finally:
        path.write_bytes(before)
    assert store.is_done(done, deep=True)


def test_shallow_finds_what_is_missing_cut_or_a_link(done, monkeypatch, tmp_path):
    monkeypatch.setattr(store.files, "RETRIES_S", (0.0,))
    model = done.artifact / "model.onnx"
    model.write_bytes(b"cut")
    with pytest.raises(Corrupt, match="has 3 bytes, its manifest says 7"):
        store.verify(done, deep=False)
    model.unlink()
    with pytest.raises(Corrupt, match="is missing"):
        store.verify(done, deep=False)
    (tmp_path / "elsewhere").write_bytes(b"a model")
    model.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Corrupt, match="not a plain file"):
        store.verify(done, deep=False)


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "artifact//x", "artifact/../../x", ""])
def test_a_manifest_cannot_name_what_lies_outside(done, name):
    manifest = store.read_manifest(done)
    files = {**manifest["files"], name: {"bytes": 1, "sha256": "0"}}
    done.manifest.write_bytes(store.manifest_bytes(done.id, files, manifest["extra"]))
    with pytest.raises(Corrupt, match="damaged"):
        store.verify(done)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"files": 3}', "\x00" * 50, "[" * 99_999])
def test_what_is_no_manifest_is_corrupt(done, text):
    done.manifest.write_text(text)
    with pytest.raises(Corrupt):
        store.read_manifest(done)
    assert not store.is_done(done)


def test_another_cells_manifest_is_corrupt(done):
    other = done.folder.with_name(ID)
    shutil.copytree(done.folder, other)
    with pytest.raises(Corrupt, match="damaged"):
        store.verify(Work(done.folder.parents[1]).cell(ID))


def test_withdraw_sets_aside_only_what_is_damaged(done):
    (done.artifact / "model.onnx").write_bytes(b"changed")
    aside = store.withdraw(done)
    assert [p.name for p in aside] == ["manifest.json.corrupt-1", "artifact.corrupt-1"]
    assert done.result.exists() and not done.artifact.exists() and not store.is_done(done)


def test_withdraw_trusts_nothing_without_a_manifest_that_reads(done):
    done.manifest.write_text("{")
    names = {p.name for p in store.withdraw(done)}
    assert names == {
        "manifest.json.corrupt-1",
        "result.h5.corrupt-1",
        "artifact.corrupt-1",
        "metrics.h5.corrupt-1",
    }


def test_set_aside_never_overwrites(tmp_path):
    path = tmp_path / "file"
    names = []
    for text in "ab":
        path.write_text(text)
        names.append(store.set_aside(path).name)
    assert names == ["file.corrupt-1", "file.corrupt-2"]
    assert (tmp_path / "file.corrupt-1").read_text() == "a"


def test_a_file_that_appears_late_is_waited_for(done, monkeypatch):
    """As NFS shows a rename; the file comes back while verify asks again."""
    hidden = done.folder / "hidden"
    os.rename(done.result, hidden)
    appear = lambda seconds: hidden.exists() and hidden.rename(done.result)  # noqa: E731
    monkeypatch.setattr(store.files.time, "sleep", appear)
    assert store.is_done(done, deep=True)


# --- HDF5 ------------------------------------------------------------------------------------

names = st.text("abcdefgh_0123456789-.", min_size=1, max_size=12).filter(lambda n: set(n) != {"."})
columns = st.integers(0, 5).flatmap(
    lambda n: st.dictionaries(names, st.lists(st.floats(), min_size=n, max_size=n), max_size=4)
)
histories = st.lists(st.tuples(names, columns), max_size=4).map(
    lambda stages: [StageHistory(i, name, kept) for i, (name, kept) in enumerate(stages)]
)
scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30),
)
arrays = st.sampled_from(["f8", "f4", "i8", "u2", "u1", "?"]).flatmap(
    lambda kind: hnp.arrays(kind, hnp.array_shapes(max_dims=2, min_side=0, max_side=6))
)
measured = st.dictionaries(
    names.map(lambda n: f"{n}/x" if len(n) % 2 else f"{n}y"), scalars | arrays, max_size=6
)
facts = st.dictionaries(st.text(max_size=8), st.text(max_size=20) | st.integers(), max_size=4)


def same(a, b) -> bool:
    if isinstance(a, numpy.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and (a == b or (a != a and b != b))


@given(histories, measured, facts)
@FEW
def test_a_result_is_read_back_as_it_was(tmp_path, history, values, known):
    path = tmp_path / "result.h5"
    data = store.result_bytes({"id": ID, "x": [1, None]}, known, history, values)
    assert data == store.result_bytes({"id": ID, "x": [1, None]}, known, history, values)
    store.publish_bytes(path, data)
    result = store.read_result(path)
    assert (result.id, result.cell, result.facts) == (ID, {"id": ID, "x": [1, None]}, known)
    assert set(result.measured) == set(values)
    assert all(same(values[name], result.measured[name]) for name in values)
    assert str(result.history) == str(_sorted(history))
    assert str(store.read_history(path)) == str(_sorted(history))


def test_a_group_is_one_whatever_name_stands_between_it_and_its_members(tmp_path):
    """In the order of bytes, "a.y" and "a-y" come before "a/x"."""
    values = {"a/x": 1, "a.y": 2, "a-y": 3, "a/b/x": 4, "a/b-": 5}
    store.publish_bytes(tmp_path / "result.h5", store.result_bytes({"id": ID}, {}, [], values))
    assert store.read_result(tmp_path / "result.h5").measured == values


def _sorted(history):
    return [StageHistory(h.index, h.stage, dict(sorted(h.columns.items()))) for h in history]


@given(histories)
@FEW
def test_a_history_is_read_back_as_it_was(tmp_path, history):
    path = tmp_path / "metrics.h5"
    store.publish_bytes(path, store.history_bytes(history))
    assert str(store.read_history(path)) == str(_sorted(history))


@given(data=st.data())
@FEW
def test_a_flipped_bit_in_hdf5_is_found_without_any_manifest(tmp_path, data):
    whole = store.history_bytes(results.history())
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    changed = bytearray(whole)
    changed[bit // 8] ^= 1 << bit % 8
    path = tmp_path / "metrics.h5"
    path.write_bytes(changed)
    with pytest.raises(Corrupt, match="checksum"):
        store.read_history(path)


@given(st.integers(0, 2000))
@FEW
def test_a_cut_file_is_corrupt(tmp_path, kept):
    path = tmp_path / "metrics.h5"
    path.write_bytes(store.history_bytes(results.history())[:kept])
    with pytest.raises(Corrupt):
        store.read_history(path)


def test_any_hdf5_reader_and_pandas_read_it(tmp_path):
    import pandas

    path = tmp_path / "result.h5"
    values = {"accuracy": 0.5, "latency/onnxruntime/artifact/all/batch1": numpy.arange(3.0)}
    data = store.result_bytes({"id": ID}, {"commit": "c"}, results.history(), values)
    store.publish_bytes(path, data)
    with h5py.File(path, "r") as file:
        assert file.attrs["id"] == ID and json.loads(file.attrs["facts"]) == {"commit": "c"}
        assert file["measure/accuracy"][()] == 0.5
        assert file["measure/latency/onnxruntime/artifact/all/batch1"].shape == (3,)
        frame = pandas.DataFrame({k: v[()] for k, v in file["history/1-finetune"].items()})
    assert frame.loss.tolist() == [1.5, 0.25]


def test_threads_that_read_at_once_get_what_each_asked_for(tmp_path):
    """HDF5 takes two open files of one name for the same; in memory it has nothing but the name."""
    files = {tmp_path / f"{n}.h5": [float(n)] * 50 for n in range(4)}
    for path, column in files.items():
        path.write_bytes(store.history_bytes([StageHistory(0, "train", {"loss": column})]))
    with ThreadPoolExecutor(4) as pool:
        requested = list(files) * 50
        losses = [stages[0].columns["loss"] for stages in pool.map(store.read_history, requested)]
    assert losses == [files[path] for path in requested]


def test_a_result_of_another_checksum_is_corrupt(tmp_path):
    path = tmp_path / "result.h5"
    store.publish_bytes(path, store.result_bytes({"id": ID}, {}, [], {}))
    assert store.read_result(path, store.sha256(path)).id == ID
    with pytest.raises(Corrupt, match="not the one in its manifest"):
        store.read_result(path, "0" * 64)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (None, TypeError),
        ([None], TypeError),
        ({}, TypeError),
        (["a"], TypeError),
        (1j, TypeError),
        ("a\0b", ValueError),
        (2**70, TypeError),
    ],
)
def test_what_would_not_be_read_back_is_refused(value, error):
    with pytest.raises(error):
        store.result_bytes({"id": ID}, {}, [], {"x": value})


def test_columns_of_one_stage_are_equally_long():
    with pytest.raises(ValueError, match="0-train differ in length"):
        store.history_bytes([StageHistory(0, "train", {"a": [1.0], "b": []})])


def sealed(fill) -> bytes:
    """A file of somebody else, with a checksum that matches: it proves nothing about content."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=store.SEAL_BYTES) as file:
        file.attrs["id"], file.attrs["cell"], file.attrs["facts"] = ID, "{}", "{}"
        file.create_group("history")
        fill(file)
    body = buffer.getvalue()[store.SEAL_BYTES :]
    return store.results._seal(body) + body


def external_link(file):
    file.create_group("measure")["x"] = h5py.ExternalLink("/etc/other.h5", "/x")


def soft_link(file):
    file.create_group("measure")["x"] = h5py.SoftLink("/history")


def external_storage(file):
    group = file.create_group("measure")
    group.create_dataset("x", (4,), "u1", external=[("/etc/hostname", 0, 4)])


def virtual(file):
    layout = h5py.VirtualLayout((4,), "f8")
    layout[:] = h5py.VirtualSource("missing.h5", "x", (4,))
    file.create_group("measure").create_virtual_dataset("x", layout)


def never_written(file):
    file.create_group("measure").create_dataset("x", (2**40,), "f8")


def compressed_bomb(file):
    file.create_group("measure").create_dataset("x", (2**40,), "f8", chunks=True, compression=9)


def its_own_member(file):
    group = file.create_group("measure")
    group["again"] = group


def a_reference(file):
    group = file.create_group("measure")
    group.create_dataset("x", data=group.ref, dtype=h5py.ref_dtype)


def long_strings(file):
    kind = h5py.string_dtype()
    file.create_group("measure").create_dataset("x", data=["a", "b"], dtype=kind)


def not_utf8(file):
    file.create_group("measure").create_dataset("x", data=numpy.bytes_(b"\xff\xfe"))


def no_measure(file):
    file.create_group("other")


def not_a_group(file):
    file["measure"] = 3


def bad_facts(file):
    file.create_group("measure")
    file.attrs["facts"] = "{"


@pytest.mark.parametrize(
    "fill",
    [
        external_link,
        soft_link,
        external_storage,
        virtual,
        never_written,
        compressed_bomb,
        its_own_member,
        a_reference,
        long_strings,
        not_utf8,
        no_measure,
        not_a_group,
        bad_facts,
    ],
)
def test_a_file_built_to_mislead_is_corrupt(tmp_path, fill):
    path = tmp_path / "result.h5"
    path.write_bytes(sealed(fill))
    with pytest.raises(Corrupt, match="cannot be read as a netpress result"):
        store.read_result(path)


def test_what_is_no_hdf5_is_corrupt(tmp_path):
    path = tmp_path / "result.h5"
    for body in (b"", b"hello", store.results._seal(b"hello") + b"hello", store.results._seal(b"")):
        path.write_bytes(body)
        with pytest.raises(Corrupt):
            store.read_result(path)


def test_a_missing_result_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        store.read_result(tmp_path / "result.h5")


def test_planning_and_status_need_no_hdf5():
    script = "import sys, pipeline.store, pipeline.gaps; print(*sys.modules)"
    command = [sys.executable, "-c", script]
    loaded = subprocess.run(command, cwd=CODE, capture_output=True, text=True, check=True).stdout
    assert not {"h5py", "numpy", "pandas", "torch", "matplotlib"} & set(loaded.split())
