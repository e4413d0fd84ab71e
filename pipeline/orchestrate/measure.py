"""Measures what is trained again, on this machine: one process after another, each by itself."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline import done, paths, plugins, store, streams, terminal
from pipeline.errors import UserError
from pipeline.orchestrate import images, plan, writable
from pipeline.orchestrate.display import described
from pipeline.orchestrate.local import require_data
from pipeline.sweep import Cell, Sweep

Say = Callable[[str], None]


def run(sweep: Sweep, work: paths.Work, data_root: Path, say: Say = terminal.tell) -> int:
    """Measures every trained cell of the sweep, then builds the report; returns the exit code.

    0: every one was measured. 1: one failed, whose earlier measurements are still there. Raises
    UserError where none is trained, or where images changed since they were.
    """
    cells = trained(sweep, work)
    writable.require_work(work)
    writable.require_report(paths.reports_root(), sweep.name)
    with plan.naming(sweep):
        require_data(cells, data_root)
    images.check(cells, work, data_root, say)
    plugins.keep(sweep.plugins, work)
    plugins.keep_own([cell.model for cell in sweep.cells], work)
    ended = [_one(cell, i, cells, work, data_root, say) for i, cell in enumerate(cells)]
    report_of(sweep, work)
    return 0 if all(ended) else 1


def trained(sweep: Sweep, work: paths.Work) -> list[Cell]:
    """What can be measured; raises UserError where that is nothing."""
    cells = [cell for cell in sweep.cells if done.is_trained(cell, work)]
    if not cells:
        raise UserError(
            f"{sweep.name}: nothing is trained yet, expected `netpress run {plan.quoted(sweep)}` "
            "or `submit` before"
        )
    return cells


def _one(
    cell: Cell, number: int, cells: Sequence[Cell], work: paths.Work, data_root: Path, say: Say
) -> bool:
    """In a process of its own, whose memory is free again, and whose crash costs this cell."""
    head = f"[{number + 1}/{len(cells)}] {cell.name}"
    folder = work.cell(cell.id)
    try:
        done.publish_cell(folder, store.json_bytes(cell.to_json()))
    except store.Busy as busy:
        say(f"{head}: {busy}")
        return False
    process = subprocess.Popen(
        command(work, data_root, [cell.id]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        cwd=paths.CODE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(_python_path())},
        text=True,
    )
    assert process.stdout is not None  # it is a pipe
    with process:
        for line in process.stdout:
            event = json.loads(line)
            reason = f" ({event['reason']})" if event.get("reason") else ""
            say(f"{head}: {described(event)}{reason}")
    if process.returncode < 0:
        say(f"{head}: failed (its process was ended by signal {-process.returncode})")
    return process.returncode == 0


def command(work: paths.Work, data_root: Path, ids: Sequence[str], *more: str) -> list[str]:
    """As `plan.cell_command`, for cells that are only measured."""
    mortal = ("--die-with-parent", str(os.getpid()))
    return plan.cell_command(work, data_root, ids, *mortal, *more, module="jobs.measure")


def _python_path() -> list[str]:
    mine = os.environ.get("PYTHONPATH")
    return [str(paths.CODE), *([mine] if mine else [])]


def report_of(sweep: Sweep, work: paths.Work) -> None:
    """The report with what was measured."""
    from pipeline import report

    made, frames = report.build(sweep, work)
    with streams.at_best():
        report.print_summary(frames)
        terminal.show(f"Report: {made.page}")
