"""A real SLURM on this machine for the tests in this folder, and a desk to sit at.

Where it is not installed these tests are skipped, with a line that says so; with
NETPRESS_REQUIRE_SLURM=1, as .ci/run sets it, that is a failure.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

from pipeline.paths import CODE, CellPaths, Work
from pipeline.store import OWNER

HERE = Path(__file__).parent
SLURMBOX = HERE / "slurmbox"
NETPRESS = CODE / "env" / "bin" / "netpress"
COMMANDS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "sbatch")
CALLED = ("squeue", "sacct", "sbatch", "scancel", "scontrol")
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
MISSING = [name for name in COMMANDS if shutil.which(name, path=PATH) is None]
REQUIRED = os.environ.get("NETPRESS_REQUIRE_SLURM") == "1"
ELSEWHERE = f"export PYTHONPATH=$PYTHONPATH:{HERE / 'elsewhere'}"  # in `setup`; see there
REASON = (
    f"no {', '.join(MISSING)}: apt-get install slurm-wlm slurmdbd munge mariadb-server "
    "brings a SLURM to test on"
)

# Small enough for many at a time on the fake nodes; one thread, for there are few real cores.
LOOK_S = 5.0
T = TypeVar("T")
SMALL = ("--set", "cores=1", "--set", "memory_gib=2", "--set", "gpu=null")
QUICK = """
name: {name}
models: [{{name: vgg16_bn, width: 0.125}}]
datasets: [digits]
techniques: {techniques}
seeds: {seeds}
training: {{epochs: {epochs}, batch_size: 50, train_images: {images}, test_images: 50}}
measure: {{repeats: 1, seconds: 0.1, simulated_seconds: 0.1}}
define:
  quick: [{{finetune: {{epochs: 1}}}}]
  quick2: [{{finetune: {{epochs: 2}}}}]
  broken: [{{prune: {{parameters_kept: 0.0001}}}}]
"""


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in Path(item.path).parents and {"box", "strict_desk"} & set(
            getattr(item, "fixturenames", ())
        ):
            item.add_marker(pytest.mark.slurm)
            item.add_marker(pytest.mark.timeout(300))
            if MISSING and not REQUIRED:
                item.add_marker(pytest.mark.skip(reason=REASON))


def pytest_terminal_summary(terminalreporter):
    if MISSING and not REQUIRED:
        terminalreporter.write_line(f"tests/slurm: skipped, {REASON}")


# Tests that are killed with SIGKILL leave no cluster behind.
WHEN_KILLED = """
while kill -0 "$1" 2>/dev/null; do sleep 2; done
"$2" stop "$3"; rm -rf "$3"
"""


@dataclass
class Box:
    """The cluster: two nodes of 24 cores, 64 GB and two fake A100s; accounting."""

    folder: Path

    def __call__(self, *arguments: str) -> str:
        ended = subprocess.run(
            [str(SLURMBOX), arguments[0], str(self.folder), *arguments[1:]],
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    def ask(self, *command: str) -> str:
        """Any of Slurm's commands, as a user types it; not counted."""
        ended = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "SLURM_CONF": str(self.conf)},
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.strip()

    @contextlib.contextmanager
    def configured(self, **settings: str) -> Iterator[None]:
        """slurm.conf changed for a while, where `scontrol reconfigure` is enough."""
        before = self.conf.read_text()
        kept = [s for s in before.splitlines() if s.partition("=")[0] not in settings]
        self.conf.write_text("\n".join([*kept, *(f"{k}={v}" for k, v in settings.items())]) + "\n")
        self.ask("scontrol", "reconfigure")
        try:
            yield
        finally:
            self.conf.write_text(before)
            self.ask("scontrol", "reconfigure")


@pytest.fixture(scope="session")
def box():
    if MISSING:
        pytest.fail(REASON)
    with started("--set", "MaxJobCount=30000") as made:
        yield made


