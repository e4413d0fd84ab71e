"""The plan of a sweep before anything runs: cells, jobs, commands, cost. Writes nothing.

Neither this module nor what it imports needs torch: `netpress plan` answers in half a second.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import arguments, catalog, done, paths, sweep
from pipeline.errors import UserError
from pipeline.orchestrate import estimate
from pipeline.strict_yaml import nearest, shown
from pipeline.sweep import Cell, Dataset, Sweep

if TYPE_CHECKING:
    from pipeline.orchestrate.profile import Profile

REPORT = "report"


@dataclass(frozen=True)
class Job:
    """One thing to run: `cells` one after the other, once the jobs in `depends_on` have ended."""

    name: str
    cells: tuple[str, ...]  # ids
    depends_on: tuple[str, ...]  # names of jobs
    script: str
    tasks: int | None = None  # of the SLURM array; None: this machine
    measures: bool = False  # what other jobs train


@dataclass(frozen=True)
class Plan:
    """All cells of a sweep, and the jobs that would make the missing ones."""

    sweep: Sweep
    jobs: tuple[Job, ...]
    gpu_hours: float
    gpu_hours_source: str
    profile: str | None = None  # of the cluster that the jobs are for; None: this machine
    wall_hours: float | None = None  # from the first job's start to the last one's end
    charge: float | None = None  # in units of the cluster's fair share
    charge_an_hour: float | None = None  # of one job
    charge_parts: Mapping[str, float] = field(default_factory=dict)  # of that: cores, memory, GPUs
    # Cores x time of all jobs, and the part of those that only measure; None: this machine.
    cpu_hours: float | None = None
    measure_cpu_hours: float | None = None
    training_share: float | None = None  # of the jobs' time, by the estimate
    savings: tuple[str, ...] = ()  # settings that would lower the cost
    notes: tuple[str, ...] = ()
    states: Mapping[str, str] = field(default_factory=dict)  # of cells without a job in this plan

    def to_json(self) -> dict[str, Any]:
        return {
            "cells": [{**identity(cell), "stages": stages(cell)} for cell in self.sweep.cells],
            "jobs": [
                {
                    "name": job.name,
                    "cells": list(job.cells),
                    "depends_on": list(job.depends_on),
                    "script": job.script,
                }
                for job in self.jobs
            ],
            "gpu_hours": self.gpu_hours,
            "cpu_hours": self.cpu_hours,
            "measure_cpu_hours": self.measure_cpu_hours,
            "training_share": self.training_share,
            "gpu_hours_source": self.gpu_hours_source,
            "profile": self.profile,
            "wall_hours": self.wall_hours,
            "charge": self.charge,
            "charge_an_hour": self.charge_an_hour,
            "charge_parts": dict(self.charge_parts),
            "savings": list(self.savings),
            "notes": list(self.notes),
        }

    def lines(self, columns: int | None = None) -> Iterable[str]:
        """The plan as text: the matrix, and what makes it; on a cluster the jobs and their cost.
        `columns`: of the terminal, None for lines of any length."""
        missing = {cell_id for job in self.jobs if not job.measures for cell_id in job.cells}
        head = ("CELL", "DATASET/MODEL/TECHNIQUE/SEED", "EPOCHS", "STAGES", "")
        rows = [
            (
                cell.id,
                cell.name,
                str(estimate.epochs(cell)),
                " > ".join(stages(cell)),
                "" if cell.id in missing else self.states.get(cell.id, "done"),
            )
            for cell in self.sweep.cells
        ]
        yield from aligned(head, rows, columns)
        yield ""
        yield from self._on_cluster() if self.profile else self._here()

    def _cost(self) -> Iterable[str]:
        yield from wrapped(f"{self.gpu_hours:.2f} GPU-hours ({self.gpu_hours_source})")
        if self.cpu_hours is not None:
            yield f"{self.cpu_hours:.2f} CPU-hours (cores x time)"
        if self.measure_cpu_hours:
            yield f"  of which {self.measure_cpu_hours:.2f} CPU-hours of jobs that only measure"
        if self.training_share is not None:
            yield f"{self.training_share:.0%} of the time is training"
        for line in self.savings:
            yield from wrapped(f"cheaper: {line}")

    def _here(self) -> Iterable[str]:
        """Without the cost: no arithmetic knows how long this machine takes."""
        missing = sum(len(job.cells) for job in self.jobs)
        run = f"`netpress run {quoted(self.sweep)}`"
        makes = f"makes the other {missing} and then the report" if missing else "builds the report"
        done = f"{len(self.sweep.cells)} cells, {len(self.sweep.cells) - missing} done"
        yield from wrapped(f"{done}; {run} {makes}, on this machine")
        yield from wrapped("for a SLURM cluster, --profile NAME shows the jobs and their cost")

    def _on_cluster(self) -> Iterable[str]:
        """Every script as it would be submitted, and the total cost."""
        for job in self.jobs:
            yield f"# ---- {job.name}: {len(job.cells)} cells{' to measure' * job.measures}"
            yield from job.script.rstrip("\n").splitlines()
            yield ""
        sent = len({cell_id for job in self.jobs for cell_id in job.cells})
        tasks = sum(job.tasks or 0 for job in self.jobs)
        yield f"{len(self.sweep.cells)} cells, {sent} to submit, profile {self.profile}"
        calls = f"{len(self.jobs)} sbatch calls for {tasks} jobs"
        yield f"{calls}; above, @NAME@ stands for the id that Slurm will assign"
        yield from self._notes()
        if self.charge is not None:
            from pipeline.orchestrate import cost

            yield cost.shown(self.charge, self.charge_parts)
        if self.wall_hours is not None:
            yield f"{self.wall_hours:.2f} hours from start to end, without waiting in the queue"
        yield from self._cost()

    def _notes(self) -> Iterable[str]:
        for note in self.notes:
            yield from wrapped(f"note: {note}")


def wrapped(sentence: str) -> list[str]:
    """A sentence in lines of 80 columns; what is broken off is indented."""
    return textwrap.wrap(sentence, 80, subsequent_indent="  ")


def load_sweep(name_or_path: str | Path, expected: str = arguments.SWEEP_FILE) -> Sweep:
    """The sweep in a file, or the one that ships under this name; raises UserError if it is
    invalid. `expected`: as in `arguments.sweep_file`."""
    return sweep.load(arguments.sweep_file(name_or_path, expected), catalog.built_in())


def load_again(
    path: Path, text: str, work: paths.Work, plugins: Mapping[str, str] | None = None
) -> Sweep:
    """A sweep from earlier contents of its file, which may have changed or been removed since.

    `plugins`: {path: SHA-256} of its plug-ins then, of which the work root has copies.
    """
    copies = {source: (work.plugin(sha), sha) for source, sha in (plugins or {}).items()}
    return sweep.load(path, catalog.built_in(), text, copies)


def roots(sweep: Sweep, profile: Profile | None = None) -> tuple[paths.Work, Path]:
    """(work root, data root) of the sweep on this machine.

    The profile's roots are used only where they can exist: on a laptop without /scratch, the work
    root of a sweep for a cluster is ./runs.
    """
    work = profile.work if profile and _can_be(profile.work) else None
    data = profile.data if profile and _can_be(profile.data) else None
    return paths.Work(paths.work_root(work)), paths.data_root(data)


def _can_be(folder: str | None) -> bool:
    if not folder:
        return False
    path = paths.expanded(os.path.expandvars(folder))
    return path.is_dir() or path.parent.is_dir()


def called(sweep: Sweep) -> str:
    """What the user types for this sweep: the name of one that ships, else the path; of one in a
    report's results.h5, whose path cannot exist, what it was called there."""
    if sweep.path.parent.is_file():
        return sweep.path.name
    ships = sweep.path.parent == paths.shipped_sweeps()
    return sweep.path.stem if ships else str(sweep.path)


