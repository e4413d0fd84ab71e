"""An array as submitit sends it: the script, and the folder that its tasks read.

submitit writes the script and runs the worker (`submitit.core._submit`: USR2 -> checkpoint ->
requeue). Its own submission is replaced in one point: it gives the pickles of an array their final
names, which hold the job's id, only after sbatch has returned, so that tasks of a submitter that
died in between would wait 60 s and fail. Here one pickle for the whole array is complete before
sbatch runs, and each task links it, in its set-up, to the name that the worker looks for.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit.core.utils import DelayedSubmission
from submitit.slurm.slurm import SlurmExecutor

from pipeline import paths, store
from pipeline.errors import UserError
from pipeline.orchestrate.graph import ranges
from pipeline.orchestrate.profile import Profile

SETUP_FAILED = 66  # the exit code of a job whose set-up failed
# Requeues are decided by Task.checkpoint, from what was made since the job started. submitit's own
# count would give up after three, and counts every job of less than ten minutes as timed out.
NEVER_TOO_OFTEN = 1_000_000


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


class _Executor(SlurmExecutor):
    """submitit's Slurm executor, also where there is no Slurm: plan shows its scripts anywhere."""

    @classmethod
    def affinity(cls) -> int:
        return 2

    def text(self) -> str:
        return self._make_submission_file_text(self._submitit_command_str, uid="")


def script(ask: Ask) -> str:
    """The sbatch script, exactly as it is sent."""
    folder = ask.job.folder
    if bad := next((c for c in str(folder) if c in "%\\" or not c.isprintable()), None):
        raise UserError(f"{folder}: Slurm cannot write logs to a folder with {bad!r} in its name")
    executor = _Executor(folder, NEVER_TOO_OFTEN, python=_python(ask.profile))
    executor.update_parameters(**_parameters(ask))
    executor.parameters["map_count"] = len(ask.indices)
    return executor.text()


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
    executor = _Executor(folder, NEVER_TOO_OFTEN, python=_python(profile))
    parameters = _parameters(ask)
    parameters["additional_parameters"]["output"] = str(folder / "log.txt")
    executor.update_parameters(**parameters, stderr_to_stdout=True)
    executor.parameters["map_count"] = 1
    command = shlex.join([profile.python or sys.executable, *arguments])
    return executor._make_submission_file_text(command, uid="")


def write(
    job: paths.JobPaths, text: str, function: Any, minutes: int, cells: dict[str, Any]
) -> None:
    """Make the folder of an array, complete and on disk: script, pickle, and its cells as JSON.

    The cells are one file here, and become cell.json each in their task: to publish ten thousand
    small files, each with its fsync, would keep a login node busy for minutes.
    """
    delayed = DelayedSubmission(function)
    delayed.set_timeout(minutes, NEVER_TOO_OFTEN)

    def fill(new: Path) -> None:
        delayed.dump(new / job.pickle.name)
        (new / job.script.name).write_text(text, encoding="utf-8")
        (new / job.cells.name).write_bytes(store.json_bytes(cells))

    store.publish_folder(job.folder, fill)


def _python(profile: Profile) -> str:
    return shlex.quote(profile.python or sys.executable)


def _parameters(ask: Ask) -> dict[str, Any]:
    profile = ask.profile
    more: dict[str, Any] = {
        "array": f"{ranges(ask.indices)}%{min(len(ask.indices), profile.at_once)}",
        "chdir": str(paths.CODE),
        "export": profile.export,
        # A dependent that can never run would stay pending for ever.
        "kill-on-invalid-dep": "yes",
        "requeue": True,
        **profile.options,
    }
    given = {
        "job_name": ask.name,
        "comment": ask.name,
        "partition": ask.partition or profile.partition,
        "qos": ask.qos or profile.qos,
        "account": profile.account,
        "constraint": profile.constraint if ask.gres else None,
        "gres": ask.gres,
        "cpus_per_task": ask.cores,
        "mem": f"{ask.memory_gib}G",
        "time": ask.minutes,
        "exclude": ",".join(ask.exclude) or None,
        "dependency": ask.dependency,
        "mail_user": ask.mail,
        "mail_type": "END,FAIL" if ask.mail else None,
        "signal_delay_s": profile.signal_s,
        "array_parallelism": profile.at_once,
        "wckey": None,  # submitit's own would be refused where keys are enforced
        "setup": _setup(ask),
        # From 22.05 on, srun takes neither its cores from the job, nor, with --export=NONE, the
        # environment that the set-up made.
        "srun_args": ["--export=ALL", f"--cpus-per-task={ask.cores}"],
        "additional_parameters": more,
    }
    return given


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
