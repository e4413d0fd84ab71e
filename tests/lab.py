"""A place to run netpress in, as its users do: the command line, in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline import store
from pipeline.errors import Corrupt
from pipeline.paths import CODE, CellPaths, Work

NETPRESS = [sys.executable, str(CODE / "env" / "bin" / "netpress")]
PLUGIN = Path(__file__).with_name("plugin")
PATIENCE_S = 600.0  # on a machine that others use, too
NOT_REPEATED = {"seconds", "images_per_second"}  # columns of a history that the clock writes

SWEEP = """\
name: {name}
models: [{{name: vgg16_bn, width: 0.125}}]
datasets: [{dataset}]
techniques: [{techniques}]
training: {{epochs: 2, batch_size: 64, train_images: 240, test_images: 100}}
measure: {{repeats: 1, seconds: 0.1}}
"""


class Lab:
    """A user's current folder: sweep files, ./runs and ./reports."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.work = Work(folder / "runs")
        self.home = folder / "home"
        self.home.mkdir(parents=True, exist_ok=True)

    def sweep(self, *techniques: str, name="tiny", dataset="digits", more="") -> str:
        """Writes a sweep file as small as it gets; its name."""
        listed = ", ".join(techniques)
        text = SWEEP.format(name=name, techniques=listed, dataset=dataset) + more
        (self.folder / f"{name}.yaml").write_text(text)
        return f"{name}.yaml"

    def have(self, other: Lab, without: Iterable[str] = ()) -> None:
        """The work of another lab, without some cells (by id)."""
        shutil.copytree(other.work.root, self.work.root)
        for cell_id in without:
            shutil.rmtree(self.work.cell(cell_id).folder)

    # --- running -----------------------------------------------------------------------------

    def ask(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """One command, to its end."""
        return subprocess.run(
            [*NETPRESS, *map(str, arguments)],
            **self._facts(environment),
            capture_output=True,
            timeout=PATIENCE_S,
        )

    def run(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """`netpress run`, with one thread a worker: so that it repeats bit for bit."""
        return self.ask("run", *arguments, "--threads", 1, "--device", "cpu", **environment)

    def json(self, *arguments: object, **environment: str) -> dict:
        completed = self.ask(*arguments, "--json", **environment)
        assert (completed.returncode, completed.stderr) == (0, ""), completed.stderr
        return json.loads(completed.stdout)

    def ids(self, sweep: str, **environment: str) -> dict[str, str]:
        """{technique: cell id} of a sweep with one seed, model and data set."""
        cells = self.json("plan", sweep, **environment)["cells"]
        return {cell["technique"]: cell["id"] for cell in cells}

    def _facts(self, environment: dict[str, str]) -> dict:
        env = {k: v for k, v in os.environ.items() if not k.startswith("NETPRESS_")}
        env |= {"HOME": str(self.home), "PYTHONPATH": os.pathsep.join([str(PLUGIN), str(CODE)])}
        env |= {"OMP_NUM_THREADS": "1", "COLUMNS": "80", **environment}
        return {"cwd": self.folder, "env": env, "stdin": subprocess.DEVNULL, "text": True}

    @contextmanager
    def start(self, *arguments: object, **environment: str):
        """`netpress run`, as a process of a session of its own; killed if it is still there."""
        command = [*NETPRESS, "run", *arguments, "--threads", "1", "--device", "cpu"]
        process = Started(command, **self._facts(environment))
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    # --- what is there -----------------------------------------------------------------------

    def left_behind(self) -> list[list[str]]:
        """Command lines of processes that still work here."""
        command_lines = [
            p.info["cmdline"] or []
            for p in psutil.process_iter(["cmdline", "status"])
            if p.info["status"] != psutil.STATUS_ZOMBIE
        ]
        return [line for line in command_lines if str(self.work.root) in line]

    def times(self, *but: str) -> dict[str, int]:
        """When each file was changed."""
        return {
            str(p.relative_to(self.folder)): os.stat(p).st_mtime_ns
            for p in self.folder.rglob("*")
            if p.name not in but
        }

    def products(self, cell_id: str) -> dict[str, str]:
        """SHA-256 of what a cell was run for: final weights, deployed model, class names."""
        paths = self.work.cell(cell_id)
        files = (paths.model, paths.artifact / "model.onnx", paths.artifact / "manifest.json")
        return {path.name: store.sha256(path) for path in files}

    def history(self, cell_id: str) -> dict[str, dict[str, list[float]]]:
        """What repeats of the history in result.h5, by stage."""
        stages = store.read_result(self.work.cell(cell_id).result).history
        return {
            f"{s.index}-{s.stage}": {k: v for k, v in s.columns.items() if k not in NOT_REPEATED}
            for s in stages
        }


@dataclass(frozen=True)
class Smoke:
    """The sweep `smoke`, finished once for all tests: copy its work, change nothing in it."""

    lab: Lab
    ids: dict[str, str]  # technique -> cell id
    ran: subprocess.CompletedProcess[str]

    @classmethod
    def ran_in(cls, folder: Path) -> Smoke:
        lab = Lab(folder)
        ran = lab.run("smoke", "--workers", 2)
        return cls(lab, lab.ids("smoke"), ran)


class Started(subprocess.Popen):
    """A `netpress run`, and its standard error so far."""

    def __init__(self, command, **facts):
        super().__init__(
            command,
            **facts,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.said = ""

    def await_line(self, *words: str) -> str:
        """The next line on standard error that has all the words."""
        for line in self.stderr:
            self.said += line
            if all(word in line for word in words):
                return line
        raise AssertionError(f"it never said {words}, but:\n{self.said}")

    def strike(self, number: int, group: bool = False) -> int:
        """Send a signal; the exit code, once it has ended."""
        (os.killpg if group else os.kill)(self.pid, number)
        self.said += self.stderr.read()
        return self.wait(timeout=PATIENCE_S)


KILLED = -signal.SIGKILL


def until(ask, seconds: float = 20.0):
    deadline = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return answer


# --- nothing half there ------------------------------------------------------------------------


def check_whole(cell: CellPaths) -> None:
    """Whatever has its final name is complete; raises Corrupt, or what a parser of it raises."""
    if store.read_manifest(cell) is not None:
        store.verify(cell)
    _, damaged = store.measurements(cell, deep=True)
    assert not damaged
    for path, read in (
        *((path, store.read_result) for path in cell.measurements.glob("*.h5")),
        (cell.cell_json, _json),
        (cell.metrics, store.read_history),
        (cell.result, store.read_result),
        (cell.checkpoint / "index.json", _json),
        (cell.artifact / "manifest.json", _json),
    ):
        try:
            read(path)
        except FileNotFoundError:
            continue
    _check_named(
        cell.checkpoint / "index.json",
        cell.checkpoint,
        lambda index: {e["file"]: e["sha256"] for e in index[-1:]},
    )
    _check_named(
        cell.artifact / "manifest.json",
        cell.artifact,
        lambda names: {n: f["sha256"] for n, f in names["files"].items()},
    )


def _check_named(names: Path, folder: Path, sums) -> None:
    """The files that `names` names, unless it changes meanwhile, match their SHA-256."""
    try:
        before = names.read_bytes()
        digests = {n: (store.sha256(folder / n), s) for n, s in sums(json.loads(before)).items()}
    except FileNotFoundError:
        before, digests = None, {}
    changed = not names.exists() or names.read_bytes() != before
    if not changed and any(is_ != recorded for is_, recorded in digests.values()):
        raise Corrupt(f"{names}: names what is not there")


def _json(path: Path):
    return json.loads(path.read_bytes())


@contextmanager
def watched(work: Work):
    """Looks at all cells again and again meanwhile; yields how often it did."""
    end, looks, errors = threading.Event(), [], []

    def look() -> None:
        while not end.wait(0.05):
            for folder in (work.root / "cells").glob("*"):
                try:
                    check_whole(CellPaths(folder))
                    looks.append(folder)
                except Exception as error:
                    errors.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield looks
    finally:
        end.set()
        thread.join()
    assert errors == []
