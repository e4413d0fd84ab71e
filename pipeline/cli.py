"""The command line: arguments in, tables out. Each command calls one function of a lower module.

Exit codes: 0 done, 1 something failed, 2 usage or input error, 130 interrupted. Results go to
standard output, progress and errors to standard error. What a command needs is imported in it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from pipeline import __version__, garbage, store, streams, terminal
from pipeline.errors import Corrupt, UserError

# A path that cannot be what the command needs it to be: the input is wrong, not the machine.
WRONG_PATH = (errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    streams.ready()
    garbage.seldom()
    store.private()
    try:
        code = netpress.main(arguments, prog_name="netpress", standalone_mode=False)
        with streams.naming():
            sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        return _complain(_usage(error))
    except UserError as error:
        return _complain(str(error))
    except Corrupt as error:
        return _complain(str(error), code=1)
    except (click.Abort, KeyboardInterrupt):
        return _complain("stopped; the same command goes on from here", code=130)
    except BrokenPipeError:  # whoever read our output has left (`| head`)
        streams.abandon()
        return 1
    except OSError as error:
        return _complain(_of_system(error), 2 if error.errno in WRONG_PATH else 1)


def _complain(sentence: str, code: int = 2) -> int:
    with contextlib.suppress(OSError):  # the code says it, too
        print(f"netpress: {terminal.sentence(sentence)}", file=sys.stderr, flush=True)
    return code


def _of_system(error: OSError) -> str:
    """The path and what the system says of it; of a rename, the name that it was to have."""
    named = [path for path in (error.filename2, error.filename) if isinstance(path, (str, bytes))]
    problem = " ".join((error.strerror or str(error) or type(error).__name__).split())
    if error.filename == streams.STANDARD_OUTPUT:
        streams.abandon()
    if named:
        return f"{os.fsdecode(named[0])}: {problem}"
    return f"{problem} (the system does not say of which file)"


def _usage(error: click.ClickException) -> str:
    """click's message as one sentence that says where to read on."""
    message = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "netpress"
    return f"{message} (`{command} --help` says what there is)"


