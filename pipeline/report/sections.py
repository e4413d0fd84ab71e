"""What was measured, in the order in which a reader asks."""

from __future__ import annotations

from pipeline.report import content, controls, study
from pipeline.report.answer import Row
from pipeline.report.content import Section
from pipeline.report.frames import Frames
from pipeline.sweep import Sweep


def measured(sweep: Sweep, frames: Frames, rows: list[Row]) -> list[Section]:
    """None of it without results."""
    if not rows:
        return []
    found = (
        study.section(rows),
        content.results(frames),
        content.latency(frames),
        content.simulated(frames),
        controls.section(sweep, rows),
    )
    return [section for section in found if section]
