"""The only module that calls squeue, sacct, sbatch, scancel and scontrol.

Every call is one process, counted in CALLS, with a timeout. The rest of netpress sees rows (parsed
in slurm_lines.py) and two kinds of errors: Refused (final, with Slurm's message) and Unreachable
(the controller or the database did not answer, or not in a way that is understood).
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from pipeline import store
from pipeline.errors import UserError
from pipeline.orchestrate.slurm_lines import (
    FINAL,
    IN_QUEUE,
    MARK,
    QUEUE_FIELDS,
    RECORD_FIELDS,
    Row,
    Unreadable,
    expanded,
    job_id,
    queue_rows,
    records,
    table,
)
from pipeline.terminal import tell

__all__ = ["FINAL", "IN_QUEUE", "Row", "expanded"]  # for users of this module, with its functions

Read = TypeVar("Read")
CALLS: Counter[str] = Counter()
TIMEOUT_S = (
    30.0  # the clients themselves time out after 9 s for a dead controller, 10 s for a hung one
)
POLL_S = 0.3
PAUSES_S = (1.0, 3.0, 9.0, 20.0)

# Messages of Slurm's clients while the controller is away, busy or restarting. All others are
# final.
TRANSIENT = re.compile(
    r"Unable to contact slurm controller|Socket timed out|Connection (refused|timed out|reset)"
    r"|Communication connection failure|Transport endpoint is not connected|Zero Bytes were"
    r"|temporarily unable to accept job|Resource temporarily unavailable|standby mode"
    r"|Problem talking to the database|slurmdbd.*(not|un)available|Unexpected message received"
    r"|Slurm controller is (busy|not responding)|Rate limit|Interrupted system call",
    re.IGNORECASE,
)
# There is no room for (so many) more jobs now. sbatch itself repeats the request for two minutes
# where the whole cluster is full (MaxJobCount).
FULL = re.compile(
    r"(Max|Grp)SubmitJob\w*|job submit limit|temporarily unable to accept job|job queue full"
)
REPEATS = re.compile(r"unable to accept job, sleeping and retrying|job queue full")
GONE = "Invalid job id specified"
NO_CLUSTER = "Could not establish a configuration source"
CLOCKS_APART_S = 300.0
NO_NODE = "node configuration is not available"  # no node has all that is requested
# Lines of Slurm's own among those of wrappers: `sbatch: lua: ...`, `slurm_load_jobs error: ...`.
OWN_LINE = r"(sbatch|squeue|sacct|sacctmgr|scancel|scontrol): |.*\b(error|fatal|failure): "
_PASSED_ON: set[str] = set()


class Refused(UserError):
    """Slurm refused the request, finally; has Slurm's message."""


class NoCluster(Refused):
    """This machine has no Slurm, or its commands without a cluster to ask."""


class NoRoom(Refused):
    """Slurm accepts no more jobs, or not so many, until some of those in the queue have ended.
    `repeated`: by sbatch, until that was ended; so the job may have been accepted all the same."""

    repeated = False


class Unreachable(UserError):
    """Slurm did not answer; the request may have been executed all the same."""

    exit_code = 1


def available() -> bool:
    """Whether this machine has Slurm's commands."""
    return shutil.which("sbatch") is not None


