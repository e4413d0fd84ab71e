"""What sweeps, jobs, nodes and users share: cells, and the right to work on them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from pipeline import store
from tests.slurm.conftest import ELSEWHERE, HERE, SMALL, at_desk, halt, wait_for
from tests.slurm.test_slurm import LATER, LONG, goes_on, in_queue, restarts

# Jobs see two machines, where flock reaches the other one, and where it does not.
TWO_MACHINES = [ELSEWHERE]
NO_FLOCK = [*TWO_MACHINES, "export NETPRESS_TEST_NO_FLOCK=1"]


def setup(lines: list[str]) -> tuple[str, ...]:
    return ("--set", "setup=" + json.dumps(lines))


def test_two_sweeps_share_their_base(desk):
    """The second one waits for the base in the job of the first, and never sends it again."""
    first = desk.sweep("first", techniques="[base, quick]", seeds="[40]")
    second = desk.sweep("second", techniques="[base, quick, quick2]", seeds="[40]")
    desk.submit(first, *LATER)
    base, quick = desk.jobs("first")[:2]
    desk.counted()
    desk.submit(second, *LATER)
    assert desk.counted()["sbatch"] == 2
    [other, report] = desk.jobs("second")
    scripts = {
        job: desk.box.ask("scontrol", "write", "batch_script", str(job), "-")
        for job in (other, report)
    }
    assert f"--dependency=aftercorr:{base}\n" in scripts[other]
    assert f"--dependency=afterany:{base}:{quick}:{other}\n" in scripts[report]
    statuses = desk.status(second)
    assert statuses["base/40"]["state"] == "queued"
    assert f"job {base}_0 of sweep first" in statuses["base/40"]["reason"]
    assert {statuses[name]["state"] for name in ("quick/40", "quick2/40")} == {"waiting"}
    assert "Nothing to submit" in desk.submit(second, *LATER)[0]
    assert "Nothing to submit" in desk.resume(second, *LATER)

    # To cancel the second leaves the first alone; without it, the base is the second's to send.
    assert "1 cell cancelled" in desk.netpress("cancel", second)[0]
    assert desk.states(first) == {"base/40": "queued", "quick/40": "waiting"}
    desk.netpress("cancel", first)
    desk.until_none(second, "queued")
    desk.resume(second, *LATER)
    assert len(in_queue(desk, "second")) == 3


def test_a_base_that_is_made_outside_of_slurm(desk):
    """No job can wait for it, so those that stand on it are sent later, and it says so."""
    sweep = desk.sweep("outside", techniques="[base, quick]", seeds="[41]")
    cell = desk.cell(sweep, "base/41")
    with store.lock_cell(cell):
        out, _ = desk.submit(sweep, *LATER)
    assert "1 cell not submitted: the base is being made outside of SLURM now" in out
    assert "Nothing to submit" in out
    desk.submit(sweep, *LATER)
    assert len(in_queue(desk, "outside")) == 2


@pytest.mark.parametrize("lines", [TWO_MACHINES, NO_FLOCK], ids=["flock", "no flock"])
def test_a_cell_in_two_jobs_on_two_nodes(desk, lines):
    """However the second one came to be: it leaves the cell to the first."""
    seed = 42 + len(lines)
    sweep = desk.sweep("one", techniques="[base]", seeds=f"[{seed}]", epochs=LONG)
    cell = desk.cell(sweep, f"base/{seed}")
    desk.submit(sweep, *setup(lines), "--set", 'options={"nodelist":"n1"}')
    held = halt(cell)
    first = desk.jobs("one")[0]
    folder = desk.work.sweep("one").job(desk.ledger("one")[0]["intent"])
    second = desk.box.ask("sbatch", "--parsable", "--nodelist=n2", str(folder.script))
    ended = ("squeue", "-ht", "all", "-o", "%T", "-j", f"{second}_0")
    wait_for(lambda: desk.box.ask(*ended) == "FAILED", 60)
    message = (
        f"netpress: cell {cell.id} is being worked on by process {held.pid} on n1 in job {first}"
    )
    assert message in folder.err(f"{second}_0").read_text()
    held.go_on()
    assert desk.settled(sweep)[f"base/{seed}"]["state"] == "done"
    assert store.last_attempt(cell).number == 1 and store.verify(cell)


@pytest.mark.parametrize("lines", [TWO_MACHINES, NO_FLOCK], ids=["flock", "no flock"])
def test_a_job_that_was_requeued_while_its_old_run_goes_on(desk, lines):
    """The scheduler lost the node, but the processes there did not: the old run ends itself."""
    seed = 44 + len(lines)
    sweep = desk.sweep("ghost", techniques="[base]", seeds=f"[{seed}]", epochs=LONG)
    cell = desk.cell(sweep, f"base/{seed}")
    desk.submit(sweep, *setup(lines), "--set", 'options={"exclude":"n2"}')
    job = desk.jobs("ghost")[0]
    held = halt(cell)
    epochs = len(store.read_history(cell.metrics)[0].columns["epoch"])
    try:
        desk.box("signal", "slurmd.n1", "KILL")
        desk.box.ask("scontrol", "update", "nodename=n1", "state=down", "reason=lost")
        desk.box.ask("scontrol", "update", f"jobid={job}_0", "ExcNodeList=")
        wait_for(lambda: "on n2" in cell.lock.read_text(), 60)
        held.go_on()
        wait_for(lambda: not Path(f"/proc/{held.pid}").exists(), 30)
        assert "started again elsewhere" in cell.attempt(1).log.read_text()
        status = desk.settled(sweep)[f"base/{seed}"]
    finally:
        desk.box("revive-node", "n1")
    assert status["state"] == "done" and status["attempts"] == 2 and store.verify(cell)
    assert "Restarts=1" in restarts(desk, job)
    goes_on(cell, f"{job}_0", epochs)


def test_what_is_killed_from_outside_is_resumed(desk):
    """The worker, srun, the batch script: none of them can report anything, and none is the cell's
    fault."""
    victims = ("worker", "srun", "script")
    sweep = desk.sweep("killed", techniques="[base]", seeds="[50, 51, 52]", epochs=LONG)
    cells = {name: desk.cell(sweep, f"base/{50 + n}") for n, name in enumerate(victims)}
    desk.submit(sweep)
    for name, cell in cells.items():
        line = ancestors(halt(cell).pid)  # worker, slurmstepd; and beside them, script, srun
        task = line["SLURM_ARRAY_TASK_ID"]
        os.kill({"worker": line["parent"], **children_of_script(line)}[name], signal.SIGKILL)
        assert int(task) == victims.index(name)
    statuses = desk.settled(sweep)
    for now in statuses.values():
        assert now["state"] == "failed" and "was killed from outside" in now["reason"], now
    # Recorded by the report's job, which nobody has killed.
    wait_for(lambda: all(cell.attempt(1).failure.exists() for cell in cells.values()))
    out = desk.resume(sweep)
    assert out.count(": again, it ended with killed: job ") == 3
    # A second one at once has nothing left to do.
    assert "Nothing to submit" in desk.resume(sweep)
    statuses = desk.settled(sweep)
    assert {now["state"] for now in statuses.values()} == {"done"}
    assert {now["attempts"] for now in statuses.values()} == {2}


def ancestors(pid: int) -> dict:
    """The parent of a process, and its job's environment."""
    text = Path(f"/proc/{pid}/environ").read_text()
    environment = dict(line.partition("=")[::2] for line in text.split("\0") if line)
    status = Path(f"/proc/{pid}/status").read_text()
    return {**environment, "parent": int(status.partition("PPid:")[2].split()[0])}


