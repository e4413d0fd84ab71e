"""A sweep in the queue, for tests of states: a ledger, rows of squeue and cells, without Slurm."""

from __future__ import annotations

from pathlib import Path

from pipeline import done, store
from pipeline.orchestrate import (
    batch,
    cluster,
    ledger,
    measure_jobs,
    profile,
    resume,
    state,
    there,
)
from pipeline.orchestrate.graph import Request
from pipeline.orchestrate.slurm import Row
from pipeline.paths import Work
from tests import results

TRAINING, MEASURING = Request(40, 10), Request(16, 30)


def train(cell, work) -> None:
    """As execute.py leaves a cell that is not to be measured there."""
    results.publish(cell, work)
    made_with = done.of_artifact(done.record(cell))
    store.write_manifest(work.cell(cell.id), {done.MADE_WITH: made_with})


class Desk:
    """A sweep whose cells were all submitted: trained by job 7, measured by job 8, or all in 7."""

    def __init__(self, folder: Path, in_job: bool = False):
        self.asked, self.work = results.sweep(techniques=("half", "tiny")), Work(folder)
        self.base, self.half, self.tiny = self.asked.cells
        self.ids = [cell.id for cell in self.asked.cells]
        with ledger.locked(self.work.sweep("test")) as known:
            self.known = known
            self.submit("a", 7, "cells", self.ids, TRAINING, apart=not in_job)
            if not in_job:
                self.submit("b", 8, "measure", self.ids, MEASURING)

    def submit(self, intent, job, kind, cells, request, **more) -> None:
        tasks = {"0": list(cells)}
        values = {"memory_gib": request.memory_gib, "minutes": request.minutes, "exclude": []}
        facts = {"tasks": tasks, "request": values, "after": [], "user": "me", "name": intent}
        self.known.append("intent", intent=intent, kind=kind, **facts | more)
        self.known.append("submitted", intent=intent, job=job)

    def look(self, *rows: Row) -> state.SweepState:
        view = cluster.View(self.known, self.work, {row.task: row for row in rows})
        states: dict[str, state.CellState] = {}
        published = there.published(self.asked, self.work, self.work.begun())
        for cell in self.asked.cells:
            states[cell.id] = state._state(
                cell,
                self.work,
                cell.id in published.done,
                states.get(cell.base_id),
                view,
                published.outdated.get(cell.id),
                cell.id in published.trained,
            )
        return state.SweepState(tuple(states.values()), view)

    def measures(self, states, training=(), wanted=batch.is_missing) -> list[str]:
        chosen = measure_jobs.choose(self.asked, states, training, wanted)
        return [cell.technique for cell in chosen]

    def resumed(self, states, *settings: str) -> resume.Choice:
        """What `resume` would send, by a profile with these settings."""
        choice = resume.Choice(frozenset(), exceptions=False)
        times = batch.durations(self.asked, self.work, profile.load("generic", settings))
        for cell_state in states.cells:
            resume._decide(choice, cell_state, states, self.work, times)
        return choice
