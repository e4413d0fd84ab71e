"""What Slurm's commands print, as rows.

Sites wrap these commands in scripts that print banners, and plug-ins print lines of their own. So a
line counts only where it has the whole shape of what was requested, and a table only where its
header came through: without it, a wrapper may have changed the marks between the fields, and "no
rows" would mean "not understood", not "no jobs".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

MARK = "\x1f"  # between the fields of squeue and sacct; a job's name may contain `|`
OURS = "netpress-"  # names of our jobs begin with it
QUEUE_FIELDS = ("%F", "%K", "%T", "%r", "%N", "%V", "%E", "%j")
RECORD_FIELDS = (
    "JobID",
    "State",
    "Reason",
    "NodeList",
    "ExitCode",
    "MaxRSS",
    "ReqMem",
    "ElapsedRaw",
    "JobName",
)
# Not compiled here: that would take longer than most commands, which need none of them.
_HEADER = r"[A-Za-z_]+"  # a field of it: ARRAY_JOB_ID, JobID
_SUBMITTED = r"(?:Submitted batch job )?(\d+)(?:;[\w.-]+| on cluster \S+)?"
_INDICES = r"N/A|\[?\d[\d,:-]*(?:%\d+)?\]?"
_STATE = r"[A-Z_]+(?: by \S+)?"
_TASK = r"(\d+)(?:_(\d+|\[[\d,:-]+(?:%\d+)?\]))?(\.\S+)?"
_EXIT = r"(?:\d+:\d+)?"


class Unreadable(ValueError):
    """The output is not the table that was requested; has the line to show."""


@dataclass(frozen=True)
class Row:
    """One task of an array as squeue or sacct lists it. `job` is the array's id, `index` the task's
    (None: the job is not an array). Memory in bytes, 0 where Slurm does not report it."""

    job: int
    index: int | None
    state: str
    reason: str = ""
    nodes: str = ""
    name: str = ""
    submitted: str = ""
    exit_code: str = ""
    peak_bytes: int = 0
    requested_bytes: int = 0
    elapsed_s: int = 0
    by: str = ""  # who cancelled it
    after: str = ""  # remaining dependencies: `aftercorr:12_*(unfulfilled)`

    @property
    def task(self) -> str:
        return str(self.job) if self.index is None else f"{self.job}_{self.index}"


# States of jobs in the queue, and the state of their cells. Any other is shown unchanged: its job
# may come back, so its cell is neither done nor free to be submitted.
IN_QUEUE: Mapping[str, Literal["queued", "running"]] = {
    "PENDING": "queued",
    "REQUEUED": "queued",
    "REQUEUE_FED": "queued",
    "REQUEUE_HOLD": "queued",
    "RESV_DEL_HOLD": "queued",
    "SPECIAL_EXIT": "queued",
    "EXPEDITING": "queued",
    "CONFIGURING": "running",
    "POWER_UP_NODE": "running",
    "RUNNING": "running",
    "COMPLETING": "running",
    "SUSPENDED": "running",
    "STOPPED": "running",
    "SIGNALING": "running",
    "STAGE_OUT": "running",
    "RESIZING": "running",
    "UPDATE_DB": "running",
}
FINAL = frozenset(
    (
        "COMPLETED",
        "FAILED",
        "TIMEOUT",
        "DEADLINE",
        "OUT_OF_MEMORY",
        "NODE_FAIL",
        "BOOT_FAIL",
        "LAUNCH_FAILED",
        "RECONFIG_FAIL",
        "PREEMPTED",
        "CANCELLED",
        "REVOKED",
    )
)


# --- parsing ---------------------------------------------------------------------------------


def job_id(output: str) -> int | None:
    """The id that `sbatch --parsable` printed: `12`, `12;cluster`, or the sentence that a wrapper
    gets which drops the option. None where no line or several different ones have this shape."""
    matches = (re.fullmatch(_SUBMITTED, line.strip()) for line in output.split("\n"))
    ids = {int(match[1]) for match in matches if match}
    return ids.pop() if len(ids) == 1 else None


def table(output: str, width: int) -> list[list[str]]:
    """The rows of `width` fields after the header; the last field may contain the mark. Raises
    Unreadable where there is no header."""
    lines = [line.split(MARK, width - 1) for line in output.split("\n")]
    rows = [line for line in lines if len(line) == width]
    for number, row in enumerate(rows):
        if all(re.fullmatch(_HEADER, field.strip()) for field in row):
            return rows[number + 1 :]
    raise Unreadable(next((line for line in output.split("\n") if line.strip()), "nothing"))


def queue_rows(output: str) -> list[Row]:
    """Rows of squeue; raises Unreadable also for a job of ours that is not understood: it must not
    be submitted again."""
    rows: list[Row] = []
    for fields in table(output, len(QUEUE_FIELDS)):
        job, indices, state, reason, nodes, submitted, after, name = fields
        known = job.isdecimal() and re.fullmatch(_INDICES, indices) and re.fullmatch(_STATE, state)
        if not known and name.startswith(OURS):
            raise Unreadable(" ".join(fields))
        for index in expanded(indices) if known else ():
            rows.append(
                Row(
                    int(job),
                    index,
                    state,
                    _none(reason),
                    nodes,
                    name,
                    submitted,
                    after=_none(after),
                )
            )
    return rows


def expanded(indices: str) -> Iterable[int | None]:
    """`5-8,10%4` -> 5 6 7 8 10; `N/A`, for a job that is not an array, -> None."""
    text = indices.strip().strip("[]").partition("%")[0]
    if not text or not text[0].isdigit():
        return (None,)
    numbers: list[int | None] = []
    for part in text.split(","):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        numbers += range(int(first), int(last or first) + 1, int(step or 1))
    return numbers


def records(output: str) -> list[Row]:
    """Rows of sacct: a job's line comes before those of its steps, which have the memory."""
    rows: dict[str, list[Row]] = {}
    for fields in table(output, len(RECORD_FIELDS)):
        named, state, _, _, exit_code, peak, _, elapsed, _ = fields
        task = re.fullmatch(_TASK, named)
        whole = re.fullmatch(_STATE, state) and re.fullmatch(_EXIT, exit_code)
        if task is None or not whole or not (elapsed.isdecimal() or not elapsed):
            continue
        if task[3]:
            of_task = named.partition(".")[0]
            steps = [_with_step(row, _bytes(peak), exit_code) for row in rows.get(of_task, [])]
            rows[of_task] = steps
        else:
            rows[named] = list(_recorded(int(task[1]), task[2] or "", fields))
    return [row for of_task in rows.values() for row in of_task]


