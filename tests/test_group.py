"""A work root that a group shares, and one that is private: real users, each in a process."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import submitit.core.utils  # before this is another user, who may not read packages

from pipeline import store
from pipeline.errors import UserError
from pipeline.orchestrate import executor, ledger, profile, snapshot, submit
from pipeline.orchestrate.batch import slurm_request
from pipeline.orchestrate.graph import Array, Request
from pipeline.paths import Work
from tests import results

GROUP, OUTSIDE = 61_000, 61_009
ANN, BOB, EVE = 61_001, 61_002, 61_003  # the last one is no member
pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")


@pytest.fixture
def lab():
    """A folder that everybody can pass, with one of the group in it."""
    before = os.umask(0o022)  # another test of this process may have made it netpress's own, 077
    folder = Path(tempfile.mkdtemp(prefix="np-group-", dir="/tmp"))
    folder.chmod(0o755)
    for name in ("pipeline/a.py", "jobs/b.py"):
        (folder / "checkout" / name).parent.mkdir(parents=True)
        (folder / "checkout" / name).write_text(name)
    own = folder / "lab"
    own.mkdir()
    os.chown(own, ANN, GROUP)
    own.chmod(0o2770)
    yield own
    shutil.rmtree(folder)
    os.umask(before)


def as_user(uid: int, act: Callable[[], object]) -> object:
    """What `act` returns, as JSON, in a process of this user's; an error is one here, too."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(OUTSIDE if uid == EVE else GROUP)
            os.setuid(uid)
            store.private()
            answer = {"returned": act()}
        except BaseException as error:
            answer = {"raised": f"{type(error).__name__}: {error}", "at": traceback.format_exc()}
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        answer = json.loads(file.read())
    os.waitpid(pid, 0)
    assert "raised" not in answer, answer["at"]
    return answer["returned"]


def refused(uid: int, act: Callable[[], object]) -> str:
    with pytest.raises(AssertionError) as error:
        as_user(uid, act)
    return str(error.value)


def submits(work: Work, sweep, share: bool) -> Callable[[], object]:
    """What a submission does to the work root: a base that is done, a job's folder, a snapshot."""
    cluster = profile.load("generic", ["share=group"] if share else [])

    def act() -> str:
        store.enter(work)
        submit._share(cluster, work)
        code = snapshot.of(work, code=work.root.parents[1] / "checkout")
        snapshot.make(code)
        with ledger.locked(work.sweep(sweep.name)) as known:
            intent = f"i{len(known.entries)}"
            job = work.sweep(sweep.name).job(intent)
            array = Array("base-0", {0: (sweep.cells[0].id,)}, Request(1, 9))
            text = executor.script(
                slurm_request(array, replace(cluster, code=code), "name", job, None)
            )
            executor.write(job, text, submitit.core.utils.DelayedSubmission, 9, {})
            known.append(
                "intent",
                intent=intent,
                name=intent,
                kind="cells",
                tasks={},
                request={},
                after=[],
                user=str(os.getuid()),
            )
        return str(code.folder)

    return act


def publishes(work: Work, cell) -> Callable[[], object]:
    def act() -> int:
        store.enter(work)
        with store.lock_cell(work.cell(cell.id)):
            attempt = store.new_attempt(work.cell(cell.id), None)
            os.close(store.open_own(attempt.log, os.O_WRONLY))
            results.publish(cell, work)
        return attempt.number

    return act


def rights(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): stat.filemode(path.lstat().st_mode)
        for path in [root, *root.rglob("*")]
    }


def test_a_group_trains_a_base_once(lab):
    """What one member makes, the others read, go on with and lock; nobody else sees anything."""
    sweep = results.sweep(seeds=(0,))
    work, base = Work(lab / "work"), sweep.cells[0]
    code = as_user(ANN, submits(work, sweep, share=True))
    as_user(ANN, publishes(work, base))
    every = rights(work.root)
    run = {name for name in every if name.startswith("code/") or "/jobs/i" in name}
    for name, mode in every.items():
        wanted = "r-" if name in run else "rw"
        assert mode[4:6] == wanted and mode[7:] in ("---", "--T"), (name, mode)
        assert mode[0] != "d" or mode[6] in "sS", (name, mode)
        assert (work.root / name).stat().st_gid == GROUP
    assert every["code"].endswith("T") and every[f"sweeps/{sweep.name}/jobs"].endswith("T")

    # Another member, whose profile says nothing: the root is shared, whoever writes.
    def looks() -> list[object]:
        store.enter(work)
        return [store.is_done(work.cell(base.id)), len(ledger.read(work.sweep(sweep.name)).entries)]

    assert as_user(BOB, looks) == [True, 1]
    bobs = as_user(BOB, submits(work, sweep, share=False))
    assert bobs != code and Path(bobs).stat().st_uid == BOB
    assert as_user(BOB, publishes(work, base)) == 2
    assert as_user(ANN, publishes(work, base)) == 3
    known = ledger.read(work.sweep(sweep.name))
    assert [entry.user for entry in known.entries.values()] == [str(ANN), str(BOB)]
    assert "PermissionError" in refused(EVE, looks)


