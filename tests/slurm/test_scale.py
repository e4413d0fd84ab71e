"""Ten thousand cells against a real controller, the jobs held: counts, memory, and how processor
time grows with the number of cells."""

from __future__ import annotations

import json

from tests import cost
from tests.slurm.conftest import HERE, NETPRESS
from tests.slurm.test_slurm import LATER

SEEDS, POINTS = 500, 19


def measured(desk, *arguments: str) -> tuple[str, float, int]:
    """(stdout, seconds of CPU, peak bytes) of a command. CPU, so that whatever else this machine
    does is not counted."""
    used = desk.folder / "used.json"
    program = (str(HERE / "measured.py"), str(used), str(NETPRESS))
    out, _ = desk.netpress(*arguments, program=program)
    found = json.loads(used.read_bytes())
    return out, found["cpu_s"], found["peak_bytes"]


def test_ten_thousand_cells(desk):
    grid = f"grid:\n  quick: {{finetune.epochs: {list(range(1, POINTS + 1))}}}\n"

    def grown(name: str, count: int) -> str:
        seeds = str(list(range(count)))
        return desk.sweep(name, techniques="[base, quick]", seeds=seeds, more=grid)

    sweep, quarter = grown("big", SEEDS), grown("quarter", SEEDS // 4)
    planning = ("--profile", "generic", "--json")
    _, quarter_s, _ = measured(desk, "plan", quarter, *planning)
    out, seconds, peak = measured(desk, "plan", sweep, *planning)
    planned = json.loads(out)
    assert len(planned["cells"]) == SEEDS * (POINTS + 1) == 10_000
    # One array for 500 bases, one for each of the 19 techniques on every one of them (aftercorr:
    # task i waits for base i), and the report. 10 arrays of 1001 could hold 10,000 tasks, but a
    # technique and its base cannot be in one array: 21 calls, 9 more than 1 + 10 + 1.
    assert len(planned["jobs"]) == 1 + POINTS + 1
    assert seconds < cost.MOST_GROWTH * quarter_s and peak < 500e6, (seconds, quarter_s, peak)

    desk.counted()
    out, seconds, peak = measured(desk, "submit", sweep, *LATER)
    counted = desk.counted()
    assert counted["sbatch"] == 21 and counted["squeue"] == 1 and peak < 500e6
    assert desk.box.ask("squeue", "-rh", "-t", "PD", "-o", "%F").count("\n") + 1 == 10_001

    # The smaller sweep's cells are in the larger one's jobs: the same ledger and queue are read.
    _, quarter_s, _ = measured(desk, "status", quarter, "--json")
    desk.counted()
    out, seconds, peak = measured(desk, "status", sweep, "--json")
    assert json.loads(out)["counts"] == {"queued": SEEDS, "waiting": SEEDS * POINTS}
    assert desk.counted() == {"squeue": 1} and peak < 500e6
    assert seconds < cost.MOST_GROWTH * quarter_s, (seconds, quarter_s)

    # After they left the queue without a result: one squeue, one sacct.
    desk.netpress("cancel", sweep)
    counted = desk.counted()
    assert counted["scancel"] == 1 and counted["squeue"] == 1
    out, seconds, _ = measured(desk, "status", sweep, "--json")
    assert json.loads(out)["counts"] == {"cancelled": 10_000}
    assert desk.counted() == {"squeue": 1, "sacct": 1}
    assert seconds < cost.MOST_GROWTH * quarter_s, (seconds, quarter_s)