def user() -> str:
    """Our user name in Slurm. Not from $USER, which after `su` may still be another user: we would
    list that user's jobs, and treat our own as gone."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # not in the user database of this machine: squeue takes the number, too
        return str(os.getuid())


def is_ours(owner: str) -> bool:
    """Whether this user may cancel the jobs of that one."""
    return owner == user() or os.geteuid() == 0


# --- queries ---------------------------------------------------------------------------------


def squeue(owner: str | None = None, patient: bool = False) -> list[Row]:
    """Every job of `owner` that the controller knows, also ended ones (for MinJobAge): one call.

    Raises Unreachable. `patient`: retries, with growing pauses, before that.
    """
    command = ["squeue", "--states=all", f"--user={owner or user()}"]
    return _read(queue_rows, [*command, "--format=" + MARK.join(QUEUE_FIELDS)], patient)


def sacct(jobs: Iterable[int]) -> list[Row]:
    """Accounting records of these jobs, the last run of each task: one call for all of them.

    Raises Unreachable where the database does not answer, Refused where there is no accounting.
    """
    ids = ",".join(map(str, sorted(set(jobs))))
    command = ["sacct", "--parsable2", f"--delimiter={MARK}", "--allusers", f"--jobs={ids}"]
    return _read(records, [*command, f"--format={','.join(RECORD_FIELDS)}"], patient=False)


def _read(rows: Callable[[str], list[Read]], command: Sequence[str], patient: bool) -> list[Read]:
    """The rows of the command's output; raises Unreachable where it is not the table requested."""
    try:
        return rows(_output(command, patient))
    except Unreadable as line:
        raise Unreachable(
            f"{command[0]} did not print the table that was requested, but {str(line)[:200]!r}: a "
            "wrapper around it may change its output"
        ) from None


def config(patient: bool = False) -> dict[str, str]:
    """The controller's settings (`scontrol show config`), such as MaxArraySize."""
    settings = {}
    for line in _output(["scontrol", "show", "config"], patient).splitlines():
        if setting := re.fullmatch(r"(\w+)\s*=\s?(.*)", line.strip()):
            settings[setting[1]] = setting[2].strip()
    return settings


def cluster_name() -> str:
    """The cluster's name; empty where it does not tell. Raises Unreachable, after retries."""
    try:
        return config(patient=True).get("ClusterName", "")
    except Unreachable:
        raise
    except UserError:  # without scontrol, as in some containers
        return ""


def associations() -> list[str]:
    """The user's accounts in accounting, one line each: the QOS and the limits on jobs."""
    fields = ("Account", "Partition", "QOS", "DefaultQOS", "MaxJobs", "MaxSubmit")
    return _accounts("assoc", fields, f"user={user()}")


def qualities(names: Sequence[str]) -> list[str]:
    """The limits of these QOS, or of all, one line each: `Name public, MaxSubmitPU 8`."""
    fields = ("Name", "MaxSubmitPU", "MaxJobsPU", "MaxWall", "MaxTRESPU", "Preempt", "PreemptMode")
    return _accounts("qos", fields, *([f"name={','.join(names)}"] if names else []))


def _accounts(what: str, fields: Sequence[str], *which: str) -> list[str]:
    command = ["sacctmgr", "--noheader", "--parsable2", "show", what, *which]
    accounts = []
    for line in _output([*command, f"format={','.join(fields)}"], patient=False).splitlines():
        values = line.split("|")
        if len(values) == len(fields):
            pairs = zip(fields, values, strict=True)
            accounts.append(", ".join(f"{key} {value}" for key, value in pairs if value))
    return accounts


def usage_of_limits() -> str:
    """The limits of the user's associations and of all QOS, with what is used of them now, one
    record a line (`scontrol show assoc_mgr`); room.py parses it."""
    command = ["scontrol", "--oneliner", "show", "assoc_mgr", f"users={user()}"]
    return _output([*command, "flags=users,assoc,qos"], patient=False)


def partition(name: str | None) -> dict[str, str]:
    """Settings of a partition, of the default one for None: MaxTime, State, PreemptMode, ..."""
    command = ["scontrol", "--oneliner", "show", "partition", *([name] if name else [])]
    for line in _output(command, patient=False).splitlines():
        settings = dict(part.partition("=")[::2] for part in line.split())
        if "PartitionName" not in settings:
            continue
        if name or settings.get("Default") == "YES":
            return settings
    return {}


def ping() -> bool:
    """Whether the controller answers; returns at once, where other commands would hang for 9 s."""
    try:
        return "is UP" in _run(["scontrol", "ping"]).stdout
    except Unreachable:
        return False


def wait_until_up(seconds: float) -> bool:
    """Waits until the controller answers, for at most `seconds`."""
    deadline = time.monotonic() + seconds
    while not (up := ping()) and time.monotonic() < deadline:
        time.sleep(2)
    return up


