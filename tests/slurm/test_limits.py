"""Time and memory, as Slurm itself limits them, and waits for: nothing is imitated here."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta

from pipeline import store
from tests.slurm.conftest import SMALL, halt, held, wait_for
from tests.slurm.test_slurm import LATER, LONG, goes_on, restarts


def ends_in(desk, job: int, seconds: float) -> None:
    """Bring the time limit of a job that runs near."""
    at = (datetime.now() + timedelta(seconds=seconds)).isoformat(timespec="seconds")
    desk.box.ask("scontrol", "update", f"jobid={job}_0", f"EndTime={at}")


def test_a_time_limit_that_is_waited_for(desk):
    """Three jobs that come to their limit: one that has made an epoch, one that has not, one that
    was not in Python yet and is told nothing. Slurm looks at limits every 30 s."""
    some = desk.sweep("limit", techniques="[base]", seeds="[20]", epochs=LONG)
    none = desk.sweep("nothing", techniques="[base]", seeds="[21]", epochs=LONG, images=1400)
    deaf = desk.sweep("deaf", techniques="[base]", seeds="[22]")
    cell, stuck = desk.cell(some, "base/20"), desk.cell(none, "base/21")
    desk.submit(deaf, "--set", 'setup=["sleep 600"]')
    desk.submit(none)
    halt(stuck, epochs=0)
    desk.submit(some)
    halt(cell)
    jobs = {name: desk.jobs(name)[0] for name in ("limit", "nothing", "deaf")}
    epochs = len(store.read_history(cell.metrics)[0].columns["epoch"])
    wait_for(lambda: desk.box.ask("squeue", "-h", "-t", "R", "-o", "%i", "-j", str(jobs["deaf"])))
    for job in jobs.values():
        ends_in(desk, job, 35)

    # USR2 from Slurm before the limit: a checkpoint, a requeue, and on from there.
    wait_for(lambda: "Restarts=1" in restarts(desk, jobs["limit"]), 90)
    desk.box.ask("scontrol", "update", f"jobid={jobs['limit']}_0", "TimeLimit=60")
    status = desk.settled(some)["base/20"]
    assert status["state"] == "done" and status["attempts"] == 2
    goes_on(cell, f"{jobs['limit']}_0", epochs)

    # Nothing was made: another round of the same length would end like this one.
    status = desk.settled(none)["base/21"]
    assert status["state"] == "failed" and "not finish a single epoch" in status["reason"]
    assert "Restarts=0" in restarts(desk, jobs["nothing"])
    assert "480 minutes instead of 240" in desk.resume(none, *LATER)

    # Not notified of it, and killed by it.
    status = desk.settled(deaf)["base/22"]
    assert "TIMEOUT" in desk.box.ask("squeue", "-ht", "all", "-o", "%T", "-j", str(jobs["deaf"]))
    assert status["state"] == "failed"
    assert status["reason"].startswith(f"time limit: job {jobs['deaf']}_0 was ended by it before")
    output = desk.resume(deaf, *LATER, "--set", "minutes_cap=300")
    assert "300 minutes instead of 240" in output
    desk.netpress("cancel", deaf)
    assert "300 minutes instead" not in desk.resume(deaf, "--set", "minutes_cap=300", *LATER)


def test_a_cell_that_comes_to_the_limit_of_its_estimate_gets_more_time(desk):
    """By itself, though it made nothing yet, up to the profile's minutes."""
    sweep = desk.sweep("more", techniques="[base]", seeds="[24]", epochs=LONG)
    cell = desk.cell(sweep, "base/24")
    desk.submit(sweep, "--set", "gpu=a100:1", "--set", "minutes=15", "--set", "measure=in-job")
    [job, _] = desk.jobs("more")
    show = ("scontrol", "show", "job", f"{job}_0")
    halt(cell, epochs=0)
    assert "TimeLimit=00:10:00" in desk.box.ask(*show)
    with desk.box.configured(KillWait="30"):  # Slurm's default: time to ask for more
        desk.box.ask("scontrol", "update", f"jobid={job}_0", "TimeLimit=3")
        desk.box.ask("scancel", "--signal=USR2", f"{job}_0")
        wait_for(lambda: "Restarts=1" in desk.box.ask(*show))
        wait_for(lambda: "TimeLimit=00:15:00" in desk.box.ask(*show))  # the last that it does
    # The GPU that it gets is none that torch can use: another node may have one.
    status = desk.settled(sweep)["base/24"]
    assert status["state"] == "failed"
    assert status["reason"].startswith("no usable GPU: device: cannot use 'cuda' here")
    assert ", without n" in desk.resume(sweep, *LATER)
    desk.netpress("cancel", sweep)


