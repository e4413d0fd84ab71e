"""Sweeps on a real SLURM, through the command line: what goes well, and all that does not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import store
from pipeline.orchestrate import slurm
from pipeline.paths import CODE
from tests.slurm.conftest import HERE, SMALL, halt, held, wait_for

LATER = ("--set", 'options={"begin":"now+1hour"}')  # jobs that stay in the queue
LONG = 20  # epochs; what is to be interrupted is stopped after the first


def scripts_sent(desk, name: str) -> dict[str, str]:
    """{job's name: its script as it was sent}, from the folders of the ledger's intents."""
    sent = {}
    for line in desk.ledger(name):
        if line["event"] == "intent":
            sent[line["name"]] = desk.work.sweep(name).job(line["intent"]).script.read_text()
    return sent


def test_a_whole_sweep_with_dependencies_and_its_report(desk):
    sweep = desk.sweep("whole", seeds="[0, 1]")
    planned = json.loads(desk.netpress("plan", sweep, "--json", "--profile", "generic", *SMALL)[0])
    desk.counted()
    out, err = desk.submit(sweep)
    assert err == "" and "you may log out" in out
    assert desk.counted()["sbatch"] == 3 == len(planned["jobs"])  # bases, techniques, report

    # What plan shows is what was sent, letter by letter, but for the ids that Slurm gave.
    ids = dict(zip((j["name"] for j in planned["jobs"]), desk.jobs("whole"), strict=True))
    sent = scripts_sent(desk, "whole")
    for job in planned["jobs"]:
        expected = job["script"]
        for name, number in ids.items():
            expected = expected.replace(f"@{name}@", str(number))
        assert sent[job["name"]] == expected
        assert (
            desk.box.ask("scontrol", "write", "batch_script", str(ids[job["name"]]), "-")
            == expected.strip()
        )

    # Calling it again submits nothing, since all of it is in the queue.
    out, _ = desk.submit(sweep)
    assert "Nothing to submit" in out and desk.counted()["sbatch"] == 0
    first = desk.states(sweep)
    assert set(first) == {f"{t}/{s}" for t in ("base", "quick") for s in (0, 1)}
    assert set(first.values()) <= {"running", "queued", "waiting"}
    counted = desk.counted()
    assert counted["squeue"] == 1 and counted["sacct"] == 0

    statuses = desk.settled(sweep)
    assert {cell["state"] for cell in statuses.values()} == {"done"}
    report = desk.folder / "reports" / "whole" / "report.md"
    deadline = time.monotonic() + 60
    while not report.exists() and time.monotonic() < deadline:
        time.sleep(1)
    assert "quick" in report.read_text() and "Resource usage" in report.read_text()
    rows = json.loads(desk.netpress("report", sweep, "--json")[0])
    assert len(rows["rows"]) == 4 and rows["gaps"] == []

    # The resources used are recorded beside those requested.
    usage = json.loads(
        store.last_attempt(desk.work.cell(statuses["quick/0"]["id"])).usage.read_text()
    )
    assert usage["request"] == {
        "cores": 1,
        "memory_bytes": 2 * 1024**3,
        "gpus": 0,
        "minutes": 240,
    }
    assert usage["used"]["memory_bytes"] > 100e6 and usage["used"]["cores"] > 0
    assert usage["epochs"] == 1 and usage["wall_s"] > 0
    planned = desk.netpress("plan", sweep, "--profile", "generic", *SMALL)[0]
    assert "finished cells of this sweep" in planned
    log = desk.netpress("logs", sweep, "vgg16_bn-w0.125/digits/quick/0")[0]
    assert "0-finetune, epoch 1/1" in log
    desk.counted()
    assert set(desk.states(sweep).values()) == {"done"}
    assert desk.counted() == {"squeue": 1}


def test_a_base_that_is_there_costs_no_job(desk):
    base = desk.sweep("one", techniques="[base]")
    desk.submit(base)
    desk.settled(base)
    more = desk.sweep("two", techniques="[base, quick]")
    planned = json.loads(desk.netpress("plan", more, "--json", "--profile", "generic")[0])
    trains, measures, report = planned["jobs"]  # of `quick` alone, where a GPU is requested
    assert (trains["cells"], report["cells"]) == (measures["cells"], [])
    assert len(trains["cells"]) == 1 and "--dependency" not in trains["script"]


def test_the_report_is_of_what_was_submitted(desk):
    sweep = desk.sweep("noted", techniques="[base]")
    file = desk.folder / sweep
    submitted = file.read_text()
    desk.submit(sweep)
    file.write_text("techniques: [what comes next")
    made = desk.folder / "reports" / "noted"
    wait_for(lambda: (made / "report.md").exists(), seconds=150)
    assert (made / "sweep.yaml").read_text() == submitted
    assert "1 of 1 cell" in (made / "report.md").read_text()


def test_a_sweep_that_changed_gets_another_report(desk):
    sweep = desk.sweep("changed", techniques="[base, quick]")
    desk.submit(sweep, *LATER)
    [_, _, first] = desk.jobs("changed")
    assert "Nothing to submit" in desk.submit(sweep, *LATER)[0]
    (desk.folder / sweep).write_text((desk.folder / sweep).read_text() + "# another thought\n")
    assert ": the report, after all others" in desk.submit(sweep, *LATER)[0]
    assert "Nothing to submit" in desk.submit(sweep, *LATER)[0]
    [*_, second] = desk.jobs("changed")
    waiting = desk.box.ask("squeue", "-h", "-t", "PD", "-o", "%F").split()
    assert str(second) in waiting and str(first) not in waiting
    desk.netpress("cancel", sweep)


def test_a_warning_that_is_no_time_limit_is_no_reason_to_give_up(desk):
    """USR2 in the middle, as before a preemption: back into the queue, though nothing was made."""
    sweep = desk.sweep("warned", techniques="[base]", epochs=LONG)
    cell = desk.cell(sweep, "base/0")
    desk.submit(sweep)
    [job, _] = desk.jobs("warned")
    halt(cell, epochs=0)
    desk.box.ask("scancel", "--signal=USR2", f"{job}_0")
    halt(cell)  # of the second run
    desk.box.ask("scancel", "--signal=USR2", f"{job}_0")
    wait_for(lambda: "PENDING" in desk.box.ask("squeue", "-h", "-o", "%T", "-j", f"{job}_0"))
    now = desk.status(sweep)["base/0"]
    assert now["state"] in ("queued", "running") and str(job) in now["reason"]
    epochs = len(store.read_history(cell.metrics)[0].columns["epoch"])
    status = desk.settled(sweep)["base/0"]
    assert status["state"] == "done" and "Restarts=2" in restarts(desk, job)
    goes_on(cell, f"{job}_0", epochs)


def goes_on(cell, job: str, epochs: int) -> None:
    """The whole history is there, and the last attempt made no more of it than was missing."""
    history = store.read_result(cell.result).history[0].columns["epoch"]
    assert history == [float(i) for i in range(1, LONG + 1)] and epochs >= 1
    last = json.loads(store.last_attempt(cell).usage.read_text())
    assert last["job"] == job and last["epochs"] <= LONG - epochs


def restarts(desk, job: int) -> str:
    return desk.box.ask("scontrol", "show", "job", f"{job}_0")


def test_preemption_costs_nothing(desk):
    sweep = desk.sweep("low", techniques="[base]", epochs=LONG)
    cell = desk.cell(sweep, "base/0")
    desk.submit(sweep, "--set", "partition=scavenge", "--set", "cores=24")
    [job, _] = desk.jobs("low")
    halt(cell)
    epochs = len(store.read_history(cell.metrics)[0].columns["epoch"])
    node = desk.box.ask("squeue", "-h", "-o", "%N", "-j", f"{job}_0")
    desk.box.ask(
        "sbatch",
        "-p",
        "high",
        "-c",
        "24",
        "--mem=100",
        "-w",
        node,
        "-t",
        "1",
        "-o",
        "/dev/null",
        "--wrap",
        "sleep 3",
    )
    wait_for(lambda: "Restarts=1" in restarts(desk, job), 90)
    status = desk.settled(sweep)["base/0"]
    assert status["state"] == "done" and status["attempts"] == 2
    goes_on(cell, f"{job}_0", epochs)


def test_a_node_that_dies(desk):
    sweep = desk.sweep("node", techniques="[base, quick]", epochs=LONG)
    cell = desk.cell(sweep, "base/0")
    desk.submit(sweep)
    halt(cell)
    epochs = len(store.read_history(cell.metrics)[0].columns["epoch"])
    job = desk.jobs("node")[0]
    node = desk.box.ask("squeue", "-h", "-o", "%N", "-j", f"{job}_0")
    try:
        desk.box("kill-node", node, "--now")
        statuses = desk.settled(sweep)
    finally:
        desk.box("revive-node", node)
    assert {c["state"] for c in statuses.values()} == {"done"}
    assert statuses["base/0"]["attempts"] == 2
    goes_on(cell, f"{job}_0", epochs)


def test_out_of_memory_is_named_and_gets_more(desk):
    sweep = desk.sweep("memory", techniques="[base, quick]")
    more = ("--set", "memory_gib=1", *held(700))  # PyTorch has half a GiB before it trains
    desk.submit(sweep, *more)
    statuses = desk.settled(sweep)
    assert statuses["base/0"]["state"] == "failed"
    assert statuses["base/0"]["reason"].startswith("out of memory: 1.")
    assert statuses["base/0"]["reason"].endswith(" of 1 GiB")
    assert statuses["quick/0"]["state"] == "failed" and "its base" in statuses["quick/0"]["reason"]
    desk.counted()
    out = desk.netpress("resume", sweep, *SMALL, *more)[0]
    assert "2 GiB instead of 1" in out
    assert desk.counted()["sbatch"] == 3
    assert {c["state"] for c in desk.settled(sweep).values()} == {"done"}


def test_failures_cost_themselves_and_are_named(desk):
    """A technique that raises, a set-up that fails, a partition that is wrong."""
    sweep = desk.sweep("broken", techniques="[base, quick, broken]")
    desk.submit(sweep)
    setup = desk.sweep("setup", techniques="[base, quick2]", seeds="[7]")
    desk.submit(setup, "--set", 'setup=["true","module load nonsense/1.0"]')
    wrong = desk.sweep("wrong", seeds="[8]")
    _, err = desk.submit(wrong, "--set", "partition=nope", code=2)
    [line] = err.splitlines()
    assert "Invalid partition name specified" in line and "submitted: nothing" in line

    assert set(desk.states(wrong).values()) == {"missing", "waiting"}
    assert "job " in desk.submit(wrong, *LATER)[0] and len(in_queue(desk, "wrong")) == 2
    desk.netpress("cancel", wrong)

    statuses = desk.settled(setup)
    assert statuses["base/7"]["state"] == "failed"
    assert (
        "set-up failed with exit code 127: module load nonsense/1.0" in statuses["base/7"]["reason"]
    )
    assert "setup" in statuses["base/7"]["reason"] and statuses["quick2/7"]["state"] == "failed"
    job = desk.jobs("setup")[0]
    ended = ("sacct", "-nPX", "-j", f"{job}_0", "-o", "State,ExitCode")
    wait_for(lambda: "FAILED|66:0" in desk.box.ask(*ended), 20)

    statuses = desk.settled(sweep)
    assert statuses["quick/0"]["state"] == "done" == statuses["base/0"]["state"]
    assert statuses["broken/0"]["state"] == "failed"
    assert "cannot be reached" in statuses["broken/0"]["reason"]
    out = desk.resume(sweep)
    assert "left alone" in out and "Nothing to submit" in out
    assert "Submitted" not in out and len(desk.jobs("broken")) == len(set(desk.jobs("broken")))
    report = desk.netpress("report", sweep)[0]
    assert "cannot be reached" in report
    again = desk.resume(sweep, statuses["broken/0"]["id"])
    assert "again" in again and "job " in again
    assert desk.states(setup) == {"base/7": "failed", "quick2/7": "failed"}
    assert "job " in desk.resume(setup, "--set", "setup=[]")
    assert set(desk.states(setup).values()) <= {"queued", "running", "waiting"}


def test_cancel_one_cell_and_all(desk):
    sweep = desk.sweep("cancel", techniques="[base, quick]", seeds="[0, 1, 2]")
    desk.submit(sweep, *LATER)
    statuses = desk.status(sweep)
    assert statuses["base/0"]["state"] == "queued" and statuses["quick/0"]["state"] == "waiting"
    # A pending array task that is cancelled alone leaves no trace in Slurm: the ledger has it.
    out, _ = desk.netpress("cancel", sweep, statuses["base/0"]["id"])
    assert "1 cell cancelled" in out
    # Until Slurm has taken it out of its list, which can take seconds, it is not reported to wait.
    assert "`netpress cancel`" in desk.status(sweep)["base/0"]["reason"]
    statuses = desk.until(sweep, lambda c: c["base/0"]["state"] == "cancelled", 20)
    assert statuses["base/0"]["reason"] == "cancelled by `netpress cancel`"
    assert statuses["base/1"]["state"] == "queued"
    # The same behind our back, which we cannot tell from a record that is lost.
    job = desk.jobs("cancel")[0]
    desk.box.ask("scancel", f"{job}_1")
    now = desk.until(sweep, lambda c: c["base/1"]["state"] == "missing", 20)["base/1"]
    # Of a task that was never made, accounting may keep a record without an end.
    known = ("Slurm has no record of job", "is not in the queue any more, though accounting")
    assert any(line in now["reason"] for line in known)
    desk.netpress("cancel", sweep)
    assert desk.box.ask("squeue", "-h", "-t", "PD,R") == ""
    desk.until_none(sweep, "queued")
    # Where accounting has a record of that task, it ends with those of the rest of its array.
    wait_for(lambda: "PENDING" not in desk.box.ask("sacct", "-nPj", str(job), "-o", "state"), 60)
    before = desk.status(sweep)["base/1"]
    assert before["state"] == "missing" or before["reason"] == "cancelled by 0", before
    # `submit` leaves what was cancelled alone, and sends what is missing.
    desk.counted()
    desk.submit(sweep, *LATER)
    states = desk.states(sweep)
    assert states["base/1"] == ("queued" if before["state"] == "missing" else "cancelled")
    assert states["base/0"] == "cancelled"
    desk.netpress("resume", sweep, *SMALL, *LATER)
    assert set(desk.states(sweep).values()) == {"queued", "waiting"}


def test_submit_killed_at_every_step_and_called_again(desk):
    """Whatever it was about to do: every cell is in exactly one job that trains it in the end, and
    in one that measures it after that."""
    apart = ("--set", "measure.cores=1", "--set", "measure.memory_gib=2")
    program = (str(HERE / "killed.py"),)
    point, killed = 0, True
    while killed:
        point += 1
        name = f"kill{point}"
        sweep = desk.sweep(name, techniques="[base, quick]", seeds=f"[{point}]")
        process = desk.start(str(point), "submit", sweep, *SMALL, *apart, *LATER, program=program)
        process.communicate(timeout=60)
        killed = process.returncode == -signal.SIGKILL
        assert killed or process.returncode == 0
        desk.submit(sweep, *apart, *LATER)
        assert "Nothing to submit" in desk.submit(sweep, *apart, *LATER)[0], point
        for kind in ("cells", "measure"):
            tasks = in_queue(desk, name, kind)
            cells = [cell for task in tasks for cell in task]
            assert len(cells) == len(set(cells)) == 2, (point, kind, tasks)
        reports = desk.box.ask("squeue", "-h", "-o", "%j").split()
        assert sum(f"-{name}-report" in job for job in reports) == 1
    assert set(desk.states(sweep).values()) == {"queued", "waiting"}
    assert point > 13  # four arrays, at least four steps each


def in_queue(desk, name: str, kind: str = "cells") -> list[tuple[str, ...]]:
    """The cells of each task that Slurm itself has in its queue, by the job's name."""
    entries = {e["name"]: e for e in desk.ledger(name) if e["event"] == "intent"}
    tasks = []
    for line in desk.box.ask("squeue", "-rh", "-t", "PD,R", "-o", "%j %K").splitlines():
        job, index = line.split()
        if job in entries and entries[job]["kind"] == kind:
            tasks.append(tuple(entries[job]["tasks"][index]))
    return tasks


def test_two_submits_at_once(desk):
    sweep = desk.sweep("twice", techniques="[base, quick]", seeds="[0, 1]")
    both = [desk.start("submit", sweep, *SMALL, *LATER) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    outs = [out for out, _ in outputs]
    assert sum("Nothing to submit" in out for out in outs) == 1
    assert len(in_queue(desk, "twice")) == 4


def test_an_sbatch_that_timed_out_may_have_made_its_job(desk):
    """A controller that hangs answers after the client gave up, and executes what it had got."""
    sweep = desk.sweep("hung", techniques="[base]", seeds="[3]")
    desk.box("signal", "slurmctld", "STOP")
    process = desk.start("submit", sweep, *SMALL, *LATER)
    try:
        time.sleep(14)  # the client's own 10 s, and some
    finally:
        desk.box("signal", "slurmctld", "CONT")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert len(in_queue(desk, "hung")) == 1
    names = desk.box.ask("squeue", "-h", "-o", "%j").split()
    assert len(names) == len(set(names)) == 2


def test_the_controller_down_and_up_again(desk):
    sweep = desk.sweep("down", techniques="[base, quick]")
    desk.submit(sweep, *LATER)
    desk.box("stop-controller")
    try:
        out, err = desk.netpress("status", sweep)
        assert "Unable to contact slurm controller" in err and "known from files alone" in err
        assert "Slurm does not answer" in out and "2 queued" in out
        sleeping = desk.start("submit", sweep, *SMALL)
        time.sleep(3)
    finally:
        desk.box("start-controller")
    out, err = sleeping.communicate(timeout=120)
    assert sleeping.returncode == 0 and "Nothing to submit" in out, err
    assert set(desk.states(sweep).values()) == {"queued", "waiting"}


def test_without_accounting(desk):
    sweep = desk.sweep("nosacct", techniques="[base, broken]", seeds="[5]")
    desk.submit(sweep)
    desk.settled(sweep)
    for name in ("sacct", "sacctmgr"):
        shim = Path(desk.env["PATH"].split(":")[0]) / name
        shim.write_text("#!/bin/sh\necho 'Slurm accounting storage is disabled' >&2; exit 1\n")
        shim.chmod(0o755)
    with desk.box.configured(MinJobAge="2"):
        wait_for(lambda: desk.box.ask("squeue", "-h", "-t", "all", "-o", "%F") == "", 60)
        statuses = desk.status(sweep)
        assert statuses["base/5"]["state"] == "done" and statuses["broken/5"]["state"] == "failed"
        assert "cannot be reached" in statuses["broken/5"]["reason"]


def test_jobs_that_left_the_queue_and_the_trap_of_unknown_bases(desk):
    sweep = desk.sweep("purged", techniques="[base, quick]", seeds="[6]")
    desk.submit(sweep, "--set", 'setup=["false"]')
    desk.settled(sweep)
    base = desk.jobs("purged")[0]
    with desk.box.configured(MinJobAge="2"):
        wait_for(lambda: desk.box.ask("squeue", "-h", "-t", "all", "-o", "%F") == "", 60)
        desk.counted()
        statuses = desk.status(sweep)
        assert (
            statuses["base/6"]["state"] == "failed"
            and "set-up failed" in statuses["base/6"]["reason"]
        )
        assert statuses["quick/6"]["state"] == "failed"
        assert desk.counted() == {"squeue": 1, "sacct": 1}
        # Slurm lets a job that depends on a failed and forgotten one run at once.
        plain = ("sbatch", "--parsable", "-o", "/dev/null", "--mem=10")
        failed = desk.box.ask(*plain, "--wrap", "false")
        wait_for(lambda: desk.box.ask("squeue", "-h", "-t", "all", "-o", "%F") == "", 60)
        trap = desk.box.ask(*plain, f"--dependency=afterok:{failed}", "--wrap", "true")
        wait_for(lambda: "COMPLETED" in desk.box.ask("sacct", "-nXo", "State", "-j", trap), 30)
        # So nothing of ours ever depends on a job that is not in the queue.
        out, _ = desk.submit(sweep)  # the report alone: its set-up failed as well
        assert "the report, again: set-up failed" in out and len(tasks_of(desk, "purged")) == 2
        desk.resume(sweep, *LATER)
        script = list(scripts_sent(desk, "purged").values())[-2]
        new = desk.jobs("purged")[-3]
        assert f"--dependency=aftercorr:{new}" in script and new > base


def test_a_dependent_whose_base_failed_is_not_left_behind(desk):
    sweep = desk.sweep("never", techniques="[base, quick]", seeds="[9]")
    desk.submit(sweep, "--set", 'setup=["false"]')
    job = desk.jobs("never")[1]
    wait_for(lambda: "CANCELLED" in desk.box.ask("sacct", "-nXo", "State", "-j", str(job)), 60)
    statuses = desk.settled(sweep)
    assert statuses["quick/9"]["reason"].startswith("its base is failed: set-up failed")


def test_without_python_on_the_login_node(desk):
    """The plain scripts: a job submits the sweep, and another one tells how it goes."""
    for name in ("env", "sbatch"):
        (desk.folder / name).symlink_to(CODE / name)
    sweep = desk.sweep("plain", techniques="[base, quick]", seeds="[11]")
    env = {**desk.env, "NETPRESS_SETUP": f"export PATH={Path(sys.executable).parent}:$PATH"}

    def sbatch(*words: str) -> str:
        """The output of a job that runs one of the plain scripts."""
        command = ["sbatch", "--wait", "--parsable", *words]
        ended = subprocess.run(command, cwd=desk.folder, env=env, capture_output=True, text=True)
        job = ended.stdout.strip()
        log = (desk.folder / f"netpress-{job}.log").read_text()
        assert ended.returncode == 0, log + ended.stderr
        return log

    assert "you may log out" in sbatch("sbatch/sweep.sh", sweep, *SMALL, *LATER)
    assert len(in_queue(desk, "plain")) == 2 and len(desk.jobs("plain")) == 3
    assert "Nothing to submit" in sbatch("sbatch/sweep.sh", sweep, *SMALL, *LATER)
    assert "1 queued, 1 waiting" in sbatch("sbatch/command.sh", "status", sweep)
    usage = subprocess.run(["bash", "sbatch/sweep.sh"], cwd=desk.folder, capture_output=True)
    assert usage.returncode == 2 and b"usage: sbatch sbatch/sweep.sh SWEEP" in usage.stderr


def test_a_pack_runs_its_cells_one_after_the_other(desk):
    sweep = desk.sweep(
        "pack", techniques="[base, broken, quick]", seeds="[12]", more="pack: {minutes: 60}\n"
    )
    desk.submit(sweep)
    statuses = desk.settled(sweep)
    states = {name: cell["state"] for name, cell in statuses.items()}
    assert states == {"base/12": "done", "broken/12": "failed", "quick/12": "done"}
    assert [len(job) for job in tasks_of(desk, "pack")] == [1, 2]


def tasks_of(desk, name: str) -> list[list[str]]:
    entries = [e for e in desk.ledger(name) if e["event"] == "intent" and e["kind"] == "cells"]
    return [task for entry in entries for task in entry["tasks"].values()]


IMPATIENT = """
import sys
from pipeline import cli
from pipeline.orchestrate import doctor
doctor.PROBE_S, doctor.LOOK_S = 5.0, 2.0
sys.exit(cli.main(sys.argv[1:]))
"""


def test_doctor_on_a_busy_cluster(desk):
    """Its job waits: that is nobody's fault, and costs the controller a squeue now and then."""
    desk.counted()
    out, _ = desk.netpress(
        "doctor", "--profile", "generic", *SMALL, *LATER, program=("-c", IMPATIENT)
    )
    [line] = [line for line in out.splitlines() if "the cluster is busy" in line]
    assert line.startswith("note  compute node: ") and "not to begin yet" in line
    counted = desk.counted()
    assert counted["squeue"] <= 3 and counted["scancel"] == 1


def test_doctor_asks_the_cluster(desk):
    out, _ = desk.netpress("doctor", "--profile", "generic", *SMALL)
    assert "ok    slurm: version" in out and "note  MaxArraySize: 1001" in out
    assert "ok    compute node: " in out and "BAD" not in out
    assert not desk.work.root.exists()  # nothing that stays was made
    assert "ok    jobs as profile generic requests: Job" in out
    out, _ = desk.netpress(
        "doctor", "--profile", "generic", *SMALL, "--set", "partition=nope", code=1
    )
    assert "BAD   jobs as profile generic requests: " in out and "Invalid partition name" in out
    assert "BAD   partition: " in out and "`sinfo` lists them: --set partition=NAME" in out
    assert "note  compute node: not checked" in out
    # A GPU that Slurm gives, and torch cannot use: the fake ones are of that kind.
    out, _ = desk.netpress("doctor", "--profile", "generic", *SMALL, "--set", "gpu=a100:1", code=1)
    assert "BAD   gpu there: Slurm gave device " in out and "torch sees none" in out
    assert "note  partition public: State UP, MaxTime 7-00:00:00" in out
    assert "note  qos: Name public" in out
    out, _ = desk.netpress(
        "doctor", "--profile", "generic", *SMALL, "--set", 'setup=["module load nonsense"]', code=1
    )
    assert "BAD   compute node: set-up failed with exit code 127: module load nonsense" in out
    assert not desk.work.root.exists()
    assert desk.box.ask("squeue", "-h") == ""


def test_what_was_submitted_is_one_json_object(desk):
    sweep = desk.sweep("told", techniques="[base, ptq-int8]", seeds="[6]")
    planned = json.loads(desk.submit(sweep, *LATER, "--dry-run", "--json")[0])
    sent = json.loads(desk.submit(sweep, *LATER, "--json")[0])
    assert sent.keys() == planned.keys() and sent["cells"] == planned["cells"]
    assert [job["cells"] for job in sent["jobs"]] == [job["cells"] for job in planned["jobs"]]
    queued = set(desk.box.ask("squeue", "-h", "-o", "%j").split())
    assert {job["name"] for job in sent["jobs"]} == queued and len(queued) > 1
    assert json.loads(desk.submit(sweep, *LATER, "--json")[0])["jobs"] == []
    desk.netpress("cancel", sweep)


def test_two_users(desk):
    """What another user has in the queue is neither seen as ours nor touched, whatever its name."""
    desk.box.ask(
        "sacctmgr",
        "-i",
        "add",
        "user",
        "nobody",
        "account=public",
        "qos=normal,public",
        "defaultqos=public",
    )
    sweep = desk.sweep("ours", techniques="[base]", seeds="[4]")
    planned = json.loads(desk.netpress("submit", sweep, *SMALL, *LATER, "--dry-run", "--json")[0])
    name = planned["jobs"][0]["name"]
    theirs = desk.box.ask(
        "runuser",
        "-u",
        "nobody",
        "--",
        "env",
        f"SLURM_CONF={desk.box.conf}",
        "sbatch",
        "--parsable",
        f"--job-name={name}",
        "--begin=now+1hour",
        "--mem=10",
        "--chdir=/tmp",
        "-o",
        "/dev/null",
        "--wrap",
        "true",
    )
    desk.submit(sweep, *LATER)
    assert int(theirs) not in desk.jobs("ours") and len(desk.jobs("ours")) == 2
    assert desk.states(sweep) == {"base/4": "queued"}
    desk.netpress("cancel", sweep)
    assert desk.box.ask("squeue", "-h", "-u", "nobody", "-o", "%T") == "PENDING"
    desk.box.ask("scancel", theirs)


@pytest.mark.parametrize("text, indices", [("0,2,4-6%2", [0, 2, 4, 5, 6]), ("N/A", [None])])
def test_task_lists(text, indices):
    assert list(slurm.expanded(text)) == indices
