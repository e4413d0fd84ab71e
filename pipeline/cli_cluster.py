"""The commands for a SLURM cluster."""

from __future__ import annotations

import os

import click

from pipeline import terminal
from pipeline.cli_options import (
    cell_argument,
    cells_argument,
    cluster_for,
    interval_option,
    job_functions,
    json_option,
    live_option,
    load,
    profile_option,
    roots,
    set_option,
    sweep_argument,
)
from pipeline.cli_output import show, show_line, warn
from pipeline.errors import UserError


@click.command()
@sweep_argument
@profile_option
@set_option
@click.option("--dry-run", is_flag=True, help="Show what would be submitted, as plan does.")
@live_option
@json_option
def submit(
    name: str,
    profile: str | None,
    settings: tuple[str, ...],
    dry_run: bool,
    live: bool,
    as_json: bool,
) -> None:
    """Submit what is missing to SLURM; returns at once."""
    from pipeline.orchestrate import submit

    sweep = load(name)
    cluster = cluster_for(sweep, profile, settings, needed=True)
    target = submit.Target(sweep, *roots(sweep, cluster), cluster)
    if dry_run:
        planned = submit.planned(target, live)
        show(planned.to_json() if as_json else planned.lines(terminal.columns()))
        return
    submitted = submit.run(target, job_functions(), live=live)
    if as_json:
        show(submit.plan_of(target, submitted.batch, submitted.states).to_json())
    else:
        show(line.text for line in submit.lines(submitted))
    submitted.sent.check()


@click.command()
@sweep_argument
@json_option
@profile_option
@click.option("--watch", is_flag=True, help="Repeat until nothing is left to do.")
@interval_option
def status(
    name: str, as_json: bool, profile: str | None, watch: bool, interval_s: float | None
) -> None:
    """What is done, trained, running, queued, failed or missing."""
    from pipeline.orchestrate import images, state
    from pipeline.orchestrate import watch as watching

    if as_json and watch:
        raise UserError("--json: one object is printed, so not with --watch; expected one of them")
    if interval_s is not None and not watch:
        raise UserError("--interval: is between two looks; expected --watch as well")
    sweep = load(name)
    work, data_root = roots(sweep, cluster_for(sweep, profile))
    if watch:
        watching.watch(sweep, work, data_root, interval_s)
        return
    states = state.find(sweep, work)
    for note in (*states.notes, *images.notes(states.trained, work, data_root)):
        warn(note)
    if as_json:
        show(state.to_json(states.cells, states.report))
    else:
        show(state.everything(sweep, states, work))


@click.command()
@sweep_argument
@profile_option
@interval_option
def top(name: str, profile: str | None, interval_s: float | None) -> None:
    """A live table of the running cells, with the time left."""
    from pipeline.orchestrate import top

    sweep = load(name)
    work, _ = roots(sweep, cluster_for(sweep, profile))
    top.show(sweep, work, interval_s)


@click.command()
@sweep_argument
@cell_argument
@profile_option
@click.option("--follow", is_flag=True, help="Continue until the cell has ended.")
def logs(name: str, cell: str, profile: str | None, follow: bool) -> None:
    """The logs of a cell: its job's output and its own log."""
    from pipeline.orchestrate import logs, plan

    sweep = load(name)
    work, _ = roots(sweep, cluster_for(sweep, profile))
    show(logs.show(sweep, work, plan.find_cell(sweep, cell), follow))


@click.command()
@sweep_argument
@cells_argument
@profile_option
def cancel(name: str, cells: tuple[str, ...], profile: str | None) -> None:
    """Cancel jobs: those of some cells, or all."""
    from pipeline.orchestrate import cancel, plan

    sweep = load(name)
    work, _ = roots(sweep, cluster_for(sweep, profile))
    show(cancel.run(sweep, work, [plan.find_cell(sweep, cell) for cell in cells]))


@click.command()
@sweep_argument
@cells_argument
@profile_option
@set_option
@click.option("--exceptions", is_flag=True, help="Also cells that an exception ended.")
@live_option
def resume(
    name: str,
    cells: tuple[str, ...],
    profile: str | None,
    settings: tuple[str, ...],
    exceptions: bool,
    live: bool,
) -> None:
    """Submit failed cells again, with a larger request if needed."""
    from pipeline.orchestrate import plan, resume

    sweep = load(name)
    cluster = cluster_for(sweep, profile, settings, needed=True)
    chosen = [plan.find_cell(sweep, cell) for cell in cells]
    target = resume.Target(sweep, *roots(sweep, cluster), cluster)
    resumed = resume.run(target, job_functions(), chosen, exceptions, live)
    show(line.text for line in resume.lines(resumed))
    resumed.submitted.sent.check()


@click.command()
@profile_option
@set_option
@click.option("--jobs/--no-jobs", default=True, help="Also run checks in one small job.")
def doctor(profile: str | None, settings: tuple[str, ...], jobs: bool) -> int:
    """Check this machine, and the cluster of a profile."""
    from pipeline.orchestrate import doctor
    from pipeline.orchestrate import profile as profiles

    name = profile or os.environ.get("NETPRESS_PROFILE") or (profiles.DEFAULT if settings else None)
    cluster = profiles.load(name, settings) if name else None
    checks = []
    for check in doctor.checks(cluster, jobs):
        checks.append(check)
        show_line(check.line)
    return 0 if all(check.ok is not False for check in checks) else 1


COMMANDS = (submit, status, top, logs, cancel, resume, doctor)
