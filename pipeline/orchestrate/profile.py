"""The profile of a cluster: sbatch/profiles/NAME.yaml, or a file of the user's own, validated.

Every value that reaches sbatch is one line of plain characters: values are quoted for the shell,
but a newline in one would end its #SBATCH line.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pipeline import paths, strict_yaml, terminal
from pipeline.errors import UserError
from pipeline.orchestrate import sbatch_options
from pipeline.orchestrate.profile_parts import (
    Address,
    Charge,
    Command,
    Container,
    Cores,
    Dependency,
    Feature,
    FollowUp,
    Gib,
    Gpu,
    Line,
    MeasureJob,
    Minutes,
    Node,
    Options,
    Part,
    Plain,
    PlainList,
    ReportJob,
    in_job_or,
    no_clusters,
    standard_measure_job,
)
from pipeline.orchestrate.snapshot import Code
from pipeline.strict_yaml import Document, nearest, shown
from pipeline.sweep import Frozen, Sweep

DEFAULT = "generic"


class Profile(Frozen):
    """One cluster. `gpu`: the value after `--gres=gpu:`; None requests no GPU.

    `gpu_request`: the option that requests it, where a cluster has another than --gres.
    `signal_s`: how long before the time limit a job gets the signal to checkpoint. `setup`: lines
    of bash that run in the job before Python starts. `python`: its command, with arguments.
    `dependency`: on jobs that are there, for all that waits for nothing else. `mail`: the address
    for a message when the report is done, and when jobs failed. `options`: further options of
    sbatch, by full names without dashes: {reservation: course, exclusive: true}; `gpu_options` for
    jobs that request a GPU, `cpu_options` for the others, `report: {options: ...}` for the report
    stand above these, and false takes one away. `at_once`: tasks that run at the same time, of all
    arrays of a submission. `minutes`: the most time that a job requests at
    first: its estimate times `time_margin`, all of it where that is None. `minutes_cap`: the most
    time that `netpress resume` requests. `max_array_size`: tasks in one array; 0: single jobs,
    where a cluster has no arrays. `share`: the work root is for its group, so that members use each
    other's bases.
    """

    partition: PlainList | None = None
    qos: Plain | None = None
    account: Plain | None = None
    constraint: Feature | None = None
    gpu: Gpu | None = "a100:1"
    gpu_request: Literal["gres", "gpus-per-node", "gpus"] = "gres"
    cores: Cores = 24
    memory_gib: Gib = 40
    memory_cap_gib: Gib | None = None
    minutes: Minutes = 240
    minutes_cap: Minutes | None = None
    time_margin: float | None = Field(3.0, ge=1, le=100)
    signal_s: int = Field(120, ge=10, le=3600)
    at_once: int = Field(64, ge=1, le=100_000)
    max_array_size: int | None = Field(None, ge=0, le=4_000_001)
    export: Literal["ALL", "NONE"] = "ALL"
    setup: tuple[Line, ...] = ()
    python: Command | None = None
    container: Container | None = None
    dependency: Dependency | None = None
    clusters: Annotated[Any, AfterValidator(no_clusters)] = None
    work: Line | None = None
    share: Literal["group"] | None = None
    data: Line | None = None
    mail: Address | None = None
    options: Options = {}
    gpu_options: Options = {}
    cpu_options: Options = {}
    node: Node | None = None
    charge: Charge | None = None
    report: ReportJob = ReportJob()
    measure: Annotated[MeasureJob | None, BeforeValidator(in_job_or)] = None
    follow_up: FollowUp | None = FollowUp()

    @model_validator(mode="after")
    def _has_time_to_checkpoint(self) -> Profile:
        limits = {"minutes": self.minutes, "report.minutes": self.report.minutes}
        if self.measure is not None:
            limits["measure.minutes"] = self.measure.minutes
        if self.follow_up is not None:
            limits["follow_up.minutes"] = self.follow_up.minutes
        for key, minutes in limits.items():
            if minutes * 60 <= self.signal_s:
                raise ValueError(
                    f"{key} {minutes} ends before the signal to checkpoint, which comes "
                    f"{self.signal_s} s (signal_s) before the end; expected at least "
                    f"{self.signal_s // 60 + 1}"
                )
        return self

    @property
    def gpus(self) -> int:
        """GPUs that a job requests."""
        return int(self.gpu.rpartition(":")[2]) if self.gpu else 0

    @property
    def gres(self) -> str | None:
        return f"gpu:{self.gpu}" if self.gpu else None

    @property
    def measure_job(self) -> MeasureJob | None:
        """The request of the jobs that measure; None where each job measures what it trained: as
        the profile says, else where jobs have no GPU that would wait for it."""
        if self.measure is None:
            return standard_measure_job() if self.gpu else None
        return None if self.measure.in_job else self.measure

    def options_for(self, gpu: bool, part: Part | None = None) -> dict[str, str | bool]:
        """Further options of sbatch for a job, with or without a GPU; `part`: of the profile, for
        jobs that have their own."""
        special = self.gpu_options if gpu else self.cpu_options
        alone = {"exclusive": True} if isinstance(part, MeasureJob) and part.exclusive else {}
        merged = {**self.options, **special, **alone, **(part.options if part else {})}
        return {name: value for name, value in merged.items() if value is not False}

    def options_of(self, measures: bool, on_gpu: bool = False) -> dict[str, str | bool]:
        """The same for jobs of cells."""
        if measures:
            return self.options_for(bool(self.gpu) and on_gpu, self.measure_job)
        return self.options_for(bool(self.gpu))

    def ignored(self) -> Iterator[str]:
        """A line for each variable of the user's that sbatch would follow, and this profile does
        not."""
        given = {key: getattr(self, key) for key in ("account", "partition", "qos", "constraint")}
        reservation = self.options_for(bool(self.gpu)).get("reservation")
        return sbatch_options.ignored({**given, "options.reservation": reservation})

    @property
    def cap_gib(self) -> int:
        """The most memory to request after jobs ran out of memory."""
        node = self.node.memory_gib if self.node else 4 * self.memory_gib
        return max(self.memory_gib, self.memory_cap_gib or node)

    @property
    def cap_minutes(self) -> int | None:
        """The most time to request after jobs made no progress in theirs."""
        return max(self.minutes, self.minutes_cap) if self.minutes_cap else None

    def charge_of_measuring(self, on_gpu: bool = False) -> float | None:
        """The same of a job that measures what others trained."""
        job = self.measure_job
        if job is None:
            return None
        gpu = self.gpu if on_gpu else None
        own = {"cores": job.cores, "memory_gib": job.memory_gib, "gpu": gpu}
        return self.model_copy(update=own).charge_an_hour()

    def charge_an_hour(self) -> float | None:
        """Fair-share units per hour of one job, where the profile has the formula."""
        if self.charge is None:
            return None
        cost = self.charge
        return cost.core * self.cores + cost.gib * self.memory_gib + cost.gpu * self.gpus

    def notes(self) -> Iterator[str]:
        """A line for each way in which the request wastes hardware, or costs more than it says."""
        if self.charge is not None and self.measure_job is not None and self.measure_job.exclusive:
            yield (
                "jobs that measure have their nodes to themselves (measure.exclusive): a cluster "
                "may charge all of a node for that, and the cost here is of the cores requested"
            )
        node = self.node
        if node is None or not node.gpus or not self.gpus:
            return
        for what, requested, has in (
            ("cores", self.cores, node.cores),
            ("GiB of memory", self.memory_gib, node.memory_gib),
        ):
            fit = has // requested * self.gpus
            if 0 < fit < node.gpus:
                fair = has * self.gpus // node.gpus
                yield (
                    f"{requested} {what} a job strand {_words(node.gpus - fit)} of the "
                    f"{_words(node.gpus)} GPUs of a node with {has}: request at most {fair}"
                )
            elif not fit:
                yield f"{requested} {what} a job are more than a node has ({has})"


@dataclass(frozen=True)
class Cluster:
    """A profile with its name, as used by the commands that deal with SLURM.

    `source`: the name for `load` in any folder. `settings`: the given KEY=VALUE overrides. `code`:
    what jobs run. `slurm_name`: Slurm's own name of the cluster that they are sent to.
    """

    name: str
    profile: Profile
    source: str = ""
    settings: tuple[str, ...] = ()
    code: Code = Code()
    slurm_name: str = ""


def load(name: str, settings: Sequence[str] = ()) -> Cluster:
    """The profile that ships under this name, or in this file; `settings`: KEY=VALUE overrides.

    Raises UserError, one sentence with file and line, or with the setting, for invalid values.
    """
    path = file_of(name)
    if path is None:
        hint = nearest(name, shipped())
        raise UserError(f"unknown profile {shown(name)}, and no such file; {hint}")
    document = strict_yaml.read(path)
    profile = document.check((), Profile, document.data)
    return with_settings(Cluster(path.stem, profile, source_of(path)), settings)


def with_settings(cluster: Cluster, settings: Sequence[str]) -> Cluster:
    """The same with further KEY=VALUE overrides; of several for one key, the last one counts."""
    profile = cluster.profile
    for setting in settings:
        profile = _changed(profile, setting)
    every = [*cluster.settings, *settings]
    last = {setting.partition("=")[0]: i for i, setting in enumerate(every)}
    kept = tuple(every[i] for i in sorted(last.values()))
    return replace(cluster, profile=profile, settings=kept)


def chosen(sweep: Sweep, name: str | None = None, settings: Sequence[str] = ()) -> Cluster | None:
    """The cluster for a sweep: by the command line, else by the sweep, else by
    $NETPRESS_PROFILE."""
    name = name or sweep.profile or os.environ.get("NETPRESS_PROFILE")
    return load(name, settings) if name else None


def shipped() -> list[str]:
    return sorted(path.stem for path in paths.shipped_profiles().glob("*.yaml"))


def file_of(name: str) -> Path | None:
    """The profile that ships under this name, or the file of this name; None for neither."""
    ships = paths.shipped_profiles() / f"{name}.yaml"
    if paths.NAME.fullmatch(name) and ships.is_file():
        return ships
    path = paths.expanded(name)
    return path if path.is_file() else None


def source_of(path: Path) -> str:
    """The name with which `file_of` returns this file in any folder."""
    return path.stem if path.parent == paths.shipped_profiles() else str(path.absolute())


def _changed(profile: Profile, setting: str) -> Profile:
    """The profile with one `--set KEY=VALUE`; a dot in KEY names a nested key: report.cores=2."""
    key, equals, text = setting.partition("=")
    given = terminal.printable(setting if len(setting) <= 60 else f"{setting[:57]}...")
    if not equals or not key:
        raise UserError(f"--set {given}: expected KEY=VALUE, such as --set minutes=120")
    value = _value(text, given)
    try:
        return _with(profile, key, value)
    except UserError as error:
        if not isinstance(value, str):  # an account may be called 1234, or 1e3
            with contextlib.suppress(UserError):
                return _with(profile, key, text)
        raise UserError(f"--set {given}: {str(error).removeprefix('--set:1: ')}") from None


def _with(profile: Profile, key: str, value: Any) -> Profile:
    outer, _, inner = key.partition(".")
    data: dict[str, Any] = profile.model_dump(mode="json")
    if inner:
        part = data.get(outer) or {}
        if not isinstance(part, dict):
            raise UserError(f"{outer} has no parts; expected {outer}=VALUE")
        data[outer] = {**part, inner: value}
    else:
        data[outer] = value
    return Document(Path("--set"), "", data, {(): 1}).check((), Profile, data)


def _value(text: str, given: str) -> Any:
    try:
        value = json.loads(text)
        deep = _is_deep(value)
    except RecursionError:
        deep = True
    except ValueError:
        return _flow(text)
    if deep:
        limit = strict_yaml.MAX_DEPTH
        raise UserError(f"--set {given}: nested more than {limit} levels deep; expected a value")
    return value


def _flow(text: str) -> Any:
    """A list or a mapping as profiles write it, such as {cores: 2}; all else is text."""
    if not text.startswith(("[", "{")):
        return text
    try:
        return strict_yaml.read(Path("--set"), f"value: {text}").data["value"]
    except UserError:
        return text


def _is_deep(value: Any) -> bool:
    """Whether lists and mappings nest deeper than they may in a file."""
    level = [value]
    for _ in range(strict_yaml.MAX_DEPTH + 1):
        level = [inner for outer in level for inner in _inner(outer)]
    return bool(level)


def _inner(value: Any) -> Collection[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _words(number: int) -> str:
    names = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
    return names[number] if number < len(names) else str(number)


def plain(text: str) -> str:
    """`text` with all other than plain characters replaced, for names that Slurm gets."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[:64]
