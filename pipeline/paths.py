"""The one place that knows where a file lies: nobody else joins names.

WORK/cells/ID/{cell.json, checkpoint/, metrics.h5, attempts/N/, result.h5, artifact/,
               manifest.json, measurements/MACHINE-N.{h5,json}, tracked.json, lock}
WORK/sweeps/NAME/{ledger.jsonl, ledger.count, roots.json, jobs/}
WORK/submit.lock
WORK/plugins/SHA256.py
WORK/code/ID/
WORK/tracking/TRACKER/
WORK/share.json
WORK/cache/
REPORTS/SWEEP/{index.html, report.md, results.csv, results.h5, sweep.yaml, paper.tex,
               references.bib, files.json, tables/, figures/, artifacts/ID/}
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
SHA256 = re.compile(r"[0-9a-f]{64}")
CELL_ID = re.compile(r"[0-9a-f]{16}")
CODE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class AttemptPaths:
    """One run of a job for a cell: attempts/N/."""

    folder: Path

    @property
    def number(self) -> int:
        return int(self.folder.name)

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def failure(self) -> Path:
        return self.folder / "failure.json"

    @property
    def usage(self) -> Path:
        return self.folder / "usage.json"


@dataclass(frozen=True)
class CellPaths:
    """A cell's folder: cells/ID/."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def cell_json(self) -> Path:
        return self.folder / "cell.json"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def model(self) -> Path:
        """The final weights, inside the checkpoint."""
        return self.checkpoint / "model.safetensors"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.h5"

    @property
    def tracked(self) -> Path:
        """How much of the history each tracker has."""
        return self.folder / "tracked.json"

    @property
    def tracked_lock(self) -> Path:
        """There only while `tracked` is written."""
        return self.folder / "tracked.lock"

    @property
    def attempts(self) -> Path:
        return self.folder / "attempts"

    def attempt(self, number: int) -> AttemptPaths:
        return AttemptPaths(self.attempts / str(number))

    @property
    def result(self) -> Path:
        return self.folder / "result.h5"

    @property
    def artifact(self) -> Path:
        return self.folder / "artifact"

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.json"

    @property
    def measurements(self) -> Path:
        """Of any number of machines; see store/measurement.py."""
        return self.folder / "measurements"

    def plugin(self, sha256: str) -> Path:
        """As `Work.plugin`, in the work root that the cell lies in."""
        return Work(self.folder.parents[1]).plugin(sha256)

    @property
    def lock(self) -> Path:
        return self.folder / "lock"


@dataclass(frozen=True)
class SweepPaths:
    """What is known of one sweep on this work root: sweeps/NAME/."""

    folder: Path

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger.jsonl"

    @property
    def ledger_count(self) -> Path:
        """How many lines the ledger has at least."""
        return self.folder / "ledger.count"

    @property
    def roots(self) -> Path:
        """Work roots that the sweep was submitted in, the last one last; absent where it was this
        one alone."""
        return self.folder / "roots.json"

    @property
    def jobs(self) -> Path:
        return self.folder / "jobs"

    @property
    def lock(self) -> Path:
        """Of all sweeps of the work root: they share cells, so one is submitted after the other."""
        return self.folder.parent.parent / "submit.lock"

    @property
    def others(self) -> list[SweepPaths]:
        """The other sweeps of this work root."""
        try:
            names = sorted(os.listdir(self.folder.parent))
        except (FileNotFoundError, PermissionError):  # none, or another user's
            return []
        folders = [self.folder.parent / name for name in names if name != self.folder.name]
        return [SweepPaths(folder) for folder in folders]

    def job(self, intent: str) -> JobPaths:
        return JobPaths(self.jobs / checked_name(intent))


@dataclass(frozen=True)
class JobPaths:
    """What one array was sent with, and the messages of its tasks: jobs/INTENT/."""

    folder: Path

    @property
    def root(self) -> Path:
        """The work root that it lies in; the folder itself where it lies in none."""
        above = self.folder.parents
        return above[3] if len(above) > 3 and above[2].name == "sweeps" else self.folder

    @property
    def script(self) -> Path:
        return self.folder / "submission.sh"

    @property
    def pickle(self) -> Path:
        return self.folder / "submitted.pkl"

    @property
    def cells(self) -> Path:
        """{cell's id: what its cell.json says}, for its task to publish."""
        return self.folder / "cells.json"

    @property
    def report(self) -> AttemptPaths:
        """How the job of a report failed."""
        return AttemptPaths(self.folder)

    @property
    def made(self) -> Path:
        """There when the job of a report has made it."""
        return self.folder / "made.json"

    def out(self, task: str) -> Path:
        """Standard output of task `JOB_INDEX`, under the name that submitit gives it."""
        return self.folder / f"{task}_0_log.out"

    def err(self, task: str) -> Path:
        return self.folder / f"{task}_0_log.err"

    def setup(self, task: str) -> Path:
        """What went wrong in the job's set-up; absent where nothing did."""
        return self.folder / f"{task}.setup"


