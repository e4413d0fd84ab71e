"""Parts of a profile: the values that may reach sbatch, and the requests of jobs that do not train.

Every value that reaches sbatch is one line of plain characters: values are quoted for the shell,
but a newline in one would end its #SBATCH line.
"""

from __future__ import annotations

import functools
import re
import shlex
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pipeline.orchestrate import sbatch_options
from pipeline.strict_yaml import shown
from pipeline.sweep import Frozen

IN_JOB = "in-job"


def _shaped(pattern: str, expected: str) -> AfterValidator:
    """A text that has to match; `expected` says in words what does."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"{shown(text)} is not valid; expected {expected}")
        return text

    return AfterValidator(check)


Plain = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
PlainList = Annotated[
    str, _shaped(r"[A-Za-z0-9._,-]{1,256}", "names of A-Z a-z 0-9 . _ -, with commas between them")
]
Feature = Annotated[
    str,
    _shaped(
        r"[A-Za-z0-9._,&|*()\[\]-]{1,256}",
        "features as --constraint of sbatch has them: names, and , & | * ( ) [ ] between them",
    ),
]
Address = Annotated[
    str,
    _shaped(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9.-]{1,128}", "an address such as me@example.org"),
]
Line = Annotated[
    str, _shaped(r"[^\x00-\x1f\x7f]{1,1000}", "1 to 1,000 characters without a line break")
]
Image = Annotated[
    str,
    _shaped(r"[^\x00-\x1f\x7f-][^\x00-\x1f\x7f]{0,999}", "an image, such as /images/netpress.sif"),
]
GPU = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,62}:)?[1-9][0-9]{0,2}")


def _number_as_text(value: Any) -> Any:
    """sbatch takes text: `gpu: 1` is `--gres=gpu:1`. A YAML boolean is not a number."""
    return str(value) if type(value) is int else value


def _gpu(text: str) -> str:
    if not GPU.fullmatch(text):
        raise ValueError(
            f"{shown(text)} is not valid after --gres=gpu: ; expected KIND:COUNT such as "
            "a100:1, a count such as 1 for any kind, or null for none"
        )
    return text


Gpu = Annotated[str, BeforeValidator(_number_as_text), AfterValidator(_gpu)]
Option = Annotated[
    str,
    BeforeValidator(_number_as_text),
    _shaped(r"[A-Za-z0-9._:/=@%+,-]{1,128}", "1 to 128 of A-Z a-z 0-9 . _ : / = @ % + , -"),
]
OptionName = Annotated[str, AfterValidator(sbatch_options.checked)]
Options = dict[OptionName, Option | bool]
JOBS = r"(after|afterany|afterok|afternotok|aftercorr)(:\d+(_\d+)?(\+\d+)?)+"


def _dependency(text: str) -> str:
    if not re.fullmatch(rf"{JOBS}([,?]{JOBS})*", text):
        raise ValueError(
            f"{shown(text)} is not a dependency on jobs; expected KIND:JOB such as afterok:4711"
        )
    return text


def _command(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    try:
        words = shlex.split(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"{shown(value)} is not a command: {error}") from None
    if not words:
        raise ValueError("expected a command, such as python or [conda, run, -n, ENV, python]")
    return value


def no_clusters(value: Any) -> None:
    if value is not None:
        raise ValueError(sbatch_options.ONE_CLUSTER)


Dependency = Annotated[str, BeforeValidator(_number_as_text), AfterValidator(_dependency)]
Command = Annotated[Line | tuple[Line, ...], AfterValidator(_command)]
FOLDER = r"/[^\x00-\x1f\x7f,:\\]{0,499}"  # of `--bind`, in which , : and \ have a meaning
Bound = Annotated[
    str,
    _shaped(
        rf"{FOLDER}(:{FOLDER}(:r[ow])?)?",
        "FOLDER or FOLDER:THERE, with :ro for reading alone; both begin with /, and have no , : \\",
    ),
]
Cores = Annotated[int, Field(ge=1, le=4096)]
Gib = Annotated[int, Field(ge=1, le=65_536)]
Minutes = Annotated[int, Field(ge=1, le=60 * 24 * 90)]


class Node(Frozen):
    """The hardware of a node, so that `plan` can report what a request leaves idle."""

    cores: Cores
    memory_gib: Gib
    gpus: int = Field(ge=0, le=64)


class Charge(Frozen):
    """Units of fair share per hour: for a core, for a GiB of memory, for a GPU."""

    core: float = Field(0.0, ge=0)
    gib: float = Field(0.0, ge=0)
    gpu: float = Field(0.0, ge=0)


class Container(Frozen):
    """What Python runs in: `apptainer exec IMAGE`. Beside what Apptainer binds itself, the code,
    the work root and what jobs read and write elsewhere (batch.Target.places) are bound;
    `bind`: all else, as FOLDER or FOLDER:THERE[:ro]."""

    image: Image
    bind: tuple[Bound, ...] = ()
    command: Literal["apptainer", "singularity"] = "apptainer"


class ReportJob(Frozen):
    """The request of the job that builds the report, and of the follow-up job as far as it has
    none of its own: they need no GPU. What is not named here is the profile's, but `constraint`."""

    cores: Cores = 1
    memory_gib: Gib = 4
    minutes: Minutes = 30
    partition: Plain | None = None
    qos: Plain | None = None
    account: Plain | None = None
    constraint: Feature | None = None
    options: Options = {}


class MeasureJob(Frozen):
    """The request of the jobs that measure what others have trained: no GPU, and all that stands on
    one base on one node. What is not named here is the profile's, but `constraint`. `exclusive`:
    with nothing else on the node. `minutes`: the most that one requests at first. `in_job`: there
    are none, each job measures what it has trained. Where a sweep measures on a GPU, `partition`,
    `qos` and `constraint` are the profile's, too."""

    cores: Cores = 8
    memory_gib: Gib = 16
    minutes: Minutes = 240
    partition: PlainList | None = None
    qos: Plain | None = None
    account: Plain | None = None
    constraint: Feature | None = None
    exclusive: bool = False
    options: Options = {}
    in_job: bool = False

    @model_validator(mode="after")
    def _is_one_or_the_other(self) -> MeasureJob:
        if self.in_job and self.model_copy(update={"in_job": False}) != MeasureJob():
            raise ValueError(f"{IN_JOB} requests no jobs; expected it, or what such jobs request")
        return self


@functools.cache
def standard_measure_job() -> MeasureJob:
    return MeasureJob()


def in_job_or(value: Any) -> Any:
    """`measure: in-job` is short for `measure: {in_job: true}`."""
    if value == IN_JOB:
        return {"in_job": True}
    if isinstance(value, str):
        raise ValueError(f"{shown(value)} is not valid; expected {IN_JOB}, or a mapping")
    return value


Part = ReportJob | MeasureJob


class FollowUp(Frozen):
    """The job that submits what a limit on submitted jobs has left over: it looks every `every_s`
    seconds, and ends when all is submitted."""

    every_s: int = Field(600, ge=1, le=86_400)
    cores: Cores = 1
    memory_gib: Gib = 2
    minutes: Minutes = 30
