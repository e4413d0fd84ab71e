"""Measures what an attempt uses of its job's request, while it runs.

A thread samples this process and its children every few seconds and publishes from time to time, so
that there is a record whatever ends the process.
"""

from __future__ import annotations

import math
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil

from pipeline import clock, store, terminal
from pipeline.paths import AttemptPaths
from pipeline.timeline import Timeline

CHARGE = "NETPRESS_CHARGE"  # set by the script of a job
LOOK_S = 3.0
PUBLISH_S = 30.0
MINUTES = "NETPRESS_JOB_MINUTES"  # the time limit of a job that runs this cell alone
GPU_QUERY = (
    "nvidia-smi",
    "--query-gpu=utilization.gpu,memory.used",
    "--format=csv,noheader,nounits",
)


class Monitor:
    """Measures during a `with`. `event` gets the events of the cell's progress."""

    def __init__(self, attempt: AttemptPaths):
        self.attempt = attempt
        self.began, self.clock = time.time(), time.monotonic()
        self.peak_bytes = 0
        self.peak_cores = 0.0
        self._worked = (self.clock, _cpu_s())  # time of the last sample, and CPU time until then
        self.gpu_peak_bytes = 0
        self.gpu_busy: list[float] = []
        self.training_s, self.epochs = 0.0, 0
        self.timeline = Timeline()
        self._last: tuple[str, float, float] | None = None  # stage, epoch, when
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._gpus = _gpus()

    def __enter__(self) -> Monitor:
        self._look()
        self._publish(None)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        self._publish(time.time())

    def _publish(self, ended: float | None) -> None:
        try:
            store.write_usage(self.attempt, self.usage(ended))
        except OSError as error:  # a full disk ends the cell, not its monitor
            terminal.show(f"usage.json could not be written: {error}")

    def event(self, event: dict[str, Any]) -> None:
        """Counts epochs, and the seconds between two events about the same training."""
        self.timeline.event(event)
        if event.get("epoch") is None:
            self._last = None
            return
        stage, epoch, now = event["stage"], float(event["epoch"]), clock.now()
        if self._last and self._last[0] == stage:
            self.training_s += now - self._last[2]
            self.epochs += int(epoch) - int(self._last[1])
        self._last = (stage, epoch, now)

    def usage(self, ended: float | None) -> store.Usage:
        """The usage so far; `ended`: the end of the attempt, None while it runs."""
        busy = round(sum(self.gpu_busy) / len(self.gpu_busy), 3) if self.gpu_busy else None
        return store.Usage(
            job=job(),
            host=socket.gethostname(),
            started=_stamp(self.began),
            ended=_stamp(ended) if ended else None,
            wall_s=round(time.monotonic() - self.clock, 2),
            training_s=round(self.training_s, 2),
            epochs=self.epochs,
            requested=requested(),
            phases=self.timeline.seconds(),
            used=store.Peaks(self.peak_bytes, round(self.peak_cores, 2), self.gpu_peak_bytes, busy),
        )

    def _watch(self) -> None:
        published = time.monotonic()
        while not self._stop.wait(LOOK_S):
            self._look()
            if time.monotonic() - published > PUBLISH_S:
                published = time.monotonic()
                self._publish(None)

    def _look(self) -> None:
        self.peak_bytes = max(self.peak_bytes, _memory_bytes())
        now, cpu_s = time.monotonic(), _cpu_s()
        passed_s = now - self._worked[0]
        if passed_s > LOOK_S / 2 or (passed_s > 0.1 and not self.peak_cores):  # else too coarse
            self.peak_cores = max(self.peak_cores, (cpu_s - self._worked[1]) / passed_s)
            self._worked = (now, cpu_s)
        if self._gpus:
            busy, memory = _gpu_now(self._gpus)
            self.gpu_peak_bytes = max(self.gpu_peak_bytes, memory)
            if busy is not None:
                self.gpu_busy.append(busy)


def job() -> str | None:
    """The SLURM job that this process runs in, as `12_3` or `12`; None outside of one."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def requested() -> store.Requested:
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "")
    return store.Requested(
        cores=int(os.environ.get("SLURM_CPUS_PER_TASK") or 0),
        memory_bytes=int(os.environ.get("SLURM_MEM_PER_NODE") or 0) * 1024**2,
        gpus=int(gpus) if gpus.isdecimal() else 0,
        charge=_charge(),
        minutes=int(os.environ.get(MINUTES) or 0),
    )


def _charge() -> float | None:
    """Fair-share units an hour, as the profile that the job was submitted with computes them."""
    try:
        charge = float(os.environ.get(CHARGE, ""))
    except ValueError:
        return None
    return charge if math.isfinite(charge) else None


def _cpu_s() -> float:
    """CPU time of this process and its descendants, including those that have ended."""
    return _over_all(lambda process: sum(process.cpu_times()[:4]))  # user, system, and children's


def _memory_bytes() -> int:
    """Memory of this process and its descendants now; shared pages count once for each."""
    return int(_over_all(lambda process: process.memory_info().rss))


def _over_all(measure: Callable[[psutil.Process], float]) -> float:
    """The sum over this process and its descendants."""
    me = psutil.Process()
    total = 0.0
    for process in (me, *me.children(recursive=True)):
        try:
            total += measure(process)
        except psutil.Error:  # it has just ended
            continue
    return total


def _gpus() -> tuple[str, ...]:
    """GPUs of this job as arguments of nvidia-smi; none without a driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = tuple(name for name in visible.split(",") if name.strip())
    return names if names and _smi(names) is not None else ()


def _gpu_now(gpus: tuple[str, ...]) -> tuple[float | None, int]:
    """(mean share of time busy, bytes in use) over the job's GPUs."""
    lines = _smi(gpus)
    if not lines:
        return None, 0
    pairs = [[float(value) for value in line.split(",")] for line in lines]
    busy = sum(pair[0] for pair in pairs) / len(pairs) / 100
    return busy, round(sum(pair[1] for pair in pairs) * 1024**2)


def _smi(gpus: tuple[str, ...]) -> list[str] | None:
    try:
        ended = subprocess.run(
            [*GPU_QUERY, "--id=" + ",".join(gpus)], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line for line in ended.stdout.splitlines() if line.strip()]
    numeric = all(part.strip().replace(".", "").isdecimal() for s in lines for part in s.split(","))
    return lines if ended.returncode == 0 and lines and numeric else None


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
