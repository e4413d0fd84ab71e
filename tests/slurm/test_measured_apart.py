"""Jobs that train, and jobs of their own that measure what they trained, on a real SLURM."""

from __future__ import annotations

import json

from pipeline import store
from tests.slurm.conftest import wait_for
from tests.slurm.test_room import queue
from tests.slurm.test_slurm import LATER, in_queue

APART = ("--set", "measure.cores=1", "--set", "measure.memory_gib=2")
# A set-up that fails in jobs that measure, and in no other.
BROKEN = ("--set", 'setup=["[ $SLURM_JOB_NAME = ${SLURM_JOB_NAME%-measure-*} ] || false"]')


def kinds(desk, name: str) -> list[tuple[str, list[str]]]:
    """(kind, cells) of every job that was submitted, in order."""
    intents = [line for line in desk.ledger(name) if line["event"] == "intent"]
    return [(i["kind"], [c for ids in i["tasks"].values() for c in ids]) for i in intents]


def test_what_is_trained_is_measured_by_a_job_of_its_own(desk):
    sweep = desk.sweep("apart", techniques="[base, quick, broken]", seeds="[90]")
    out, err = desk.submit(sweep, *APART, *LATER)
    base, cells, measuring, report = desk.jobs("apart")
    assert err == "" and f"job {measuring}: measures 3 cells, when the jobs that train" in out
    ids = {name.partition("/")[0]: cell["id"] for name, cell in desk.status(sweep).items()}
    every = sorted(ids.values())
    assert [(kind, len(made)) for kind, made in kinds(desk, "apart")] == [
        ("cells", 1),
        ("cells", 2),
        ("measure", 3),
        ("report", 0),
    ]
    [waits] = queue(desk, "apart")["measure"]
    assert f"afterany:{base}_" in waits and f"afterany:{cells}_" in waits
    assert f"afterany:{measuring}_" in queue(desk, "apart")["report"][0]
    assert "Nothing to submit" in desk.submit(sweep, *APART)[0]

    # Canceled as a whole, and resumed with a set-up that fails where it measures.
    assert "3 cells cancelled" in desk.netpress("cancel", sweep)[0]
    desk.until_all(sweep, "cancelled", seconds=30)
    assert not in_queue(desk, "apart") and not queue(desk, "apart")
    desk.resume(sweep, *APART, "--set", "options={}", *BROKEN)
    statuses = desk.settled(sweep)
    assert {c["state"] for c in statuses.values()} == {"failed"}
    for name in ("base/90", "quick/90"):
        reason = statuses[name]["reason"]
        assert reason.startswith("its measurement failed: set-up failed with exit code 1")
        assert reason.endswith("; its training is kept"), reason
        assert store.is_done(desk.work.cell(statuses[name]["id"]))
        assert statuses[name]["attempts"] == 1
    assert "training" not in statuses["broken/90"]["reason"]
    wait_for(lambda: not queue(desk, "apart"))

    # Resumed, what is trained is only measured: one job for both, and the report after it.
    before = len(kinds(desk, "apart"))
    out = desk.resume(sweep, *APART, "--set", "setup=[]")
    assert ": measures 2 cells\n" in out and "left alone, exception: " in out
    both = sorted((ids["base"], ids["quick"]))
    sent = kinds(desk, "apart")[before:]
    assert [(kind, sorted(made)) for kind, made in sent] == [("measure", both), ("report", [])]
    assert both != every
    statuses = desk.until(sweep, lambda c: [x["state"] for x in c.values()].count("done") == 2)
    for cell_id in both:
        cell = desk.work.cell(cell_id)
        [entry], damaged = store.measurements(cell, deep=True)
        trained, measured = (store.read_usage(cell.attempt(number)) for number in (1, 2))
        assert not damaged and trained and measured and store.last_attempt(cell).number == 2
        assert trained.job != measured.job == f"{desk.jobs('apart')[-2]}_0"
        assert "measure" not in trained.phases and "train" not in measured.phases
    assert "Nothing to submit" in desk.submit(sweep, *APART)[0]
    page = desk.folder / "reports" / "apart" / "index.html"
    wait_for(page.exists, 90)
    rows = json.loads(desk.netpress("report", sweep, "--json")[0])
    assert sorted(row["id"] for row in rows["rows"]) == both
    assert [gap["id"] for gap in rows["gaps"]] == [ids["broken"]]
