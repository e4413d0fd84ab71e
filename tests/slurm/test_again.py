"""The commands after `submit`, which need not be given its settings again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pipeline import store
from pipeline.paths import CODE, Work
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
    return {resources for name, resources in jobs if not name.endswith("-report")}


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
    desk.until_all(sweep, "cancelled", seconds=30)

    # What has changed in the file since counts, is said in one line, and moves no work root.
    text = PROFILE.format(work=desk.folder / "elsewhere").replace("memory_gib: 3", "memory_gib: 4")
    profile.write_text(text)
    process = desk.start("resume", sweep)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    changed = "netpress: note: profile mine has changed since again was submitted: "
    [line] = [line for line in err.splitlines() if line.startswith(changed)]
    assert "memory_gib 4, was 3" in line and "the work root stays the same" in line
    assert cells_in_queue(desk) == {"scavenge 4G 45:00"}
    events = [json.loads(s) for s in Work(work).sweep("again").ledger.read_text().splitlines()]
    sent = [event["job"] for event in events if event["event"] == "submitted"]
    script = desk.box.ask("scontrol", "write", "batch_script", str(sent[-2]), "-")
    assert "export NETPRESS_TEST_SETUP=1" in script
    assert desk.states(sweep) == {"base/60": "queued", "quick/60": "waiting"}

    # Another one is taken where it is requested, and from then on.
    desk.netpress("cancel", sweep)
    desk.until_all(sweep, "cancelled", seconds=30)
    desk.netpress("submit", sweep, "--profile", "generic", *SMALL, *LATER)
    assert cells_in_queue(desk) == {"public 2G 4:00:00"}
    assert len(desk.jobs("again")) == 3
    assert set(desk.states(sweep).values()) == {"queued", "waiting"}


def test_what_slurm_refused_is_not_taken_again(desk):
    sweep = desk.sweep("refused", techniques="[base]", seeds="[61]")
    desk.submit(sweep, "--set", "partition=nope", code=2)
    desk.submit(sweep, *LATER)
    assert cells_in_queue(desk) == {"public 2G 4:00:00"}


def report_state(desk, sweep: str) -> dict:
    return json.loads(desk.netpress("status", sweep, "--json")[0])["report"]


def until_report(desk, sweep: str, wanted: str) -> dict:
    return desk.looking(lambda: report_state(desk, sweep), lambda r: r["state"] == wanted, 150)


def test_a_report_that_failed_is_told_and_sent_again(desk):
    sweep = desk.sweep("unreported", techniques="[base]", seeds="[62]")
    desk.submit(sweep)
    assert report_state(desk, sweep)["state"] in ("queued", "running")
    reports = desk.folder / "reports"
    reports.write_text("in the way")
    status = until_report(desk, sweep, "failed")
    assert str(reports) in status["reason"] and status["reason"].startswith("exception: ")
    assert str(reports) in Path(status["log"]).read_text()
    out, _ = desk.netpress("status", sweep)
    assert f"Report: failed: {status['reason']} (log: {status['log']})\n" in out
    assert f"`netpress submit {sweep}` submits it again" in out

    # As long as it would fail again, nothing is sent; then submit sends it, and it alone.
    jobs = desk.jobs("unreported")
    for command in ("submit", "resume"):
        [line] = desk.netpress(command, sweep, code=2)[1].splitlines()
        assert f"since {reports} is not a folder" in line
    assert desk.jobs("unreported") == jobs
    reports.unlink()
    out, _ = desk.netpress("submit", sweep)
    [job] = set(desk.jobs("unreported")) - set(jobs)
    assert f"job {job}: the report, again: exception: " in out
    assert until_report(desk, sweep, "made") == {"state": "made", "reason": None, "log": None}
    assert (reports / "unreported" / "report.md").exists()
    assert "Report: " not in desk.netpress("status", sweep)[0]
    assert "Nothing to submit" in desk.netpress("submit", sweep)[0]
    assert "Nothing to submit" in desk.netpress("resume", sweep)[0]


def test_a_report_whose_job_could_say_nothing(desk):
    """Out of memory: told from Slurm's records, and given more. Cancelled: for resume alone."""
    sweep = desk.sweep("speechless", techniques="[base]", seeds="[63]")
    desk.submit(sweep, "--set", 'setup=["sleep 1"]', "--set", "report.memory_gib=1", *LATER)
    report = desk.jobs("speechless")[-1]
    desk.netpress("cancel", sweep)
    status = until_report(desk, sweep, "cancelled")
    assert status["reason"] == "cancelled by `netpress cancel`"
    assert "Nothing to submit" in desk.netpress("submit", sweep)[0]
    # Held until Slurm, which looks every second, has seen it.
    hold = "import time; held = bytearray(2 << 30); time.sleep(30)"
    hog = [f"[ $SLURM_JOB_NAME = ${{SLURM_JOB_NAME%-report}} ] || python -c '{hold}'"]
    more = ("--set", "options={}", "--set", "setup=" + json.dumps(hog))
    assert "the report, after all others" in desk.netpress("resume", sweep, *more)[0]
    again = desk.jobs("speechless")[-1]
    assert again != report
    status = until_report(desk, sweep, "failed")
    assert status["reason"].startswith("out of memory: ") and status["reason"].endswith(" of 1 GiB")
    desk.netpress("submit", sweep, "--set", "setup=[]")
    last = desk.jobs("speechless")[-1]
    assert "MinMemoryNode=2G" in desk.box.ask("scontrol", "show", "job", str(last))
    until_report(desk, sweep, "made")


