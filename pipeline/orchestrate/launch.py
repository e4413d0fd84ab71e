"""Starts the processes of local workers: each from its command, or forked from one that has
imported PyTorch already (jobs/forkserver.py)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, Protocol

from pipeline import paths
from pipeline.sweep import Cell

Command = Callable[[Cell, Sequence[str]], list[str]]  # (cell, more options) -> the command
ANSWER_S = 60.0  # a fork takes milliseconds; a machine that swaps takes its time


class Process(Protocol):
    """What the pool needs of a worker's process; subprocess.Popen is one."""

    pid: int
    returncode: Any

    @property
    def stdout(self) -> IO[bytes] | None: ...

    def poll(self) -> int | None: ...

    def wait(self) -> int: ...


class Launcher(Protocol):
    """Starts workers once it is ready; `start` raises OSError where that is impossible."""

    def ready(self) -> bool: ...

    def start(
        self, cell: Cell, options: Sequence[str], environment: Mapping[str, str], errors: IO[bytes]
    ) -> Process: ...

    def close(self) -> None: ...


class Commands:
    """A new interpreter for each cell."""

    def __init__(self, command: Command):
        self.command = command

    def ready(self) -> bool:
        return True

    def start(
        self, cell: Cell, options: Sequence[str], environment: Mapping[str, str], errors: IO[bytes]
    ) -> Process:
        return subprocess.Popen(
            self.command(cell, options),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=paths.CODE,  # `python -m` would import a `jobs` in our own folder
            env=_environment(environment),
            start_new_session=True,
        )

    def close(self) -> None:
        return


class Forks:
    """Forks of a server that is started at once. Where it ends before it is ready (PyTorch is
    broken), and from then on, every cell gets an interpreter of its own, which shows the cause."""

    def __init__(self, command: Command, work: paths.Work):
        self.commands = Commands(command)
        self.socket, theirs = socket.socketpair()
        with theirs:
            self.server = subprocess.Popen(
                [sys.executable, "-m", "jobs.forkserver"]
                + ["--work", str(work.root), "--die-with-parent", str(os.getpid())],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # what it cannot import, a cell of its own shows
                cwd=paths.CODE,
                env=_environment({}),
                start_new_session=True,
            )
        self.socket.setblocking(False)
        self.unread = b""
        self.is_ready = self.is_gone = False
        self.requests = 0
        self.answer: dict[str, Any] | None = None  # to the last request
        self.statuses: dict[int, int] = {}  # of forks that ended: process -> as `subprocess` has it

    def ready(self) -> bool:
        self.listen()
        return self.is_ready or self.is_gone

    def start(
        self, cell: Cell, options: Sequence[str], environment: Mapping[str, str], errors: IO[bytes]
    ) -> Process:
        self.listen()
        if self.is_gone or environment:
            return self.commands.start(cell, options, environment, errors)
        command = self.commands.command(cell, options)
        arguments = command[command.index("jobs.compress") + 1 :]
        reads, writes = os.pipe()
        output = os.fdopen(reads, "rb", 0)
        try:
            pid = self._request(arguments, [writes, errors.fileno()])
        except OSError:
            output.close()
            raise
        finally:
            os.close(writes)
        if pid is None:
            output.close()
            return self.commands.start(cell, options, environment, errors)
        return _Fork(self, pid, output)

    def _request(self, arguments: list[str], descriptors: list[int]) -> int | None:
        """The number of the new process; None where the server is gone."""
        self.answer, self.requests = None, self.requests + 1
        message = json.dumps({"request": self.requests, "arguments": arguments}).encode()
        try:
            socket.send_fds(self.socket, [message], descriptors)
        except (BrokenPipeError, ConnectionResetError):
            self.is_gone = True
        deadline = time.monotonic() + ANSWER_S
        while self.answer is None and not self.is_gone and time.monotonic() < deadline:
            time.sleep(0.002)
            self.listen()
        answer: dict[str, Any] = self.answer or {}
        if "pid" in answer:
            return int(answer["pid"])
        if "error" in answer:
            raise OSError(answer["error"], os.strerror(answer["error"]))
        if self.is_gone:
            return None
        raise OSError("the process that cells are forked from does not answer")

    def listen(self) -> None:
        """Take what the server tells; does not block."""
        try:
            while chunk := self.socket.recv(1 << 16):
                self.unread += chunk
            self.is_gone = True  # and so are its forks: the kernel kills them with it
        except ConnectionResetError:
            self.is_gone = True
        except BlockingIOError:
            pass
        *lines, self.unread = self.unread.split(b"\n")
        for line in lines:
            self._hear(json.loads(line))

    def _hear(self, told: dict[str, Any]) -> None:
        if "ready" in told:
            self.is_ready = True
        elif "status" in told:
            self.statuses[told["pid"]] = told["status"]
        elif told["request"] == self.requests:
            self.answer = told
        elif "pid" in told:  # nobody waited for it any more
            with contextlib.suppress(ProcessLookupError):
                os.killpg(told["pid"], signal.SIGKILL)

    def close(self) -> None:
        self.server.kill()
        self.server.wait()
        self.socket.close()


class _Fork:
    """A process that is a child of the server."""

    def __init__(self, forks: Forks, pid: int, stdout: IO[bytes]):
        self.forks, self.pid, self.stdout = forks, pid, stdout
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.forks.listen()
            self.returncode = self.forks.statuses.pop(self.pid, None)
        if self.returncode is None and self.forks.is_gone:
            self.returncode = -signal.SIGKILL
        return self.returncode

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(0.01)
        return code


def _environment(additions: Mapping[str, str]) -> dict[str, str]:
    mine = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(paths.CODE), *([mine] if mine else [])])
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **additions}
