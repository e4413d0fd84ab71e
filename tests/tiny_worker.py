"""Processes for tests of local workers: a worker that trains nothing, and a run that uses it.

    python tiny_worker.py cell WORK ACTIONS TRACE [--device D] [--threads N] PARENT ID
    python tiny_worker.py run WORK ACTIONS TRACE WORKERS

ACTIONS is a JSON file, {technique: what its worker does}; TRACE gets a JSON line when a worker
starts and when it ends by itself.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.compress import die_with  # noqa: E402
from pipeline import clock, store  # noqa: E402
from pipeline.catalog import Catalog  # noqa: E402
from pipeline.paths import Work  # noqa: E402
from pipeline.sweep import Cell  # noqa: E402
from tests import results  # noqa: E402

CATALOG = Catalog({}, {}, {"shrink": results.Strength}, {})


def command(work: Work, actions: Path, trace: Path):
    """What `local.run` takes as its `command`."""
    me = [sys.executable, __file__, "cell", str(work.root), str(actions), str(trace)]
    return lambda cell, options: [*me, *options, str(os.getpid()), cell.id]


def work_on(root: str, actions: str, trace: str, *rest: str) -> int:
    *options, parent, cell_id = rest
    die_with(int(parent))
    clock.follow(Path(options[options.index("--stops") + 1]))
    paths = Work(Path(root)).cell(cell_id)
    cell = Cell.from_json(json.loads(paths.cell_json.read_bytes()), CATALOG)
    action = json.loads(Path(actions).read_text()).get(cell.technique, "finish")

    def note(what: str) -> str:
        """Returns all that was noted so far."""
        facts = {
            "cell": cell.name,
            "what": what,
            "time": time.time(),
            "clock": clock.now(),
            "pid": os.getpid(),
        }
        facts |= {"cwd": os.getcwd(), "options": options, "path": os.environ["PYTHONPATH"]}
        facts |= {"gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}
        with open(trace, "a") as file:
            file.write(json.dumps(facts) + "\n")
        return Path(trace).read_text()

    note("start")
    if action == "vanish":
        print("no module named torch", file=sys.stderr)
        return 3
    if action == "busy once" and not (flag := Path(actions + ".busy")).exists():
        flag.touch()
        tell(cell, stage="busy", reason="another process")
        return 1
    with store.lock_cell(paths):
        return act(action, cell, Work(Path(root)), note)


def act(action: str, cell: Cell, work: Work, note) -> int:
    paths = work.cell(cell.id)
    attempt = store.new_attempt(paths)
    for epoch in range(3):
        tell(cell, stage="0-shrink", epoch=epoch, epochs=2, loss=1 / (1 + epoch), seconds_left=1.5)
    if action == "fail":
        store.write_failure(attempt, store.Failure("exception", "ValueError: no", "..."))
        return 1
    if action == "fail on a full disk":
        tell(cell, stage="failed", kind="disk_full", reason="disk full: no space left on device")
        return 1
    if action in ("SIGKILL", "SIGSEGV"):
        os.kill(os.getpid(), signal.Signals[action])
    if action == "sleep":
        time.sleep(600)
    if action == "sleep through SIGTERM":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        note("deaf")
        time.sleep(600)
    if action in ("measure", "sleep in a measurement"):
        time.sleep(1.0)  # so that the others are at work by then
        tell(cell, stage="measure", what="latency, all threads")
        note("measures")
        time.sleep(0.6 if action == "measure" else 600)
        note("measured")
    if action == "work":
        for _ in range(100):
            time.sleep(0.02)
            note("works")
    if action == "nap":
        time.sleep(0.4)
    if action == "gather":  # until five have started: two bases, and three that gather
        deadline = time.monotonic() + 20
        while note("gathers").count('"what": "start"') < 5 and time.monotonic() < deadline:
            time.sleep(0.1)
    if action.startswith("another sweep's"):  # once, or always
        flag = work.root / "another"
        if action.endswith("always") or not flag.exists():
            flag.touch()
            cell = replace(cell, measure=cell.measure.model_copy(update={"repeats": 9}))
    if action != "nothing":
        if paths.manifest.exists():
            store.withdraw(paths)
        results.publish(cell, work)
    note("end")
    tell(cell, stage="done", seconds=0.1)
    if action == "linger":
        for stream in (1, 2):
            os.close(stream)
        time.sleep(1.0)
        os._exit(0)
    return 0


def tell(cell: Cell, **event) -> None:
    print(json.dumps({"cell": cell.id, **event}), flush=True)


def run(root: str, actions: str, trace: str, workers: str) -> int:
    from pipeline.orchestrate import local

    work = Work(Path(root))
    return local.run(
        results.sweep(techniques=("half", "third"), seeds=(0, 1)),
        work,
        Path(root),
        device="cpu",
        workers=int(workers),
        command=command(work, Path(actions), Path(trace)),
    )


if __name__ == "__main__":
    sys.exit({"cell": work_on, "run": run}[sys.argv[1]](*sys.argv[2:]))