class _Commands(click.Group):
    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)  # as they stand in this file, the order in which they are used

    def resolve_command(self, context: click.Context, arguments: list[str]):
        if arguments and self.get_command(context, arguments[0]) is None:
            name = arguments[0]
            if not name.startswith("-"):
                from pipeline.strict_yaml import nearest, shown

                raise click.UsageError(
                    f"unknown command {shown(name)}, {nearest(name, self.commands)}", context
                )
        return super().resolve_command(context, arguments)


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="netpress")
@click.pass_context
def netpress(context: click.Context) -> None:
    """How small and how fast can a neural network become before it gets worse?

    SWEEP is a YAML file, or the name of one that ships (`netpress sweeps`). CELL is an id, any
    unique beginning of it, or dataset/model/technique/seed.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
        context.exit(2)


class _Megabytes(click.FloatRange):
    def convert(self, value: Any, parameter, context) -> float:
        number = super().convert(value, parameter, context)
        if not math.isfinite(number):  # nan is in every range
            self.fail(f"{value!r} is not a number of megabytes.", parameter, context)
        return number


_sweep = click.argument("sweep")
_cell = click.argument("cell")
_cells = click.argument("cells", nargs=-1, metavar="[CELL ...]")
_profile = click.option("--profile", help="How the cluster is asked: a name or a file.")
_set = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override one setting of the profile; may be repeated.",
)
_plugins = click.option(
    "--plugins",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also what this plug-in adds; may be repeated.",
)
_device = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="What trains [a GPU where there is one].",
)
_json = click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")


@netpress.command()
@_sweep
@click.option(
    "--workers",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Cells at once [one a GPU, or one].",
)
@click.option(
    "--threads", type=click.IntRange(1, 4096), metavar="N", help="CPU threads each [cores/workers]."
)
@_device
def run(sweep: str, workers: int | None, threads: int | None, device: str) -> int:
    """Train, compress and measure on this machine; then the report."""
    from pipeline.orchestrate import local

    asked = _load(sweep)
    return local.run(asked, *_roots(asked), device=device, workers=workers, threads=threads)


@netpress.command()
@_sweep
@_json
@_profile
@_set
def plan(sweep: str, as_json: bool, profile: str | None, settings: tuple[str, ...]) -> None:
    """The matrix, the jobs, the cost; touches nothing."""
    from pipeline.orchestrate import plan

    asked = _load(sweep)
    cluster = _cluster(asked, profile, settings)
    if cluster is None:
        planned = plan.plan(asked, *_roots(asked))
    else:
        from pipeline.orchestrate import submit

        planned = submit.planned(asked, *_roots(asked, cluster), cluster)
    _show(planned.to_json() if as_json else planned.lines())


@netpress.command()
@_sweep
@_device
def rehearse(sweep: str, device: str) -> int:
    """Every cell for real on a sliver of data, on this machine."""
    from pipeline.orchestrate import rehearse

    asked = _load(sweep)
    return rehearse.run(asked, *_roots(asked), device)


@netpress.command()
@_sweep
@_profile
@_set
@click.option("--dry-run", is_flag=True, help="Show what would be sent, as plan does.")
@_json
@click.pass_context
def submit(context, sweep: str, profile, settings, dry_run: bool, as_json: bool) -> None:
    """Send what is missing to SLURM; returns at once."""
    from pipeline.orchestrate import submit

    asked = _load(sweep)
    cluster = _cluster(asked, profile, settings, needed=True)
    roots = _roots(asked, cluster)
    if dry_run:
        planned = submit.planned(asked, *roots, cluster)
        return _show(planned.to_json() if as_json else planned.lines())
    batch, states, sent = submit.run(asked, *roots, cluster, _job_functions())
    _show(line.text for line in submit.lines(batch, states, sent))
    sent.check()


@netpress.command()
@_sweep
@_json
@_profile
@click.option("--watch", is_flag=True, help="Again every few seconds, until nothing is left to do.")
def status(sweep: str, as_json: bool, profile: str | None, watch: bool):
    """What is done, running, queued, waiting, failed or missing."""
    from pipeline.orchestrate import images, state

    asked = _load(sweep)
    work, data_root = _roots(asked, _cluster(asked, profile))
    if watch:
        return state.watch(asked, work, data_root)
    found = state.find(asked, work)
    for note in (*found.notes, *images.notes(found.done, work, data_root)):
        click.echo(f"netpress: {terminal.printable(note)}", err=True)
    if as_json:
        return _show(state.to_json(found.cells, found.report))
    _show(state.everything(asked, found, work))


@netpress.command()
@_sweep
@_cell
@_profile
@click.option("--follow", is_flag=True, help="Go on until the cell has ended.")
def logs(sweep: str, cell: str, profile: str | None, follow: bool) -> None:
    """What a cell said: its job's output and its own log."""
    from pipeline.orchestrate import logs, plan

    asked = _load(sweep)
    work, _ = _roots(asked, _cluster(asked, profile))
    _show(logs.show(asked, work, plan.find_cell(asked, cell), follow))


@netpress.command()
@_sweep
@_cells
@_profile
def cancel(sweep: str, cells: tuple[str, ...], profile: str | None) -> None:
    """Take jobs out of the queue: those of some cells, or all."""
    from pipeline.orchestrate import cancel, plan

    asked = _load(sweep)
    work, _ = _roots(asked, _cluster(asked, profile))
    _show(cancel.run(asked, work, [plan.find_cell(asked, cell) for cell in cells]))


@netpress.command()
@_sweep
@_cells
@_profile
@_set
@click.option("--exceptions", is_flag=True, help="Also cells that an exception ended.")
def resume(sweep: str, cells: tuple[str, ...], profile, settings, exceptions: bool) -> None:
    """Submit what failed again, with what its failure asks for."""
    from pipeline.orchestrate import plan, resume

    asked = _load(sweep)
    cluster = _cluster(asked, profile, settings, needed=True)
    chosen = [plan.find_cell(asked, cell) for cell in cells]
    roots = _roots(asked, cluster)
    functions = _job_functions()
    batch, states, sent, decisions = resume.run(
        asked, *roots, cluster, functions, chosen, exceptions
    )
    _show(line.text for line in resume.lines(batch, states, sent, decisions))
    sent.check()


