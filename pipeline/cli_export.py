"""The command `export`: where models come from, the work root or a report."""

from __future__ import annotations

from pathlib import Path

from pipeline import arguments, paths, terminal
from pipeline.cli_options import load, roots
from pipeline.cli_output import show_line
from pipeline.errors import UserError


def run(name: str, cell: str | None, to: Path | None, encoded: bool, bench: Path | None) -> None:
    """One model of a sweep or a report, or with `bench` all of them with what measures them."""
    from pipeline.orchestrate import bench as benches
    from pipeline.orchestrate import export, reported

    if bench is not None and (cell or to or encoded):
        raise UserError("--bench has all models: expected no CELL, --to or --encoded")
    if bench is None and cell is None:
        raise UserError("expected a CELL, or --bench FOLDER for all models of the sweep")
    if folder := arguments.published_report(name):
        given = reported.Reported(paths.ReportPaths(folder))
        sweep, reports = given.published.sweep, [given]
    else:
        given, sweep = None, load(name, arguments.OR_REPORT)
        reports = reported.of_sweep(sweep)
    work, _ = roots(sweep)
    if bench is not None:
        made, measure = benches.export_of(sweep, work, bench, given, reports)
        show_line(made)
        terminal.tell(benches.advice(measure))
        return
    assert cell is not None
    chosen = reported.find_cell(sweep, cell, reports)
    target = to or Path(chosen.name.replace("/", "-"))
    show_line(export.export(sweep, chosen, work, target, encoded, reports))
