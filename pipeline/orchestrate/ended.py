"""How a process that worked on a cell ended, where it left no record itself."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def cause(code: int, stderr: str, memory_ran_out: bool, advice: str) -> tuple[str, str]:
    """(kind, one line) of a process that ended without a record; `code`: as in subprocess."""
    if code >= 0:
        last = stderr.splitlines()[-1] if stderr else "nothing was printed"
        kind = "exception" if code else "invalid"
        return kind, f"its process ended with exit code {code} and without a result: {last}"
    name = signal.Signals(-code).name
    if memory_ran_out:
        return "out_of_memory", (
            f"its process was ended by the kernel ({name}), because memory ran out: {advice}"
        )
    if -code == signal.SIGKILL:
        return "killed", (
            f"its process was ended from outside ({name}), by a user or because memory ran out; "
            "run again to go on from its last epoch"
        )
    return "killed", f"its process was ended by {name}; run again to go on from its last epoch"


def kills() -> int:
    """How many processes of this control group the kernel has killed for lack of memory so far."""
    for path in _counters():
        with contextlib.suppress(OSError, ValueError):
            lines = path.read_text().splitlines()
            counts = dict(line.split(maxsplit=1) for line in lines)
            return int(counts["oom_kill"]) if "oom_kill" in counts else 0
    return 0


def _counters() -> list[Path]:
    """The counters of control groups, version 2 and 1, this process's own group first."""
    own = {"": "/", "memory": "/"}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for name in controllers.split(","):
                own[name] = path
    return [
        CGROUPS / own[""].lstrip("/") / "memory.events",
        CGROUPS / "memory" / own["memory"].lstrip("/") / "memory.oom_control",
        CGROUPS / "memory.events",
        CGROUPS / "memory" / "memory.oom_control",
    ]
