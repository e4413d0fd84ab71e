"""The jobs of a sweep that are in the queue before more are submitted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.orchestrate import measure_jobs
from pipeline.orchestrate.cluster import View
from pipeline.orchestrate.graph import Queued
from pipeline.sweep import Sweep


@dataclass(frozen=True)
class InQueue:
    """Jobs of a sweep that are in the queue before a batch is sent: those that make cells, the
    bases of others, where all of these are, the job that submits the rest, the reports, and whether
    one of these waits for all others."""

    jobs: tuple[int, ...] = ()
    bases: Mapping[str, Queued] = field(default_factory=dict)
    places: measure_jobs.Places = field(default_factory=measure_jobs.Places)
    follow_up: int | None = None
    reports: tuple[int, ...] = ()
    has_report: bool = False


def in_queue(sweep: Sweep, view: View | None) -> InQueue:
    if view is None:
        return InQueue()
    bases, places = {}, measure_jobs.Places()
    for cell in sweep.cells:
        if not view.in_queue(cell.id):
            continue
        at = view.last[cell.id]
        assert at.entry.job is not None  # it is in the queue
        places.add_one(cell.id, str(at.entry.job), at.index, at.entry.tasks, at.entry.single)
        if cell.is_base:
            bases[cell.id] = Queued(at.entry.job, at.index, at.entry.single)
    follow_ups = [entry.job for entry in view.follow_ups]
    return InQueue(
        tuple(view.alive_jobs),
        bases,
        places,
        follow_ups[-1] if follow_ups else None,
        tuple(view.alive_reports),
        view.has_report(text_id(sweep)),
    )


def text_id(sweep: Sweep) -> str:
    """Identifies the contents of the sweep file that a report is for, in the ledger."""
    return hashlib.sha256(sweep.text.encode()).hexdigest()[:10]
