"""What commands make of Slurm's answers, which small programs on PATH give here."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from jobs.follow_up import functions
from pipeline import cli, store
from pipeline.errors import UserError
from pipeline.orchestrate import (
    batch,
    cancel,
    cluster,
    in_queue,
    ledger,
    profile,
    resume,
    room,
    send,
    slurm,
    slurm_lines,
    state,
    submit,
)
from pipeline.paths import Work
from tests import results
from tests.test_submit import QUEUE_HEADER, intend, table_of

PROGRAM = """#!/bin/sh
cd {folder}
echo "{name} $*" >>calls
[ -e down ] && {{ echo "Unable to contact slurm controller (connect failure)" >&2; exit 1; }}
{does}
"""
DOES = {
    "squeue": "cat queue",
    "sacct": "cat records",
    "scontrol": '[ "$2" = config ] && cat config',
    "scancel": "true",
    "sbatch": "echo >>sent; wc -l <sent",
}


@dataclass
class Slurm:
    """Its answers, in files of this folder, and its `calls`."""

    folder: Path

    def queue(self, *jobs: tuple[int, str, str]) -> None:
        """Task 0 of these in the queue: (job, state, name)."""
        rows = [
            (str(job), "0", now, "None", "n1", "2026-01-01T00:00:00", "(null)", name)
            for job, now, name in jobs
        ]
        (self.folder / "queue").write_text(table_of(QUEUE_HEADER, *rows))

    def records(self, *jobs: tuple[int, str, str]) -> None:
        """The same in accounting."""
        rows = [
            (f"{job}_0", now, "None", "n1", "0:0", "", "2G", "9", name) for job, now, name in jobs
        ]
        (self.folder / "records").write_text(table_of(slurm_lines.RECORD_FIELDS, *rows))

    def named(self, cluster: str) -> None:
        (self.folder / "config").write_text(f"ClusterName             = {cluster}\n")

    def down(self) -> None:
        (self.folder / "down").touch()

    def calls(self, name: str) -> list[str]:
        lines = (self.folder / "calls").read_text().splitlines()
        return [line.partition(" ")[2] for line in lines if line.split()[0] == name]


@pytest.fixture
def answers(tmp_path, monkeypatch):
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, does in DOES.items():
        (folder / name).write_text(PROGRAM.format(folder=folder, name=name, does=does))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(slurm, "PAUSES_S", ())
    made = Slurm(folder)
    made.queue()
    made.records()
    made.named("here")
    return made


@pytest.fixture
def work(tmp_path):
    return Work(tmp_path / "runs")


ASKED = {"memory_gib": 1, "minutes": 1, "exclude": []}


def sent(work, cell, job, intent="a1", name="test", **more):
    """A cell in a job of its own."""
    with ledger.locked(work.sweep(name)) as known:
        facts = {"request": ASKED, "user": slurm.user(), **more}
        intend(known, intent, (cell.id,) if cell else (), **facts)
        known.append("submitted", intent=intent, job=job)


def states(sweep, work):
    return {s.cell.technique: s.state for s in state.find(sweep, work).cells}


def target(sweep, work):
    generic = profile.load("generic", ["gpu=null", "cores=1", "memory_gib=2"])
    return batch.Target(sweep, work, work.root / "data", generic, work.root / "reports")


def test_a_job_of_this_number_with_another_name_is_a_strangers(answers, work):
    """Of another cluster that sees the work root, or of this one after it lost its state."""
    sweep = results.sweep(techniques=())
    other = results.sweep("other", techniques=())
    [cell] = sweep.cells
    sent(work, cell, 17)
    sent(work, cell, 18, "b2", "other")
    for row in ((17, "RUNNING", "netpress-other"), (18, "RUNNING", "netpress-other")):
        answers.queue(row)
        answers.records(row)
        assert states(sweep, work) == states(other, work) == {"base": "missing"}
        assert list(cancel.run(sweep, work))[0] == "0 cells cancelled"
        assert "scancel" not in (answers.folder / "calls").read_text()
    answers.queue((17, "RUNNING", "netpress-a1"))
    assert states(sweep, work) == states(other, work) == {"base": "running"}


def test_jobs_of_another_cluster_are_neither_cancelled_nor_sent_again(answers, work):
    sweep = results.sweep(techniques=())
    [cell] = sweep.cells
    sent(work, cell, 17, cluster="there")
    said = "job 17 was sent to cluster there .* cannot be seen from cluster here: continue there"
    with pytest.raises(UserError, match=said):
        list(cancel.run(sweep, work))
    with pytest.raises(UserError, match=said):
        submit.run(target(sweep, work), functions(), live=True)
    assert "sbatch" not in (answers.folder / "calls").read_text()
    # Not where it is in the queue here, or has ended, or this or that name is not known.
    answers.queue((17, "RUNNING", "netpress-a1"))
    list(cancel.run(sweep, work))
    answers.queue()
    list(cancel.run(sweep, work))  # cancelled it is
    for here, there in (("here", ""), ("", "there"), ("here", "here")):
        sent(work, cell, 17, cluster=there)
        answers.named(here)
        list(cancel.run(sweep, work))
    answers.named("here")
    with ledger.locked(work.sweep("test")) as known:
        intend(known, "b2", (cell.id,), cluster="there")
    with pytest.raises(UserError, match="a job named netpress-b2 was sent to cluster there"):
        list(cancel.run(sweep, work))


def test_a_submission_records_its_cluster(answers, work):
    sweep = results.sweep(techniques=())
    sent_now = submit.run(target(sweep, work), functions(), live=True)
    assert sent_now.sent.jobs
    entries = ledger.read(work.sweep("test")).entries.values()
    assert entries and {entry.cluster for entry in entries} == {"here"}


def put_off(work, cells, by=None, **more):
    with ledger.locked(work.sweep("test")) as known:
        left = {"requests": [[ASKED, [cell.id for cell in cells]]], **more}
        known.append("put_off", reason="limit of 4", by=by or {}, **left)


def test_a_cell_that_was_put_off_can_be_cancelled(answers, work):
    sweep = results.sweep(techniques=(), seeds=(0, 1, 2))
    first, second, third = sweep.cells
    sent(work, first, 7)
    answers.queue((7, "RUNNING", "netpress-a1"))
    put_off(work, (second, third))
    assert list(cancel.run(sweep, work, [second])) == [
        "1 cell cancelled, 1 of them not submitted yet"
    ]
    known = ledger.read(work.sweep("test"))
    assert known.put_off.keys() == known.not_submitted.keys() == {third.id}
    now = state.find(sweep, work).by_id
    assert (now[second.id].state, now[second.id].reason) == ("cancelled", cluster.CANCELLED)
    assert now[third.id].reason == "not submitted: limit of 4"
    gone = replace(sweep, cells=(first, second))  # the third was taken out of the file
    assert list(cancel.run(gone, work))[1] == "1 cell no longer in test.yaml cancelled"
    assert not ledger.read(work.sweep("test")).put_off
    answers.queue()
    # `resume` submits it, and `submit` does not.
    assert not submit.run(target(gone, work), functions(), live=True).batch.report.cells
    chosen = resume.run(target(gone, work), functions(), [second], live=True)
    assert [*chosen.submitted.batch.prepared[0].array.cells] == [second.id]


def test_a_follow_up_job_that_was_cancelled_submits_nothing(answers, work):
    """It waited for the lock of `netpress cancel`; and a later submission has put off more."""
    sweep = results.sweep(techniques=(), seeds=(0, 1))
    sent(work, None, 7, "f1", kind="follow-up", tasks={"0": []})
    put_off(work, sweep.cells)
    answers.queue((7, "RUNNING", "netpress-f1"))
    assert list(cancel.run(sweep, work)) == ["2 cells cancelled, 2 of them not submitted yet"]
    assert answers.calls("scancel") == ["7"]
    answers.queue((7, "COMPLETING", "netpress-f1"))
    put_off(work, sweep.cells)
    with pytest.raises(submit.Cancelled):
        submit.go_on(target(sweep, work), functions(), {}, "f1")
    sent(work, None, 8, "f2", kind="follow-up", tasks={"0": []})
    submit.go_on(target(sweep, work), functions(), {}, "f2")
    assert not ledger.read(work.sweep("test")).put_off


def test_a_follow_up_job_of_another_user_is_named_and_left_alone(answers, work, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    sweep = results.sweep(techniques=())
    sent(work, None, 7, "f1", kind="follow-up", tasks={"0": []}, user="bob")
    sent(work, sweep.cells[0], 8)
    answers.queue((7, "PENDING", "netpress-f1"), (8, "PENDING", "netpress-a1"))
    lines = list(cancel.run(sweep, work))
    assert lines == [
        "1 cell cancelled",
        "job 7, which submits what there was no room for, is of user bob, who alone can cancel it",
    ]
    assert answers.calls("scancel") == ["8_[0]"]
    assert not ledger.read(work.sweep("test")).cancelled_jobs


def test_a_job_without_an_end_in_accounting_does_not_run_for_ever(answers, work, monkeypatch):
    """Where slurmdbd missed it: the queue knows better, but of jobs that it may hide."""
    sweep = results.sweep(techniques=())
    [cell] = sweep.cells
    sent(work, cell, 7)
    answers.records((7, "RUNNING", "netpress-a1"))
    [now] = state.find(sweep, work).cells
    assert now.state == "missing"
    assert now.reason == (
        "job 7_0 is not in the queue any more, though accounting still says RUNNING of it"
    )
    log = work.sweep("test").job("a1").out("7_0")
    store.make_folder(log.parent)
    log.touch()  # it has just ended, and accounting is late
    assert states(sweep, work) == {"base": "running"}
    os.utime(log, (0, 0))
    assert states(sweep, work) == {"base": "missing"}
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    sent(work, cell, 8, "b2", user="bob")
    answers.records((8, "RUNNING", "netpress-b2"))
    assert states(sweep, work) == {"base": "running"}


@pytest.mark.parametrize("job", [None, "99"])
def test_a_failure_outside_of_its_job_is_newer_than_that_wherever_it_was(answers, work, job):
    """Of `netpress run` on a login node, or within an allocation (salloc)."""
    sweep = results.sweep(techniques=())
    [cell] = sweep.cells
    sent(work, cell, 7)
    answers.records((7, "NODE_FAIL", "netpress-a1"))
    attempt = store.new_attempt(work.cell(cell.id))
    store.write_usage(attempt, store.Usage(wall_s=1.0, job=job))
    store.write_failure(attempt, store.Failure("exception", "ValueError: x"))
    then = ledger.when(ledger.read(work.sweep("test")).entries["a1"])
    for later, expected in ((60, "ValueError: x"), (-60, "node n1 failed")):
        os.utime(attempt.failure, (then + later, then + later))
        [now] = state.find(sweep, work).cells
        assert now.state == "failed" and expected in now.reason
    answers.down()
    assert states(sweep, work) == {"base": "queued"}
    os.utime(attempt.failure, (then + 60, then + 60))
    assert states(sweep, work) == {"base": "failed"}


def test_what_was_cancelled_is_known_while_slurm_does_not_answer(answers, work):
    sweep = results.sweep(techniques=(), seeds=(0, 1))
    sent(work, sweep.cells[0], 7)
    sent(work, sweep.cells[1], 8, "b2")
    answers.queue((7, "PENDING", "netpress-a1"), (8, "PENDING", "netpress-b2"))
    list(cancel.run(sweep, work, sweep.cells[:1]))
    answers.down()
    assert [s.state for s in state.find(sweep, work).cells] == ["cancelled", "queued"]


def test_why_there_was_no_room_is_recorded_as_it_is_in_the_end(answers, work):
    """Not as it was before anything was sent; and of all that are put off."""
    sweep = results.sweep(techniques=(), seeds=(0, 1, 2, 3))
    for most, used, left in ((3, 0, 3), (4, 3, 2)):  # the first sends a follow-up job and a report
        known = ledger.read(work.sweep("test"))
        cells = [cell for cell in sweep.cells if cell.id not in known.last]
        now = in_queue.InQueue(follow_up=1, has_report=True) if used else None
        limit = room.Limit("a limit", most, used)
        chosen = batch.Chosen(cells)
        made = batch.prepare(target(sweep, work), chosen, known, room=limit, now=now)
        with ledger.locked(work.sweep("test")) as known:
            send.send(made, known, functions())
        known = ledger.read(work.sweep("test"))
        reason = f"a limit is {most}, {most} of it used"
        assert [*known.not_submitted.values()] == [reason] * left


@pytest.mark.parametrize("command", ["submit", "cancel"])
def test_that_slurm_does_not_answer_is_a_failure_and_no_bad_input(
    answers, work, tmp_path, monkeypatch, capsys, command
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NETPRESS_WORK", str(work.root))
    sent(work, results.sweep().cells[0], 7, name="s")
    settings = "name: s\nmodels: [vgg16_bn]\ndatasets: [digits]\ntechniques: [base]\n"
    (tmp_path / "s.yaml").write_text(settings)
    answers.down()
    assert cli.main([command, "s.yaml", "--profile", "generic"]) == 1
    assert "could not reach Slurm: Unable to contact slurm controller" in capsys.readouterr().err
