"""A stage that goes wrong in a way of one's choice while $TROUBLE is `on`, else does nothing."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Literal

from pipeline.sweep import Frozen


class Settings(Frozen):
    kind: Literal["raises", "memory", "killed"]


def apply(state, settings, context):
    if os.environ["TROUBLE"] == "on":
        TROUBLES[settings.kind]()
    return state


def raises() -> None:
    raise ValueError("no such filter: 7\nand a second line")


def memory() -> None:
    """Tensor after tensor, until the process may have no more."""
    import torch

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), resource.RLIM_INFINITY))
    kept = []
    while True:
        kept.append(torch.ones(8 << 20))


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


TROUBLES = {"raises": raises, "memory": memory, "killed": killed}
