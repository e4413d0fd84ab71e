"""Models that lie in reports: what can be exported where the work root does not have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import paths
from pipeline.errors import Corrupt, UserError
from pipeline.orchestrate import plan
from pipeline.paths import CELL_ID, ReportPaths
from pipeline.sweep import Cell, Sweep

if TYPE_CHECKING:
    from pipeline.artifact import Artifact
    from pipeline.report.merged import Published

Files = dict[str, dict[str, Any]]  # name -> {"bytes", "sha256"}


@dataclass(frozen=True)
class Reported:
    """A report as a source of models. Its results.h5 is read, whole, when it is first asked."""

    paths: ReportPaths

    @cached_property
    def published(self) -> Published:
        """Raises UserError where it is damaged, or another version of netpress wrote it."""
        from pipeline.report import merged

        try:
            return merged.read(self.paths.merged)
        except Corrupt as error:
            raise UserError(f"{error}; `netpress verify {self.word}` checks the report") from error

    @property
    def word(self) -> str:
        """The folder, as part of a command that is shown."""
        return paths.shell_word(self.paths.folder)

    @property
    def cells(self) -> list[Cell]:
        """Those whose model, and whose base's, lie in the report."""
        return [
            cell
            for cell in self.published.sweep.cells
            if self.has_model(cell.id) and self.has_model(cell.base_id)
        ]

    def has_result(self, cell_id: str) -> bool:
        return cell_id in self.published.frames.ids

    def has_model(self, cell_id: str) -> bool:
        """Whether there is one, of a result of the report."""
        return self.has_result(cell_id) and self.paths.artifact(cell_id).exists()

    def files(self, cell_id: str) -> Files:
        """Those of a model that the report has, as results.h5 records them. Raises Corrupt where
        they are others."""
        from pipeline.report import artifacts

        folder, files = self.paths.artifact(cell_id), self.published.artifact(cell_id)
        artifacts.require(folder, files)
        return files

    def artifact(self, cell_id: str) -> Artifact:
        """The model itself; raises as `files`."""
        from pipeline import artifact

        self.files(cell_id)
        return artifact.load(self.paths.artifact(cell_id))


def of_sweep(sweep: Sweep) -> list[Reported]:
    """Its reports that there are: the one in ./reports, and the one that ships."""
    roots = {paths.reports_root().resolve(): None, paths.shipped_reports(): None}
    each = [_near(paths.report(sweep.name, root)) for root in roots]
    return [Reported(one) for one in each if one.merged.is_file()]


def _near(report: ReportPaths) -> ReportPaths:
    """Called from the current folder, where it is below: that is what the user types."""
    here = Path.cwd()
    below = report.folder.is_relative_to(here)
    return ReportPaths(report.folder.relative_to(here)) if below else report


def find_cell(sweep: Sweep, text: str, reports: Sequence[Reported]) -> Cell:
    """As `plan.find_cell`; an id can also be one in these reports, which show results of earlier
    versions of netpress, too, whose cells are no longer the sweep's."""
    try:
        return plan.find_cell(sweep, text)
    except UserError:
        older = (r.published.sweep.by_id.get(text) for r in reports if CELL_ID.fullmatch(text))
        if cell := next(filter(None, older), None):
            return cell
        raise