@dataclass(frozen=True)
class ReportPaths:
    """What a sweep produced, for people: reports/SWEEP/. A new report takes away what an earlier
    one left in tables/, figures/ and artifacts/."""

    folder: Path

    @property
    def page(self) -> Path:
        return self.folder / "index.html"

    @property
    def markdown(self) -> Path:
        return self.folder / "report.md"

    @property
    def csv(self) -> Path:
        return self.folder / "results.csv"

    @property
    def merged(self) -> Path:
        """All cells, histories included."""
        return self.folder / "results.h5"

    @property
    def yaml(self) -> Path:
        """The sweep file that it is the report of."""
        return self.folder / "sweep.yaml"

    @property
    def paper(self) -> Path:
        """The report in LaTeX, on two pages."""
        return self.folder / "paper.tex"

    @property
    def references(self) -> Path:
        """BibTeX, for it."""
        return self.folder / "references.bib"

    @property
    def listing(self) -> Path:
        """Which files here are the report's own: see report/owned.py."""
        return self.folder / "files.json"

    @property
    def lock(self) -> Path:
        """There while a process writes the report; without flock, its claims stay beside it."""
        return self.folder / ".lock"

    @property
    def always(self) -> tuple[Path, ...]:
        """The files that every report has."""
        return (
            self.page,
            self.markdown,
            self.csv,
            self.merged,
            self.yaml,
            self.paper,
            self.references,
            self.listing,
        )

    @property
    def own_folders(self) -> tuple[Path, ...]:
        return (self.tables, self.figures, self.artifacts)

    @property
    def tables(self) -> Path:
        return self.folder / "tables"

    def latex(self, name: str) -> Path:
        return self.tables / f"{checked_name(name)}.tex"

    @property
    def figures(self) -> Path:
        return self.folder / "figures"

    def svg(self, name: str) -> Path:
        return self.figures / f"{checked_name(name)}.svg"

    def pdf(self, name: str) -> Path:
        return self.figures / f"{checked_name(name)}.pdf"

    @property
    def artifacts(self) -> Path:
        """Deployable models, exported on request: artifacts/ID/."""
        return self.folder / "artifacts"

    def artifact(self, cell_id: str) -> Path:
        """Raises ValueError for what is no cell id."""
        return self.artifacts / _checked_id(cell_id)

    def drawn_or_set(self) -> list[Path]:
        """The figures and the tables for LaTeX that are there, of whichever report."""
        paths = (
            *self.figures.glob("*.svg"),
            *self.figures.glob("*.pdf"),
            *self.tables.glob("*.tex"),
        )
        return sorted(paths)

    def name(self, path: Path) -> str:
        """How a file of this report is named in another one."""
        return path.relative_to(self.folder).as_posix()


@dataclass(frozen=True)
class Work:
    """The work root: heavy files (checkpoints, artifacts, results), shared by all sweeps."""

    root: Path

    def cell(self, cell_id: str) -> CellPaths:
        """Raises ValueError for what is no cell id, so that none leads out of the root."""
        return CellPaths(Path(self.root) / "cells" / _checked_id(cell_id))

    def begun(self) -> frozenset[str]:
        """Ids of the cells that have a folder; raises OSError where they cannot be listed."""
        return frozenset(os.listdir(Path(self.root) / "cells"))

    def sweep(self, name: str) -> SweepPaths:
        return SweepPaths(Path(self.root) / "sweeps" / checked_name(name))

    @property
    def cache(self) -> Path:
        return Path(self.root) / "cache"

    def plugin(self, sha256: str) -> Path:
        """The copy of a plug-in's file that the cells of this work root are run with."""
        if not SHA256.fullmatch(sha256):
            raise ValueError(f"expected a SHA-256, got {sha256!r}")
        return Path(self.root) / "plugins" / f"{sha256}.py"

    def tracking(self, tracker: str) -> Path:
        return Path(self.root) / "tracking" / checked_name(tracker)

    @property
    def compiled(self) -> Path:
        """What PyTorch compiled for this user: code, so nobody else may write there."""
        return self.cache / f"compiled-{os.getuid()}"

    @property
    def share(self) -> Path:
        """There where a group shares this work root."""
        return Path(self.root) / "share.json"

    def runs_as_its_writer(self, path: Path) -> bool:
        """Whether it is in a folder whose contents jobs execute, as the user who submitted them:
        a snapshot of the code, or what an array was sent with."""
        inside = path.relative_to(self.root).parts
        of_code = inside[:1] == ("code",) and len(inside) > 1
        return of_code or (inside[2:3] == ("jobs",) and len(inside) > 3)

    def code(self, snapshot: str) -> Path:
        """A copy of netpress's own code, for the jobs that were submitted with it."""
        return Path(self.root) / "code" / checked_name(snapshot)


