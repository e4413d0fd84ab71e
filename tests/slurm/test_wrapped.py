"""Slurm's commands as some sites have them: scripts around the real ones that print more."""

from __future__ import annotations

import os
import shutil

from tests.slurm.conftest import CALLED, PATH
from tests.slurm.test_slurm import LATER

# Banners on both streams, before and after; one may be a number alone, as a job's id is.
WRAPPED = """#!/bin/sh
echo "{name} $*" >>"$NETPRESS_CALLS"
echo "*** Welcome. 12 SUs left ***"; echo "${{BANNER:-}}"; echo "quota: 3 of 10 TB" >&2
{real} "$@"; code=$?
echo "11 SUs left"; echo "{name}: lua: please cite the cluster" >&2
exit $code
"""
UNREADABLE = """#!/bin/sh
{real} "$@" | tr '\\037' ' '
"""


def wrap(desk, script: str, *names: str) -> None:
    shims = desk.env["PATH"].split(os.pathsep)[0]
    for name in names:
        real = shutil.which(name, path=PATH)
        (desk.folder.parent / shims / name).write_text(script.format(name=name, real=real))


def listed(desk, sweep: str) -> set[int]:
    """The jobs of a sweep in the real queue."""
    lines = desk.box.ask("squeue", "-h", "-o", "%F %j").splitlines()
    return {int(line.split()[0]) for line in lines if f"-{sweep}-" in line}


def test_banners_are_not_taken_for_jobs(desk):
    wrap(desk, WRAPPED, *CALLED)
    sweep = desk.sweep("wrapped", techniques="[base, quick]", seeds="[60]")
    _, err = desk.submit(sweep, *LATER)
    assert listed(desk, "wrapped") == set(desk.jobs("wrapped"))
    # What a plug-in says is passed on, once; the wrapper's own lines are not.
    assert err.count("sbatch: lua: please cite the cluster") == 1 and "quota" not in err
    assert desk.states(sweep) == {"base/60": "queued", "quick/60": "waiting"}
    assert "Nothing to submit" in desk.submit(sweep, *LATER)[0]
    desk.netpress("cancel", sweep)
    desk.until_none(sweep, "queued")
    _, err = desk.submit(desk.sweep("no"), "--set", "partition=nowhere", code=2)
    assert "SUs" not in err and "invalid partition" in err
    # Two lines are an id: the job's name tells which is.
    desk.env["BANNER"] = "12"
    _, err = desk.submit(desk.sweep("number", techniques="[base]", seeds="[62]"), *LATER)
    assert "checking whether the job was submitted" in err
    assert listed(desk, "number") == set(desk.jobs("number"))


def test_a_wrapper_that_changes_the_table(desk):
    """Whether a job is in the queue is then not known, and nothing goes out twice."""
    sweep = desk.sweep("mangled", techniques="[base]", seeds="[61]")
    desk.submit(sweep, *LATER)
    sent = desk.jobs("mangled")
    wrap(desk, UNREADABLE, "squeue", "sacct")
    _, err = desk.netpress("status", sweep)
    assert "squeue did not print the table that was requested, but 'ARRAY_JOB_ID" in err
    _, err = desk.submit(sweep, *LATER, code=1)
    assert "did not print the table" in err and desk.jobs("mangled") == sent
