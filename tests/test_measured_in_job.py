"""Measurements that ended without a record, and what their jobs are to blame for; without Slurm."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace

import pytest

from jobs import aggregate, task
from pipeline import done, measuring, store
from pipeline.errors import UserError
from pipeline.orchestrate import (
    batch,
    cancel,
    graph,
    ledger,
    logs,
    profile,
    slurm,
    state,
    submit,
)
from pipeline.orchestrate.slurm import Row
from pipeline.paths import CODE, JobPaths, Work
from tests import results, tiny_worker
from tests.desk import MEASURING, TRAINING, Desk, train

IN_JOB = "measure=in-job"


@pytest.fixture
def desk(tmp_path):
    (tmp_path / "cells").mkdir()
    return Desk(tmp_path)


@pytest.fixture
def in_job(tmp_path):
    """All trained by job 7, which was to measure them, too."""
    (tmp_path / "cells").mkdir()
    desk = Desk(tmp_path, in_job=True)
    for cell in desk.asked.cells:
        train(cell, desk.work)
    return desk


def attempt(cell, desk, job: str, **usage):
    made = store.new_attempt(desk.work.cell(cell.id), job)
    store.publish_json(made.usage, {"job": job, **usage})
    return made


def test_a_measurement_that_is_killed_in_the_job_that_trained_gets_more(in_job, monkeypatch):
    killed = Row(7, 0, "OUT_OF_MEMORY", requested_bytes=40 * 2**30)
    states = in_job.look(killed)
    assert {(s.state, s.trained, s.reason) for s in states.cells} == {
        (
            "failed",
            True,
            "its measurement failed: out of memory: 40.0 of 40 GiB; its training is kept",
        )
    }
    assert not batch.choose(in_job.asked, states, batch.is_missing)
    choice = in_job.resumed(states, IN_JOB)
    assert {r.memory_gib for r in choice.requests.values()} == {60} and not choice.measures
    # With jobs that measure, it is theirs to do, with what these request.
    choice = in_job.resumed(states)
    assert {r.memory_gib for r in choice.measures.values()} == {16} and not choice.requests
    # Slurm forgets it: the report's job writes it down.
    last = attempt(in_job.base, in_job, "7_0")
    monkeypatch.setattr(state, "find", lambda *arguments: states)
    aggregate.write_down_ends(in_job.asked, in_job.work)
    assert store.read_failure(last).kind == "out_of_memory"


def test_a_cancelled_measurement_in_the_job_that_trained_is_not_sent_by_submit(in_job):
    with ledger.locked(in_job.work.sweep("test")) as known:
        known.append("cancelled", cells=in_job.ids, reports=[])
        in_job.known = known
    states = in_job.look(Row(7, 0, "CANCELLED"))
    assert {s.state for s in states.cells} == {"cancelled"}
    assert not batch.choose(in_job.asked, states, batch.is_missing)


def test_the_newer_of_two_jobs_was_to_measure_it(in_job):
    """And sacct is called for that one."""
    with ledger.locked(in_job.work.sweep("test")) as known:
        in_job.known = known
        in_job.submit("b", 8, "measure", [in_job.half.id], TRAINING)
    killed, ran = Row(7, 0, "FAILED", exit_code="1:0"), Row(8, 0, "NODE_FAIL", nodes="n1")
    view = in_job.look(killed, ran).view
    assert [view.measured_in(i).task for i in in_job.ids] == ["7_0", "8_0", "7_0"]
    assert view.cause_of_measuring(in_job.half).kind == "node_failure"
    with ledger.locked(in_job.work.sweep("test")) as known:
        in_job.known = known
        in_job.submit("c", 9, "cells", in_job.ids, TRAINING)
        in_job.submit("d", 10, "cells", [in_job.tiny.id], TRAINING, apart=True)
    view = in_job.look(killed, ran).view
    assert [view.measured_in(i).task for i in in_job.ids[:2]] == ["9_0"] * 2
    assert view.measured_in(in_job.tiny.id) is None and not view.will_measure(in_job.half.id)


def asked_anew(desk) -> None:
    cells = desk.asked.cells
    settings = cells[0].measure.model_copy(update={"repeats": 7})
    desk.asked = replace(desk.asked, cells=tuple(replace(c, measure=settings) for c in cells))
    desk.base, desk.half, desk.tiny = desk.asked.cells


def test_other_settings_are_sent_where_a_job_failed_for_another_cell(desk):
    failed = Row(8, 0, "FAILED", exit_code="1:0")
    for cell in desk.asked.cells:
        train(cell, desk.work)
    attempt(desk.base, desk, "8_0", ended="2026-01-31T12:00:00Z")
    for cell in (desk.base, desk.half):
        results.measure(cell, desk.work, "m", "A CPU")
    attempt(desk.half, desk, "9_0")  # since then, elsewhere
    attempt(desk.tiny, desk, "8_0")  # killed
    assert [s.state for s in desk.look(failed).cells] == ["done", "done", "failed"]
    asked_anew(desk)
    states = desk.look(failed)
    assert [s.state for s in states.cells] == ["trained", "trained", "failed"]
    assert states.cells[0].reason == "measured with other settings"
    assert desk.measures(states) == ["base", "half"]
    states = desk.look(Row(8, 0, "CANCELLED", by="me"))
    assert [s.state for s in states.cells] == ["trained", "trained", "cancelled"]
    # Measured before that job was submitted: it did not come to it.
    for file in desk.work.cell(desk.half.id).measurements.iterdir():
        os.utime(file, (time.time() - 3600,) * 2)
    assert [s.state for s in desk.look(failed).cells] == ["trained", "failed", "failed"]


def test_cells_stand_on_a_base_whose_measurement_failed(desk):
    train(desk.base, desk.work)
    states = desk.look(Row(7, 0, "CANCELLED", by="me"), Row(8, 0, "FAILED", exit_code="1:0"))
    base, half, _ = states.cells
    assert base.state == "failed" and half.state == "cancelled"
    chosen = batch.choose(desk.asked, states, lambda s: True, apart=True)
    assert [cell.technique for cell in chosen] == ["half", "tiny"]
    assert desk.measures(states, chosen) == ["half", "tiny"]


# --- jobs that cells share -------------------------------------------------------------------


def test_cancel_of_what_is_trained_ends_its_measurement_alone(desk, monkeypatch):
    """And not the training of others, with which it was."""
    train(desk.base, desk.work)
    train(desk.half, desk.work)
    user = {"user": slurm.user()}
    with ledger.locked(desk.work.sweep("test")) as known:
        desk.known = known
        desk.submit("c", 9, "cells", desk.ids, TRAINING, apart=True, **user)
        desk.submit("d", 10, "measure", desk.ids, MEASURING, **user)
    running, waits = Row(9, 0, "RUNNING", nodes="n1"), Row(10, 0, "PENDING", after="afterany:9_0")
    states = desk.look(running, waits)
    cancelled: list[str] = []
    monkeypatch.setattr(state, "find", lambda *arguments, **more: states)
    monkeypatch.setattr(slurm, "scancel", cancelled.extend)
    [line] = cancel.run(desk.asked, desk.work, [desk.base])
    assert cancelled == ["10_[0]"] and line == "1 cell cancelled, and 2 more that shared their jobs"
    assert ledger.read(desk.work.sweep("test")).cancelled.keys() == {*desk.ids}
    cancelled.clear()
    [*cancel.run(desk.asked, desk.work, [desk.tiny])]
    assert cancelled == ["9_[0]"]
    cancelled.clear()
    [*cancel.run(desk.asked, desk.work)]
    assert {*cancelled} == {"9_[0]", "10_[0]"}


def test_jobs_of_cells_that_the_sweep_has_no_more_are_shown_and_cancelled(desk, monkeypatch):
    """Its file was changed after it was submitted: alone in a job, or in one with others."""
    user = {"user": slurm.user()}
    with ledger.locked(desk.work.sweep("test")) as known:
        desk.known = known
        desk.submit("c", 9, "cells", [desk.tiny.id], TRAINING, apart=True, **user)
        desk.submit("d", 10, "cells", [desk.base.id, desk.tiny.id], TRAINING, apart=True, **user)
        desk.submit("e", 11, "measure", [desk.tiny.id], MEASURING, **user)
        desk.submit("f", 12, "cells", [desk.tiny.id], TRAINING, apart=True, user="another")
    named = zip((9, 10, 11, 12), "cdef", strict=True)
    rows = [Row(n, 0, "RUNNING" if n < 11 else "PENDING", nodes="n1", name=i) for n, i in named]
    monkeypatch.setattr(slurm, "squeue", lambda *arguments, **more: rows)
    monkeypatch.setattr(slurm, "sacct", lambda *arguments, **more: [])
    monkeypatch.setattr(slurm, "is_ours", lambda owner: owner != "another")
    assert not state.find(desk.asked, desk.work).notes
    now = replace(desk.asked, cells=desk.asked.cells[:2])
    [note] = state.find(now, desk.work).notes
    assert note.startswith("1 cell no longer in test.yaml is in the queue (job 9_0 and 2 more); ")
    cancelled: list[str] = []
    monkeypatch.setattr(slurm, "scancel", cancelled.extend)
    assert [*cancel.run(now, desk.work, [desk.base])] == [
        "1 cell cancelled",
        "1 cell no longer in test.yaml cancelled",
    ]
    assert cancelled == ["10_[0]"]
    assert ledger.read(desk.work.sweep("test")).cancelled.keys() == {desk.base.id, desk.tiny.id}
    cancelled.clear()
    [*cancel.run(now, desk.work)]
    assert {*cancelled} == {"9_[0]", "10_[0]", "11_[0]"}


def test_the_report_waits_for_a_job_of_another_sweep_that_measures(tmp_path, monkeypatch):
    """Also where that sweep sent no other."""
    (tmp_path / "cells").mkdir()
    desk = Desk(tmp_path)
    for cell in desk.asked.cells:
        train(cell, desk.work)
    mine = replace(desk.asked, name="mine")
    waits = Row(8, 0, "PENDING", name="b")
    monkeypatch.setattr(slurm, "squeue", lambda *arguments, **more: [waits])
    monkeypatch.setattr(slurm, "sacct", lambda *arguments, **more: [])
    states = state.find(mine, desk.work)
    assert states.view.alive_jobs == [8] and not states.view.last
    assert {s.reason for s in states.cells} == {"job 8_0 will measure it"}
    only = results.sweep(name="only", techniques=("half",))
    with ledger.locked(desk.work.sweep("other")) as known:
        facts = {"tasks": {"0": [c.id for c in only.cells]}, "request": {}, "after": []}
        known.append("intent", intent="m", kind="measure", user="me", name="b", **facts)
        known.append("submitted", intent="m", job=8)
    desk.work.sweep("test").ledger.unlink()
    desk.work.sweep("test").ledger_count.unlink()
    states = state.find(only, desk.work)
    assert states.view is not None and states.view.alive_jobs == [8]
    assert all(states.view.will_measure(cell.id) for cell in only.cells)


def test_what_failed_before_it_was_cancelled_has_failed(desk):
    """Not what scancel killed."""
    for cell, kind in ((desk.base, "exception"), (desk.half, "killed")):
        store.write_failure(attempt(cell, desk, "8_0"), store.Failure(kind, "why"))
    with ledger.locked(desk.work.sweep("test")) as known:
        known.append("cancelled", cells=desk.ids, reports=[])
        desk.known = known
    view = desk.look(Row(8, 0, "CANCELLED")).view
    kinds = [view.cause_of_measuring(cell).kind for cell in desk.asked.cells]
    assert kinds == ["exception", "cancelled", "cancelled"]


def test_logs_are_followed_until_the_measurement(desk, monkeypatch):
    train(desk.base, desk.work)
    log = attempt(desk.base, desk, "7_0").log
    log.write_text("trained\n")
    waits = Row(8, 0, "PENDING", after="afterany:7_0")
    looks = [[Row(7, 0, "RUNNING", nodes="n1"), waits], [waits], [Row(8, 0, "COMPLETED")]]

    def find(*arguments):
        if len(looks) == 1:
            results.measure(desk.base, desk.work, "m", "A CPU")
            with open(log, "a") as file:
                file.write("measured\n")
        return desk.look(*looks.pop(0))

    monkeypatch.setattr(state, "find", find)
    monkeypatch.setattr(logs, "FOLLOW_S", 0)
    monkeypatch.setattr(logs, "LOOK_S", -1)
    _, *lines = logs.show(desk.asked, desk.work, desk.base, follow=True)
    assert lines == ["trained", "measured", "==> done"] and not looks


@pytest.mark.parametrize(
    ("act", "step"), [(graph.ALL, "epoch or measurement"), (graph.TRAIN, "epoch")]
)
def test_a_job_that_comes_to_its_limit_says_what_it_did_not_finish(
    desk, tmp_path, monkeypatch, act, step
):
    cell = desk.base
    monkeypatch.setattr(slurm, "seconds_left", lambda job: 0)
    store.publish_json(JobPaths(tmp_path / "job").cells, {cell.id: cell.to_json()})
    job = task.Task(str(tmp_path / "job"), str(tmp_path), str(tmp_path), {0: (cell.id,)}, act=act)
    assert job.checkpoint() is None
    failure = store.read_failure(store.last_attempt(desk.work.cell(cell.id)))
    assert failure.kind == "stuck" and f"not finish a single {step} before" in failure.line


def test_what_a_job_made_as_another_sweep_requests_is_made_again(tmp_path, monkeypatch):
    """Which replaced cell.json while the job was at an earlier cell of its pack."""
    work, cell = Work(tmp_path / "work"), results.sweep().cells[0]
    actions, trace, stops = (tmp_path / name for name in ("actions", "trace", "stops"))
    actions.write_text(json.dumps({"base": "another sweep's, once"}))

    def command(_, __, ids, *options, module):
        stops.write_bytes(bytes(8))
        paths = [work.root, actions, trace, "--stops", stops]
        worker = [sys.executable, tiny_worker.__file__, "cell", *paths, os.getpid(), *ids]
        return list(map(str, worker))

    monkeypatch.setattr(task, "cell_command", command)
    monkeypatch.setenv("PYTHONPATH", str(CODE))
    monkeypatch.setenv(task.MINUTES, "0")  # the job sets it: not for other tests
    store.publish_json(JobPaths(tmp_path / "job").cells, {cell.id: cell.to_json()})
    task.Task(str(tmp_path / "job"), str(work.root), str(tmp_path), {0: (cell.id,)})()
    assert done.is_done(cell, work)
    assert trace.read_text().count('"what": "start"') == 2


# --- requests --------------------------------------------------------------------------------


def scripts(sweep, work, *settings: str) -> dict[str, str]:
    """{array: script} of all cells."""
    cluster, known = profile.load("generic", settings), ledger.Ledger(work.sweep("test"))
    made = batch.prepare(
        batch.Target(sweep, work, work.root, cluster), batch.Chosen.all_of(sweep.cells), known
    )
    return {item.array.name: item.script for item in made.prepared}


def test_what_is_measured_on_a_gpu_is_where_gpus_are(tmp_path):
    sweep, work = results.sweep(), Work(tmp_path)
    runtimes = {"runtimes": ("onnxruntime", "pytorch-cuda-fp16")}
    on_gpu = tuple(replace(c, measure=c.measure.model_copy(update=runtimes)) for c in sweep.cells)
    own = {"partition": "cpu", "qos": "short", "constraint": "zen3", "account": "b", "cores": 4}
    settings = "partition=gpu", "qos=long", "constraint=ib", f"measure={json.dumps(own)}"
    for cells, words in (
        (sweep.cells, {"partition=cpu", "qos=short", "constraint=zen3"}),
        (on_gpu, {"partition=gpu", "qos=long", "constraint=ib", "gres=gpu:a100:1"}),
    ):
        text = scripts(replace(sweep, cells=cells), work, *settings)["measure-0"]
        flags = {line[10:] for line in text.splitlines() if line.startswith("#SBATCH --")}
        given = {f for f in flags if f.split("=")[0] in ("partition", "qos", "constraint", "gres")}
        assert given == words and {"account=b", "cpus-per-task=4"} <= flags


def test_so_many_at_once_are_of_jobs_that_measure_as_well(tmp_path):
    sweep, work = results.sweep(seeds=range(40)), Work(tmp_path)
    for at_once in (4, 64):
        settings = f"at_once={at_once}", "time_margin=null"
        texts = scripts(sweep, work, *settings)
        shares = {
            name: int(text.partition("#SBATCH --array=")[2].split()[0].partition("%")[2])
            for name, text in texts.items()
            if name != "report"
        }
        assert sum(shares.values()) == at_once
        measuring = [share for name, share in shares.items() if name.startswith("measure")]
        assert measuring and len(measuring) == min(20, at_once // 3)
    planned = [
        submit.planned(
            submit.Target(sweep, work, tmp_path, profile.load("generic", [f"at_once={n}"]))
        )
        for n in (1, 200)
    ]
    one, all_ = (plan.wall_hours for plan in planned)
    assert one >= (planned[0].gpu_hours + planned[0].measure_cpu_hours / 8) > all_


# --- what is not whole -----------------------------------------------------------------------


def test_a_damaged_artifact_that_is_to_be_measured_is_made_again(desk):
    """It has the size that is looked at: only who measures it sees the damage."""
    for cell in desk.asked.cells:
        train(cell, desk.work)
    paths = desk.work.cell(desk.half.id)
    store.publish_bytes(paths.model, b"weights")
    (paths.artifact / "model.onnx").write_bytes(b"a mOdel")
    rows = Row(7, 0, "COMPLETED"), Row(8, 0, "FAILED", exit_code="1:0")
    assert desk.look(*rows).cells[1].state == "failed"
    made = attempt(desk.half, desk, "8_0")
    with pytest.raises(UserError, match=r"damaged.*artifact\.corrupt-1.*`submit`") as error:
        measuring.measure_again(desk.half, desk.work, desk.work.root, "cpu", 1, print)
    store.write_failure(made, store.Failure("exception", str(error.value)))
    states = desk.look(*rows)
    why = "its weights are there, its artifact is not"
    now = states.cells[1]
    assert (now.state, now.reason, now.trained) == ("missing", why, False)
    [chosen] = batch.choose(desk.asked, states, batch.is_missing, apart=True)
    assert chosen is desk.half and desk.measures(states, [chosen]) == ["half"]
    with pytest.raises(UserError, match="is not trained"):
        measuring.measure_again(desk.half, desk.work, desk.work.root, "cpu", 1, print)