@netpress.command()
@_sweep
@_json
@click.option("--to", type=click.Path(path_type=Path), help="Folder of reports [./reports].")
@click.option(
    "--artifacts",
    "artifact_mb",
    type=_Megabytes(min=0),
    metavar="MB",
    help="Put the models of at most so many MB into the report.",
)
@click.option(
    "--with",
    "earlier",
    type=click.Path(path_type=Path),
    metavar="REPORT",
    help="Results that the work root does not have: a report's folder.",
)
def report(
    sweep: str, as_json: bool, to: Path | None, artifact_mb: float | None, earlier: Path | None
) -> None:
    """Page, tables and figures from what is there, gaps named.

    SWEEP can also be a report's folder: it is then made anew from its results.h5 alone.
    """
    from pipeline import paths, report
    from pipeline.orchestrate import images

    if folder := paths.published_report(sweep):
        _refuse_with_folder(sweep, {"--to": to, "--artifacts": artifact_mb, "--with": earlier})
        look, make = partial(report.read_folder, folder), partial(report.rebuild, folder)
    else:
        asked = _load(sweep)
        work, data_root = _roots(asked)
        for note in images.notes(asked.cells, work, data_root):
            click.echo(f"netpress: {note}", err=True)
        most_bytes = None if artifact_mb is None else int(artifact_mb * 1e6)
        if earlier and not paths.ReportPaths(earlier).merged.is_file():
            raise UserError(f"--with {earlier}: expected the folder of a report, with results.h5")
        look = partial(report.read, asked, work, earlier)
        make = partial(report.build, asked, work, to, most_bytes, earlier)
    if as_json:
        return _show(report.as_json(look()))
    made, frames = make()
    with streams.at_best():
        report.print_summary(frames)
        click.echo(terminal.printable(f"Report: {made.page}"))


def _refuse_with_folder(sweep: str, options: dict[str, Any]) -> None:
    for name, value in options.items():
        if value is not None:
            raise UserError(f"{name} is for a sweep; expected its name, {sweep} is a report")


@netpress.command()
@click.argument("report", type=click.Path(path_type=Path))
@_json
@click.option("--accuracy/--no-accuracy", default=True, help="Classify the test sets again.")
@click.option("--speed/--no-speed", default=True, help="Time the models against their bases again.")
def verify(report: Path, as_json: bool, accuracy: bool, speed: bool) -> int:
    """Measure a shared report again: its files, and its models."""
    from pipeline import paths, verify

    work, data_root = paths.Work(paths.work_root()), paths.data_root()
    checks = []
    for check in verify.checks(report, data_root, work.cache, accuracy=accuracy, speed=speed):
        checks.append(check)
        if not as_json:
            _say(check.line)
    if as_json:
        _show({"checks": [check.to_json() for check in checks]})
    else:
        _say(verify.summary(checks))
    return 1 if verify.any_differs(checks) else 0


@netpress.command()
@_sweep
@_cell
@click.option("--to", type=click.Path(path_type=Path), help="The new folder [DATASET-MODEL-...].")
@click.option("--encoded", is_flag=True, help="As it is stored, not decoded.")
def export(sweep: str, cell: str, to: Path | None, encoded: bool) -> None:
    """The deployable model of a cell, as a folder of its own."""
    from pipeline.orchestrate import export, plan

    asked = _load(sweep)
    work, _ = _roots(asked)
    chosen = plan.find_cell(asked, cell)
    target = to or Path(chosen.name.replace("/", "-"))
    _say(export.export(asked, chosen, work, target, encoded))


