"""What was measured, in the order in which a reader asks."""

from __future__ import annotations

from pipeline.report import content, controls, gpu, published, study, tuned
from pipeline.report.document import Section
from pipeline.report.frames import Frames
from pipeline.sweep import Sweep


def measured(sweep: Sweep, frames: Frames) -> list[Section]:
    """None of it without results."""
    if not frames.rows:
        return []
    sections = (
        study.section(frames.rows),
        content.results(frames),
        content.latency(frames),
        content.machines(frames),
        gpu.section(frames),
        content.simulated(frames),
        tuned.section(sweep, frames.rows),
        controls.section(sweep, frames.rows),
        published.section(frames.rows),
    )
    return [section for section in sections if section]
