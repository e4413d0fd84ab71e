"""`share: group` on a real SLURM: two users, whose jobs run as themselves, in one work root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline import store
from pipeline.paths import CODE, Work
from tests.slurm.conftest import HERE, MISSING, NETPRESS, PATH, SLURMBOX, Box, Desk
from tests.slurm.test_slurm import LATER

MEMBERS = HERE / "as_members.sh"
ANN, BOB, GROUP = 61_001, 61_002, 61_000
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)}"),
]


@dataclass
class MemberDesk(Desk):
    """A folder of one of them; the work root is the lab's."""

    user: str = ""

    @property
    def work(self) -> Work:
        return Work(Path(self.env["NETPRESS_WORK"]))

    def start(self, *arguments: str, program: tuple[str, ...] = ()) -> subprocess.Popen:
        command = [sys.executable, *(program or (str(NETPRESS),)), *arguments]
        return subprocess.Popen(
            [str(MEMBERS), "run", str(self.box.folder.parent), self.user, *command],
            cwd=self.folder,
            env={**self.env, "HOME": str(self.folder)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


@dataclass(frozen=True)
class Members:
    box: Box
    env: dict[str, str]

    def of(self, user: str) -> MemberDesk:
        folder = self.box.folder.parent / "desk" / user
        return MemberDesk(self.box, folder, folder / "calls", self.env, user)


@pytest.fixture
def members():
    """Ann and Bob at a cluster of their own."""
    if os.getuid() or not shutil.which("unshare") or not shutil.which("nsenter"):
        pytest.skip("only root can make a cluster for two users")
    top = Path(tempfile.mkdtemp(prefix="np-slurm-", dir="/tmp"))
    top.chmod(0o755)
    box = Box(top / "slurm")
    readable = [os.path.realpath(p) for p in (sys.prefix, sys.base_prefix, str(CODE))]
    try:
        started = subprocess.run(
            [MEMBERS, "start", top, SLURMBOX, *readable], capture_output=True, text=True
        )
        assert not started.returncode, started.stderr
        desk = top / "desk"
        for name, uid in (("ann", ANN), ("bob", BOB), ("lab", ANN)):
            (desk / name).mkdir(parents=True)
            os.chown(desk / name, uid, GROUP)
        (desk / "lab").chmod(0o2770)
        ours = ("NETPRESS", "SLURM", "SBATCH")
        env = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
        env |= {"PATH": PATH, "SLURM_CONF": str(box.conf), "NETPRESS_WORK": str(desk / "lab/runs")}
        yield Members(box, env)
    finally:
        box("stop")
        subprocess.run(["rm", "-rf", "--one-file-system", top], check=True)


def owners(folder: Path) -> set[int]:
    return {path.lstat().st_uid for path in folder.rglob("*") if path.name != "lock"}


def test_a_base_of_one_member_is_used_by_the_jobs_of_the_other(members):
    ann, bob = members.of("ann"), members.of("bob")
    first = ann.sweep("first", techniques="[base]", seeds="[70]")
    ann.submit(first, "--set", "share=group")
    assert ann.settled(first)["base/70"]["state"] == "done"
    base = ann.cell(first, "base/70")
    assert owners(base.folder) == {ANN} and store.verify(base)

    # Bob's profile does not mention it: the work root is shared, whoever submits.
    second = bob.sweep("second", techniques="[base, quick]", seeds="[70]")
    bob.submit(second)
    settled = bob.settled(second)
    assert {name: now["state"] for name, now in settled.items()} == {
        "base/70": "done",
        "quick/70": "done",
    }
    assert settled["base/70"]["attempts"] == 1
    quick = bob.cell(second, "quick/70")
    assert owners(quick.folder) == {BOB} and store.verify(quick)
    users = ann.box.ask("sacct", "-anXo", "user").split()
    assert sorted(set(users)) == ["ann", "bob"]

    # Each sees what the other's jobs do, and cancels none of them.
    third = bob.sweep("third", techniques="[quick2]", seeds="[70]")
    bob.submit(third, *LATER)
    shutil.copy(bob.folder / third, ann.folder / third)
    assert ann.status(third)["quick2/70"]["state"] == "queued"
    assert "0-finetune" in ann.netpress("logs", second_of(ann, bob), quick.id)[0]
    out, _ = ann.netpress("cancel", third)
    assert "is in a job of another user, who alone can cancel it" in out
    assert ann.status(third)["quick2/70"]["state"] == "queued"
    assert "1 cell cancelled" in bob.netpress("cancel", third)[0]
    assert bob.until_none(third, "queued")["quick2/70"]["state"] == "cancelled"


def second_of(ann: Desk, bob: Desk) -> str:
    shutil.copy(bob.folder / "second.yaml", ann.folder / "second.yaml")
    return "second.yaml"
