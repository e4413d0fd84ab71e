"""Limits on submitted jobs: what fits is submitted, and a small job submits the rest."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from pipeline.orchestrate import ledger, profile, room
from tests.slurm.conftest import SMALL, wait_for
from tests.slurm.test_slurm import LATER, in_queue

SOON = ("--set", "follow_up.every_s=2")


@contextlib.contextmanager
def limited(desk, which: tuple[str, ...], **limits: int):
    """Limits in accounting for a while: `which` is `qos public`, or a user or an account."""

    def put(values):
        words = [f"{key}={value}" for key, value in values.items()]
        desk.box.ask("sacctmgr", "-i", "modify", *which, "set", *words)

    put(limits)
    try:
        yield put
    finally:
        put(dict.fromkeys(limits, -1))


def queue(desk, name: str) -> dict[str, list[str]]:
    """{what a job is for: its state and dependency}, of this sweep's jobs in the queue."""
    jobs: dict[str, list[str]] = {}
    for line in desk.box.ask("squeue", "-rh", "-t", "PD,R", "-o", "%j|%T|%E").splitlines():
        job, state, after = line.split("|")
        if what := re.match(rf"netpress-\w+-{name}-([a-z-]+)", job):
            jobs.setdefault(what[1].rstrip("-"), []).append(f"{state} {after}")
    return jobs


def test_what_there_is_room_for_is_submitted_and_a_job_submits_the_rest(desk):
    """A limit of 4 and 7 bases: they are held, so that only the limit makes room."""
    sweep = desk.sweep("room", techniques="[base]", seeds="[0, 1, 2, 3, 4, 5, 6]")
    with limited(desk, ("qos", "public"), MaxSubmitJobsPerUser=4) as put:
        planned = json.loads(desk.netpress("submit", sweep, *SMALL, "--dry-run", "--json")[0])
        assert [len(job["cells"]) for job in planned["jobs"]] == [0, 0, 2]
        assert any("5 cells are not in these jobs" in note for note in planned["notes"])
        desk.counted()
        out, err = desk.submit(sweep, *LATER, *SOON)
        follow_up, report, _ = jobs = desk.jobs("room")
        assert err == "" and desk.counted()["sbatch"] == 3
        assert (
            "5 cells not submitted yet (MaxSubmitJobsPerUser of QOS public is 4, 4 of it used)"
            in out
        )
        assert f"job {follow_up} submits them when there is room" in out
        now = queue(desk, "room")
        assert len(now["base"]) == 2 and f"afterany:{follow_up}" in now["report"][0]
        status = desk.status(sweep)
        assert [cell["state"] for cell in status.values()] == ["queued"] * 2 + ["missing"] * 5
        assert status["base/6"]["reason"].startswith("not submitted: MaxSubmitJobsPerUser of QOS")
        out, _ = desk.netpress("status", sweep)
        assert f"job {follow_up} submits them when there is room" in out and "Report:" not in out
        # Another call finds no more room, and makes no second one of anything.
        assert "5 cells not submitted yet" in desk.submit(sweep, *LATER, *SOON)[0]
        assert desk.jobs("room") == jobs
        # With another request, the same job submits the rest with that.
        desk.submit(sweep, *LATER, *SOON, "--set", "minutes=99")
        assert desk.jobs("room") == jobs

        put({"MaxSubmitJobsPerUser": 6})
        wait_for(lambda: len(in_queue(desk, "room")) == 4)
        assert desk.status(sweep)["base/6"]["state"] == "missing"
        wait_for(lambda: len(queue(desk, "room").get("follow-up", [])) == 1)
        put({"MaxSubmitJobsPerUser": 10})
        desk.until_all(sweep, "queued")
        wait_for(lambda: "follow-up" not in queue(desk, "room"))
    cells = [cell for task in in_queue(desk, "room") for cell in task]
    assert len(cells) == len(set(cells)) == 7
    # The report that waited for the follow-up job was replaced by one that waits for all arrays.
    [line] = queue(desk, "room")["report"]
    sent = desk.jobs("room")
    assert set(re.findall(r"afterany:(\d+)", line)) == {str(job) for job in sent[2:-1]}
    limits = desk.box.ask("squeue", "-rh", "-t", "PD", "-o", "%j|%l").splitlines()
    assert Counter(s.partition("|")[2] for s in limits if "-base-" in s) == {
        "4:00:00": 2,
        "1:39:00": 5,
    }
    assert "Nothing to submit" in desk.submit(sweep)[0]
    desk.netpress("cancel", sweep)


