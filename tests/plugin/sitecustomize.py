"""What tests of the command line slip into its processes, by having this folder on PYTHONPATH.

- A stage of a user's own, `trouble` (see trouble.py), as if it had a line in STAGES.
- $STRIKE: a process that kills at a chosen moment of a cell's work. Python tells audit hooks of
  every file that it is about to open or rename, so the moments are exact, and nothing is patched.

Python imports a module of this name when it starts.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

WORKERS = {"jobs.compress", "jobs.forkserver"}
is_worker = bool(WORKERS & set(sys.orig_argv))
with_netpress = is_worker or any("netpress" in a for a in sys.orig_argv)
if with_netpress and os.environ.get("TROUBLE"):
    from pipeline.techniques import STAGES

    STAGES["trouble"] = "trouble"


def strike(renamed: str, nth: int, when: str, victim: str) -> None:
    """SIGKILL to this process or the run that it belongs to, at the nth rename to a path that ends
    in `renamed`: right before it, or right `after`, at the next file that is touched."""
    seen, armed = 0, False

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen, armed
        if armed and event in ("open", "os.rename", "os.listdir", "os.remove"):
            armed = False  # what `the_run` reads is no moment
            os.kill(os.getpid() if victim == "worker" else the_run(), signal.SIGKILL)
            signal.pause()  # until the parent's death is ours, too
        if event == "os.rename" and str(arguments[1]).endswith(renamed):
            seen += 1
            armed = seen == nth
            if armed and when == "before":
                hook("open", ())

    sys.addaudithook(hook)


def the_run() -> int:
    """The process of `netpress run`: the parent of the server that this process was forked from,
    or, without one, its own parent."""
    parent = os.getppid()
    if b"jobs.forkserver" in Path(f"/proc/{parent}/cmdline").read_bytes():
        return int(Path(f"/proc/{parent}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return parent


if is_worker and os.environ.get("STRIKE"):
    strike(**json.loads(os.environ["STRIKE"]))