def snapshot_record(code: Path) -> Path:
    """In a copy of the code: of which checkout it is."""
    return code / "snapshot.json"


def _checked_id(cell_id: str) -> str:
    if not CELL_ID.fullmatch(cell_id):
        raise ValueError(f"expected a cell id of 16 hexadecimal digits, got {cell_id!r}")
    return cell_id


def checked_name(name: str) -> str:
    """`name` itself; raises ValueError where it could not be a file name of ours."""
    if not NAME.fullmatch(name) or set(name) == {"."}:
        raise ValueError(f"expected a name of 1 to 64 letters, digits, '.', '_', '-', got {name!r}")
    return name


def work_root(configured: str | Path | None = None) -> Path:
    """$NETPRESS_WORK, else what the profile configured, else ./runs."""
    return _root("NETPRESS_WORK", configured, Path("runs"))


def data_root(configured: str | Path | None = None) -> Path:
    """$NETPRESS_DATA, else what the profile configured, else ~/.cache/netpress/data."""
    return _root("NETPRESS_DATA", configured, Path("~/.cache/netpress/data"))


def reports_root() -> Path:
    return Path("reports").absolute()


def report(name: str, root: Path | None = None) -> ReportPaths:
    return ReportPaths((root or reports_root()) / checked_name(name))


def compiled_at_home() -> Path:
    """As `Work.compiled`, where others write to the work root."""
    return expanded("~/.cache/netpress/compiled")


def shipped_reports() -> Path:
    return CODE / "reports"


def shipped_sweeps() -> Path:
    return CODE / "jobs" / "sweeps"


def shipped_profiles() -> Path:
    return CODE / "sbatch" / "profiles"


def page_template() -> Path:
    """The folder with page.html.j2, page.css and page.js."""
    return CODE / "pipeline" / "report"


def bench_scripts() -> tuple[Path, ...]:
    """What measures exported models without netpress: a script, and what it imports from beside."""
    return CODE / "pipeline" / "measure" / "bench.py", CODE / "pipeline" / "quota.py"


def published_results() -> Path:
    """What others published, to compare with: see report/published.py."""
    return CODE / "pipeline" / "report" / "published.csv"


def references() -> Path:
    """BibTeX: the sources of techniques, models and data sets."""
    return CODE / "pipeline" / "report" / "references.bib"


def expanded(text: str | Path) -> Path:
    """The path that is meant, `~` and `~user` being home folders; UserError where none can be."""
    if "\0" in str(text):
        raise UserError(f"{str(text)!r}: no path can have a NUL in it; expected another name")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(
            f"{text}: there is no such home folder; expected a path, or ~/..."
        ) from None


def shell_word(text: str | Path) -> str:
    """A path or a name as it can be pasted into a command: quoted, and no option."""
    word = str(text)
    return shlex.quote(f"./{word}" if word.startswith("-") else word)


def _root(variable: str, configured: str | Path | None, default: Path) -> Path:
    chosen = os.environ.get(variable) or configured or default
    root = expanded(os.path.expandvars(chosen)).absolute()
    if problem := _in_the_way(root):
        raise UserError(f"{root}: {problem}; expected a folder, set {variable} to one")
    return root


# What a path itself is to blame for; what a disk or a right is, shows when it is used.
UNUSABLE = (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def _in_the_way(folder: Path) -> str | None:
    """Why there cannot be a folder of this name; None where there is one, or may be made."""
    try:
        return None if stat.S_ISDIR(os.stat(folder).st_mode) else "is no folder"
    except FileNotFoundError:
        return "is a link that leads nowhere" if folder.is_symlink() else None
    except OSError as error:
        return error.strerror if error.errno in UNUSABLE else None