def quoted(sweep: Sweep) -> str:
    """The same, quoted for the shell as part of a command that is shown."""
    return paths.shell_word(called(sweep))


def plan(sweep: Sweep, work: paths.Work, data_root: Path) -> Plan:
    """The missing cells of the sweep, as one local job per cell and one for the report."""
    missing = [cell for cell in sweep.cells if not done.is_done(cell, work)]
    names = {cell.id for cell in missing}
    code = shlex.quote(str(paths.CODE))
    here = f"cd {code} && PYTHONPATH={code}"  # so that no other `jobs` is imported
    jobs = [
        Job(
            name=cell.id,
            cells=(cell.id,),
            depends_on=(cell.stands_on,) if cell.stands_on in names else (),
            script=f"{here} {shlex.join(cell_command(work, data_root, [cell.id]))}",
        )
        for cell in missing
    ]
    command = f"netpress report {quoted(sweep)}"
    report = Job(REPORT, (), tuple(job.name for job in jobs), command)
    to_train = [cell for cell in missing if not done.is_trained(cell, work)]
    gpu_s = sum(map(estimate.gpu_seconds, to_train))
    notes = tuple(estimate.notes(to_train))
    return Plan(sweep, (*jobs, report), gpu_s / 3600, estimate.SOURCE, notes=notes)


def cell_command(
    work: paths.Work,
    data_root: Path,
    ids: Sequence[str],
    *more: str,
    module: str = "jobs.compress",
) -> list[str]:
    """The command that runs cells; the same for local workers and for jobs of a cluster."""
    roots = ["--work", str(work.root), "--data", str(data_root)]
    return [sys.executable, "-m", module, *roots, *more, *ids]


