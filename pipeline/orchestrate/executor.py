"""What is submitted for an array: the script, and the folder that its tasks read.

submitit runs the worker (`submitit.core._submit`: USR2 -> checkpoint -> requeue), and the script is
the one that submitit would write. It is written here because `plan` shows it, and importing
submitit takes a tenth of the time of a plan. One part of its submission is replaced: it renames the
pickles of an array to their final names, which contain the job's id, only after sbatch has
returned, so tasks of a submitter that died in between would wait 60 s and fail. Here one pickle for
the whole array is complete before sbatch runs, and each task links it, in its set-up, to the name
that the worker expects.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import paths, store
from pipeline.errors import UserError
from pipeline.orchestrate.graph import ranges
from pipeline.orchestrate.profile import Cluster, Profile
from pipeline.orchestrate.profile_parts import FOLDER, Part

SETUP_FAILED = 66  # the exit code of a job whose set-up failed
# Task.checkpoint decides about requeues, by the progress since the job started. submitit's own
# limit is three requeues, and it counts every job of less than ten minutes as timed out.
NEVER_TOO_OFTEN = 1_000_000
# The task's name in the patterns of sbatch and srun, of an array's and of a single job.
_TASK, _JOB = "%A_%a", "%j"


@dataclass(frozen=True)
class JobRequest:
    """The complete request of an array to Slurm: the profile, and what is specific to this
    array."""

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
    mail_on: str = "FAIL"
    part: Part | None = None  # of the profile, for the report, the follow-up job, measuring
    begin: str | None = None
    at_once: int | None = None
    single: bool = False
    code: Path = paths.CODE
    places: tuple[Path, ...] = ()  # outside of the work root, which a container has to show

    @property
    def task(self) -> str:
        """Its name, in the patterns of file names of sbatch and srun."""
        return _JOB if self.single else _TASK


def script(request: JobRequest) -> str:
    """The sbatch script, exactly as it is submitted."""
    folder = request.job.folder
    if bad := next((c for c in str(folder) if c in "%\\" or not c.isprintable()), None):
        raise UserError(f"{folder}: Slurm cannot write logs to a folder with {bad!r} in its name")
    command = f"{_python(request)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return _text(request, command, folder / f"{request.task}_0_log.err")


def probe(cluster: Cluster, folder: Path, arguments: Sequence[str]) -> str:
    """The script of a job that runs a Python file in place of cells, with the same set-up."""
    profile = cluster.profile
    job = paths.JobPaths(folder)
    request = JobRequest(
        profile,
        "netpress-doctor",
        job,
        (0,),
        profile.cores,
        profile.memory_gib,
        profile.minutes,
        profile.gres,
    )
    command = f"{_python(request)} {shlex.join(arguments)}"
    return _text(request, command, output=folder / "log.txt")


def write(
    job: paths.JobPaths, text: str, function: Any, minutes: int, cells: dict[str, Any]
) -> None:
    """Publish the folder of an array: script, pickle, and its cells as JSON.

    All cells are in one file; each task writes the cell.json of its own cells. Publishing ten
    thousand small files, each with its fsync, would keep a login node busy for minutes.
    """
    from submitit.core.utils import DelayedSubmission

    delayed = DelayedSubmission(function)
    delayed.set_timeout(minutes, NEVER_TOO_OFTEN)

    def fill(new: Path) -> None:
        delayed.dump(new / job.pickle.name)
        (new / job.script.name).write_text(text, encoding="utf-8")
        (new / job.cells.name).write_bytes(store.json_bytes(cells))

    store.publish_folder(job.folder, fill)


def _python(request: JobRequest) -> str:
    """The command that starts Python, in the profile's container."""
    profile = request.profile
    given, container = profile.python, profile.container
    if given is None:
        words = ["python3" if container else sys.executable]
    else:
        words = shlex.split(given) if isinstance(given, str) else list(given)
    if container is None:
        return shlex.join(words)
    gpu = ["--nv"] if request.gres else []
    own = dict.fromkeys(map(str, (request.code, request.job.root, *request.places)))
    for folder in own:
        if not re.fullmatch(FOLDER, folder):
            raise UserError(
                f"{folder}: {container.command} cannot bind a folder with , : or \\ in it"
            )
    binds = [word for folder in (*own, *container.bind) for word in ("--bind", folder)]
    return shlex.join([container.command, "exec", *gpu, *binds, container.image, *words])


