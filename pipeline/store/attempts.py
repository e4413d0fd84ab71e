"""A cell's attempts: attempts/N/, one for each run of a job, with its failure and its usage.

failure.json and usage.json are written and read only here.
"""

from __future__ import annotations

import errno
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import Corrupt
from pipeline.paths import AttemptPaths, CellPaths
from pipeline.store import files

# All other kinds are shown as they are.
KIND_WORDS = {"gpu_out_of_memory": "out of memory", "no_gpu": "no usable GPU"}


@dataclass(frozen=True)
class Failure:
    """How an attempt failed. The kind decides what `resume` does, the reason is one line for the
    user. `node`: where it ran, recorded for failures that only SLURM reports, and for those that
    another node may not have."""

    kind: str
    reason: str
    traceback: str = ""
    node: str | None = None

    @property
    def line(self) -> str:
        """`kind: reason` in one line, the kind once."""
        kind = KIND_WORDS.get(self.kind, self.kind.replace("_", " "))
        reason = " ".join(self.reason.split())
        return reason if reason.startswith(kind) else f"{kind}: {reason}"


@dataclass(frozen=True)
class Requested:
    """What a job requested, 0 where that is unknown. `charge`: fair-share units an hour; None where
    the cluster's formula is not known."""

    cores: float = 0
    memory_bytes: float = 0
    gpus: float = 0
    minutes: float = 0
    charge: float | None = None


@dataclass(frozen=True)
class Peaks:
    """The most that an attempt used at any time. `gpu_busy`: the mean utilization of its GPU, 0 to
    1; None where that was not measured."""

    memory_bytes: float
    cores: float
    gpu_memory_bytes: float
    gpu_busy: float | None


@dataclass(frozen=True)
class Usage:
    """What an attempt used of its job's request; of one that has just begun, only the job is known.
    Times are UTC as `2026-01-31T12:00:00Z`; `ended` is None while it runs. `phases`: see
    `pipeline.timeline`."""

    job: str | None
    host: str | None = None
    started: str | None = None
    ended: str | None = None
    wall_s: float | None = None
    training_s: float | None = None
    epochs: int | None = None
    requested: Requested | None = None
    used: Peaks | None = None
    phases: dict[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """With the keys of usage.json."""
        if self.used is None:
            return {"job": self.job}
        values = asdict(self)
        values["request"] = request = values.pop("requested")
        if self.phases is None:  # of an earlier version
            del values["phases"]
        if request and not request["minutes"]:
            del request["minutes"]
        if request and request["charge"] is None:
            del request["charge"]
        return values


def write_failure(attempt: AttemptPaths, failure: Failure) -> None:
    """Publish failure.json; raises OSError (ENOSPC, ...)."""
    values = asdict(failure)
    if failure.node is None:
        del values["node"]
    files.publish_json(attempt.failure, values)


def read_failure(attempt: AttemptPaths) -> Failure | None:
    """None where the attempt has no failure.json; raises Corrupt where that is damaged."""
    try:
        data = attempt.failure.read_bytes()
    except FileNotFoundError:
        return None
    values = _object(data)
    kind, reason = values.get("kind"), values.get("reason")
    if not isinstance(kind, str) or not isinstance(reason, str):
        raise Corrupt(f"{attempt.failure}: expected a JSON object with a kind and a reason")
    node = _text(values, "node")
    return Failure(kind, reason, _text(values, "traceback") or "", node)


def write_usage(attempt: AttemptPaths, usage: Usage) -> None:
    """Publish usage.json; raises OSError (ENOSPC, ...)."""
    files.publish_bytes(attempt.usage, _usage_bytes(usage))


def _usage_bytes(usage: Usage) -> bytes:
    return files.json_bytes(usage.to_json())


def read_usage(attempt: AttemptPaths) -> Usage | None:
    """None where there is no usage.json, or it cannot be read. No decision depends on usage, so a
    damaged value counts as unknown: None."""
    try:
        values = _object(attempt.usage.read_bytes())
    except OSError:
        return None
    epochs = _number(values, "epochs")
    return Usage(
        job=_text(values, "job"),
        host=_text(values, "host"),
        started=_text(values, "started"),
        ended=_text(values, "ended"),
        wall_s=_number(values, "wall_s"),
        training_s=_number(values, "training_s"),
        epochs=None if epochs is None else int(epochs),
        # Of earlier versions, it has another name.
        requested=_requested(values.get("request", values.get("asked"))),
        used=_peaks(values.get("used")),
        phases=_phases(values.get("phases")),
    )


def _phases(values: Any) -> dict[str, float] | None:
    if not isinstance(values, dict):
        return None
    known = {name: _number(values, name) for name in values}
    return {name: seconds for name, seconds in known.items() if seconds is not None}


def _requested(values: Any) -> Requested | None:
    if not isinstance(values, dict):
        return None
    cores, memory_bytes = _number(values, "cores"), _number(values, "memory_bytes")
    if cores is None or memory_bytes is None:
        return None
    gpus, minutes = _number(values, "gpus") or 0, _number(values, "minutes") or 0
    return Requested(cores, memory_bytes, gpus, minutes, _number(values, "charge"))


def _peaks(values: Any) -> Peaks | None:
    if not isinstance(values, dict):
        return None
    memory_bytes, cores = _number(values, "memory_bytes"), _number(values, "cores")
    gpu_memory_bytes, gpu_busy = _number(values, "gpu_memory_bytes"), _number(values, "gpu_busy")
    if memory_bytes is None or cores is None or gpu_memory_bytes is None:
        return None
    if gpu_busy is None and values.get("gpu_busy") is not None:
        return None
    return Peaks(memory_bytes, cores, gpu_memory_bytes, gpu_busy)


def _object(data: bytes) -> dict[str, Any]:
    """A JSON object; an empty one for anything else."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _text(values: dict[str, Any], key: str) -> str | None:
    value = values.get(key)
    return value if isinstance(value, str) else None


def _number(values: dict[str, Any], key: str) -> float | None:
    """The value with its type, so that an integer stays one; None also for NaN and infinities."""
    value = values.get(key)
    return value if isinstance(value, (int, float)) and abs(value) < math.inf else None


def new_attempt(cell: CellPaths, job: str | None = None) -> AttemptPaths:
    """Make the next free attempts/N/; its usage.json names the job from the first moment.

    Two processes never get the same one: a rename onto a folder that is not empty fails.
    """
    return files.again_if_cleared(_new_attempt_once, cell, job)


def _new_attempt_once(cell: CellPaths, job: str | None) -> AttemptPaths:
    last = last_attempt(cell)
    attempt = cell.attempt(last.number + 1 if last else 1)
    with files.draft_of(attempt.folder) as draft:
        files.write_synced(AttemptPaths(draft).usage, _usage_bytes(Usage(job)))
        while not _moved_to_free_name(draft, attempt.folder):
            attempt = cell.attempt(attempt.number + 1)
    return attempt


def _moved_to_free_name(folder: Path, name: Path) -> bool:
    try:
        os.rename(folder, name)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def last_attempt(cell: CellPaths) -> AttemptPaths | None:
    """The attempt with the highest number, or None before the first."""
    try:
        numbers = [int(name) for name in os.listdir(cell.attempts) if name.isdecimal()]
    except FileNotFoundError:
        return None
    return cell.attempt(max(numbers)) if numbers else None