def track_options(sweep: str, trackers: Sequence[str]) -> list[str]:
    """Options of the command that runs cells, for the trackers that follow them."""
    options = [word for name in trackers for word in ("--track", name)]
    return ["--sweep", sweep, *options] if options else []


def identity(cell: Cell) -> dict[str, Any]:
    """The keys that identify a cell in every --json output."""
    return {
        "id": cell.id,
        "model": cell.model.label,
        "dataset": cell.dataset.name,
        "technique": cell.technique,
        "seed": cell.seed,
    }


def stages(cell: Cell) -> list[str]:
    """Names of the cell's stages; a base has the one stage `train`."""
    return [stage.name for stage in cell.stages] or ["train"]


def find_cell(sweep: Sweep, text: str) -> Cell:
    """The cell of the sweep with this id, prefix of an id, or dataset/model/technique/seed.

    Data set and model may come in either order, the model without its width where that is unique.
    Raises UserError where no cell or several cells match.
    """
    matches = (
        [cell for cell in sweep.cells if text in (cell.id, *_names(cell, cell.model.label))]
        or [cell for cell in sweep.cells if text in _names(cell, cell.model.name)]
        or [cell for cell in sweep.cells if text and cell.id.startswith(text)]
    )
    if len(matches) == 1:
        return matches[0]
    if matches:
        several = ", ".join(f"{cell.id} ({cell.name})" for cell in matches[:6])
        more = f" and {len(matches) - 6} more" if len(matches) > 6 else ""
        raise UserError(f"{shown(text)} matches {several}{more}; name one of them")
    raise UserError(
        f"no cell {shown(text)} in sweep {sweep.name}; {_near(sweep, text)} "
        f"(`netpress plan {quoted(sweep)}` lists them)"
    )


def _names(cell: Cell, model: str) -> tuple[str, str]:
    data, end = cell.dataset.name, f"{cell.technique}/{cell.seed}"
    return f"{data}/{model}/{end}", f"{model}/{data}/{end}"


def _near(sweep: Sweep, text: str) -> str:
    names = [cell.name for cell in sweep.cells[:1000]]
    with_it = [name for name in names if text in name.split("/")]  # such as a technique's name
    hint = f"did you mean {with_it[0]!r}?" if with_it else nearest(text, names)
    return hint if hint.startswith("did") else "expected an id, or dataset/model/technique/seed"


def fetch(sweep: Sweep, data_root: Path, cache_root: Path) -> None:
    """Download and verify the data sets of the sweep; progress goes to standard error."""
    from pipeline import data

    with naming(sweep):
        for dataset in datasets(sweep):
            data.fetch(dataset, data_root, cache_root)


@contextlib.contextmanager
def naming(sweep: Sweep) -> Iterator[None]:
    """Errors about a data set, which can be any sweep's, with this one in the command to call."""
    try:
        yield
    except UserError as error:
        command = f"`netpress fetch {quoted(sweep)}`"
        raise type(error)(str(error).replace("`netpress fetch SWEEP`", command)) from error


def datasets(sweep: Sweep) -> tuple[Dataset, ...]:
    """The data sets of the sweep, each once."""
    return tuple(dict.fromkeys(cell.dataset for cell in sweep.cells))


def listing(
    what: str, sweep_name: str | None = None, plugin_files: Sequence[Path] = ()
) -> dict[str, str]:
    """{name: description} of all `techniques`, `models`, `datasets` or `sweeps`, with those of the
    plug-ins: installed ones, those of the sweep, and these files."""
    if what == "sweeps":
        files = sorted(paths.shipped_sweeps().glob("*.yaml"))
        return {path.stem: _headline(path) for path in files}
    plugins = load_sweep(sweep_name).plugins if sweep_name else ()
    named = [Path(plugin.source) for plugin in plugins]
    loaded = [catalog.plugins.from_file(path.resolve()) for path in (*named, *plugin_files)]
    return catalog.lines(catalog.built_in().with_plugins(loaded), what)


def _headline(path: Path) -> str:
    """The first sentence of the comment that it opens with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    first = itertools.takewhile(bool, (line.removeprefix("#").strip() for line in lines))
    return re.split(r"(?<=\.) (?=[A-Z`])", " ".join(first))[0]


def aligned(
    head: Sequence[str], rows: Sequence[Sequence[str]], columns: int | None = None
) -> Iterable[str]:
    """A header and rows as lines of text, in columns. Lines that are longer than `columns` (None:
    of any length) go on below the second column."""
    table = [head, *rows] if any(head) else list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)] if table else []
    indent = " " * (widths[0] + 2) if widths else ""
    for row in table:
        cells = zip(row, widths, strict=True)
        line = "  ".join(f"{text:{width}}" for text, width in cells).rstrip()
        if columns is None or len(line) <= columns:
            yield line
        else:
            yield from textwrap.wrap(
                line,
                max(columns, 2 * len(indent)),
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