def is_working(task: str) -> bool:
    """Whether the job or task `12_3` may be running now; true also where Slurm does not answer, or
    reports a state that is not known here."""
    try:
        states = {state for _, state in _of_task(task, "%T", patient=True)}
    except UserError as error:
        return GONE not in str(error)
    return any(IN_QUEUE.get(state, "running") == "running" for state in states - FINAL)


def seconds_left(task: str) -> int | None:
    """Seconds until the time limit of a running job; None where Slurm does not report it."""
    try:
        rows = _of_task(task, "%L", patient=False)
    except UserError:
        return None
    return _seconds(rows[0][1].strip()) if rows else None


def _of_task(task: str, field: str, patient: bool) -> list[list[str]]:
    """[job, value] of one field for each row of the job or task; raises UserError."""
    command = ["squeue", "--states=all", f"--format=%i{MARK}{field}", f"--jobs={task}"]
    return _read(lambda output: table(output, 2), command, patient)


def _seconds(text: str) -> int | None:
    """`2-03:04:05`, `3:04:05`, `4:05`, as squeue prints times; None for UNLIMITED and similar
    values."""
    match = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def find(rows: Iterable[Row], name: str, since: float) -> int | None:
    """The job with this name, which is unique among the jobs that have not ended; one that has
    ended before `since`, when its intent was written, belongs to a work root that was deleted."""
    named = [row for row in rows if row.name == name]
    for row in sorted(named, key=lambda row: row.state in FINAL):
        if row.state not in FINAL or _is_since(row, since):
            return row.job
    return None


def _is_since(row: Row, since: float) -> bool:
    """Whether it was submitted since then. squeue prints local time, of which an hour comes twice
    in autumn: the later one counts. The controller's clock may differ; munge allows at most
    CLOCKS_APART_S."""
    try:
        submitted = datetime.fromisoformat(row.submitted).replace(fold=1)
    except ValueError:  # it prints none
        return True
    return submitted.timestamp() >= since - CLOCKS_APART_S


# --- commands --------------------------------------------------------------------------------


def sbatch(script: Path) -> int:
    """Submit the script; returns the job's id.

    Raises Refused (nothing was submitted), or Unreachable: then the job may exist all the same, so
    look for its name before anything is submitted again.
    """
    # Slurm opens a job's logs with the umask that it was submitted with.
    umask = store.umask_of(script)
    ended = _ended(["sbatch", "--parsable", str(script)], patient=False, umask=umask)
    job = job_id(ended.stdout)
    if job is None:
        printed = ended.stdout.strip()
        raise Unreachable(f"sbatch printed no job id that is understood, but {printed[:200]!r}")
    _pass_on(ended.stderr)
    return job


def _pass_on(messages: str) -> None:
    """Print what a plug-in of the site reports about a job that was submitted, each line once."""
    for line in messages.splitlines():
        if re.match(OWN_LINE, line) and line not in _PASSED_ON:
            _PASSED_ON.add(line)
            tell(line.strip())


def check(script: Path) -> str:
    """The answer of `sbatch --test-only`, when the script would start; raises Refused."""
    ended = _run(["sbatch", "--test-only", str(script)])
    if ended.returncode:
        raise _error("sbatch", ended)
    return _words(_own(ended.stderr or ended.stdout)).removeprefix("sbatch: ")


def requeue(task: str, seconds: int | None = None, minutes: int | None = None) -> None:
    """Put the running job back into the queue, not to start before `seconds` have passed, with
    another time limit of `minutes`. If it is our own, Slurm ends this process soon, so it has to
    ignore TERM until this returns.

    Raises Refused or Unreachable where it is not requeued. Only a job that waits may be given more
    time, so that comes after; where it is refused, the job keeps its limit.
    """
    _output(["scontrol", "requeue", task], patient=False)
    changes = [] if seconds is None else [f"StartTime=now+{seconds}"]
    changes += [] if minutes is None else [f"TimeLimit={minutes}"]
    if changes:
        change(task, *changes)


def change(task: str, *changes: str) -> None:
    """`scontrol update` of a job that waits; informs the user where it is refused."""
    try:
        _output(["scontrol", "update", f"JobId={task}", *changes], patient=False)
    except UserError as error:
        tell(f"job {task} keeps what it had: {error}")