def test_locks_work_across_users(lab):
    work, cell = Work(lab / "work"), results.sweep(seeds=(0,)).cells[0]
    as_user(ANN, lambda: store.share_with_group(work) or store.publish_json(work.share, {}))
    as_user(ANN, publishes(work, cell))

    def locks() -> str:
        store.enter(work)
        try:
            with store.lock_cell(work.cell(cell.id)):
                return "mine"
        except store.Busy as busy:
            return str(busy)

    def holds() -> object:
        store.enter(work)
        with store.lock_cell(work.cell(cell.id)):
            (work.root / "held").touch()
            while not (work.root / "seen").exists():
                pass
        return None

    pid = os.fork()
    if pid == 0:
        as_user(ANN, holds)
        os._exit(0)
    while not (work.root / "held").exists():
        pass
    assert "is being worked on by process" in as_user(BOB, locks)
    (work.root / "seen").touch()
    os.waitpid(pid, 0)
    assert as_user(BOB, locks) == "mine"


def test_jobs_of_a_member_run_no_other_members_files(lab):
    """The script itself looks: what it runs may have been replaced since it was submitted."""
    sweep = results.sweep(seeds=(0,))
    work = Work(lab / "work")
    as_user(ANN, submits(work, sweep, share=True))
    job = work.sweep(sweep.name).job("i0")
    script = job.script.read_text()
    assert "umask 027\n" in script
    setup = script.partition("# command")[0] + "echo it runs\n"
    setup = setup.replace(
        "umask 027", "umask 027; export SLURM_ARRAY_JOB_ID=1 SLURM_ARRAY_TASK_ID=0"
    )
    run = {"capture_output": True, "text": True, "user": ANN, "group": GROUP, "extra_groups": []}
    ran = subprocess.run(["bash", "-c", setup], cwd="/", **run)
    assert ran.stdout == "it runs\n", ran.stderr
    with pytest.raises(AssertionError, match="PermissionError"):
        as_user(BOB, lambda: job.pickle.write_bytes(b"evil"))
    with pytest.raises(AssertionError, match="PermissionError"):
        as_user(BOB, lambda: os.rename(job.folder, job.folder.with_name("away")) or None)
    os.chown(job.pickle, BOB, GROUP)
    ran = subprocess.run(["bash", "-c", setup], cwd="/", **run)
    assert ran.returncode == 66 and "submitted.pkl belongs to another user" in ran.stderr
    os.chown(job.pickle, ANN, GROUP)
    [code] = (work.root / "code").iterdir()
    os.chown(code, BOB, GROUP)
    ran = subprocess.run(["bash", "-c", setup], cwd="/", **run)
    assert ran.returncode == 66 and f"{code} belongs to another user" in ran.stderr


def test_without_it_a_work_root_is_private(lab):
    """Also in a folder of the group's, from which set-gid comes."""
    sweep = results.sweep(seeds=(0,))
    work, base = Work(lab / "work"), sweep.cells[0]
    as_user(ANN, submits(work, sweep, share=False))
    as_user(ANN, publishes(work, base))
    assert {mode[4:6] + mode[7:9] for mode in rights(work.root).values()} == {"----"}
    assert "is not shared" in refused(BOB, submits(work, sweep, share=True))
    # Its owner may change that, with all that is in it.
    as_user(ANN, submits(work, sweep, share=True))
    assert as_user(BOB, publishes(work, base)) == 2


def test_a_folder_in_the_way_is_named(lab):
    (lab / "mine").mkdir(mode=0o700)
    assert store.closed_to_group(lab / "mine" / "work") == lab / "mine"
    with pytest.raises(UserError, match="share: .*expected 'group'"):
        profile.load("generic", ["share=everybody"])