def _recorded(job: int, indices: str, fields: Sequence[str]) -> Iterator[Row]:
    _, state, reason, nodes, exit_code, _, requested, elapsed, name = fields
    state, _, by = state.partition(" by ")
    for index in expanded(indices):
        yield Row(
            job,
            index,
            state,
            _none(reason),
            _none(nodes),
            name,
            "",
            exit_code,
            0,
            _bytes(requested),
            int(elapsed or 0),
            by,
        )


def _with_step(row: Row, peak: int, exit_code: str) -> Row:
    ran_out = (
        exit_code.endswith(":125") and row.state == "FAILED"
    )  # the exit code of a step that srun started
    return replace(
        row,
        peak_bytes=max(row.peak_bytes, peak),
        state="OUT_OF_MEMORY" if ran_out else row.state,
    )


def _bytes(text: str) -> int:
    """`40G`, `39.5M`, `1024K`, older Slurm's `40Gn` -> bytes; 0 for nothing."""
    match = re.match(r"(\d+(?:\.\d+)?)([KMGTP]?)", text)
    if match is None:
        return 0
    return round(float(match[1]) * 1024 ** " KMGTP".index(match[2] or " "))


def _none(text: str) -> str:
    return "" if text in ("None", "None assigned", "(null)", "N/A") else text
