"""Arguments and options that commands share, and what they stand for: sweep, cluster, roots."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import click

from pipeline import arguments
from pipeline.cli_output import warn

if TYPE_CHECKING:
    from pipeline.orchestrate.profile import Cluster
    from pipeline.orchestrate.send import JobFunctions
    from pipeline.paths import Work
    from pipeline.sweep import Sweep


class Commands(click.Group):
    """Lists commands in the order of their definition, and suggests one for an unknown name."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if arguments and self.get_command(context, arguments[0]) is None:
            name = arguments[0]
            if not name.startswith("-"):
                from pipeline.strict_yaml import nearest, shown

                raise click.UsageError(
                    f"unknown command {shown(name)}, {nearest(name, self.commands)}", context
                )
        return super().resolve_command(context, arguments)


class FiniteRange(click.FloatRange):
    """A finite number; `unit` says of what."""

    def __init__(self, unit: str, least: float, most: float | None = None):
        super().__init__(least, most)
        self.unit = unit

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> float:
        number = super().convert(value, parameter, context)
        if not math.isfinite(number):  # nan is in every range
            self.fail(f"{value!r} is not a number of {self.unit}.", parameter, context)
        return number


sweep_argument = click.argument("name", metavar="SWEEP")
optional_sweep_argument = click.argument("name", metavar="[SWEEP]", required=False)
cell_argument = click.argument("cell")
cells_argument = click.argument("cells", nargs=-1, metavar="[CELL ...]")
profile_option = click.option("--profile", help="The profile of the cluster: a name or a file.")
set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override one setting of the profile; may be repeated.",
)
plugins_option = click.option(
    "--plugins",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also what this plug-in adds; may be repeated.",
)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="The device for training [a GPU where there is one].",
)
live_option = click.option(
    "--live", is_flag=True, help="Jobs run this checkout, not a snapshot of it."
)
interval_option = click.option(
    "--interval",
    "interval_s",
    type=FiniteRange("seconds", 1, 86_400),
    metavar="SECONDS",
    help="Between two looks [on a cluster from 5 to 60, growing].",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object instead of a table."
)


def load(name: str, expected: str = arguments.SWEEP_FILE) -> Sweep:
    """The sweep; notes about it go to standard error. `expected`: what the command takes."""
    from pipeline.orchestrate import plan

    sweep = plan.load_sweep(name, expected)
    for note in sweep.notes:
        warn(f"note: {note}")
    return sweep


@overload
def cluster_for(
    sweep: Sweep, name: str | None, settings: Sequence[str], needed: Literal[True]
) -> Cluster: ...
@overload
def cluster_for(
    sweep: Sweep, name: str | None = None, settings: Sequence[str] = (), needed: bool = False
) -> Cluster | None: ...
def cluster_for(
    sweep: Sweep, name: str | None = None, settings: Sequence[str] = (), needed: bool = False
) -> Cluster | None:
    """The cluster for a sweep: by the profile named here, else by that of its last submission, else
    by the sweep's or the environment's. Without any: `generic` if one is needed or has settings,
    else None."""
    from pipeline.orchestrate import profile, submitted

    if name is None and (last := submitted.last(sweep, settings)):
        for note in last.notes:
            warn(f"note: {note}")
        return last.cluster
    has_own = name or sweep.profile or os.environ.get("NETPRESS_PROFILE")
    if not has_own and (needed or settings):
        name = profile.DEFAULT
    return profile.chosen(sweep, name, settings)


def roots(sweep: Sweep, cluster: Cluster | None = None) -> tuple[Work, Path]:
    """(work root, data root): the same for all commands about a sweep and its profile."""
    from pipeline import store
    from pipeline.orchestrate import plan

    cluster = cluster or cluster_for(sweep)
    work, data_root = plan.roots(sweep, cluster.profile if cluster else None)
    store.enter(work)
    return work, data_root


def job_functions() -> JobFunctions:
    """What the jobs of a sweep call. `jobs` is above the library, so it is passed in from here."""
    from jobs.follow_up import functions

    return functions()
