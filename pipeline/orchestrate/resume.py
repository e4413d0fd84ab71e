"""Submits failed cells again, with a request that depends on the kind of failure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from pipeline import store
from pipeline.errors import UserError
from pipeline.orchestrate import cluster as clusters
from pipeline.orchestrate import in_job, ledger, slurm, state, submit
from pipeline.orchestrate.batch import REPORTS_AGAIN, Target, durations
from pipeline.orchestrate.durations import Durations
from pipeline.orchestrate.graph import Request
from pipeline.orchestrate.plan import quoted
from pipeline.orchestrate.retry import Cause, escalated
from pipeline.orchestrate.send import JobFunctions
from pipeline.paths import Work
from pipeline.sweep import Cell


@dataclass
class Choice:
    """The cells to resume with their requests, and a line for the user about each failed cell."""

    named: frozenset[str]
    exceptions: bool
    requests: dict[str, Request] = field(default_factory=dict)
    measures: dict[str, Request] = field(default_factory=dict)  # of jobs that only measure
    decisions: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Resumed:
    """What was submitted, and a line about each failed cell: its new request, or why there is
    none."""

    submitted: submit.Submitted
    decisions: list[str]


def run(
    target: Target,
    functions: JobFunctions,
    cells: Sequence[Cell] = (),
    exceptions: bool = False,
    live: bool = False,
) -> Resumed:
    """As `submit.run`, of failed cells; where there is no cluster and was none, the error says how
    to go on without.

    cells: only these and the bases that they need, whatever ended them. exceptions: also cells
    that an exception ended.
    """
    choice = Choice(frozenset(cell.id for cell in cells), exceptions)

    def pick(states: state.SweepState) -> submit.Picked:
        times = durations(target.sweep, target.work, target.cluster)
        for cell_state in states.cells:
            _decide(choice, cell_state, states, target.work, times)
        return submit.Picked(
            lambda cell_state: cell_state.cell.id in choice.requests,
            lambda cell: choice.requests[cell.id],
            (*REPORTS_AGAIN, "cancelled"),
            lambda cell_state: cell_state.cell.id in choice.measures,
            lambda cell: choice.measures.get(cell.id) or times.measuring(cell),
        )

    try:
        return Resumed(submit.run(target, functions, pick=pick, live=live), choice.decisions)
    except slurm.NoCluster as error:
        if ledger.read(target.work.sweep(target.sweep.name)).entries:
            raise
        again = f"`netpress run {quoted(target.sweep)}` continues"
        raise UserError(
            f"nothing of {target.sweep.name} was submitted; on this machine {again} ({error})"
        ) from error


def _decide(
    choice: Choice,
    cell_state: state.CellState,
    states: state.SweepState,
    work: Work,
    times: Durations,
) -> None:
    """Add the request of the cell's next job, if it gets one, and a line for the user."""
    cell, view = cell_state.cell, states.view
    if cell_state.state in ("done", "running") or (view and view.in_queue(cell.id)):
        return
    apart = cell_state.trained and times.profile.measure_job is not None
    if view and cell_state.trained and view.will_measure(cell.id):
        return
    if choice.named and cell.id not in choice.named and not _is_base_of(cell, choice, states):
        return
    if not _has_base(cell, choice, states):
        choice.decisions.append(f"{cell.id} {cell.name}: left alone, as {cell.ground} is")
        return
    cause = _cause(cell_state, work, view, apart)
    if not (cause.rule.again or choice.exceptions or cell.id in choice.named):
        choice.decisions.append(f"{cell.id} {cell.name}: left alone, {cell_state.reason}")
        return
    request, standard = _last_request(cell, view, times, apart)
    if (base := choice.requests.get(cell.stands_on or "")) and cause.kind == "base_failed":
        # It has not run yet, and needs about as much memory as its base.
        request = replace(request, memory_gib=max(request.memory_gib, base.memory_gib))
    profile = times.profile
    job = (profile.measure_job if apart else None) or profile
    next_one = escalated(cause, request, profile.cap_gib, profile.cap_minutes)
    if isinstance(next_one, str):
        choice.decisions.append(
            f"{cell.id} {cell.name}: left alone, {cell_state.reason}; {next_one}"
        )
        return
    ran_out = cause.kind in ("time_limit", "stuck")  # so the estimate is wrong
    least_minutes = job.minutes if ran_out else standard.minutes
    next_one = replace(
        next_one,
        memory_gib=max(next_one.memory_gib, job.memory_gib),
        minutes=max(next_one.minutes, least_minutes),
    )
    (choice.measures if apart else choice.requests)[cell.id] = next_one
    if cell_state.state in ("failed", "cancelled"):
        choice.decisions.append(
            f"{cell.id} {cell.name}: again{_more(request, next_one)}, it ended with "
            f"{cell_state.reason}"
        )


