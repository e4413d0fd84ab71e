"""Locks where a file system has no flock: two real processes, for which the kernel refuses it."""

from __future__ import annotations

import errno
import os
import platform
import socket
import subprocess
import sys
import textwrap

import pytest

from pipeline import store
from pipeline.orchestrate.held import is_held
from pipeline.paths import CODE, CellPaths
from tests.without_flock import FLOCK

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in FLOCK, reason="needs seccomp"
)
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)

LOCKER = """
import sys
from pathlib import Path
from pipeline import store
from pipeline.orchestrate.held import is_held
from pipeline.paths import CellPaths

cell = CellPaths(Path(sys.argv[1]))
for line in sys.stdin:
    print(is_held(cell), flush=True)
    try:
        with store.lock_cell(cell):
            print("locked", flush=True)
            sys.stdin.readline()
        print("released", flush=True)
    except store.Busy as busy:
        print(busy, flush=True)
"""


@pytest.fixture
def cell(tmp_path) -> CellPaths:
    return CellPaths(tmp_path / "cells" / ("0" * 16))


@pytest.fixture
def start():
    """Starts a process that answers a line for each that it gets."""
    processes: list[subprocess.Popen[str]] = []

    def start(number: int, code: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.without_flock", str(number), textwrap.dedent(code)]
        process = subprocess.Popen(
            [*command, *map(str, arguments)],
            cwd=CODE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def told(process: subprocess.Popen[str], lines: int = 1) -> list[str]:
    process.stdin.write("\n")
    process.stdin.flush()
    return [process.stdout.readline().strip() for _ in range(lines)]


@pytest.mark.parametrize("number", NO_LOCKS)
def test_a_cell_has_one_worker_and_a_killed_one_lets_go(cell, start, number):
    one, two = (start(number, LOCKER, cell.folder) for _ in range(2))
    assert told(one, 2) == ["False", "locked"]
    held, busy = told(two, 2)
    assert held == "True" and f"is being worked on by process {one.pid} on " in busy
    assert busy.endswith(f"; if that process has ended, remove {cell.folder}/lock.claim-1")
    assert is_held(cell)  # to those that have flock, too: the owner is asked, not the file system
    with pytest.raises(store.Busy, match=f"by process {one.pid} on"), store.lock_cell(cell):
        pass
    assert told(one) == ["released"]
    assert told(two, 2) == ["False", "locked"]
    two.kill()  # though its parent, which we are, was not told yet
    os.waitid(os.P_PID, two.pid, os.WEXITED | os.WNOWAIT)
    assert told(one, 2) == ["False", "locked"] and told(one) == ["released"]
    assert sorted(os.listdir(cell.folder)) == ["lock", "lock.claim-3"]
    with store.lock_cell(cell):
        pass


COUNTER = """
import sys, time
from pathlib import Path
from pipeline.data import cache

count = Path(sys.argv[1]) / "count"
for _ in range(int(sys.argv[2])):
    with cache.lock(count.with_name("lock")):
        number = int(count.read_text())
        time.sleep(0.002)
        count.write_text(str(number + 1))
"""


def test_many_takers_are_never_two_at_once(tmp_path, start):
    (tmp_path / "count").write_text("0")
    processes = [start(errno.ENOSYS, COUNTER, tmp_path, 15) for _ in range(4)]
    assert [process.wait(120) for process in processes] == [0, 0, 0, 0]
    assert (tmp_path / "count").read_text() == "60"
    assert len(list(tmp_path.glob("lock.claim-*"))) == 1


OTHER_OWNERS = """
import sys
from pathlib import Path
from pipeline import store
from pipeline.paths import CellPaths

cell = CellPaths(Path(sys.argv[1]))
def tries(owner, job=None, lives=None):
    newest = max(cell.folder.glob("lock.claim-*"), key=lambda p: int(p.suffix.partition("-")[2]))
    newest.write_text(owner)
    try:
        with store.lock_cell(cell, job, lives):
            return True
    except store.Busy as busy:
        return False
for arguments in eval(sys.argv[2]):
    print(tries(*arguments))
"""


def test_only_an_owner_that_is_gone_for_certain_loses_its_lock(cell, start):
    here, me = socket.gethostname(), os.getpid()
    claims = [
        (f"process {me} on {here}\n1\n", True),  # our number is another process's by now
        (f"process {2**22 + 1} on {here}\n1\n", True),
        ("process 1 on elsewhere\n1\n", False),  # nobody can tell
        ("process 1 on elsewhere in job 7_1\n1\n", False),
        ("", False),  # being written, where there are no hard links
        ("what is this\n", False),
        ("released\n", True),
    ]
    store.make_folder(cell.folder)
    (cell.folder / "lock.claim-7").write_text("released\n")
    process = start(errno.ENOSYS, OTHER_OWNERS, cell.folder, [(text,) for text, _ in claims])
    answers = process.communicate()[0].split()
    assert answers == [str(free) for _, free in claims]


def test_the_scheduler_knows_of_owners_on_other_machines(cell, start):
    store.make_folder(cell.folder)
    (cell.folder / "lock.claim-1").write_text("released\n")
    code = OTHER_OWNERS.replace("eval(sys.argv[2])", "CASES").replace(
        "for arguments",
        """OWNER = "process 1 on elsewhere in job 7_1\\n1\\n"
CASES = [(OWNER, "8_0", lambda job: True), (OWNER, "8_0", lambda job: False), (OWNER, "7_1")]
for arguments""",
    )
    process = start(errno.ENOSYS, code, cell.folder)
    assert process.communicate()[0].split() == ["False", "True", "True"]


def test_the_command_line_works_and_doctor_says_so(tmp_path):
    def netpress(*arguments: str, number: int) -> subprocess.CompletedProcess[str]:
        code = "import sys; from pipeline.cli import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-m", "tests.without_flock", str(number), code, *arguments]
        environment = {**os.environ, "NETPRESS_WORK": str(tmp_path / "runs")}
        return subprocess.run(command, cwd=CODE, env=environment, capture_output=True, text=True)

    told = netpress("doctor", number=errno.ENOSYS)
    (line,) = [line for line in told.stdout.splitlines() if "locks:" in line]
    assert line.startswith("note  locks: this file system has no flock")
    told = netpress("cancel", "quickstart", number=errno.ENOLCK)
    assert (told.returncode, told.stderr) == (0, ""), told.stderr
    assert (tmp_path / "runs/submit.lock.claim-1").read_text().startswith("released\n")
