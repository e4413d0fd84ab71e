"""A stage that goes wrong in a way of one's choice while $TROUBLE is `on`, else does nothing."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Literal

from pipeline.sweep import Frozen


class Settings(Frozen):
    kind: Literal["raises", "memory", "memory of a process", "killed"]


def apply(state, settings, context):
    if os.environ["TROUBLE"] == "on":
        TROUBLES[settings.kind]()
    return state


def raises() -> None:
    raise ValueError("no such filter: 7\nand a second line")


def memory() -> None:
    """More than any machine has."""
    import torch

    torch.empty(1 << 50, dtype=torch.uint8)


def memory_of_a_process() -> None:
    """More than this process may have."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
    kept = []
    while True:
        kept.append(bytearray(8 << 20))


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


TROUBLES = {"raises": raises, "memory": memory, "memory of a process": memory_of_a_process,
            "killed": killed}  # fmt: skip
