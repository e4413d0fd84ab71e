"""Forks a process for each cell of a local run, from one that has imported PyTorch already.

    python -m jobs.forkserver --work ROOT       # standard input is a Unix socket

Importing PyTorch, its compiler and its exporter takes about five seconds of a core, which is more
than a small cell trains. Here it is done once, before the first cell; what is forked from this
process has the modules and shares their memory.

Each request is one message on the socket: a JSON object with `request`, its number, and `arguments`
(of jobs.compress), and two descriptors, the cell's standard output and standard error. The answers
are lines of JSON: {"ready": true} once; {"request": R, "pid": N} for each request, or
{"request": R, "error": errno} where it cannot fork; and {"pid": N, "status": S} for each cell that
has ended, S as `subprocess` has it. The server ends where its parent does, and so do the cells that
it forked.

It never runs an operation of PyTorch, which could start threads or touch a GPU: a fork has neither.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence

from jobs import compress
from pipeline import garbage
from pipeline.artifact import operators

MESSAGE_BYTES = 1 << 16
# What a cell imports in the end. Private names only bring the work forward: one that another
# version lacks is imported by the cell itself, under whatever name it has there.
MODULES = (
    "torch",
    "pipeline.execute",
    "pipeline.catalog",
    "jobs.usage",
    "onnxruntime",
    "torch._dynamo",
    "torch.export._trace",
    "torch.onnx._internal.exporter._core",
    "onnxscript.function_libs.torch_lib.ops",
)


def main() -> int:
    options = _parser().parse_args()
    compress.die_with(options.die_with_parent)
    garbage.seldom()
    for name in MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    operators.collect()
    gc.collect()
    gc.freeze()  # a collection in a fork would touch, and so copy, every page
    server = os.getpid()
    with socket.socket(fileno=os.dup(0)) as parent:  # 0 itself becomes /dev/null in a fork
        arguments = _serve(parent)
    if arguments is None:
        return 0
    # In a fork. It is a child of the server, not of who made the arguments: the last option counts.
    code = compress.main([*arguments, "--die-with-parent", str(server)])
    garbage.no_more()
    return code


def _serve(parent: socket.socket) -> list[str] | None:
    """Answer requests until the parent is gone; in each fork, return the arguments of its cell."""
    awake, waker = os.pipe()
    for end in (awake, waker):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker)
    _tell(parent, ready=True)
    while True:
        for ready in select.select([parent.fileno(), awake], [], [])[0]:
            if ready == awake:
                os.read(awake, MESSAGE_BYTES)
                _reap(parent)
                continue
            message, descriptors, _, _ = socket.recv_fds(parent, MESSAGE_BYTES, 2)
            if not message:
                return None
            wanted = json.loads(message)
            if not _fork(parent, wanted["request"], descriptors):
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for end in (awake, waker):
                    os.close(end)
                return [str(argument) for argument in wanted["arguments"]]


def _fork(parent: socket.socket, request: int, descriptors: Sequence[int]) -> bool:
    """Fork, and tell the parent the new process's number; False in the fork, which then leads a
    session of its own and has the descriptors as its outputs."""
    led, leads = os.pipe()
    try:
        pid = os.fork()
    except OSError as error:  # no more processes, no memory: it costs this cell only
        for end in (led, leads, *descriptors):
            os.close(end)
        _tell(parent, request=request, error=error.errno)
        return True
    if pid:
        for end in (leads, *descriptors):
            os.close(end)
        os.read(led, 1)  # until it leads its group: from now on the whole group can be killed
        os.close(led)
        _tell(parent, request=request, pid=pid)
        return True
    os.setsid()
    os.close(led)
    os.close(leads)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, descriptor in enumerate((null, *descriptors)):  # 0 was the socket
        os.dup2(descriptor, target)
        os.close(descriptor)
    # New ones: those of the server know whether what they were opened on can seek.
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    return False


def _reap(parent: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        _tell(parent, pid=pid, status=os.waitstatus_to_exitcode(status))


def _tell(parent: socket.socket, **facts: int | None) -> None:
    parent.sendall(json.dumps(facts).encode() + b"\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.forkserver")
    parser.add_argument("--die-with-parent", type=int, metavar="PID", required=True)
    parser.add_argument("--work", help="the work root, for whoever reads a list of processes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
