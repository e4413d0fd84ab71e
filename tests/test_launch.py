"""Workers that are forked from a process with PyTorch in it; see also tests/test_end_to_end.py."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

import psutil
import pytest

from pipeline import done, store
from pipeline.orchestrate import launch, plan
from pipeline.paths import Work
from tests import cells
from tests.lab import until
from tests.test_local import lives

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there are no forks")


@pytest.fixture
def cell(tmp_path):
    return cells.cells(tmp_path, ["base"])["base"]


@pytest.fixture
def forks(tmp_path, cell):
    work = Work(tmp_path / "work")
    done.publish_cell(work.cell(cell.id), store.json_bytes(cell.to_json()))
    made = launch.Forks(
        lambda cell, options: plan.cell_command(work, tmp_path, [cell.id], *options), work
    )
    yield made
    made.close()


def started(forks, cell, *options, errors=None, **environment) -> launch.Process:
    with tempfile.TemporaryFile() as unread:
        return forks.start(cell, options, environment, errors or unread)


def test_cells_are_forked_until_their_server_dies_and_then_started(forks, cell):
    before = time.monotonic()
    assert not forks.ready() and time.monotonic() - before < 1  # nobody waits for its imports
    until(forks.ready)
    assert not forks.is_gone

    with tempfile.TemporaryFile() as errors:
        refused = started(forks, cell, "--nonsense", errors=errors)
        assert refused.wait() == 2
        errors.seek(0)
        assert b"unrecognized arguments: --nonsense" in errors.read()
    helped = started(forks, cell, "--help")
    assert helped.stdout.read().startswith(b"usage: python -m jobs.compress")
    assert helped.wait() == 0

    working = started(forks, cell, "--device", "cpu", "--threads", "1")
    with working.stdout as events:
        assert b'"stage"' in events.readline()
        process = psutil.Process(working.pid)
        assert process.ppid() == forks.server.pid and os.getsid(working.pid) == working.pid
        assert working.poll() is None
        forks.server.kill()
        assert working.wait() == -9  # the kernel kills it with its server
        until(lambda: not lives(process.pid))

    forks.is_gone = False  # as where it dies between two looks
    by_itself = started(forks, cell, "--help")
    assert forks.is_gone
    assert isinstance(by_itself, subprocess.Popen)
    assert by_itself.communicate()[0].startswith(b"usage: python -m jobs.compress")


def test_where_pytorch_is_broken_each_cell_shows_it(tmp_path, cell, forks, monkeypatch):
    (tmp_path / "torch.py").write_text("raise RuntimeError('no kernel for this GPU')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    broken = launch.Forks(forks.commands.command, Work(tmp_path / "work"))
    until(broken.ready)
    assert broken.is_gone
    worker = started(broken, cell, "--device", "cpu")
    assert b"no kernel for this GPU" in worker.stdout.read() and worker.wait() == 1
    broken.close()


def test_a_worker_with_an_environment_of_its_own_is_no_fork(forks, cell):
    worker = started(forks, cell, "--help", CUDA_VISIBLE_DEVICES="1")
    assert isinstance(worker, subprocess.Popen)
    worker.communicate()


ORPHAN = """
import sys, tempfile, time
from pathlib import Path
from pipeline import catalog, sweep
from pipeline.orchestrate import launch, plan
from pipeline.paths import Work

work = Work(Path(sys.argv[1]))
[cell] = sweep.load(Path(sys.argv[2]), catalog.built_in()).cells
command = lambda cell, options: plan.cell_command(work, work.root, [cell.id], *options)
forks = launch.Forks(command, work)
while not forks.ready():
    time.sleep(0.05)
worker = forks.start(cell, ("--device", "cpu", "--threads", "1"), {}, tempfile.TemporaryFile())
worker.stdout.readline()
print(forks.server.pid, worker.pid, flush=True)
time.sleep(600)
"""


def test_a_run_that_is_killed_leaves_neither_server_nor_cell(tmp_path, cell):
    work = Work(tmp_path / "work")
    done.publish_cell(work.cell(cell.id), store.json_bytes(cell.to_json()))
    run = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, work.root, tmp_path / "test.yaml"],
        stdout=subprocess.PIPE,
        text=True,
    )
    with run.stdout as told:
        pids = list(map(int, told.readline().split()))
        assert len(pids) == 2 and all(map(psutil.pid_exists, pids))
        run.kill()
        run.wait()
        until(lambda: not any(map(lives, pids)))