def test_a_checkout_that_changes_while_jobs_wait(desk):
    """They run the snapshot; with --live they run what is there, which here fails."""
    code = desk.folder / "checkout"
    for name in ("pipeline", "jobs", "sbatch", "env", "setup.cfg"):
        copy = shutil.copytree if (CODE / name).is_dir() else shutil.copy
        copy(CODE / name, (code / name).parent if copy is shutil.copy else code / name)
    program = (str(code / "env" / "bin" / "netpress"),)
    sweeps = [
        desk.sweep(n, techniques="[base]", seeds=f"[{s}]") for n, s in (("kept", 80), ("live", 81))
    ]
    for sweep, more in zip(sweeps, ((), ("--live",)), strict=True):
        desk.netpress("submit", sweep, *SMALL, *LATER, *more, program=program)
    (code / "jobs" / "task.py").write_text("raise RuntimeError('another branch')\n")
    (code / "pipeline" / "execute.py").unlink()
    for job in (*desk.jobs("kept"), *desk.jobs("live")):
        desk.box.ask("scontrol", "update", f"jobid={job}", "StartTime=now")
    kept = desk.settled(sweeps[0])["base/80"]
    assert kept["state"] == "done"
    [folder] = (desk.work.root / "code").iterdir()
    facts = store.read_result(desk.cell(sweeps[0], "base/80").result, with_history=False).facts
    assert facts["snapshot"] == folder.name
    out, _ = desk.netpress("status", sweeps[0])
    assert f"of {code}, snapshot {folder.name}" in out
    wait_for(lambda: (desk.folder / "reports" / "kept" / "index.html").exists())
    assert folder.name in (desk.folder / "reports" / "kept" / "report.md").read_text()
    live = desk.settled(sweeps[1])["base/81"]
    assert live["state"] == "failed"
    assert (
        "another branch" in desk.netpress("logs", sweeps[1], desk.cell(sweeps[1], "base/81").id)[0]
    )
    assert f"{code} itself" in desk.netpress("status", sweeps[1])[0]


def test_jobs_of_cells_that_were_taken_out_of_the_sweep_file(desk):
    alone = {"techniques": "[base, quick]", "more": "pack: {minutes: 0}\n"}
    sweep = desk.sweep("smaller", seeds="[80, 81]", **alone)
    desk.submit(sweep, *LATER)
    desk.sweep("smaller", seeds="[80]", **alone)
    out, err = desk.netpress("status", sweep)
    assert "base/81" not in out
    assert "2 cells no longer in smaller.yaml are in the queue" in err
    out, _ = desk.netpress("cancel", sweep)
    assert "2 cells cancelled" in out and "2 cells no longer in smaller.yaml cancelled" in out
    wait_for(lambda: desk.box.ask("squeue", "-h", "-t", "PD,R") == "")
    assert "no longer" not in desk.netpress("status", sweep)[1]
