"""Submit again what failed, with what its kind of failure asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from pipeline import store
from pipeline.orchestrate import cluster as clusters
from pipeline.orchestrate import state, submit
from pipeline.orchestrate.graph import Request
from pipeline.orchestrate.profile import Cluster
from pipeline.orchestrate.retry import Cause, escalated
from pipeline.paths import Work
from pipeline.sweep import Cell, Sweep


@dataclass
class Choice:
    """What is resumed, and how: requests by cell, and a line for each cell that failed."""

    named: frozenset[str]
    exceptions: bool
    requests: dict[str, Request] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)


def run(
    asked: Sweep,
    work: Work,
    data_root,
    cluster: Cluster,
    cells: Sequence[Cell] = (),
    exceptions: bool = False,
) -> tuple[submit.Batch, state.Found, submit.Sent, list[str]]:
    """As `submit.run`, and lines about the cells that failed: what each is given, or why it is not.

    cells: only these and the bases that they need, whatever ended them. exceptions: also cells
    that an exception ended.
    """
    choice = Choice(frozenset(cell.id for cell in cells), exceptions)

    def pick(found: state.Found) -> submit.Picked:
        for cell_state in found.cells:
            _decide(choice, cell_state, found, work, cluster)
        return submit.Picked(
            lambda cell_state: cell_state.cell.id in choice.requests,
            lambda cell: choice.requests[cell.id],
        )

    made, found, sent = submit.run(asked, work, data_root, cluster, pick=pick)
    return made, found, sent, choice.said


def _decide(choice: Choice, cell_state: state.CellState, found, work, cluster: Cluster) -> None:
    """Note what the cell's next job asks for; nothing, where it is to have none."""
    cell, view = cell_state.cell, found.view
    if cell_state.state in ("done", "running") or (view and view.in_queue(cell.id)):
        return
    if choice.named and cell.id not in choice.named and not _is_base_of(cell, choice, found):
        return
    if not _has_base(cell, choice, found):
        choice.said.append(f"{cell.id} {cell.name}: left alone, as its base is")
        return
    cause = _cause(cell_state, work, view)
    if not (cause.rule.again or choice.exceptions or cell.id in choice.named):
        choice.said.append(f"{cell.id} {cell.name}: left alone, {cell_state.reason}")
        return
    asked = _asked(cell, view, cluster)
    if (base := choice.requests.get(cell.base_id)) and cause.kind == "base_failed":
        # It has not run yet, and needs about what its base turned out to need.
        asked = replace(asked, memory_gib=max(asked.memory_gib, base.memory_gib))
    profile = cluster.profile
    next_one = escalated(cause, asked, profile.cap_gib, profile.cap_minutes)
    if isinstance(next_one, str):
        choice.said.append(f"{cell.id} {cell.name}: left alone, {cell_state.reason}; {next_one}")
        return
    next_one = replace(
        next_one,
        memory_gib=max(next_one.memory_gib, profile.memory_gib),
        minutes=max(next_one.minutes, profile.minutes),
    )
    choice.requests[cell.id] = next_one
    if cell_state.state in ("failed", "cancelled"):
        choice.said.append(
            f"{cell.id} {cell.name}: again{_more(asked, next_one)}, it ended with "
            f"{cell_state.reason}"
        )


def _has_base(cell: Cell, choice: Choice, found: state.Found) -> bool:
    """Whether the cell's base is there, or will be; true for a base itself."""
    if cell.is_base or cell.base_id in choice.requests:
        return True
    base = found.by_id[cell.base_id]
    in_queue = found.view is not None and found.view.in_queue(cell.base_id)
    return base.state in ("done", "running") or in_queue


def _is_base_of(cell: Cell, choice: Choice, found: state.Found) -> bool:
    """Whether a named cell stands on this one."""
    return any(found.by_id[i].cell.base_id == cell.id for i in choice.named)


def _cause(cell_state: state.CellState, work: Work, view: clusters.View | None) -> Cause:
    """The cause by what SLURM knows, else by what the last attempt wrote down."""
    cell = cell_state.cell
    if cell_state.state in ("missing", "waiting"):
        return Cause("lost", "")
    if view and view.task(cell.id) and not state.is_newer(cell, work, view):
        return view.cause(cell)
    failure = clusters.failure_of(store.last_attempt(work.cell(cell.id)))
    if failure is None:  # it failed because its base did
        return Cause("base_failed", "")
    return Cause(failure["kind"], "")


def _asked(cell: Cell, view: clusters.View | None, cluster: Cluster) -> Request:
    """What its last job asked for; without one, what the profile says."""
    at = view.last.get(cell.id) if view else None
    if at is None:
        return Request(cluster.profile.memory_gib, cluster.profile.minutes)
    last = at.entry.request
    return Request(last["memory_gib"], last["minutes"], tuple(last["exclude"]))


def _more(asked: Request, given: Request) -> str:
    more = []
    if given.memory_gib != asked.memory_gib:
        more.append(f"{given.memory_gib} GiB instead of {asked.memory_gib}")
    if given.minutes != asked.minutes:
        more.append(f"{given.minutes} minutes instead of {asked.minutes}")
    if given.exclude != asked.exclude:
        more.append(f"without {', '.join(given.exclude)}")
    return f" with {', '.join(more)}" if more else ""


def lines(made: submit.Batch, found: state.Found, sent, said: Sequence[str]) -> Iterator[str]:
    yield from said
    for line in submit.lines(made, found, sent):
        if "netpress resume" not in line:
            yield line