@netpress.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--runtime", default="onnxruntime", show_default=True, help="What runs the model.")
@click.option("--anyway", is_flag=True, help="Also where the model needs another CPU.")
@_json
def predict(
    artifact: Path, images: tuple[Path, ...], runtime: str, anyway: bool, as_json: bool
) -> int | None:
    """Classify image files with an exported model."""
    from pipeline.predict import Unfit, predict

    try:
        found = predict(artifact, list(images), runtime, anyway)
    except Unfit as error:
        return _complain(str(error), 1)
    if as_json:
        return _show({"predictions": found})
    for row in found:
        _say(f"{row['image']}  {row['class']}  {row['confidence']:.1%}")


@netpress.command()
@_sweep
def fetch(sweep: str) -> None:
    """Download and verify the data sets of a sweep."""
    from pipeline.orchestrate import plan

    asked = _load(sweep)
    work, data_root = _roots(asked)
    plan.fetch(asked, data_root, work.cache)


@netpress.command()
@_profile
@_set
@click.option("--jobs/--no-jobs", default=True, help="Also send one small job that looks around.")
def doctor(profile: str | None, settings: tuple[str, ...], jobs: bool) -> int:
    """Is this machine, and the cluster of a profile, fit to run?"""
    from pipeline.orchestrate import doctor
    from pipeline.orchestrate import profile as profiles

    name = profile or os.environ.get("NETPRESS_PROFILE")
    cluster = profiles.load(name, settings) if name else None
    checks = []
    for check in doctor.checks(cluster, jobs):
        checks.append(check)
        _say(check.line)
    return 0 if all(check.ok is not False for check in checks) else 1


def _listing(what: str, about: str) -> None:
    def command(as_json: bool, sweep: str | None = None, files: tuple[Path, ...] = ()) -> None:
        from pipeline.orchestrate import plan

        found = plan.listing(what, sweep, files)
        _show({what: found} if as_json else plan.aligned(("", ""), list(found.items())))

    if what != "sweeps":
        command = click.argument("sweep", required=False)(_plugins(command))
    netpress.command(what, help=about)(_json(command))


_listing("techniques", "What a sweep may ask for, and the stages that each stands for.")
_listing("models", "The networks there are.")
_listing("datasets", "The data sets there are; a folder of images can be one, too.")
_listing("sweeps", "The sweep files that ship.")


def _load(name: str):
    """The sweep; what is odd in it is said on standard error."""
    from pipeline.orchestrate import plan

    asked = plan.load_sweep(name)
    for note in asked.notes:
        click.echo(f"netpress: note: {terminal.printable(note)}", err=True)
    return asked


def _cluster(asked, name: str | None = None, settings: Sequence[str] = (), needed: bool = False):
    """The profile for a sweep: the one named here, else the one that it was submitted with, else
    the sweep's or the environment's; `generic` where one is needed and there is none, else None."""
    from pipeline.orchestrate import profile, submitted

    if name is None and (found := submitted.last(asked, settings)):
        for note in found.notes:
            click.echo(f"netpress: note: {note}", err=True)
        return found.cluster
    if settings and not (name or asked.profile or needed):
        name = profile.DEFAULT
    return profile.chosen(
        asked,
        name
        or (
            profile.DEFAULT
            if needed and not asked.profile and "NETPRESS_PROFILE" not in os.environ
            else None
        ),
        settings,
    )


def _job_functions():
    """What the jobs of a sweep call: `jobs` is above the library, so it is passed in from here."""
    from jobs.aggregate import Report
    from jobs.task import Task
    from pipeline.orchestrate.send import JobFunctions

    return JobFunctions(cells=Task, report=Report)


def _roots(asked, cluster=None) -> tuple[Any, Path]:
    """(work root, data root): the same for all commands about a sweep and its profile."""
    from pipeline.orchestrate import plan

    cluster = cluster or _cluster(asked)
    return plan.roots(asked, cluster.profile if cluster else None)


def _show(what: dict[str, Any] | Iterable[str]) -> None:
    """One JSON object, or lines of text, on standard output."""
    if isinstance(what, dict):
        return click.echo(json.dumps(what, indent=2))
    for line in what:
        _say(line)


def _say(line: object) -> None:
    with streams.naming():
        click.echo(terminal.printable(str(line).expandtabs()))
