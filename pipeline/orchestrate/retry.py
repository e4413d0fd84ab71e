"""What to do after each kind of failure, as data: `resume` uses RULES[kind] alone.

`cause` determines the kind from the available evidence, the best first: the record of the attempt,
the record of the job's set-up, Slurm's records of the job, its log.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.orchestrate.graph import Request
from pipeline.orchestrate.slurm import Row
from pipeline.store import Failure

GIB = 1024**3


@dataclass(frozen=True)
class Rule:
    """again: whether resume submits it by default. memory, minutes: factors for its request.
    elsewhere: exclude the node that it ran on. advice: for the user."""

    again: bool
    memory: float = 1.0
    minutes: float = 1.0
    elsewhere: bool = False
    advice: str = ""


RULES = {
    "out_of_memory": Rule(True, memory=1.5),
    "time_limit": Rule(True),  # it continues from its checkpoint
    "stuck": Rule(True, minutes=2.0),  # a whole job made no progress
    "node_failure": Rule(True, elsewhere=True),
    "no_gpu": Rule(True, elsewhere=True),
    "preempted": Rule(True),
    "cancelled": Rule(True),
    "lost": Rule(True),
    "killed": Rule(True),
    "busy": Rule(True),
    "no_base": Rule(True),
    "base_failed": Rule(True),
    "disk_full": Rule(True, advice="free disk space first"),
    "not_requeued": Rule(True),
    "no_log": Rule(
        True, advice="make sure that compute nodes see this folder and that you may write to it"
    ),
    "set_up": Rule(True, advice="correct the profile's `setup` first"),
    "gpu_out_of_memory": Rule(
        False, advice="take a GPU with more memory (--set gpu=...) or a smaller training.batch_size"
    ),
    "exception": Rule(False),
    "invalid": Rule(False),
}

# Slurm's final states; any other is shown unchanged, and counts as `lost`.
ENDED = {
    "COMPLETED": "lost",  # without a result: only cells that are not done get here
    "FAILED": "exception",
    "TIMEOUT": "time_limit",
    "DEADLINE": "time_limit",
    "OUT_OF_MEMORY": "out_of_memory",
    "NODE_FAIL": "node_failure",
    "BOOT_FAIL": "node_failure",
    "LAUNCH_FAILED": "node_failure",
    "RECONFIG_FAIL": "node_failure",
    "PREEMPTED": "preempted",
    "CANCELLED": "cancelled",
    "REVOKED": "cancelled",
}

OVER_LIMIT = re.compile(r"exceeded memory limit \((\d+) > (\d+)\)")
OOM_KILL = re.compile(r"oom[-_ ]kill", re.IGNORECASE)
NO_REQUEUE = re.compile(r"'scontrol', 'requeue'.* returned non-zero")
NO_LOG = "0:53"  # slurmstepd could not open the job's output file, and started nothing
# Evidence that a job's worker, srun or batch script was killed: exit codes of sacct, CODE:SIGNAL;
# without accounting, messages of srun and slurmstepd.
BY_SIGNAL = re.compile(r"\d+:[1-9]\d*|(9|12|15|137|140|143):0")
KILLED = re.compile(
    r"task \d+: (Killed|Terminated|User defined signal 2)|Force Terminated StepId"
    r"|STEP \S+ ON \S+ (CANCELLED|FAILED)"
)


@dataclass(frozen=True)
class Cause:
    """Why a cell is not done: the kind decides what resume does, the reason is for the user."""

    kind: str
    reason: str
    node: str = ""

    @property
    def rule(self) -> Rule:
        return RULES.get(self.kind, RULES["exception"])


def cause(
    row: Row | None,
    *,
    failure: Failure | None = None,
    setup: str = "",
    log: str = "",
    rounds: int = 0,
    progress: bool = False,
    task: str = "",
    busy: str = "",
    log_file: Path | None = None,
) -> Cause:
    """The cause of a cell's end.

    row: Slurm's record of its job, or None. failure: the record of its attempt in this job. setup:
    the error of the job's set-up. log: the end of the job's stderr. rounds: how often the job
    started. progress: whether its last run published anything. busy: which process held the cell
    when this job came to it; empty for none. log_file: that Slurm opens for its output.
    """
    killed = failure is None or failure.kind == "killed"
    if killed and (memory := _out_of_memory(row, log)):
        return Cause("out_of_memory", memory)
    if failure is not None and not (killed and row and row.state in ("NODE_FAIL", "PREEMPTED")):
        return Cause(failure.kind, failure.line, failure.node or "")
    if setup:
        return Cause("set_up", setup)
    if busy:
        return Cause("busy", f"{busy} when job {task} reached it")
    if row is None:
        return Cause(
            "lost",
            f"Slurm has no record of job {task}: it was cancelled while it was pending, "
            "or its records were deleted",
        )
    if row.state == "FAILED" and row.exit_code == NO_LOG:
        return Cause("no_log", f"Slurm could not open the log file {log_file} of job {row.task}")
    return _from_state(row, log, rounds, progress)


def _from_state(row: Row, log: str, rounds: int, progress: bool) -> Cause:
    kind = _kind(row, log, progress)
    if kind is None:
        unknown = f"Slurm says {row.state} of job {row.task}, which netpress does not know"
        return Cause("lost", unknown)
    if row.state == "CANCELLED" and "Depend" in row.reason:
        return Cause("base_failed", "its base failed or was cancelled")
    requeues = f" after {rounds - 1} requeue{'s' if rounds > 2 else ''}" if rounds > 1 else ""
    last = log.strip().splitlines()[-1][:300] if log.strip() else "its log is empty"
    by = f" by {row.by}" if row.by else ""
    reasons = {
        "time_limit": f"time limit{requeues}: job {row.task} was ended by it",
        "stuck": f"time limit: job {row.task} was ended by it before it made progress that "
        "another could continue from",
        "not_requeued": f"time limit: Slurm did not requeue job {row.task}: {last}",
        "killed": f"job {row.task} was killed from outside (exit code "
        f"{row.exit_code or 'unknown'}): {last}",
        "node_failure": f"node {row.nodes or 'unknown'} failed under job {row.task}{requeues}",
        "preempted": f"preempted{requeues}, and not requeued",
        "cancelled": f"cancelled{by}",
        "exception": f"job {row.task} failed with exit code {row.exit_code or 'unknown'}: {last}",
        "lost": f"job {row.task} completed without a result: {last}",
        "out_of_memory": "out of memory",
    }
    return Cause(kind, reasons[kind], row.nodes)


def _kind(row: Row, log: str, progress: bool) -> str | None:
    kind = ENDED.get(row.state)
    if kind == "time_limit" and not progress:
        return "stuck"
    if row.state == "FAILED" and NO_REQUEUE.search(log):
        return "not_requeued"
    if row.state == "FAILED" and (BY_SIGNAL.fullmatch(row.exit_code) or KILLED.search(log)):
        return "killed"
    return kind


def _out_of_memory(row: Row | None, log: str) -> str | None:
    """`out of memory: 41.2 of 40 GiB` where that was the cause, else None."""
    if match := OVER_LIMIT.search(log):
        return out_of_memory(int(match[1]), int(match[2]))
    if row is None or not (row.state == "OUT_OF_MEMORY" or OOM_KILL.search(log)):
        return None
    if not row.requested_bytes:
        return "out of memory"
    # The kernel killed it when all of that was in use; periodic samples show less.
    return out_of_memory(max(row.peak_bytes, row.requested_bytes), row.requested_bytes)


def out_of_memory(used: float, limit: float) -> str:
    return f"out of memory: {used / GIB:.1f} of {_gib(limit)} GiB"


def _gib(size: float) -> str:
    return f"{size / GIB:.3g}"


def escalated(
    cause: Cause, request: Request, cap_gib: int, cap_minutes: int | None = None
) -> Request | str:
    """The request of the next job, or why there is none."""
    rule = cause.rule
    memory = max(request.memory_gib, min(cap_gib, math.ceil(request.memory_gib * rule.memory)))
    if rule.memory > 1 and memory == request.memory_gib:
        return f"it had {request.memory_gib} GiB already, the profile's memory_cap_gib"
    minutes = math.ceil(request.minutes * rule.minutes)
    if cap_minutes:
        minutes = max(request.minutes, min(cap_minutes, minutes))
    if rule.minutes > 1 and minutes == request.minutes:
        return f"it had {request.minutes} minutes already, the profile's minutes_cap"
    exclude = request.exclude
    if rule.elsewhere and cause.node and cause.node not in exclude:
        exclude = (*exclude, cause.node)
    return Request(memory, minutes, exclude)