def test_a_follow_up_job_that_waits_for_a_submission_submits_what_that_left_over(desk):
    """It has read the ledger, and waits for its lock, when the submission changes both."""
    sweep = desk.sweep("waits", techniques="[base]", seeds="[0, 1, 2, 3]")
    with limited(desk, ("qos", "public"), MaxSubmitJobsPerUser=3):
        desk.submit(sweep, *LATER, "--set", "follow_up.every_s=8")  # by then this has ended
        follow_up, place = desk.jobs("waits")[0], desk.work.sweep("waits")
        with ledger.locked(place) as known:
            logs = f"*/{follow_up}_0_0_log.err"
            wait_for(lambda: any("waiting" in p.read_text() for p in place.folder.rglob(logs)))
            by = json.loads(json.dumps(known.put_off_by))
            by["profile"]["values"]["minutes"] = 99
            requests = [[{**known.put_off[cell], "minutes": 99}, [cell]] for cell in known.put_off]
            known.append("put_off", reason="a test", requests=requests, by=by)
        desk.box.ask("sacctmgr", "-i", "modify", "qos", "public", "set", "MaxSubmitJobsPerUser=-1")
        desk.until_all(sweep, "queued")
    limits = desk.box.ask("squeue", "-rh", "-t", "PD", "-o", "%j|%l").splitlines()
    of_this = Counter(s.partition("|")[2] for s in limits if "-waits-base-" in s)
    assert of_this == {"4:00:00": 1, "1:39:00": 3}
    desk.netpress("cancel", sweep)


def test_without_a_follow_up_job_the_next_submit_sends_the_rest(desk):
    sweep = desk.sweep("alone", techniques="[base]", seeds="[0, 1, 2, 3, 4]")
    never = ("--set", "follow_up=null")
    which = ("user", "root", "where", "account=grp_lab")
    with limited(desk, which, MaxSubmitJobs=3) as put:
        out, _ = desk.submit(sweep, *LATER, *never)
        assert "3 cells not submitted yet (MaxSubmitJobs of the association" in out
        assert f"`netpress submit {sweep}` submits them when there is room" in out
        assert sorted(queue(desk, "alone")) == ["base", "report"]
        out, _ = desk.netpress("doctor", "--profile", "generic", *SMALL, "--no-jobs")
        assert (
            "note  submit limit: MaxSubmitJobs of the association of account grp_lab is 3, 3" in out
        )
        assert "a job that looks every 10 minutes submits the rest of a larger sweep" in out
        put({"MaxSubmitJobs": 6})
        out, _ = desk.submit(sweep, *LATER)
        assert "3 cells" in out and "not submitted" not in out
        assert set(desk.states(sweep).values()) == {"queued"}
        assert len(queue(desk, "alone")["report"]) == 1
        full = desk.sweep("full", techniques="[base]", seeds="[7]")
        [line] = desk.submit(full, *LATER, code=2)[1].splitlines()
        assert "MaxSubmitJobs of the association of account grp_lab is 6, 6 of it used" in line
        assert "submitted: nothing; the same command submits the rest" in line
    desk.netpress("cancel", sweep)


