"""How a process that worked on a cell ended, where it could not say so itself."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def cause(code: int, said: str, memory_ran_out: bool, advice: str) -> tuple[str, str]:
    """(kind, one line) of an end without a word; `code` as subprocess has it, `said` its stderr."""
    if code >= 0:
        last = said.splitlines()[-1] if said else "it said nothing"
        kind = "exception" if code else "invalid"
        return kind, f"its process ended with exit code {code} and without a result: {last}"
    name = signal.Signals(-code).name
    if memory_ran_out:
        return "out_of_memory", (
            f"its process was ended by the kernel ({name}), because memory ran out: {advice}"
        )
    if -code == signal.SIGKILL:
        return "killed", (
            f"its process was ended from outside ({name}), by somebody or because memory ran out; "
            "run again to go on from its last epoch"
        )
    return "killed", f"its process was ended by {name}; run again to go on from its last epoch"


def kills() -> int:
    """How many processes of this control group the kernel has ended for want of memory so far."""
    for path in _counters():
        with contextlib.suppress(OSError, ValueError):
            lines = path.read_text().splitlines()
            counts = dict(line.split(maxsplit=1) for line in lines)
            return int(counts["oom_kill"]) if "oom_kill" in counts else 0
    return 0


def _counters() -> list[Path]:
    """Where version 2 and version 1 of control groups count, this process's own group first."""
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
