"""How many processors a process may use: affinity, quotas of control groups, OMP_NUM_THREADS."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import task
from pipeline import hardware, quota
from pipeline.orchestrate import local
from pipeline.paths import CODE

REAL = quota.MOUNT / "cpu"  # version 1


def groups(top: Path, files: dict[str, str], membership: str) -> tuple[Path, Path]:
    """A folder that looks like /sys/fs/cgroup, and a file that looks like /proc/self/cgroup."""
    for name, content in files.items():
        (top / "mount" / name).parent.mkdir(parents=True, exist_ok=True)
        (top / "mount" / name).write_text(content)
    (top / "membership").write_text(membership)
    return top / "mount", top / "membership"


def v1(folder: str, quota_us: int, period_us: int = 100_000) -> dict[str, str]:
    return {
        f"{folder}/cpu.cfs_quota_us": f"{quota_us}\n",
        f"{folder}/cpu.cfs_period_us": f"{period_us}\n",
    }


OUTSIDE = "4:memory:/docker/1f\n3:cpu,cpuacct:/docker/1f\n0::/docker/1f\n"


@pytest.mark.parametrize(
    ("files", "membership", "expected"),
    [
        ({"cpu.max": "200000 100000\n"}, "0::/\n", 2),  # docker run --cpus=2, version 2
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "150000 100000\n"}, "0::/a/b\n", 1.5),
        ({"a/cpu.max": "50000 100000\n"}, "0::/b\n", None),  # another's
        ({"cpu.max": "300000 100000\n"}, "0::/../..\n", 3),  # moved out of its namespace
        ({"unified/a/cpu.max": "400000 100000\n"}, "1:cpu:/\n0::/a\n", 4),  # both versions
        (v1("cpu,cpuacct/docker/1f", 250_000), OUTSIDE, 2.5),
        (v1("cpu,cpuacct", 200_000), OUTSIDE, 2),  # the outer path, seen from inside
        (v1("cpu", 200_000, 50_000), OUTSIDE, 4),
        (v1("cpu", -1), "1:cpu:/\n", None),
        (v1("cpu", 100_000) | v1("cpu/a", 800_000), "1:cpu:/a\n", 1),
        (v1("cpuset", 100_000), "2:cpuset:/\n", None),
        ({"cpu.max": "x y z"} | v1("cpu", 0), "1:cpu:/\n0::/\nno line\n", None),
        ({}, "0::/a/b\n", None),
    ],
)
def test_the_smallest_quota_around_counts(tmp_path, files, membership, expected):
    assert quota.cores(*groups(tmp_path, files, membership)) == expected


def test_no_control_groups_are_no_quota(tmp_path):
    assert quota.cores(tmp_path / "none", tmp_path / "none") is None


@pytest.mark.parametrize(
    ("limit", "omp", "cores", "training"),
    [
        (None, None, 64, 64),
        (2.0, None, 2, 2),
        (2.9, "16", 2, 2),
        (0.5, None, 1, 1),
        (100.0, "4", 64, 4),
        (None, "3,2", 64, 3),
        (None, "0", 64, 64),
        (None, "many", 64, 64),
    ],
)
def test_all_that_choose_threads_choose_so_many(monkeypatch, limit, omp, cores, training):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.setattr(quota, "cores", lambda: limit)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "24")
    monkeypatch.delenv("OMP_NUM_THREADS")
    if omp is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", omp)
    assert (hardware.cores(), hardware.training_cores()) == (cores, training)
    assert local._slots("cpu", None, None)[0].options == (
        "--device",
        "cpu",
        "--threads",
        f"{training}",
    )
    assert local._slots("cpu", 1, 5)[0].options[-1] == "5"  # what the user says
    assert task._threads() == ("--threads", str(min(24, training)), "--cores", "24")


@pytest.fixture
def half_a_processor():
    """A control group with a real quota of half a processor; version 1."""
    group = REAL / f"netpress-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cpu.cfs_quota_us").write_text("50000")
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip("making a control group with a quota is not allowed here")
    yield group
    group.rmdir()


def test_a_real_quota_is_seen(half_a_processor):
    code = (
        "import os, sys, pathlib\n"
        "pathlib.Path(sys.argv[1], 'cgroup.procs').write_text(str(os.getpid()))\n"
        "from pipeline import hardware, quota\n"
        "print(quota.cores(), hardware.cores())\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, half_a_processor], cwd=CODE, capture_output=True, text=True
    )
    assert ran.stdout == "0.5 1\n", ran.stderr