def _has_base(cell: Cell, choice: Choice, states: state.SweepState) -> bool:
    """Whether what the cell stands on is done, or will be; true where that is nothing, and for a
    base that is trained."""
    if cell.stands_on is None or cell.stands_on in choice.requests:
        return True
    if cell.is_base and states.by_id[cell.id].trained:
        return True
    base = states.by_id[cell.stands_on]
    in_queue = states.view is not None and states.view.in_queue(cell.stands_on)
    return base.trained or base.state == "running" or in_queue


def _is_base_of(cell: Cell, choice: Choice, states: state.SweepState) -> bool:
    """Whether a cell that the user named stands on this one, or on what does and is not trained."""
    named = {states.by_id[i] for i in choice.named}
    on = {s.cell.stands_on for s in named if not s.trained}
    while on - {None}:
        if cell.id in on:
            return True
        below = (states.by_id[i] for i in on if i is not None)
        on = {s.cell.stands_on for s in below if not s.trained}
    return False


def _cause(
    cell_state: state.CellState, work: Work, view: clusters.View | None, apart: bool
) -> Cause:
    """The cause by SLURM's records, else by the failure that the last attempt recorded. `apart`: of
    a failed measurement, by a job of its own."""
    cell = cell_state.cell
    if cell_state.state in ("missing", "waiting", "trained"):
        return Cause("lost", "")
    at = view.measured_in(cell.id) if view and apart else None
    if view and at is not None and at.entry.kind == ledger.MEASURE:
        cause = view.cause_of_measuring(cell)
        if cause.kind != "lost":
            return cause
    if not apart and view and view.task(cell.id) and not state.is_newer(cell, work, view):
        return view.cause(cell)
    attempt = store.last_attempt(work.cell(cell.id))
    failure = in_job.failure_of(attempt) if attempt else None
    if failure is None:  # it failed because its base did
        return Cause("base_failed", "")
    return Cause(failure.kind, "")


def _last_request(
    cell: Cell, view: clusters.View | None, times: Durations, apart: bool
) -> tuple[Request, Request]:
    """(that of its last job, that of a cell that has not failed); without a job, the same twice."""
    last = (view.measuring if apart else view.last) if view else {}
    standard = times.measuring(cell) if apart else times.standard(cell)
    at = last.get(cell.id)
    return standard if at is None else Request.from_json(at.entry.request), standard


def _more(request: Request, given: Request) -> str:
    more = []
    if given.memory_gib != request.memory_gib:
        more.append(f"{given.memory_gib} GiB instead of {request.memory_gib}")
    if given.minutes != request.minutes:
        more.append(f"{given.minutes} minutes instead of {request.minutes}")
    if given.exclude != request.exclude:
        more.append(f"without {', '.join(given.exclude)}")
    return f" with {', '.join(more)}" if more else ""


def lines(resumed: Resumed) -> Iterator[submit.Line]:
    """The decisions and the submitted jobs, without the advice to call `resume`."""
    yield from map(submit.Line, resumed.decisions)
    for line in submit.lines(resumed.submitted, "resume"):
        if line.kind is not submit.Kind.RESUME_HINT:
            yield line
