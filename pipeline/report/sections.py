"""What was measured, in the order in which a reader asks."""

from __future__ import annotations

from pipeline.report import content, controls, gpu, published, starts, study, tuned
from pipeline.report.document import Section
from pipeline.report.frames import Frames
from pipeline.sweep import Sweep


def measured(sweep: Sweep, frames: Frames) -> list[Section]:
    """None of it without results."""
    if not frames.rows:
        return []
    shown = frames.compared()
    sections = (
        study.section(shown.rows),
        content.results(shown),
        content.latency(shown),
        content.machines(shown),
        gpu.section(shown),
        content.simulated(shown),
        tuned.section(sweep, frames.rows),
        controls.section(sweep, shown.rows),
        starts.section(sweep, shown.rows),
        published.section(shown.rows),
    )
    return [section for section in sections if section]
