"""Local workers: order, bounds, failures, signals; with real processes that train nothing."""

from __future__ import annotations

import itertools
import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipeline import done, paths, store
from pipeline.errors import UserError
from pipeline.orchestrate import display, local, pool, state
from pipeline.paths import Work
from tests import results, tiny_worker

PATIENCE_S = 30.0


class Bench:
    """A work root, what the workers of each technique do, and what was seen of them."""

    def __init__(self, folder: Path):
        self.work = Work(folder / "work")
        self.actions = folder / "actions.json"
        self.trace_file = folder / "trace"
        self.trace_file.touch()
        self.let()

    def let(self, **actions: str) -> None:
        self.actions.write_text(json.dumps(actions))

    def run(self, sweep, workers: int | None = 1, **options) -> int:
        return local.run(
            sweep,
            self.work,
            self.work.root,
            device="cpu",
            workers=workers,
            command=tiny_worker.command(self.work, self.actions, self.trace_file),
            **options,
        )

    def start(self, workers: int = 1, **options) -> subprocess.Popen:
        """The same in a process of its own, with the sweep of `tiny_worker.run`."""
        command = [
            sys.executable,
            tiny_worker.__file__,
            "run",
            self.work.root,
            self.actions,
            self.trace_file,
            str(workers),
        ]
        return subprocess.Popen(command, **options)

    def trace(self, what: str = "start") -> list[dict]:
        lines = map(json.loads, self.trace_file.read_text().splitlines())
        return [line for line in lines if line["what"] == what]

    def await_trace(self, count: int, what: str = "start") -> list[dict]:
        return until(lambda: len(self.trace(what)) >= count and self.trace(what))

    def states(self, sweep) -> dict[str, str]:
        return {
            f"{s.cell.technique}/{s.cell.seed}": s.state for s in state.states(sweep, self.work)
        }


