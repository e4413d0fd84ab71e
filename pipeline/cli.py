"""The command line: arguments in, tables out. Each command calls one function of a lower module.

Exit codes: 0 done, 1 something failed, 2 usage or input error, 130 interrupted. Results go to
standard output, progress and errors to standard error. Commands import their modules when called.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from pipeline import __version__, arguments, cli_cluster, garbage, store, streams, terminal
from pipeline.cli_options import (
    Commands,
    FiniteRange,
    cluster_for,
    device_option,
    json_option,
    load,
    optional_sweep_argument,
    plugins_option,
    profile_option,
    roots,
    set_option,
    sweep_argument,
)
from pipeline.cli_output import (
    fail,
    fail_of_system,
    fail_of_usage,
    open_page,
    show,
    show_line,
    user_folders,
    warn,
)
from pipeline.errors import Corrupt, UserError


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
        return fail_of_usage(error)
    except UserError as error:
        return fail(str(error), error.exit_code)
    except Corrupt as error:
        return fail(str(error), code=1)
    except (click.Abort, KeyboardInterrupt):
        return fail("stopped; the same command continues from here", code=130)
    except BrokenPipeError:  # the reader of our output has ended (`| head`)
        streams.abandon()
        return 1
    except OSError as error:
        return fail_of_system(error)


@click.group(
    cls=Commands,
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


@netpress.command()
@sweep_argument
@click.option(
    "--workers",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Cells at once [one a GPU, or one].",
)
@click.option(
    "--threads", type=click.IntRange(1, 4096), metavar="N", help="CPU threads each [cores/workers]."
)
@device_option
def run(name: str, workers: int | None, threads: int | None, device: str) -> int:
    """Train, compress and measure on this machine; then the report."""
    from pipeline.orchestrate import local

    sweep = load(name)
    return local.run(sweep, *roots(sweep), device=device, workers=workers, threads=threads)


@netpress.command()
@sweep_argument
@json_option
@profile_option
@set_option
def plan(name: str, as_json: bool, profile: str | None, settings: tuple[str, ...]) -> None:
    """The matrix, the jobs, the cost; writes nothing."""
    from pipeline.orchestrate import plan

    sweep = load(name)
    cluster = cluster_for(sweep, profile, settings)
    if cluster is None:
        planned = plan.plan(sweep, *roots(sweep))
    else:
        from pipeline.orchestrate import submit

        planned = submit.planned(submit.Target(sweep, *roots(sweep, cluster), cluster))
    show(planned.to_json() if as_json else planned.lines(terminal.columns()))


@netpress.command()
@sweep_argument
@device_option
def rehearse(name: str, device: str) -> int:
    """Run every cell on a small part of its data, on this machine."""
    from pipeline.orchestrate import rehearse

    sweep = load(name)
    return rehearse.run(sweep, *roots(sweep), device)


for command in cli_cluster.COMMANDS:
    netpress.add_command(command)


@netpress.command()
@sweep_argument
@json_option
@click.option("--to", type=click.Path(path_type=Path), help="Folder of reports [./reports].")
@click.option(
    "--artifacts",
    "artifact_mb",
    type=FiniteRange("megabytes", 0),
    metavar="MB",
    help="Include models of at most this size in the report.",
)
@click.option(
    "--with",
    "earlier",
    type=click.Path(path_type=Path),
    metavar="REPORT",
    help="A report's folder, for results that are not in the work root.",
)
@click.option(
    "--machine",
    metavar="NAME",
    help="Whose measurements are shown; a report's folder remembers it (not with --json, which "
    "only reads), '' restores the default [that which measured most].",
)
@click.option(
    "--similarity",
    "similarity_of",
    metavar="CELL",
    help="Whose layers are compared with each of its base's; as --machine [of what loses most].",
)
@click.option(
    "--mlflow",
    "mlflow_folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Also write each result as a run of MLflow.",
)
@click.option("--open", "opens", is_flag=True, help="Open the page in a browser.")
def report(
    name: str,
    as_json: bool,
    to: Path | None,
    artifact_mb: float | None,
    earlier: Path | None,
    machine: str | None,
    similarity_of: str | None,
    mlflow_folder: Path | None,
    opens: bool,
) -> None:
    """A page, tables and figures of the available results.

    SWEEP can also be a report's folder: it is then built again from its results.h5 alone.
    """
    from pipeline import paths, report
    from pipeline.orchestrate import images, plan, writable

    written = {"--artifacts": artifact_mb, "--mlflow": mlflow_folder}
    if as_json:
        _refuse_with_json(written | {"--open": opens or None, "--similarity": similarity_of})
    if folder := arguments.published_report(name):
        _refuse_with_folder(name, written | {"--to": to, "--with": earlier})
        chosen = similarity_of and plan.find_cell(report.sweep_of(folder), similarity_of).id
        look, make = (
            partial(report.read_folder, folder, machine),
            partial(report.rebuild, folder, machine, chosen),
        )
    else:
        sweep = load(name, arguments.OR_REPORT)
        work, data_root = roots(sweep)
        for note in images.notes(sweep.cells, work, data_root):
            warn(note)
        most_bytes = None if artifact_mb is None else int(artifact_mb * 1e6)
        if earlier and not paths.ReportPaths(earlier).merged.is_file():
            raise UserError(f"--with {earlier}: expected the folder of a report, with results.h5")
        look = partial(report.read, sweep, work, earlier, machine, to)
        chosen = similarity_of and plan.find_cell(sweep, similarity_of).id
        make = partial(report.build, sweep, work, to, most_bytes, earlier, machine, chosen)
    if as_json:
        show(report.as_json(look()))
        return
    if not folder:
        writable.require_report(to or paths.reports_root(), sweep.name)
    made, frames = make()
    with streams.at_best():
        report.print_summary(frames)
        terminal.show(f"Report: {made.page}")
    if mlflow_folder:
        from pipeline.tracking import reported

        rows = report.as_json(frames)["rows"]
        count = reported.write(sweep, work, rows, mlflow_folder)
        show_line(f"{count} new run{'s' * (count != 1)} in {mlflow_folder}; `mlflow ui` shows them")
    if opens:
        open_page(made.page)


def _refuse_with_json(options: dict[str, Any]) -> None:
    for option, value in options.items():
        if value is not None:
            raise UserError(f"{option}: with --json nothing is written; expected one of the two")


def _refuse_with_folder(report: str, options: dict[str, Any]) -> None:
    for option, value in options.items():
        if value is not None:
            raise UserError(f"{option} is for a sweep; expected its name, {report} is a report")


@netpress.command()
@click.argument("targets", nargs=-1, required=True, metavar="SWEEP|REPORT|ARTIFACT ...")
@click.option(
    "--add",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Take what bench.py measured elsewhere (`export --bench`); nothing is measured here.",
)
def measure(targets: tuple[str, ...], files: tuple[Path, ...]) -> int:
    """Measure again, on this machine, and add it to the report."""
    from pipeline import cli_measure

    return cli_measure.run(targets, files)


@netpress.command()
@click.argument("report", type=click.Path(path_type=Path))
@json_option
@click.option("--accuracy/--no-accuracy", default=True, help="Classify the test sets again.")
@click.option("--speed/--no-speed", default=True, help="Time the models against their bases again.")
def verify(report: Path, as_json: bool, accuracy: bool, speed: bool) -> int:
    """Measure a shared report again: its files, and its models."""
    from pipeline import paths, verify

    work, data_root = paths.Work(paths.work_root()), paths.data_root()
    store.enter(work)
    checks = []
    for check in verify.checks(report, data_root, work.cache, accuracy=accuracy, speed=speed):
        checks.append(check)
        if not as_json:
            show_line(check.line)
    if as_json:
        show({"checks": [check.to_json() for check in checks]})
    else:
        show_line(verify.summary(checks))
    return 1 if verify.any_differs(checks) else 0


@netpress.command()
@sweep_argument
@click.argument("cell", required=False)
@click.option("--to", type=click.Path(path_type=Path), help="The new folder [DATASET-MODEL-...].")
@click.option("--encoded", is_flag=True, help="The stored form, not decoded.")
@click.option(
    "--bench",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Instead, all models with a script that measures them elsewhere.",
)
def export(name: str, cell: str | None, to: Path | None, encoded: bool, bench: Path | None) -> None:
    """The deployable model of a cell, as a folder of its own.

    SWEEP can also be a report's folder. A model that the work root does not have is taken from the
    report of the sweep, ./reports/NAME or the one that ships, if that has it.
    """
    from pipeline import cli_export

    cli_export.run(name, cell, to, encoded, bench)


@netpress.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--runtime", default="onnxruntime", show_default=True, help="The runtime for the model."
)
@click.option("--top", type=click.IntRange(1), metavar="N", help="The N most likely classes.")
@click.option("--anyway", is_flag=True, help="Also where the model needs another CPU.")
@json_option
def predict(
    artifact: Path,
    images: tuple[Path, ...],
    runtime: str,
    top: int | None,
    anyway: bool,
    as_json: bool,
) -> int:
    """Classify images with an exported model: files, or folders."""
    from pipeline import cli_predict

    return cli_predict.run(artifact, list(images), runtime, anyway, top, as_json)


@netpress.command()
@sweep_argument
def fetch(name: str) -> None:
    """Download and verify the data sets of a sweep."""
    from pipeline.orchestrate import plan

    sweep = load(name)
    work, data_root = roots(sweep)
    with user_folders(data_root, work.root):
        plan.fetch(sweep, data_root, work.cache)


def _listing(what: str, about: str) -> None:
    def command(as_json: bool, name: str | None = None, files: tuple[Path, ...] = ()) -> None:
        from pipeline.orchestrate import plan

        descriptions = plan.listing(what, name, files)
        rows = list(descriptions.items())
        lines = plan.aligned(("", ""), rows, terminal.columns())
        show({what: descriptions} if as_json else lines)

    if what != "sweeps":
        command = optional_sweep_argument(plugins_option(command))
    netpress.command(what, help=about)(json_option(command))


_listing("techniques", "The techniques for sweeps, with the stages of each.")
_listing("models", "The available networks.")
_listing("datasets", "The available data sets; a folder of images can be one, too.")
_listing("sweeps", "The sweep files that ship.")