def test_a_requeue_that_slurm_refuses_is_resumed(desk):
    sweep = desk.sweep("refused", techniques="[base]", seeds="[23]", epochs=LONG)
    cell = desk.cell(sweep, "base/23")
    desk.submit(sweep)
    [job, _] = desk.jobs("refused")
    halt(cell)
    desk.box.ask("scontrol", "update", f"jobid={job}_0", "Requeue=0")
    desk.box.ask("scancel", "--signal=USR2", f"{job}_0")
    status = desk.settled(sweep)["base/23"]
    assert status["state"] == "failed" and "Slurm did not requeue job" in status["reason"]
    assert "job " in desk.resume(sweep)
    assert desk.settled(sweep)["base/23"]["state"] == "done"
    assert cell.attempt(2).folder.exists() and not cell.attempt(3).folder.exists()


def test_out_of_memory_by_control_groups(strict_desk):
    desk = strict_desk
    sweep = desk.sweep("strict", techniques="[base, quick]")
    desk.submit(sweep, "--set", "memory_gib=1", *held(700))
    statuses = desk.settled(sweep)
    job = desk.jobs("strict")[0]
    states = ("sacct", "-nPj", f"{job}_0", "-o", "State")
    wait_for(lambda: "OUT_OF_MEMORY" in desk.box.ask(*states), 20)
    assert statuses["base/0"]["state"] == "failed"
    assert statuses["base/0"]["reason"] == "out of memory: 1.0 of 1 GiB"
    assert statuses["quick/0"]["reason"] == "its base is failed: out of memory: 1.0 of 1 GiB"
    out = desk.netpress("resume", sweep, *SMALL, *LATER, "--set", "memory_gib=1")[0]
    assert "2 GiB instead of 1" in out
    desk.netpress("cancel", sweep)
    # At the cap there is no next time, and it reports so.
    capped = ("--set", "memory_gib=1", "--set", "memory_cap_gib=1")
    desk.netpress("resume", sweep, *SMALL, *capped)


def test_jobs_without_arrays_without_scontrol_and_without_a_log(desk):
    """Single jobs from the submission to the report; one is told to stop where no scontrol is, and
    the log of another cannot be opened."""
    sweep = desk.sweep("single", techniques="[base, quick]", seeds="[70, 71]", epochs=12)
    hidden = desk.folder / "bin"  # on the nodes: all of Slurm but scontrol
    hidden.mkdir()
    for name in ("srun", "squeue", "bash", "ln", "rm", "sh"):
        (hidden / name).symlink_to(shutil.which(name))
    single = ("--set", "max_array_size=0", "--set", f'setup=["export PATH={hidden}"]')
    out, _ = desk.submit(sweep, *single)
    assert "this cluster has no job arrays" in out
    jobs = desk.jobs("single")
    assert len(jobs) == 5 and "_" not in desk.box.ask("squeue", "-h", "-o", "%i")
    first, other = desk.cell(sweep, "base/70"), desk.cell(sweep, "base/71")
    halt(first)
    halt(other).go_on()
    desk.box.ask("scancel", "--signal=USR2", str(jobs[0]))
    statuses = desk.settled(sweep)
    assert statuses["base/71"]["state"] == statuses["quick/71"]["state"] == "done"
    assert statuses["base/70"]["state"] == "failed"
    assert (
        "scontrol is not on PATH in the job, so it cannot be requeued"
        in (statuses["base/70"]["reason"])
    )
    wait_for(lambda: (desk.folder / "reports" / "single" / "index.html").exists())
    single = ("--set", "max_array_size=0", *LATER)
    assert "cells-" not in desk.resume(sweep, *single)
    job = desk.jobs("single")[5]
    folder = desk.work.sweep("single").jobs
    folder.rename(folder.with_name("away"))
    desk.box.ask("scontrol", "update", f"jobid={job}", "StartTime=now")
    wait_for(lambda: "FAILED" in desk.box.ask("squeue", "-ht", "all", "-o", "%T", "-j", str(job)))
    folder.with_name("away").rename(folder)
    reason = desk.status(sweep)["base/70"]["reason"]
    assert "Slurm could not open the log file" in reason and f"{job}_0_log.out" in reason
    assert "again" in desk.resume(sweep, *single)