def children_of_script(env: dict) -> dict[str, int]:
    """The batch script of a job, and its srun."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True)
    rows = [line.split(maxsplit=2) for line in listed.stdout.splitlines()[1:]]
    name = f"/job{int(env['SLURM_JOB_ID']):05}/slurm_script"
    [script] = [int(pid) for pid, _, args in rows if name in args and "bash" in args]
    [srun] = [int(pid) for pid, parent, args in rows if int(parent) == script and "srun" in args]
    return {"script": script, "srun": srun}


def test_a_node_that_fails_is_left_out_next_time(desk):
    """`--exclude` in the script that is really sent; but not where no node would be left."""
    sweep = desk.sweep("nodes", techniques="[base]", seeds="[55]", epochs=LONG)
    cell = desk.cell(sweep, "base/55")
    desk.submit(sweep)
    gone = []
    for left_out in (True, False):
        job = desk.jobs("nodes")[-2]
        halt(cell, task=f"{job}_0")
        gone.append(node := desk.box.ask("squeue", "-h", "-o", "%N", "-j", f"{job}_0"))
        desk.box.ask("scontrol", "update", f"jobid={job}_0", "Requeue=0")
        try:
            desk.box("kill-node", node, "--now")
            status = desk.settled(sweep)["base/55"]
        finally:
            desk.box("revive-node", node)
        assert status["state"] == "failed" and f"node {node} failed" in status["reason"]
        out, err = desk.netpress("resume", sweep, *SMALL)
        assert f"without {', '.join(gone)}" in out
        new = desk.jobs("nodes")[-2]
        sent = desk.box.ask("scontrol", "write", "batch_script", str(new), "-")
        assert (f"#SBATCH --exclude={node}\n" in sent) is left_out
        assert ("Slurm has no node but" in err) is not left_out
    assert sorted(gone) == ["n1", "n2"] and "--exclude" not in sent
    assert desk.settled(sweep)["base/55"]["state"] == "done"


# --- two users -------------------------------------------------------------------------------


@pytest.fixture
def shared_desk(box, tmp_path):
    """A desk that another user can walk up to."""
    with at_desk(box, tmp_path) as made:
        made.folder = Path(tempfile.mkdtemp(prefix="np-desk-", dir="/tmp"))
        made.folder.chmod(0o755)
        yield made
        shutil.rmtree(made.folder)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_users_sweep(shared_desk):
    desk = shared_desk
    env, calls = dict(desk.env), desk.env["NETPRESS_CALLS"]
    sweep = desk.sweep("theirs", techniques="[base, quick, quick2]", seeds="[60]")
    base = desk.sweep("base", techniques="[base]", seeds="[60]")
    desk.submit(base)
    desk.settled(base)
    wait_for(lambda: not desk.box.ask("squeue", "-h"))
    desk.submit(sweep, *LATER)
    (desk.folder / sweep).chmod(0o644)

    def nobody(*arguments: str, code: int = 0) -> tuple[str, str]:
        desk.env = {**env, "PATH": ":".join(env["PATH"].split(":")[1:])}
        try:
            return desk.netpress(*arguments, code=code, program=(str(HERE / "as_nobody.py"),))
        finally:
            desk.env = {**env, "NETPRESS_CALLS": calls}

    # As netpress makes it, all of it is private: one sentence.
    _, err = nobody("status", sweep, code=2)
    assert (
        err == f"netpress: work root {desk.work.root} belongs to root, and private: "
        "only they can read it"
    )

    # The ledger may be read, the cells may not.
    desk.work.root.chmod(0o755)
    (desk.work.root / "cells").chmod(0o755)
    subprocess.run(["chmod", "-R", "a+rX", desk.work.root / "sweeps"], check=True)
    out, err = nobody("status", sweep)
    assert "1 cell is readable only for another user" in err
    assert "its folder is another user's, and private" in out and "2 queued" in out

    # All of it may be read: everything is seen, nothing can be done, nothing is changed.
    subprocess.run(["chmod", "-R", "a+rX", desk.work.root], check=True)
    before = {path: path.stat().st_mtime_ns for path in desk.work.root.rglob("*")}
    out, err = nobody("status", sweep)
    assert "1 done" in out and "2 queued" in out and err == ""
    for command in (("submit", sweep, *SMALL), ("cancel", sweep), ("resume", sweep, *SMALL)):
        _, err = nobody(*command, code=2)
        assert "belongs to root: only they can submit, cancel or resume there" in err
    assert before == {path: path.stat().st_mtime_ns for path in desk.work.root.rglob("*")}
    assert sum(map(len, in_queue(desk, "theirs"))) == 2  # short cells share a job
