"""What commands that only look take, in CPU seconds beside a reference loop timed in the same run:
`taskset -c 0 python -m tests.benchmarks.bench_commands`. Goals: 0.5 s each, 2 s for 10,000 cells,
and 0.05 s for env/run, on a machine whose reference loop takes 0.06 s.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.orchestrate import plan
from pipeline.paths import CODE
from tests import cost
from tests.test_plan import look

COMMANDS = ("plan paper", "plan paper --json", "status paper", "techniques", "sweeps", "--help")
SEEDS = 1429  # times seven: 10,003 cells


def show(name: str, seconds: float, reference_s: float) -> None:
    print(f"{name:28} {seconds:6.3f} s, {seconds / reference_s:6.1f} times the reference")


def main(rounds: int = 5) -> None:
    reference_s = cost.reference_s()
    print(f"reference loop: {reference_s:.3f} s, {sys.version.split()[0]}, {os.uname().machine}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for command in COMMANDS:
            took = min(look(folder, *command.split())[0]["cpu_s"] for _ in range(rounds))
            show(command, took, reference_s)
        large = folder / "large.yaml"
        seeds = f"seeds: [{', '.join(map(str, range(SEEDS)))}]"
        large.write_text(plan.load_sweep("quickstart").text.replace("seeds: [0]", seeds))
        usage, _ = look(folder, "plan", str(large), "--json")
        show("plan of 10,003 cells", usage["cpu_s"], reference_s)
    show("env/run true", min(_env_run_s() for _ in range(rounds)), reference_s)


def _env_run_s() -> float:
    began = time.perf_counter()
    subprocess.run([CODE / "env" / "run", "true"], check=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
