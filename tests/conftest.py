"""What all tests share: no settings of the person who runs them, one thread, no clocks on
properties, one small trained base, and the processes that they run in."""

from __future__ import annotations

import fcntl
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

from pipeline import garbage

# About the tests: .ci/run's word that neither is to be missing.
KEPT = ("NETPRESS_REQUIRE_SLURM", "NETPRESS_REQUIRE_BROWSER")

for name in [name for name in os.environ if name.startswith("NETPRESS_") and name not in KEPT]:
    del os.environ[name]  # before anything is collected: no test may touch the user's work root

# Before torch is imported, here and in processes that tests start: on a busy machine two threads
# that wait for each other take ten times as long as one. What wants more asks for it.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"  # where two are measured, they sleep, and do not spin

# Compiling netpress anew in each of the hundreds of processes that tests start takes minutes.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

garbage.seldom()  # as in netpress's own processes: with PyTorch loaded, a sixth of the time

BEHIND = 5  # nice

settings.register_profile("netpress", deadline=None)  # a busy machine is no failure
settings.load_profile("netpress")


def pytest_addoption(parser):
    parser.addoption(
        "--networks",
        choices=("some", "all"),
        default="some",
        help="test_networks.py: each technique on one network, or on all",
    )


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    """A work root with a base that was trained on the digits; see tests/cells.py."""
    from tests import cells

    return cells.Bench.trained(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="session")
def smoke(request, tmp_path_factory):
    """The sweep `smoke`, finished through the command line; see tests/lab.py. One for all processes
    of this run: who comes second waits for the first."""
    from tests import lab

    shared = _shared(request.config) or tmp_path_factory.getbasetemp()
    kept = shared / "smoke.pickle"
    with open(shared / "smoke.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            kept.write_bytes(pickle.dumps(lab.Smoke.ran_in(shared / "smoke")))
        return pickle.loads(kept.read_bytes())


@pytest.fixture(scope="module")
def made_once():
    """Of a module whose tests are not about what figures show, which take seconds."""
    from pipeline import report
    from pipeline.verify import files
    from tests.made_once import made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "made", made)
        patch.setattr(files, "made", made)
        yield


# --- several processes (pytest-xdist) --------------------------------------------------------


def pytest_xdist_make_scheduler(config, log):
    """A file in one process, as `--dist loadfile` has it; but all of tests/slurm in two, with a
    cluster each. These wait for it most of the time, in which the others have the machine."""
    from xdist.scheduler import LoadFileScheduling

    class SlurmInTwo(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            scope = super()._split_scope(nodeid)
            own = scope.endswith("test_slurm.py")  # as long as all others
            return "tests/slurm" if scope.startswith("tests/slurm/") and not own else scope

    return SlurmInTwo(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # a test's timeout does not count what it waits here
def pytest_runtest_protocol(item):
    alone = item.get_closest_marker("alone") is not None
    on_slurm = item.get_closest_marker("slurm") is not None
    on_all = alone or on_slurm
    if not on_slurm and _core() is not None:  # for good: who waits for a cluster goes before
        os.setpriority(os.PRIO_PROCESS, 0, BEHIND)
    with _turn(_shared(item.config), alone), _on_cores(None if on_all else _core()):
        return (yield)


def _core() -> int | None:
    """The core of this process of the run, and of what its tests start: what is measured with all
    threads has one then, where two would wait for each other and for the other tests."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    return int(worker[2:]) if worker.startswith("gw") else None


@contextmanager
def _on_cores(one: int | None) -> Iterator[None]:
    """On one core, counted among those of this run; None, or no such system call: on all."""
    if one is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[one % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@contextmanager
def _turn(shared: Path | None, alone: bool) -> Iterator[None]:
    """Tests marked `alone` have the machine for themselves, fixtures included; others share it."""
    if shared is None:
        yield
        return
    with open(shared / "door", "w") as door, open(shared / "room", "w") as room:
        fcntl.flock(door, fcntl.LOCK_EX)  # who waits for an empty room lets nobody pass meanwhile
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield


def _shared(config) -> Path | None:
    """The temporary folder of all processes of this run of pytest; None: there is one process."""
    return Path(config.option.basetemp).parent if hasattr(config, "workerinput") else None
