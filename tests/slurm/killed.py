"""netpress, killed with SIGKILL just before its Nth step that leaves a trace.

    python killed.py N submit SWEEP ...

The steps: each line of the ledger, each folder of a job, each sbatch; and just after each sbatch.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline import cli  # noqa: E402
from pipeline.orchestrate import executor, ledger, slurm  # noqa: E402

left = int(sys.argv[1])


def step() -> None:
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def before(function):
    def stepped(*arguments, **named):
        step()
        return function(*arguments, **named)

    return stepped


sbatch = slurm.sbatch


def sbatch_and_die(script: Path) -> int:
    step()
    job = sbatch(script)
    step()
    return job


ledger._write_line = before(ledger._write_line)
executor.write = before(executor.write)
slurm.sbatch = sbatch_and_die
sys.exit(cli.main(sys.argv[2:]))
