"""The CPU quota of this process: what `docker run --cpus`, Kubernetes or Slurm limit it to.

A quota does not show in the affinity: the process sees all processors of the machine, and is
stopped for the rest of a period in which its threads have used up their time. Control groups state
it, version 1 in `cpu.cfs_quota_us` and `cpu.cfs_period_us`, version 2 in `cpu.max`; see cgroups(7).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

MOUNT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def cores(mount: Path = MOUNT, membership: Path = MEMBERSHIP) -> float | None:
    """The smallest quota of the process's groups and of those around them, in processors; None
    where there is none. `mount`: where control groups are mounted; `membership`: the file that
    names the process's own."""
    return min(_quotas(mount, membership), default=None)


def usable() -> int:
    """Whole processors that this process may use, by its affinity and its quota, at least one."""
    whole = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit = cores()
    return max(1, min(whole or 1, int(limit) if limit is not None else whole or 1))


def _quotas(mount: Path, membership: Path) -> Iterator[float]:
    for folder in _groups(mount, _read(membership)):
        for quota in (_of_version_2(folder), _of_version_1(folder)):
            if quota is not None:
                yield quota


def _groups(mount: Path, membership: str) -> Iterator[Path]:
    """The folders of the process's groups that limit the CPU, and all above. Inside a container
    the path may be that outside, of which only the top can be seen."""
    for line in membership.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number != "0" and "cpu" not in controllers.split(","):
            continue
        inner = PurePosixPath(*(part for part in path.split("/") if part not in ("", "..")))
        tops = (controllers, "cpu") if controllers else ("", "unified")
        for top in tops:
            yield from (mount / top / part for part in (inner, *inner.parents))


def _of_version_2(folder: Path) -> float | None:
    """`cpu.max`: `max 100000` or `150000 100000`, both in microseconds."""
    quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
    return _ratio(quota, period)


def _of_version_1(folder: Path) -> float | None:
    quota = _read(folder / "cpu.cfs_quota_us").strip()  # -1: none
    return _ratio(quota, _read(folder / "cpu.cfs_period_us").strip())


def _ratio(quota: str, period: str) -> float | None:
    if not (quota.isdecimal() and period.isdecimal() and int(quota) and int(period)):
        return None
    return int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):  # not mounted here, or private to root
        return ""
