"""Ten thousand cells against a real controller, the jobs held: counts, memory, and how processor
time grows with the number of cells."""

from __future__ import annotations

import json
from collections import Counter

from tests import cost
from tests.slurm.conftest import HERE, NETPRESS, SMALL, wait_for
from tests.slurm.test_room import SOON, limited
from tests.slurm.test_slurm import LATER

SEEDS, POINTS = 500, 19


def measured(desk, *arguments: str) -> tuple[str, float, int]:
    """(stdout, seconds of CPU, peak bytes) of a command. CPU, so that whatever else this machine
    does is not counted."""
    used = desk.folder / "used.json"
    program = (str(HERE / "measured.py"), str(used), str(NETPRESS))
    out, _ = desk.netpress(*arguments, program=program)
    usage = json.loads(used.read_bytes())
    return out, usage["cpu_s"], usage["peak_bytes"]


def grown(desk, name: str, count: int) -> str:
    """A sweep of so many bases, each with techniques at all points."""
    grid = f"grid:\n  quick: {{finetune.epochs: {list(range(1, POINTS + 1))}}}\n"
    seeds = str(list(range(count)))
    return desk.sweep(name, techniques="[base, quick]", seeds=seeds, more=grid)


def test_ten_thousand_cells(desk):
    sweep, quarter = grown(desk, "big", SEEDS), grown(desk, "quarter", SEEDS // 4)
    planning = ("--profile", "generic", "--json")
    _, quarter_s, _ = measured(desk, "plan", quarter, *planning)
    out, seconds, peak = measured(desk, "plan", sweep, *planning)
    planned = json.loads(out)
    assert len(planned["cells"]) == SEEDS * (POINTS + 1) == 10_000
    # By estimate, the 19 techniques on a base are one job; 25 bases share a call for measuring.
    assert len(planned["jobs"]) == 1 + 1 + 20 + 1
    assert {len(job["cells"]) for job in planned["jobs"][2:-1]} == {25 * (POINTS + 1)}
    assert seconds < cost.MOST_GROWTH * quarter_s and peak < 500e6, (seconds, quarter_s, peak)

    # With a job for each cell: one array for 500 bases, one for each of the 19 techniques on every
    # one of them (aftercorr: task i waits for base i), and the report. 10 arrays of 1001 could hold
    # 10,000 tasks, but a technique and its base cannot be in one array: 9 calls more.
    desk.counted()
    out, seconds, peak = measured(desk, "submit", sweep, *SMALL, *LATER)
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


def test_ten_thousand_cells_and_room_for_a_thousand(desk):
    """All are submitted in the end, by jobs alone: one call of sbatch an array, one of squeue a
    look. The cells are held; room is made by the limit."""
    sweep = grown(desk, "narrow", SEEDS)

    def placed() -> list[str]:
        intents = (e for e in desk.ledger("narrow") if e["event"] == "intent")
        return [cell for e in intents for task in e["tasks"].values() for cell in task]

    with limited(desk, ("qos", "public"), MaxSubmitJobsPerUser=1000) as put:
        out, _ = desk.submit(sweep, *LATER, *SOON)
        assert "9002 cells not submitted yet" in out and len(placed()) == 998
        put({"MaxSubmitJobsPerUser": 11_000})
        wait_for(lambda: len(placed()) == 10_000, 90)
        follow_up = desk.jobs("narrow")[0]
        wait_for(lambda: not desk.box.ask("squeue", "-h", "-t", "PD,R,CG", "-j", str(follow_up)))
    counted = desk.counted()
    assert len(set(placed())) == 10_000
    assert desk.box.ask("squeue", "-rh", "-t", "PD", "-o", "%F").count("\n") + 1 == 10_001
    events = Counter(event["event"] for event in desk.ledger("narrow"))
    # The follow-up job, two reports, 20 arrays, and one more for what was cut off the second.
    assert counted["sbatch"] == events["intent"] == events["submitted"] == 24
    restarts = desk.box.ask("scontrol", "show", "job", str(follow_up)).partition("Restarts=")[2]
    looks = int(restarts.split()[0]) + 1
    assert counted["squeue"] <= 1 + looks, (counted, looks)
    assert desk.netpress("cancel", sweep)
