"""The commands after `submit`, which are not told again what it was told."""

from __future__ import annotations

import json

from pipeline.paths import Work
from tests.slurm.conftest import SMALL, wait_for
from tests.slurm.test_slurm import LATER

PROFILE = """
partition: scavenge
gpu: null
cores: 1
memory_gib: 3
minutes: 30
setup: ["export NETPRESS_TEST_SETUP=1"]
work: {work}
options: {{begin: now+1hour}}
"""


def cells_in_queue(desk) -> set[str]:
    """Partition, memory and time of the jobs that make cells."""
    lines = desk.box.ask("squeue", "-h", "-t", "PD", "-o", "%j|%P %m %l").splitlines()
    jobs = (line.split("|") for line in lines)
    return {asked for name, asked in jobs if not name.endswith("-report")}


def test_commands_that_name_no_profile_take_that_of_the_submission(desk):
    work = desk.folder / "scratch" / "netpress"
    work.parent.mkdir()
    profile = desk.folder / "mine.yaml"
    profile.write_text(PROFILE.format(work=work))
    sweep = desk.sweep("again", techniques="[base, quick]", seeds="[60]")
    desk.netpress("submit", sweep, "--profile", "mine.yaml", "--set", "minutes=45")
    assert cells_in_queue(desk) == {"scavenge 3G 45:00"}

    # status, logs, submit and cancel look where it was sent, from the sweep's file alone.
    assert desk.states(sweep) == {"base/60": "queued", "quick/60": "waiting"}
    assert "it is queued" in desk.netpress("logs", sweep, "vgg16_bn/digits/base/60", code=2)[1]
    assert "Nothing to submit" in desk.netpress("submit", sweep)[0]
    assert "2 cells cancelled" in desk.netpress("cancel", sweep)[0]
    wait_for(lambda: set(desk.states(sweep).values()) == {"cancelled"}, 30)

    # What has changed in the file since counts, is said in one line, and moves no work root.
    text = PROFILE.format(work=desk.folder / "elsewhere").replace("memory_gib: 3", "memory_gib: 4")
    profile.write_text(text)
    process = desk.start("resume", sweep)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    changed = "netpress: note: profile mine has changed since again was submitted: "
    [line] = [line for line in err.splitlines() if line.startswith(changed)]
    assert "memory_gib 4, was 3" in line and "the work root stays what it was" in line
    assert cells_in_queue(desk) == {"scavenge 4G 45:00"}
    events = [json.loads(s) for s in Work(work).sweep("again").ledger.read_text().splitlines()]
    sent = [event["job"] for event in events if event["event"] == "submitted"]
    script = desk.box.ask("scontrol", "write", "batch_script", str(sent[-2]), "-")
    assert "export NETPRESS_TEST_SETUP=1" in script
    assert desk.states(sweep) == {"base/60": "queued", "quick/60": "waiting"}

    # Another one is taken where it is asked for, and from then on.
    desk.netpress("cancel", sweep)
    wait_for(lambda: set(desk.states(sweep).values()) == {"cancelled"}, 30)
    desk.netpress("submit", sweep, "--profile", "generic", *SMALL, *LATER)
    assert cells_in_queue(desk) == {"public 2G 4:00:00"}
    assert len(desk.jobs("again")) == 3
    assert set(desk.states(sweep).values()) == {"queued", "waiting"}


def test_what_slurm_refused_is_not_taken_again(desk):
    sweep = desk.sweep("refused", techniques="[base]", seeds="[61]")
    desk.submit(sweep, "--set", "partition=nope", code=2)
    desk.submit(sweep, *LATER)
    assert cells_in_queue(desk) == {"public 2G 4:00:00"}
