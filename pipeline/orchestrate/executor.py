"""An array as it is sent: the script, and the folder that its tasks read.

submitit runs the worker (`submitit.core._submit`: USR2 -> checkpoint -> requeue), and the script is
the one that submitit would write. It is written here because plan shows it: submitit imports
asyncio and more, a tenth of the time of a plan. Its submission is replaced in one point: it gives
the pickles of an array their final names, which hold the job's id, only after sbatch has returned,
so that tasks of a submitter that died in between would wait 60 s and fail. Here one pickle for the
whole array is complete before sbatch runs, and each task links it, in its set-up, to the name that
the worker looks for.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import paths, store
from pipeline.errors import UserError
from pipeline.orchestrate.graph import ranges
from pipeline.orchestrate.profile import Profile

SETUP_FAILED = 66  # the exit code of a job whose set-up failed
# Requeues are decided by Task.checkpoint, from what was made since the job started. submitit's own
# count would give up after three, and counts every job of less than ten minutes as timed out.
NEVER_TOO_OFTEN = 1_000_000
_TASK = "%A_%a"  # how sbatch and srun are told the task's name


@dataclass(frozen=True)
class Ask:
    """All that an array asks of Slurm: the profile, and what differs for this array."""

    profile: Profile
    name: str
    job: paths.JobPaths
    indices: tuple[int, ...]
    cores: int
    memory_gib: int
    minutes: int
    gres: str | None = None
    exclude: tuple[str, ...] = ()
    dependency: str | None = None
    mail: str | None = None
    partition: str | None = None
    qos: str | None = None


def script(ask: Ask) -> str:
    """The sbatch script, exactly as it is sent."""
    folder = ask.job.folder
    if bad := next((c for c in str(folder) if c in "%\\" or not c.isprintable()), None):
        raise UserError(f"{folder}: Slurm cannot write logs to a folder with {bad!r} in its name")
    command = f"{_python(ask.profile)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return _text(ask, command, folder / f"{_TASK}_0_log.err")


def probe(cluster, folder: Path, arguments: Sequence[str]) -> str:
    """The script of a job that runs a Python file in place of cells, with the same set-up."""
    profile = cluster.profile
    job = paths.JobPaths(folder)
    ask = Ask(
        profile,
        "netpress-doctor",
        job,
        (0,),
        profile.cores,
        profile.memory_gib,
        profile.minutes,
        profile.gres,
    )
    command = shlex.join([profile.python or sys.executable, *arguments])
    return _text(ask, command, output=folder / "log.txt")


def write(
    job: paths.JobPaths, text: str, function: Any, minutes: int, cells: dict[str, Any]
) -> None:
    """Make the folder of an array, complete and on disk: script, pickle, and its cells as JSON.

    The cells are one file here, and become cell.json each in their task: to publish ten thousand
    small files, each with its fsync, would keep a login node busy for minutes.
    """
    from submitit.core.utils import DelayedSubmission

    delayed = DelayedSubmission(function)
    delayed.set_timeout(minutes, NEVER_TOO_OFTEN)

    def fill(new: Path) -> None:
        delayed.dump(new / job.pickle.name)
        (new / job.script.name).write_text(text, encoding="utf-8")
        (new / job.cells.name).write_bytes(store.json_bytes(cells))

    store.publish_folder(job.folder, fill)


def _python(profile: Profile) -> str:
    return shlex.quote(profile.python or sys.executable)


def _text(ask: Ask, command: str, error: Path | None = None, output: Path | None = None) -> str:
    """A script with this command. `error`: where standard error goes, None: with the output;
    `output`: in place of a log of the task."""
    log = ask.job.folder / f"{_TASK}_%t_log.out"
    flags = {
        **_flags(ask),
        "open-mode": "append",
        "output": output or ask.job.folder / f"{_TASK}_0_log.out",
    }
    if error is not None:
        flags["error"] = error
    lines = [_flag(name, flags[name]) for name in sorted(flags) if flags[name] is not None]
    errors = [] if error is None else ["--error", str(log.with_suffix(".err"))]
    # From 22.05 on, srun takes neither its cores from the job, nor, with --export=NONE, the
    # environment that the set-up made.
    own = ["--export=ALL", f"--cpus-per-task={ask.cores}"]
    srun = shlex.join(["srun", "--unbuffered", "--output", str(log), *errors, *own])
    return "\n".join(
        [
            "#!/bin/bash",
            "",
            "# Parameters",
            *lines,
            "",
            "# setup",
            *_setup(ask),
            "",
            "# command",
            "export SUBMITIT_EXECUTOR=slurm",
            f"{srun} {command}",
            "",
        ]
    )


def _flag(name: str, value: Any) -> str:
    name = name.replace("_", "-")
    return f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={shlex.quote(str(value))}"


def _flags(ask: Ask) -> dict[str, Any]:
    """Options of sbatch, with None for those that are not given."""
    profile = ask.profile
    return {
        "job_name": ask.name,
        "comment": ask.name,
        "partition": ask.partition or profile.partition,
        "qos": ask.qos or profile.qos,
        "account": profile.account,
        "constraint": profile.constraint if ask.gres else None,
        "gres": ask.gres,
        "nodes": 1,
        "cpus_per_task": ask.cores,
        "mem": f"{ask.memory_gib}G",
        "time": ask.minutes,
        "exclude": ",".join(ask.exclude) or None,
        "dependency": ask.dependency,
        "mail_user": ask.mail,
        "mail_type": "END,FAIL" if ask.mail else None,
        "signal": f"USR2@{profile.signal_s}",
        "array": f"{ranges(ask.indices)}%{min(len(ask.indices), profile.at_once)}",
        "chdir": paths.CODE,
        "export": profile.export,
        # A dependent that can never run would stay pending for ever.
        "kill-on-invalid-dep": "yes",
        "requeue": True,
        **profile.options,
    }


def _setup(ask: Ask) -> list[str]:
    """Lines before srun. One that fails ends the job, with a code and a file that status knows."""
    code = shlex.quote(str(paths.CODE))
    return [
        "umask 077",
        f"folder={shlex.quote(str(ask.job.folder))}",
        'task="${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"',
        f"trap '{_ON_ERROR}' ERR",
        f"cd {code}",
        f"export PYTHONPATH={code} PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1",
        *ask.profile.setup,
        'rm -f "$folder/$task"_*.save_tmp "$folder/$task.setup"',
        f'ln -sfn {ask.job.pickle.name} "$folder/${{task}}_submitted.pkl"',
        "trap - ERR",
    ]


# Not in files that the set-up sources (conda's `activate`): there, only the last status counts.
_ON_ERROR = (
    "said=$?; if [ ${#BASH_SOURCE[@]} -le 1 ]; then "
    'line="set-up failed with exit code $said: $BASH_COMMAND"; '
    'echo "netpress: $line" >&2; echo "$line" >"$folder/$task.setup"; '
    f"exit {SETUP_FAILED}; fi"
)