def until(ask):
    deadline = time.monotonic() + PATIENCE_S
    while not (answer := ask()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return answer


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    yield Bench(tmp_path)
    assert list((tmp_path / "tmp").iterdir()) == []


ASKED = results.sweep(techniques=("half", "third"))
SIX = results.sweep(techniques=("half", "third"), seeds=(0, 1))  # what `bench.start` runs


# --- what runs -------------------------------------------------------------------------------


def test_a_worker_that_is_silent_and_still_there_does_not_keep_us_busy(bench, monkeypatch):
    bench.let(base="linger")
    looks, listen = [], pool.Pool._listen

    def counted(workers):
        looks.append(time.monotonic())
        listen(workers)

    monkeypatch.setattr(pool.Pool, "_listen", counted)
    assert bench.run(results.sweep(techniques=())) == 0
    assert looks[-1] - looks[0] > 1 and len(looks) < 30  # it spoke, fell silent, and was awaited


def test_everything_is_made_and_reported(bench, capsys):
    assert bench.run(ASKED) == 0
    assert [line["cell"] for line in bench.trace()] == [cell.name for cell in ASKED.cells]
    assert set(bench.states(ASKED).values()) == {"done"}
    out, err = capsys.readouterr()
    report = Path("reports/test/index.html").absolute()
    assert f"Report: {report}\n" in out and report.is_file()
    assert "Smallest good model: digits/vgg16_bn/half/0 in " in out or "third/0 in " in out
    assert "half" in out and "netpress predict" in out and "Traceback" not in err
    assert "[1/3] digits/vgg16_bn/base/0: started" in err
    assert "[3/3] digits/vgg16_bn/third/0: done after" in err
    assert "0-shrink, epoch 0/2, 2 s left, loss 1.000" in err


def test_what_is_done_is_not_run_again(bench, capsys):
    for cell in ASKED.cells[:2]:
        results.publish(cell, bench.work)
    assert bench.run(ASKED) == 0
    assert [line["cell"] for line in bench.trace()] == ["digits/vgg16_bn/third/0"]
    assert "2 of 3 cells are already done" in capsys.readouterr().err
    assert bench.run(ASKED) == 0 and len(bench.trace()) == 1


def test_a_damaged_result_is_made_again(bench):
    for cell in ASKED.cells:
        results.publish(cell, bench.work)
    damaged = bench.work.cell(ASKED.cells[1].id).result
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert bench.run(ASKED) == 0
    assert [line["cell"] for line in bench.trace()] == [ASKED.cells[1].name]
    store.verify(bench.work.cell(ASKED.cells[1].id))
    assert damaged.with_name("result.h5.corrupt-1").exists()


def test_workers_are_bounded_and_share_the_cores(bench):
    bench.let(half="gather", third="gather")
    assert bench.run(SIX, workers=3) == 0
    starts = [(line["time"], 1) for line in bench.trace("start")]
    ends = [(line["time"], -1) for line in bench.trace("end")]
    running, most = 0, 0
    for _, change in sorted(starts + ends):
        running += change
        most = max(most, running)
    assert most == 3
    ended = {line["cell"]: line["time"] for line in bench.trace("end")}
    for line in bench.trace("start"):
        base = "/".join([*line["cell"].split("/")[:2], "base", line["cell"].split("/")[3]])
        assert base == line["cell"] or ended[base] <= line["time"]
    cores = len(os.sched_getaffinity(0))
    assert {line["options"][3] for line in bench.trace()} == {str(max(1, cores // 3))}


@pytest.mark.alone  # on one core two workers may be there before anybody looks
def test_who_measures_has_the_machine_for_itself(bench):
    bench.let(half="measure", third="work")
    assert bench.run(SIX, workers=4, threads=1) == 0
    spans = [
        (a["time"], b["time"])
        for a, b in zip(bench.trace("measures"), bench.trace("measured"), strict=True)
    ]
    assert len(spans) == 2 and spans[0][1] < spans[1][0]  # one after the other
    settled = 0.3  # until the others stand still
    steps = [line["time"] for line in bench.trace("works")]
    assert len(steps) == 200  # they went on afterwards
    assert min(steps) < spans[0][0] < max(steps)
    assert not [t for a, b in spans for t in steps if a + settled < t < b]


@pytest.mark.alone
def test_the_time_that_workers_stand_still_is_none_of_theirs(bench):
    bench.let(half="measure", third="work")
    assert bench.run(SIX, workers=4, threads=1) == 0
    steps = bench.trace("works")
    for pid in {step["pid"] for step in steps}:
        mine = [step for step in steps if step["pid"] == pid]
        longest = {
            clock: max(b[clock] - a[clock] for a, b in itertools.pairwise(mine))
            for clock in ("time", "clock")
        }
        assert longest["time"] > 0.5 and 0 < longest["clock"] < longest["time"] / 2
        assert all(a["clock"] < b["clock"] for a, b in itertools.pairwise(mine))


def test_a_signal_ends_workers_that_stand_still(bench):
    parent, workers = _one_measures_three_stand_still(bench)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(pool.GRACE_S / 2) == 130
    assert not any(lives(pid) for pid in workers)


def test_workers_that_stand_still_die_with_their_parent(bench):
    parent, workers = _one_measures_three_stand_still(bench)
    parent.kill()
    assert until(lambda: not any(lives(pid) for pid in workers))


def _one_measures_three_stand_still(bench):
    bench.let(half="sleep in a measurement", third="sleep")
    parent = bench.start(workers=4)
    bench.await_trace(1, "measures")

    def standing():
        workers = psutil.Process(parent.pid).children()
        states = [worker.status() for worker in workers]
        return states.count(psutil.STATUS_STOPPED) == 3 and [worker.pid for worker in workers]

    return parent, until(standing)


def test_a_worker_runs_this_checkout_wherever_the_user_stands(bench):
    assert bench.run(ASKED, threads=7) == 0
    [line, *_] = bench.trace()
    assert line["cwd"] == str(paths.CODE) and line["path"].split(":")[0] == str(paths.CODE)
    assert line["options"][:-2] == ["--device", "cpu", "--threads", "7"]


def test_the_command_of_a_worker_is_the_one_of_the_plan(bench):
    cell = ASKED.cells[0]
    command = local._worker_command(bench.work, Path("/data"), ASKED)(cell, ["--threads", "2"])
    assert command == [
        sys.executable,
        "-m",
        "jobs.compress",
        "--work",
        str(bench.work.root),
        "--data",
        "/data",
        "--threads",
        "2",
        "--die-with-parent",
        str(os.getpid()),
        cell.id,
    ]


def test_every_gpu_gets_a_worker_of_its_own(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    slots = local._slots("auto", None, None)
    assert [slot.environment for slot in slots] == [
        {"CUDA_VISIBLE_DEVICES": "2"},
        {"CUDA_VISIBLE_DEVICES": "5"},
    ]
    assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in local._slots("auto", 3, None)] == [
        "2",
        "5",
        "2",
    ]
    assert local._slots("cpu", None, None)[0].environment == {}


@pytest.mark.parametrize(
    "gpus, device, told", [("0", "auto", "cuda"), ("", "auto", "auto"), ("0", "cpu", "cpu")]
)
def test_a_worker_that_has_a_gpu_trains_on_nothing_else(monkeypatch, gpus, device, told):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    [slot] = local._slots(device, None, None)
    assert slot.options[:2] == ("--device", told)


def test_a_gpu_that_is_not_there_is_one_sentence(bench, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="no NVIDIA GPU is visible here; expected cpu or auto"):
        local.run(ASKED, bench.work, bench.work.root, device="cuda")


def test_missing_data_is_one_sentence_before_anything_runs(bench):
    with pytest.raises(UserError, match="netpress fetch"):
        bench.run(results.sweep(datasets=("digits", "mnist")))
    assert bench.trace() == [] and not bench.work.root.exists()


# --- failures --------------------------------------------------------------------------------


def test_a_failure_costs_one_cell(bench, capsys):
    bench.let(half="fail")
    assert bench.run(ASKED) == 1
    assert bench.states(ASKED) == {"base/0": "done", "half/0": "failed", "third/0": "done"}
    out, err = capsys.readouterr()
    assert "half/0: failed after" in err and "(exception: ValueError: no)" in err
    assert "exception: ValueError: no" in out
    assert "exception: ValueError: no" in Path("reports/test/report.md").read_text()


def test_what_failed_is_tried_again_by_the_next_run(bench):
    bench.let(half="fail")
    assert bench.run(ASKED) == 1
    bench.let()
    assert bench.run(ASKED) == 0
    assert [s.attempts for s in state.states(ASKED, bench.work)] == [1, 2, 1]


def test_nothing_runs_on_a_base_that_failed(bench, capsys):
    bench.let(base="fail")
    assert bench.run(ASKED) == 1
    assert [line["cell"].split("/")[2] for line in bench.trace()] == ["base"]
    assert set(bench.states(ASKED).values()) == {"failed"}
    assert "half/0: failed (its base failed: exception: ValueError" in capsys.readouterr().err
    reasons = {s.reason for s in state.states(ASKED, bench.work) if not s.cell.is_base}
    assert reasons == {"its base failed: exception: ValueError: no"}


@pytest.mark.parametrize(
    "action, kind, said",
    [
        ("SIGKILL", "killed", "its process was ended from outside (SIGKILL), by a user or"),
        ("SIGSEGV", "killed", "its process was ended by SIGSEGV; run again to go on"),
        ("vanish", "exception", "ended with exit code 3 and without a result: no module named"),
        ("nothing", "invalid", "ended with exit code 0 and without a result: nothing was printed"),
        ("fail on a full disk", "disk_full", "disk full: no space left on device"),
    ],
)
def test_an_end_without_a_word_is_written_down_for_the_worker(bench, action, kind, said):
    bench.let(half=action)
    cell = results.sweep(techniques=("half",)).cells[1]
    results.publish(results.sweep().cells[0], bench.work)
    assert bench.run(results.sweep(techniques=("half",))) == 1
    attempt = store.last_attempt(bench.work.cell(cell.id))
    failure = json.loads(attempt.failure.read_bytes())
    assert attempt.number == 1 and failure["kind"] == kind and said in failure["reason"]


def test_memory_that_ran_out_is_told_from_a_kill(bench, monkeypatch):
    counts = iter(range(100))
    monkeypatch.setattr(pool.ended, "kills", lambda: next(counts))  # the kernel's counter goes up
    bench.let(half="SIGKILL")
    results.publish(results.sweep().cells[0], bench.work)
    assert bench.run(results.sweep(techniques=("half",))) == 1
    cell = results.sweep(techniques=("half",)).cells[1]
    failure = json.loads(store.last_attempt(bench.work.cell(cell.id)).failure.read_bytes())
    assert failure["kind"] == "out_of_memory" and "fewer --workers" in failure["reason"]


def test_a_cell_that_cannot_be_started_costs_itself(bench, capsys):
    works = tiny_worker.command(bench.work, bench.actions, bench.trace_file)
    broken = ASKED.cells[1]
    code = local.run(
        ASKED,
        bench.work,
        bench.work.root,
        device="cpu",
        command=lambda cell, options: ["/no/such"] if cell is broken else works(cell, options),
    )
    assert code == 1 and len(bench.trace()) == 2 and bench.states(ASKED)["half/0"] == "failed"
    assert "half/0: failed (exception: its process cannot be started: " in capsys.readouterr().err


def test_a_cell_of_another_user_costs_itself(bench, capsys, monkeypatch):
    theirs, publish = ASKED.cells[1], done.publish_cell

    def refused(folder, data):  # as where its lock cannot be opened, which root always can
        if folder.id == theirs.id:
            raise UserError(f"{folder.folder}: not writable, it may belong to another user")
        publish(folder, data)

    monkeypatch.setattr(done, "publish_cell", refused)
    assert bench.run(ASKED) == 1
    assert bench.states(ASKED) == {"base/0": "done", "half/0": "failed", "third/0": "done"}
    assert "not writable, it may belong to another user" in capsys.readouterr().err


def test_a_cell_that_another_process_works_on_is_awaited(bench, capsys):
    cell = ASKED.cells[1]
    paths_ = bench.work.cell(cell.id)
    taken = threading.Event()

    def other_process():
        with store.lock_cell(paths_):
            taken.set()
            bench.await_trace(2)  # the one after it was started, so it was found taken
            results.publish(cell, bench.work)

    other = threading.Thread(target=other_process)
    other.start()
    taken.wait()
    assert bench.states(ASKED)["half/0"] == "running"
    assert bench.run(ASKED) == 0
    other.join()
    assert cell.name not in [line["cell"] for line in bench.trace()] and len(bench.trace()) == 2
    assert (
        "half/0: another process is working on it; waiting for it to finish"
        in capsys.readouterr().err
    )


def test_a_worker_that_comes_second_is_no_failure(bench):
    bench.let(half="busy once")
    assert bench.run(results.sweep(techniques=("half",))) == 0
    assert [line["cell"].split("/")[2] for line in bench.trace()] == ["base", "half", "half"]


@pytest.mark.parametrize("times, code, starts", [("once", 0, 2), ("always", 1, 3)])
def test_a_cell_that_was_measured_as_another_sweep_requests_is_measured_again(
    bench, times, code, starts
):
    """Another run replaced cell.json before the worker had the lock."""
    bench.let(half=f"another sweep's, {times}")
    asked = results.sweep(techniques=("half",))
    results.publish(asked.cells[0], bench.work)
    assert bench.run(asked) == code and len(bench.trace()) == starts
    assert done.is_done(asked.cells[1], bench.work) is (code == 0)


# --- signals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_workers_and_says_how_to_go_on(bench, number):
    bench.let(half="sleep", third="sleep")
    process = bench.start(workers=2, stderr=subprocess.PIPE, text=True)
    pids = [line["pid"] for line in bench.await_trace(4)]
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "netpress: stopped; `netpress run test.yaml` goes on from the last finished epoch" in err
    assert "Traceback" not in err
    assert not any(map(lives, pids))
    assert set(bench.states(SIX).values()) == {"done", "missing"}


def test_a_second_signal_does_not_wait_for_a_deaf_worker(bench):
    bench.let(half="sleep through SIGTERM")
    process = bench.start(stderr=subprocess.DEVNULL)
    [line] = bench.await_trace(1, "deaf")
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None and lives(line["pid"])
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=pool.GRACE_S / 2) == 130
    until(lambda: not lives(line["pid"]))


def test_workers_die_with_their_parent(bench):
    bench.let(base="sleep")
    process = bench.start(workers=2, stderr=subprocess.DEVNULL)
    pids = [line["pid"] for line in bench.await_trace(2)]
    until(lambda: all(state.is_held(bench.work.cell(cell.id)) for cell in SIX.cells[:2]))
    process.kill()
    process.wait()
    until(lambda: not any(map(lives, pids)))
    assert bench.states(SIX)["base/0"] == "missing"
    bench.let()
    assert bench.run(ASKED) == 0


# --- what is seen ----------------------------------------------------------------------------


def test_bars_on_a_terminal(bench):
    bench.let(half="nap")
    mine, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = bench.start(stderr=theirs, stdout=subprocess.DEVNULL, env=env)
    os.close(theirs)
    seen = b""
    while True:
        try:
            seen += os.read(mine, 1 << 16)
        except OSError:  # how Linux ends a terminal whose other side is closed
            break
    os.close(mine)
    assert process.wait(timeout=PATIENCE_S) == 0
    text = seen.decode()
    assert "all cells" in text and "shrink 2/2, loss 0.333, 2 s left" in text
    assert "[6/6] third/1: done after" in text and "…" not in text


def test_plain_lines_are_few(capsys):
    lines = display.Lines(ASKED.cells, [])
    cell = ASKED.cells[0]
    lines.start(cell)
    for epoch in range(1000):
        lines.event(cell, {"stage": "0-train", "epoch": epoch, "epochs": 1000})
        lines.event(cell, {"stage": "0-train", "epoch": epoch + 0.5, "epochs": 1000})
    lines.event(cell, {"stage": "measure", "what": "latency"})
    lines.end(cell, "done", None, 65)
    printed = capsys.readouterr().err.splitlines()
    assert printed[0].endswith("base/0: started") and printed[1].endswith("0-train, epoch 0/1000")
    assert printed[-2].endswith("measure, latency") and "done after 1 min 5 s; about" in printed[-1]
    assert len(printed) < 10


@pytest.mark.parametrize(
    "seconds, said",
    [(-1, "0 s"), (0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations(seconds, said):
    assert display.duration(seconds) == said


# --- cell.json and states ---------------------------------------------------------------------


def test_cell_json_is_written_only_where_it_differs(bench):
    cell, folder = ASKED.cells[0], bench.work.cell(ASKED.cells[0].id)
    data = store.json_bytes(cell.to_json())
    done.publish_cell(folder, data)
    before = os.stat(folder.cell_json)
    done.publish_cell(folder, data)
    assert os.stat(folder.cell_json).st_ino == before.st_ino
    folder.cell_json.write_text("{}")
    done.publish_cell(folder, data)
    assert json.loads(folder.cell_json.read_bytes()) == cell.to_json()


def test_states_come_from_the_disk(bench):
    base, other_base, half, other_half, third, other_third = SIX.cells
    assert bench.states(SIX) == {
        "base/0": "missing",
        "base/1": "missing",
        "half/0": "waiting",
        "half/1": "waiting",
        "third/0": "waiting",
        "third/1": "waiting",
    }
    results.publish(base, bench.work)
    results.fail(half, bench.work, "out_of_memory", "12 of 8 GiB")
    store.new_attempt(bench.work.cell(third.id))  # killed: it began, and nothing says how it ended
    with store.lock_cell(bench.work.cell(other_base.id)):
        states = {f"{s.cell.technique}/{s.cell.seed}": s for s in state.states(SIX, bench.work)}
    assert [(s.state, s.attempts, s.reason) for s in states.values()] == [
        ("done", 0, None),
        ("running", 0, None),
        ("failed", 1, "out of memory: 12 of 8 GiB"),
        ("waiting", 0, f"its base {other_base.id} is running"),
        ("missing", 1, "started, not finished"),
        ("waiting", 0, f"its base {other_base.id} is running"),
    ]
    assert state.to_json(tuple(states.values()))["counts"] == {
        "done": 1,
        "running": 1,
        "failed": 1,
        "waiting": 2,
        "missing": 1,
    }


def test_looking_at_a_sweep_writes_nothing(bench):
    results.publish(SIX.cells[0], bench.work)
    results.fail(SIX.cells[2], bench.work, "exception", "no")

    def everything():
        return [(path, os.stat(path).st_mtime_ns) for path in sorted(bench.work.root.rglob("*"))]

    before = everything()
    state.states(SIX, bench.work)
    assert everything() == before


def test_a_lock_is_held_only_by_those_who_live(bench):
    folder = bench.work.cell(SIX.cells[0].id)
    assert not state.is_held(folder)
    with store.lock_cell(folder):
        assert state.is_held(folder)
    assert not state.is_held(folder)
    with store.lock_cell(folder):  # asking has left nothing behind
        pass