def scancel(tasks: Sequence[str]) -> None:
    """Cancel jobs and tasks (`12`, `12_3`, `12_[3-5]`); ended and unknown ones are not an error."""
    if tasks:
        _output(["scancel", *tasks], patient=True)


def _output(command: Sequence[str], patient: bool) -> str:
    return _ended(command, patient).stdout


def _ended(
    command: Sequence[str], patient: bool, umask: int = -1
) -> subprocess.CompletedProcess[str]:
    """The command, which succeeded; retries after transient failures if `patient`."""
    for pause_s in (*PAUSES_S, None) if patient else (None,):
        try:
            ended = _run(command, umask)
            if ended.returncode == 0:
                return ended
            error = _error(command[0], ended)
        except Unreachable as unreachable:
            error = unreachable
        if pause_s is None or not isinstance(error, Unreachable):
            raise error
        tell(f"{error}; retrying in {pause_s:.0f} s")
        time.sleep(pause_s)
    raise AssertionError("the last pass either returned or raised")


def _run(command: Sequence[str], umask: int = -1) -> subprocess.CompletedProcess[str]:
    CALLS[command[0]] += 1
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment(),
            umask=umask,
        )
    except FileNotFoundError:
        raise NoCluster(
            f"{command[0]} is not on PATH: this machine has no Slurm; `netpress run` needs none"
        ) from None
    with process:
        try:
            out, err = _answer(process, command[0])
        finally:
            process.kill()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _answer(process: subprocess.Popen[str], name: str) -> tuple[str, str]:
    """(stdout, stderr) at the end of the command. Raises Unreachable where it takes too long,
    NoRoom as soon as sbatch waits for other jobs to end."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return process.communicate(timeout=POLL_S)
        except subprocess.TimeoutExpired as unfinished:
            stderr = unfinished.stderr or b""
        text = stderr if isinstance(stderr, str) else stderr.decode(errors="replace")
        if name == "sbatch" and REPEATS.search(text):
            full = NoRoom(f"{name}: {_words(text)}")
            full.repeated = True
            raise full
        if time.monotonic() > deadline:
            raise Unreachable(f"{name} did not answer within {TIMEOUT_S:.0f} s")


def environment() -> dict[str, str]:
    """Our environment without variables that override lines of a script (SBATCH_PARTITION) or
    describe the job in which we run (SLURM_MEM_PER_NODE), with complete task lists instead of
    `1-3,5,...`."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("SBATCH_", "SLURM_", "SRUN_", "SQUEUE_", "SACCT_", "SCANCEL_"))
    }
    if "SLURM_CONF" in os.environ:
        kept["SLURM_CONF"] = os.environ["SLURM_CONF"]
    return {**kept, "SLURM_BITSTR_LEN": "0", "SLURM_TIME_FORMAT": "standard", "LC_ALL": "C"}


def _error(name: str, ended: subprocess.CompletedProcess[str]) -> UserError:
    output = _own(f"{ended.stderr}\n{ended.stdout}")
    words = _words(output) or f"exit code {ended.returncode} and no message"
    if NO_CLUSTER in output:  # rather than where it was looked for
        return NoCluster(
            f"{name}: Slurm's commands are on this machine, but no cluster is configured for them "
            "(no slurm.conf, no SLURM_CONF); `netpress run` needs none"
        )
    if FULL.search(output):
        return NoRoom(f"{name}: {words}")
    if TRANSIENT.search(output):
        return Unreachable(f"{name} could not reach Slurm: {words}")
    return Refused(f"{name}: {words}")


def _own(output: str) -> str:
    """The lines that Slurm itself printed; all, where none is recognized."""
    lines = [line for line in output.splitlines() if re.match(OWN_LINE, line)]
    return "\n".join(lines) if lines else output


def _words(output: str) -> str:
    """Slurm's message as one line, without prefixes and repeated lines."""
    lines = [
        re.sub(r"^(\w+: )?(error|fatal|allocation failure): ", "", line.strip())
        for line in output.splitlines()
    ]
    return "; ".join(dict.fromkeys(line for line in lines if line))