@pytest.mark.parametrize("where", ["hidden", "MaxJobCount"])
def test_a_limit_that_shows_only_when_sbatch_refuses(desk, where):
    """The follow-up job and the report come first; the array is halved until it fits."""
    sweep = desk.sweep("halved", techniques="[base, quick]", seeds="[0, 1, 2, 3, 4, 5, 6]")
    shim = Path(desk.env["PATH"].split(":")[0]) / "scontrol"
    hide = '#!/bin/sh\n[ "$2$3" = showassoc_mgr ] && { echo "Access denied" >&2; exit 1; }\n'
    shim.write_text(hide + shim.read_text().partition("\n")[2])
    with contextlib.ExitStack() as stack:
        if where == "hidden":
            stack.enter_context(limited(desk, ("qos", "public"), MaxSubmitJobsPerUser=5))
            words = "QOSMaxSubmitJobPerUserLimit"
        else:
            there = desk.box.ask("squeue", "-ra", "-h", "-t", "all", "-o", "%i").count("\n") + 1
            stack.enter_context(desk.box.configured(MaxJobCount=str(there + 6)))
            words = "temporarily unable to accept job"
        desk.counted()
        out, err = desk.submit(sweep, *LATER, *SOON)
        sbatch = desk.counted()["sbatch"]
    assert words in out and "when there is room" in out, out
    assert len(in_queue(desk, "halved")) == 3 and sbatch == 6  # 7 no, two ahead, 4 no, 2, 1
    assert {"follow-up", "report", "base"} <= set(queue(desk, "halved"))
    desk.until_all(sweep, "queued", "waiting")
    cells = [cell for task in in_queue(desk, "halved") for cell in task]
    assert len(cells) == len(set(cells)) == 14
    desk.netpress("cancel", sweep)
    assert desk.box.ask("squeue", "-h", "-t", "PD,R") == ""


def test_jobs_of_a_work_root_that_is_gone_are_not_sent_again(desk):
    sweep = desk.sweep("gone", techniques="[base, quick]", seeds="[0]")
    desk.submit(sweep, *LATER)
    jobs, root, aside = desk.jobs("gone"), desk.work.root, desk.folder / "aside"
    root.rename(aside)
    for _ in range(2):
        [line] = desk.submit(sweep, *LATER, code=2)[1].splitlines()
        assert f"has no record of jobs {' '.join(map(str, jobs))} in the queue" in line
        assert "nothing was submitted" in line
    assert {int(j) for j in desk.box.ask("squeue", "-h", "-o", "%F").split()} == set(jobs)
    # Another sweep is another matter; and with the work root back, all is as it was.
    other = desk.sweep("other", techniques="[base]", seeds="[1]")
    assert "you may log out" in desk.submit(other, *LATER)[0]
    desk.netpress("cancel", other)
    shutil.rmtree(root)
    aside.rename(root)
    assert "Nothing to submit" in desk.submit(sweep, *LATER)[0]
    desk.netpress("cancel", sweep)


def test_the_tightest_limit_is_found_wherever_it_stands(desk, monkeypatch):
    """Of the user, of the account and those above it, of the job's QOS and the partition's."""
    monkeypatch.setenv("PATH", desk.env["PATH"])
    monkeypatch.setenv("SLURM_CONF", desk.env["SLURM_CONF"])

    def tightest(*settings: str) -> tuple[str, int] | None:
        limit = room.tightest(profile.load("generic", settings).profile)
        return limit and (limit.name, limit.room)

    assert tightest() is None
    places = {
        ("user", "root", "where", "account=public"): {"MaxSubmitJobs": 9},
        ("account", "grp_lab"): {"GrpSubmitJobs": 8},
        ("account", "root"): {"GrpSubmitJobs": 7},
        ("qos", "private"): {"MaxSubmitJobsPerUser": 6},
        ("qos", "public"): {"GrpSubmitJobs": 5},
    }
    of_account = "GrpSubmitJobs of the association of account"
    with contextlib.ExitStack() as stack:
        expected = [None, (f"{of_account} grp_lab", 8), (f"{of_account} root", 7)]
        expected += [(f"{of_account} root", 7), ("GrpSubmitJobs of QOS public", 5)]
        for (which, limits), result in zip(places.items(), expected, strict=True):
            stack.enter_context(limited(desk, which, **limits))
            wait_for(lambda result=result: tightest() == result, 10)
        assert tightest("qos=private") == ("MaxSubmitJobsPerUser of QOS private", 6)
        assert tightest("account=public", "qos=normal") == (f"{of_account} root", 7)
        desk.box.ask("scontrol", "update", "PartitionName=short", "QOS=private")
        of_both = tightest("partition=short")  # its GrpSubmitJobs is not set: the job's counts
        assert of_both == ("GrpSubmitJobs of QOS public", 5)
        assert tightest("partition=short", "qos=normal")[0] == "MaxSubmitJobsPerUser of QOS private"
        desk.box.ask("scontrol", "update", "PartitionName=short", "QOS=")
    wait_for(lambda: tightest() is None, 10)
