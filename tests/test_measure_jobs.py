"""Jobs that measure what other jobs trained: the graph, requests, states, limits, without Slurm."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from pipeline import store, usage
from pipeline.errors import UserError
from pipeline.orchestrate import (
    batch,
    cancel,
    cluster,
    graph,
    ledger,
    measure_jobs,
    profile,
    put_off,
    room,
    send,
    state,
    submit,
    watch,
)
from pipeline.orchestrate.graph import Array, Request
from pipeline.orchestrate.slurm import Row
from pipeline.paths import Work
from tests import results
from tests.desk import MEASURING, TRAINING, Desk, train

# --- the graph -------------------------------------------------------------------------------


@given(
    some.lists(some.integers(0, 6), min_size=1, max_size=50),
    some.integers(0, 8),
    some.integers(1, 4),
    some.integers(0, 3),
)
def test_every_cell_is_measured_after_it_and_its_base_are_trained(counts, limit, most, trained):
    """`most`: cells in a task; `trained`: bases of which all is trained already."""
    sweep = results.sweep(techniques=tuple(f"t-{i}" for i in range(6)), seeds=range(len(counts)))
    cells = [c for c in sweep.cells if c.is_base or int(c.technique[2:]) < counts[c.seed]]
    missing = [c for c in cells if c.seed >= trained]
    training = graph.arrays(missing, lambda cell: TRAINING, limit)
    places = measure_jobs.Places().beside(training, single=limit <= 1)
    pack = graph.packer(most, lambda cell: 60.0)
    made = measure_jobs.arrays(cells, places, lambda cell: MEASURING, limit, pack)
    assert sorted(i for a in made for i in a.cells) == sorted(c.id for c in cells)
    assert len({a.name for a in made}) == len(made) and all(a.measures for a in made)
    where = {i: (a, index) for a in training for index, ids in a.tasks.items() for i in ids}
    for array in made:
        assert len(array.tasks) <= max(1, limit) and min(array.tasks) == 0
        assert (array.kind == "afterany") is bool(array.after)
        for ids in array.tasks.values():
            of_task = [sweep.by_id[i] for i in ids]
            assert len({cell.base_id for cell in of_task}) == 1 and len(ids) <= most
            for cell in of_task:
                for each in {cell.id, cell.base_id} & where.keys():
                    source, index = where[each]
                    assert {source.name, f"{source.name}_{index}"} & {*array.after}
    waiting = [a for a in made if a.after]
    tasks = sum(len(a.tasks) for a in waiting)
    assert len(waiting) <= max(measure_jobs.MOST_ARRAYS, tasks / max(1, limit) + 1)
    if tasks <= measure_jobs.MOST_ARRAYS:  # each waits for its own base and cells alone
        for array in waiting:
            [ids] = array.tasks.values()
            seed = sweep.by_id[ids[0]].seed
            others = {c.id for c in missing if c.seed != seed}
            awaited = {on.rpartition("_")[0] or on for on in array.after if on not in where}
            whole = {a.name: {*a.cells} for a in training if a.name in array.after}
            assert awaited and not any(members <= others for members in whole.values())


def flags_of(*settings: str) -> dict[str, str]:
    """The options of a job that measures."""
    sweep, work = results.sweep(), Work(Path("/w"))
    known = ledger.Ledger(work.sweep("test"))
    cluster_ = profile.load("generic", ["partition=gpu", "constraint=ib", "account=a", *settings])
    made = batch.prepare(
        batch.Target(sweep, work, Path("/d"), cluster_), batch.Chosen.all_of(sweep.cells), known
    )
    [text] = [item.script for item in made.prepared if item.array.measures]
    lines = [line[10:] for line in text.splitlines() if line.startswith("#SBATCH --")]
    return {name: value.strip("'") for name, _, value in (line.partition("=") for line in lines)}


def test_what_jobs_that_measure_request():
    plain = flags_of()
    assert {"partition": "gpu", "account": "a", "cpus-per-task": "8", "mem": "16G"}.items() <= (
        plain.items()
    )
    assert not {"gres", "exclusive", "constraint"} & set(plain)
    own = {
        "partition": "cpu",
        "constraint": "zen3",
        "account": "b",
        "qos": "q",
        "cores": 4,
        "memory_gib": 7,
        "minutes": 20,
        "exclusive": True,
        "options": {"nice": 5},
    }
    flags = flags_of(f"measure={json.dumps(own)}", 'options={"nice":1}')
    assert (
        flags.items()
        >= {
            "partition": "cpu",
            "constraint": "zen3",
            "account": "b",
            "qos": "q",
            "cpus-per-task": "4",
            "mem": "7G",
            "exclusive": "",
            "nice": "5",
        }.items()
    )
    assert int(flags_of("measure.minutes=20", "time_margin=null")["time"]) == 20
    alone, _ = profile.load("sol", ["measure.exclusive=true"]).profile.notes()
    assert "a cluster may charge all of a node for that" in alone


def test_where_there_are_no_jobs_that_measure():
    """Without a GPU that would wait for them, unless they are named; or as the profile says."""
    for settings, apart in (
        ([], True),
        (["gpu=null"], False),
        (["gpu=null", "measure.cores=2"], True),
        (["measure=in-job"], False),
        (["measure=null"], True),
    ):
        loaded = profile.load("generic", settings).profile
        assert (loaded.measure_job is not None) is apart, settings
        again = loaded.model_dump(mode="json", exclude_defaults=True)  # as in the ledger
        assert profile.Profile.model_validate_json(json.dumps(again)) == loaded
    for setting, why in (
        ("measure=elsewhere", "measure: 'elsewhere' is not valid; expected in-job, or a mapping"),
        ("measure.minutes=2", "measure.minutes 2 ends before the signal to checkpoint"),
        ("measure.cores=0", "measure.cores: 0 is out of range"),
        ('measure={"in_job":true,"cores":3}', "in-job requests no jobs"),
        ('measure.options={"mem":"9G"}', "the profile's key for it is 'memory_gib'"),
    ):
        with pytest.raises(UserError) as error:
            profile.load("generic", [setting])
        assert why in str(error.value) and "\n" not in str(error.value)


def test_plan_tells_the_hours_of_both_kinds_of_jobs(tmp_path):
    sweep, work = results.sweep(techniques=("half", "tiny"), seeds=(0, 1)), Work(tmp_path)
    planned = submit.planned(submit.Target(sweep, work, tmp_path, profile.load("sol")))
    assert planned.measure_cpu_hours == pytest.approx(6 * 90 * 8 / 3600)
    total = 24 * planned.gpu_hours + planned.measure_cpu_hours
    assert planned.to_json()["cpu_hours"] == pytest.approx(total)
    both = submit.planned(
        submit.Target(sweep, work, tmp_path, profile.load("sol", ["measure=in-job"]))
    )
    assert both.gpu_hours - planned.gpu_hours == pytest.approx(6 * 90 / 3600)
    assert both.measure_cpu_hours == 0 and planned.training_share > both.training_share > 0
    assert "measure: {cores: 8} in the profile" in " ".join(both.savings)
    an_hour = {"train": 59, "measure": 8 + 16 / 4}
    assert planned.charge == pytest.approx(
        planned.gpu_hours * an_hour["train"] + 6 * 90 / 3600 * an_hour["measure"]
    )
    text = "\n".join(planned.lines())
    assert "1.20 CPU-hours of jobs that only measure" in text and "6 to submit" in text
    data = planned.to_json()
    assert data["measure_cpu_hours"] == planned.measure_cpu_hours
    jobs = {job["name"].rpartition("-test-")[2]: job for job in data["jobs"]}
    assert [*jobs] == ["base-0", "cells-1", "measure-0", "measure-1", "report"]
    for n in (0, 1):
        on = {name.rpartition("-test-")[2] for name in jobs[f"measure-{n}"]["depends_on"]}
        assert on == {"base-0", "cells-1"} and len(jobs[f"measure-{n}"]["cells"]) == 3
    assert len(jobs["report"]["depends_on"]) == 4
    with pytest.raises(UserError, match=r"--set measure.cores=12$"):
        wide = sweep.cells[0].measure.model_copy(update={"threads": 12})
        threads = replace(sweep, cells=tuple(replace(c, measure=wide) for c in sweep.cells))
        submit._require_threads(threads, profile.load("sol"))


def ran(cell, work, job: str, phases: dict[str, float], wall_s: float, gpus: int) -> None:
    """One more attempt at a cell, in a job with 24 cores, or with 8 where it has no GPU."""
    gib = 2**30
    record = {
        "job": job,
        "ended": "now",
        "wall_s": wall_s,
        "training_s": phases.get("train", 0.0),
        "epochs": 2 if "train" in phases else 0,
        "phases": phases,
        "request": {"cores": 24 if gpus else 8, "memory_bytes": 16 * gib, "gpus": gpus},
        "used": {
            "memory_bytes": 3 * gib,
            "cores": 2.5,
            "gpu_memory_bytes": gpus * gib,
            "gpu_busy": None,
        },
    }
    store.publish_json(store.new_attempt(work.cell(cell.id)).usage, record)


def test_both_kinds_of_jobs_are_estimated_from_what_they_took(tmp_path):
    sweep, work = results.sweep(seeds=(0, 1)), Work(tmp_path)
    one, other = sweep.cells[:2]
    for cell in (one, other):
        results.publish(cell, work)
    ran(one, work, "7_0", {"start": 9.0, "train": 60.0, "export": 1.0}, 100.0, gpus=1)
    ran(one, work, "8_0", {"start": 5.0, "evaluate": 10.0, "measure": 30.0}, 45.0, gpus=0)
    # In one job, as before there were two kinds.
    ran(other, work, "9_0", {"train": 60.0, "evaluate": 5.0, "measure": 30.0}, 145.0, gpus=1)
    times = batch.durations(sweep, work, profile.load("sol"))
    assert times.guess.overhead_s == pytest.approx(85) and times.guess.measure_s == 40
    assert times.seconds(one) == pytest.approx(105) and times.measuring_s([one] * 3) == 120
    together = batch.durations(sweep, work, profile.load("sol", ["measure=in-job"]))
    assert together.seconds(one) == pytest.approx(145)
    # The advice is about the jobs that train, and about their cores where they do not measure.
    record = usage.of_cell(work.cell(one.id))
    assert (record["job"], record["all"]["wall_s"], record["all"]["gpu_s"]) == ("7_0", 145.0, 100.0)
    [_, advice] = usage.lines(usage.total([record]))
    assert advice.startswith("This would do: --set cores=4") and "measure" not in advice
    [_, advice] = usage.lines(usage.total([record, usage.of_cell(work.cell(other.id))]))
    assert "also --set cores=4, once the sweep has `measure: {threads: 4}`" in advice


def test_what_is_measured_on_a_gpu_requests_one(tmp_path):
    plain, work = results.sweep(), Work(tmp_path)
    told = {"runtimes": ("onnxruntime", "pytorch-cuda-fp16")}
    both = tuple(replace(c, measure=c.measure.model_copy(update=told)) for c in plain.cells)
    sol, known = profile.load("sol", ['gpu_options={"nice":3}']), ledger.Ledger(work.sweep("test"))
    for cells, on_gpu in ((plain.cells, False), (both, True)):
        sweep = replace(plain, cells=cells)
        made = batch.prepare(
            batch.Target(sweep, work, tmp_path, sol), batch.Chosen.all_of(cells), known
        )
        [text] = [item.script for item in made.prepared if item.array.measures]
        assert ("--gres=gpu:a100:1" in text) is ("--nice=3" in text) is on_gpu
        assert "--cpus-per-task=8" in text
        planned = submit.planned(submit.Target(sweep, work, tmp_path, sol))
        seconds = planned.gpu_hours * 3600
        training = planned.cpu_hours - planned.measure_cpu_hours
        assert (seconds == pytest.approx(training * 150)) is not on_gpu


# --- what is true now ------------------------------------------------------------------------


@pytest.fixture
def desk(tmp_path):
    (tmp_path / "cells").mkdir()
    return Desk(tmp_path)


def test_what_is_trained_waits_for_its_measurement(desk):
    train(desk.base, desk.work)
    train(desk.half, desk.work)
    waits = Row(8, 0, "PENDING", "Dependency", after="afterany:7_0(unfulfilled)")
    # Its job goes on with the others of its pack: that is nothing to what is trained.
    states = desk.look(Row(7, 0, "RUNNING", nodes="n1"), waits)
    assert [s.state for s in states.cells] == ["trained", "trained", "queued"]
    why = "job 8_0 will measure it: when its base and all that stands on it have ended"
    assert states.cells[0].reason == why
    assert not batch.choose(desk.asked, states, batch.is_missing, apart=True)
    assert not desk.measures(states) and not watch.is_over(states)
    states = desk.look(waits)
    assert [s.state for s in states.cells][:2] == ["trained"] * 2 and not watch.is_over(states)
    states = desk.look(Row(8, 0, "RUNNING", nodes="n2"))
    assert states.cells[1].reason == (
        "job 8_0 on n2 measures what stands on its base, one after the other"
    )
    assert not desk.measures(states) and not desk.resumed(states).measures
    measuring = states.view.known.measuring
    assert [at.task for at in cancel._places(states.cells[0], states.view, measuring)] == ["8_0"]


def test_a_measurement_that_fails_keeps_the_training_and_is_sent_again_alone(desk):
    for cell in desk.asked.cells:
        train(cell, desk.work)
    killed = Row(8, 0, "OUT_OF_MEMORY", requested_bytes=16 * 2**30)
    states = desk.look(Row(7, 0, "COMPLETED"), killed)
    assert {(s.state, s.trained) for s in states.cells} == {("failed", True)}
    assert states.cells[0].reason == (
        "its measurement failed: out of memory: 16.0 of 16 GiB; its training is kept"
    )
    choice = desk.resumed(states)
    assert not choice.requests and {r.memory_gib for r in choice.measures.values()} == {24}
    assert len(choice.measures) == 3
    # Neither submit nor what stands on it takes it for untrained.
    assert not batch.choose(desk.asked, states, lambda s: True, apart=True)
    assert not desk.measures(states) and watch.is_over(states)
    wanted = desk.measures(states, wanted=lambda s: s.cell.id in choice.measures)
    assert wanted == ["base", "half", "tiny"]
    with ledger.locked(desk.work.sweep("test")) as known:
        known.append("cancelled", cells=[desk.base.id], reports=[])
        desk.known = known
    states = desk.look(Row(8, 0, "CANCELLED"))
    assert states.cells[
        0
    ].state == "cancelled" and "by `netpress cancel`; its training is kept" in (
        states.cells[0].reason
    )
    # Of a pending task that was cancelled, Slurm keeps no record: only resume sends it again.
    states = desk.look()
    assert [s.state for s in states.cells] == ["cancelled", "trained", "trained"]
    assert desk.measures(states) == ["half", "tiny"] and len(desk.resumed(states).measures) == 3
    # A job that came before the training had ended: submit sends another one.
    states = desk.look(Row(8, 0, "COMPLETED"))
    assert {s.state for s in states.cells} == {"trained"}
    assert desk.measures(states) == ["base", "half", "tiny"]
    # One that failed in a job which goes on with the others.
    attempt = store.new_attempt(desk.work.cell(desk.half.id))
    store.publish_json(attempt.usage, {"job": "8_0"})
    store.write_failure(attempt, store.Failure("exception", "NotInteger: floats"))
    states = desk.look(Row(8, 0, "RUNNING", nodes="n2"))
    assert [s.state for s in states.cells] == ["trained", "failed", "trained"]
    assert "exception: NotInteger: floats; its training is kept" in states.cells[1].reason
    assert not desk.resumed(states).measures  # before the job has ended
    choice = desk.resumed(desk.look(Row(8, 0, "FAILED", exit_code="1:0")))
    assert desk.half.id not in choice.measures and len(choice.decisions) == 3


def test_what_a_job_only_trains_is_measured_by_one_that_comes_after_it(desk):
    """Killed between the two, or trained again: submit sends the other half."""
    running, waits = Row(7, 0, "RUNNING"), Row(8, 0, "PENDING", after="afterany:7_0")
    assert not desk.measures(desk.look(running, waits))
    assert desk.measures(desk.look(running)) == ["base", "half", "tiny"]
    with ledger.locked(desk.work.sweep("test")) as known:
        desk.known = known
        desk.submit("c", 9, "cells", [desk.half.id], TRAINING, apart=True)
    states = desk.look(Row(9, 0, "PENDING"), waits)
    assert "half" in desk.measures(states)
    places = batch.in_queue(desk.asked, states.view).places
    assert [*places.awaited([desk.base.id, desk.half.id])] == ["9"]
    [array] = measure_jobs.arrays(
        [desk.half], places, lambda c: MEASURING, 9, graph.packer(9, lambda cell: 1.0)
    )
    assert (array.kind, array.after) == ("afterany", ("9",))
    with ledger.locked(desk.work.sweep("test")) as known:
        desk.known = known
        desk.submit("d", 10, "cells", [desk.half.id], TRAINING)  # which measures it as well
    assert "half" not in desk.measures(desk.look(Row(10, 0, "PENDING"), waits))


# --- limits ----------------------------------------------------------------------------------


def test_what_there_is_no_room_to_measure_is_left_to_the_follow_up_job(tmp_path):
    sweep, work = results.sweep(techniques=("half",), seeds=(0, 1)), Work(tmp_path)
    ids = {cell.id for cell in sweep.cells}

    def prepared(most, **more):
        known, limit = ledger.read(work.sweep("test")), room.Limit("a limit", most, 0)
        return batch.prepare(
            batch.Target(sweep, work, tmp_path, profile.load("generic")),
            batch.Chosen.all_of(sweep.cells),
            known,
            room=limit,
        )

    kinds = [item.array.name for item in prepared(7).prepared]
    assert kinds == ["base-0", "cells-1", "measure-0", "measure-1", "report"]
    most = prepared(6)  # the follow-up job, the report, two bases and two cells
    assert [i.array.name for i in most.prepared] == ["follow-up", "report", "base-0", "cells-1"]
    assert most.unmeasured.keys() == ids and not most.rest and most.left_over == 4
    few = prepared(4)
    assert few.unmeasured.keys() == ids and len(few.rest) == 2 and few.left_over == 4
    with ledger.locked(work.sweep("test")) as known:
        send._put_off(few, known, send.Sent())
        trained = [cell.id for cell in sweep.cells]
        entry = {"name": "n", "request": {}, "after": [], "user": "me"}
        known.append("intent", intent="a", kind="cells", tasks={"0": trained}, apart=True, **entry)
        assert not known.put_off and known.measuring_put_off.keys() == ids
        request = Request.from_json(known.measuring_put_off[trained[0]])
        assert request == batch.durations(sweep, work, profile.load("generic")).measuring(
            sweep.cells[0]
        )
        for cell in sweep.cells:
            train(cell, work)
        known.append("submitted", intent="a", job=7)
        view = cluster.View(known, work, {})
        states = [state._state(c, work, False, None, view, "no", True) for c in sweep.cells]
        why = "its measurement is not submitted: a limit is 4, 0 of it used"
        assert {(s.state, s.reason) for s in states} == {("trained", why)}
        [line] = put_off.lines(state.SweepState(tuple(states), view), "s.yaml")
        assert line.startswith(
            "4 cells not submitted yet (a limit is 4, 0 of it used): `netpress s"
        )
        known.append("cancelled", cells=trained[:1])
        now = state._state(sweep.cells[0], work, False, None, view, "no", True)
        assert now.state == "cancelled" and now.reason.endswith("cancel`; its training is kept")
        assert known.measuring_put_off.keys() == {*trained[1:]}
        known.append("intent", intent="b", kind="measure", tasks={"0": trained}, **entry)
        assert not known.measuring_put_off and not known.not_measured and not known.cancelled


def test_what_was_refused_is_not_waited_for_and_not_measured(tmp_path):
    sweep, work = results.sweep(techniques=("half",), seeds=(0, 1)), Work(tmp_path)
    known = ledger.Ledger(work.sweep("test"))
    generic = profile.load("generic")
    made = batch.prepare(
        batch.Target(sweep, work, tmp_path, generic), batch.Chosen.all_of(sweep.cells), known
    )
    by_name = {item.array.name: item for item in made.prepared}
    left = send._after_others(made, by_name["measure-0"], {"cells-1"})
    assert left.array.after == ("base-0_0",) and "cells-1" not in left.script
    assert left.array.cells == (sweep.cells[0].id,)
    nothing = send._after_others(made, by_name["measure-1"], {"base-0", "cells-1"})
    assert not nothing.array.tasks
    report = send._after_others(made, by_name["report"], {"measure-0"}).array
    assert report.after == ("base-0", "cells-1", "measure-1") and report.tasks == {0: ()}
    assert send._kind(Array("measure-0", {}, MEASURING, measures=True)) == "measure"