@contextlib.contextmanager
def started(*settings: str) -> Iterator[Box]:
    folder = Path(tempfile.mkdtemp(prefix="np-slurm-", dir="/tmp"))
    made = Box(folder)
    heir = subprocess.Popen(
        ["bash", "-c", WHEN_KILLED, "heir", str(os.getpid()), str(SLURMBOX), str(folder)],
        start_new_session=True,
    )
    try:
        made("start", *settings)
        yield made
    finally:
        heir.kill()
        heir.wait()
        made("stop")
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Desk:
    """A folder of a user's, and the command line in it; counts the calls of SLURM's commands."""

    box: Box
    folder: Path
    calls: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def work(self) -> Work:
        return Work(self.folder / "runs")

    def sweep(
        self,
        name: str,
        techniques: str = "[base, quick]",
        seeds: str = "[0]",
        epochs: int = 1,
        more: str = "",
        images: int = 100,
    ) -> str:
        path = self.folder / f"{name}.yaml"
        settings = {"techniques": techniques, "seeds": seeds, "epochs": epochs, "images": images}
        path.write_text(QUICK.format(name=name, **settings) + more)
        return path.name

    def start(self, *arguments: str, program: tuple[str, ...] = ()) -> subprocess.Popen:
        program = program or (str(NETPRESS),)
        return subprocess.Popen(
            [sys.executable, *program, *arguments],
            cwd=self.folder,
            env=self.env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def netpress(self, *arguments: str, code: int | None = 0, **more) -> tuple[str, str]:
        """(stdout, stderr) of a command, which has to end with `code`."""
        process = self.start(*arguments, **more)
        out, err = process.communicate(timeout=120)
        assert code is None or process.returncode == code, f"{process.returncode}\n{out}\n{err}"
        assert "Traceback" not in err, err
        messages = [s for s in err.splitlines() if not s.startswith("netpress: note: ")]
        return out, "\n".join(messages)

    def submit(self, sweep: str, *more: str, code: int = 0) -> tuple[str, str]:
        return self.netpress("submit", sweep, *SMALL, *more, code=code)

    def resume(self, sweep: str, *more: str) -> str:
        return self.netpress("resume", sweep, *SMALL, *more)[0]

    def status(self, sweep: str) -> dict[str, dict]:
        """technique/seed -> its entry in status --json."""
        document = json.loads(self.netpress("status", sweep, "--json")[0])
        return {f"{c['technique']}/{c['seed']}": c for c in document["cells"]}

    def cell(self, sweep: str, name: str) -> CellPaths:
        """The folder of a cell, by technique/seed; asks no scheduler."""
        cells = json.loads(self.netpress("plan", sweep, "--json")[0])["cells"]
        [cell] = [c["id"] for c in cells if f"{c['technique']}/{c['seed']}" == name]
        return self.work.cell(cell)

    def states(self, sweep: str) -> dict[str, str]:
        return {name: cell["state"] for name, cell in self.status(sweep).items()}

    def until_all(self, sweep: str, *states: str, seconds: float = 60) -> dict[str, dict]:
        """Wait until each cell has one of these states."""
        return self.until(sweep, lambda c: all(x["state"] in states for x in c.values()), seconds)

    def until(self, sweep: str, wanted: Callable[[dict[str, dict]], bool], seconds: float = 120):
        """Wait for a state of the sweep; what it was then."""
        return self.looking(lambda: self.status(sweep), wanted, seconds)

    def looking(self, look: Callable[[], T], wanted: Callable[[T], bool], seconds: float) -> T:
        """`look` until that is as wanted. It takes half a second of a core, so not again before
        Slurm's queue has changed, which costs little to ask, or some time has passed."""
        deadline = time.monotonic() + seconds
        while True:
            before, again = self._queue(), time.monotonic() + LOOK_S
            if wanted(value := look()):
                return value
            assert time.monotonic() < deadline, json.dumps(value, indent=1) + before
            while self._queue() == before and time.monotonic() < again:
                time.sleep(0.5)

    def _queue(self) -> str:
        return self.box.ask("squeue", "-ah", "-o", "%i %T %r")

    def until_none(self, sweep: str, state: str, seconds: float = 60) -> dict[str, dict]:
        return self.until(sweep, lambda c: all(x["state"] != state for x in c.values()), seconds)

    def settled(self, sweep: str, seconds: float = 150) -> dict[str, dict]:
        return self.until_all(sweep, "done", "failed", "cancelled", "missing", seconds=seconds)

    def counted(self) -> Counter[str]:
        """Slurm's commands that were run since the last call of this."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return Counter(line.split()[0] for line in lines)

    def ledger(self, name: str) -> list[dict]:
        text = self.work.sweep(name).ledger.read_text()
        return [json.loads(line) for line in text.splitlines()]

    def jobs(self, name: str) -> list[int]:
        return [line["job"] for line in self.ledger(name) if line["event"] == "submitted"]


def held(mebibytes: int) -> tuple[str, ...]:
    """The profile's setting with which each cell's process has so much memory from the start."""
    lines = [ELSEWHERE, f"export NETPRESS_TEST_HELD_BYTES={mebibytes << 20}"]
    return ("--set", "setup=" + json.dumps(lines))


@dataclass(frozen=True)
class Halted:
    """A process that is kept stopped, though Slurm sends CONT with its signals, until it is killed
    or `go_on` is called."""

    pid: int
    keeper: subprocess.Popen

    def go_on(self) -> None:
        self.keeper.kill()
        self.keeper.wait()
        os.kill(self.pid, signal.SIGCONT)


def halt(cell: CellPaths, epochs: int = 1, seconds: float = 90, task: str | None = None) -> Halted:
    """Stop the process that works on a cell after its first epoch, or, with 0, as soon as it has
    the cell. So what is done to its job comes in time, however fast the machine. `task`: only the
    process of this one; that of an earlier job may be there still, dead and not yet buried."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        holder = OWNER.match(cell.lock.read_text()) if cell.lock.exists() else None
        its = holder and task in (None, holder["job"])
        if its and (cell.metrics.exists() or not epochs):
            pid = int(holder["pid"])
            if not Path(f"/proc/{pid}").exists():  # an earlier one, that was killed
                continue
            os.kill(pid, signal.SIGSTOP)
            assert not cell.manifest.exists(), "it was done before it could be stopped"
            # From a pipe into which nobody writes, `read` waits as `sleep` does, without a process.
            stop = f"exec 3<> <(:); while kill -STOP {pid}; do read -rt 0.01 -u 3; done 2>/dev/null"
            return Halted(pid, subprocess.Popen(("bash", "-c", stop)))
        time.sleep(0.01)
    raise AssertionError(f"nothing began with {cell.id}")


def wait_for(true, seconds: float = 60):
    deadline = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.5)
    return value