def _text(
    request: JobRequest, command: str, error: Path | None = None, output: Path | None = None
) -> str:
    """A script with this command. `error`: the file for standard error, None: the same as for
    standard output; `output`: a file in place of the task's log."""
    log = request.job.folder / f"{request.task}_%t_log.out"
    flags = {
        **_flags(request),
        "open-mode": "append",
        "output": output or request.job.folder / f"{request.task}_0_log.out",
    }
    if error is not None:
        flags["error"] = error
    lines = [_flag(name, flags[name]) for name in sorted(flags) if flags[name] is not None]
    errors = [] if error is None else ["--error", str(log.with_suffix(".err"))]
    # From Slurm 22.05 on, srun does not inherit the job's cores or, with --export=NONE, the
    # environment of the set-up.
    own = ["--export=ALL", f"--cpus-per-task={request.cores}", "--cpu-bind=cores"]
    srun = shlex.join(["srun", "--unbuffered", "--output", str(log), *errors, *own])
    return "\n".join(
        [
            "#!/bin/bash",
            "",
            "# Parameters",
            *lines,
            "",
            "# setup",
            *_setup(request),
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


def _flags(request: JobRequest) -> dict[str, Any]:
    """Options of sbatch; None for those that are not set."""
    profile, part = request.profile, request.part
    options = profile.options_for(bool(request.gres), part)
    return {
        "job_name": request.name,
        "comment": request.name,
        "partition": (part and part.partition) or profile.partition,
        "qos": (part and part.qos) or profile.qos,
        "account": (part and part.account) or profile.account,
        "constraint": part.constraint if part else profile.constraint,
        **_gpu(request),
        "nodes": 1,
        "cpus_per_task": request.cores,
        "mem": f"{request.memory_gib}G",
        "time": request.minutes,
        "exclude": excluded(options, request.exclude),
        "dependency": request.dependency,
        "mail_user": profile.mail,
        "mail_type": request.mail_on if profile.mail else None,
        "signal": f"USR2@{profile.signal_s}",
        "array": None if request.single else f"{ranges(request.indices)}%{_at_once(request)}",
        "chdir": request.code,
        "export": profile.export,
        # Otherwise a job whose dependency failed would stay pending for ever.
        "kill-on-invalid-dep": "yes",
        "requeue": True,
        **{name: value for name, value in options.items() if name != "exclude"},
        **({"begin": request.begin} if request.begin else {}),
    }


def _gpu(request: JobRequest) -> dict[str, str | None]:
    option = request.profile.gpu_request
    if request.gres is None or option == "gres":
        return {"gres": request.gres}
    return {option.replace("-", "_"): request.gres.removeprefix("gpu:")}


def _at_once(request: JobRequest) -> int:
    return min(len(request.indices), request.at_once or request.profile.at_once)


def excluded(options: Mapping[str, str | bool], nodes: Sequence[str]) -> str | None:
    """The nodes that the user's options exclude, and those on which an attempt failed."""
    users = options.get("exclude")
    return ",".join([str(users)] * bool(users) + list(nodes)) or None


def without_nodes(script: str, options: Mapping[str, str | bool], nodes: Sequence[str]) -> str:
    """The script of cells that excludes these nodes no more, but still those of the user's
    `options`."""
    users = excluded(options, ())
    instead = "" if users is None else _flag("exclude", users) + "\n"
    return script.replace(_flag("exclude", excluded(options, nodes)) + "\n", instead)


def _setup(request: JobRequest) -> list[str]:
    """Lines before srun. One that fails ends the job, with an exit code and a file that `status`
    reads."""
    code = shlex.quote(str(request.code))
    array_task = "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
    return [
        f"umask {store.umask_of(request.job.folder):03o}",
        *_of_nobody_else(request),
        f"folder={shlex.quote(str(request.job.folder))}",
        f'task="{"$SLURM_JOB_ID" if request.single else array_task}"',
        f"trap '{_ON_ERROR}' ERR",
        f"cd {code}",
        f"export PYTHONPATH={code} PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1",
        *_charge(request),
        *request.profile.setup,
        'rm -f "$folder/$task"_*.save_tmp "$folder/$task.setup"',
        f'ln -sfn {request.job.pickle.name} "$folder/${{task}}_submitted.pkl"',
        "trap - ERR",
    ]


def _charge(request: JobRequest) -> list[str]:
    """Fair-share units an hour, where they are known, for the record of what a cell has cost."""
    own = {"cores": request.cores, "memory_gib": request.memory_gib}
    gpu = request.profile.gpu if request.gres else None
    charge = request.profile.model_copy(update={**own, "gpu": gpu}).charge_an_hour()
    return [] if charge is None else [f"export NETPRESS_CHARGE={charge:g}"]


def _of_nobody_else(request: JobRequest) -> list[str]:
    """In a work root that a group shares, jobs execute nothing that another member put there."""
    if store.umask_of(request.job.folder) == store.PRIVATE:
        return []
    own = [request.job.pickle]
    if store.umask_of(request.code) != store.PRIVATE:
        own.append(request.code)
    return [_IF_OF_ANOTHER.format(path=shlex.quote(str(path))) for path in own]


_IF_OF_ANOTHER = (
    "[ -O {path} ] || {{ echo netpress: {path} belongs to another user >&2; exit "
    f"{SETUP_FAILED}; }}}}"
)
# Not in files that the set-up sources (conda's `activate`): only the status of the whole file
# counts.
_ON_ERROR = (
    "exit_code=$?; if [ ${#BASH_SOURCE[@]} -le 1 ]; then "
    'line="set-up failed with exit code $exit_code: $BASH_COMMAND"; '
    'echo "netpress: $line" >&2; echo "$line" >"$folder/$task.setup"; '
    f"exit {SETUP_FAILED}; fi"
)