@pytest.fixture
def desk(box, tmp_path):
    with at_desk(box, tmp_path) as made:
        yield made


@pytest.fixture
def strict_desk(tmp_path):
    """At a cluster of its own, which limits memory by control groups."""
    if os.getuid() != 0 or not Path("/sys/fs/cgroup/memory/tasks").exists():
        pytest.skip("memory limits by control groups need root, and version 1 of them here")
    with started("--cgroup") as made, at_desk(made, tmp_path) as strict:
        yield strict


@contextlib.contextmanager
def at_desk(box: Box, tmp_path: Path) -> Iterator[Desk]:
    shims = tmp_path / "bin"
    shims.mkdir()
    for name in CALLED:
        real = shutil.which(name, path=PATH)
        shim = shims / name
        shim.write_text(f'#!/bin/sh\necho "{name} $*" >>"$NETPRESS_CALLS"\nexec {real} "$@"\n')
        shim.chmod(0o755)
    folder = tmp_path / "desk"
    folder.mkdir()
    # PyTorch sets the last one in a process that it compiles in, such as this.
    ours = ("NETPRESS", "SLURM", "SBATCH", "TORCHINDUCTOR_CACHE_DIR")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    env = {
        **kept,
        "PATH": f"{shims}:{PATH}",
        "SLURM_CONF": str(box.conf),
        "NETPRESS_CALLS": str(tmp_path / "calls"),
    }
    yield Desk(box, folder, tmp_path / "calls", env)
    box.ask("scancel", "--user", os.environ.get("USER") or "root")
