"""A trained cell is measured on this machine, beside its base, and the measurement is published.

All that it needs is on disk; whatever goes wrong, the training and every earlier measurement stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from pipeline import (
    artifact,
    clock,
    data,
    done,
    hardware,
    origin,
    runtimes,
    same_kind,
    store,
    trained,
)
from pipeline.errors import Corrupt, UserError
from pipeline.measure import gpu
from pipeline.measure.cell import Candidate, measure, size
from pipeline.measure.inference import require_threads
from pipeline.timeline import Timeline
from pipeline.training import compiling
from pipeline.training.checkpoint import read_model
from pipeline.training.recipe import machine

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.data import Split
    from pipeline.paths import CellPaths, Work
    from pipeline.sweep import Cell

__all__ = ["Candidate", "measure_cell", "size"]

Progress = Callable[[dict], None]


def measure_cell(
    cell: Cell, work: Work, split: Split, device: torch.device, progress: Progress
) -> store.MeasurementEntry:
    """Measures a cell that is trained. The caller holds its lock. Raises trained.NoBase, Corrupt,
    measure.cell.NotInteger, and UserError where the images are not those that it was trained on."""
    paths, began = work.cell(cell.id), clock.now()
    digest = store.artifact_sha256(store.verify(paths, deep=False)["files"])
    trained.require_images(paths, split, f"{cell.name} ({cell.id})")
    if runtimes.on_gpu(cell.measure.runtimes):
        compiling.use_cache(work)
    mine = _candidate(paths)
    base, base_digest = mine, digest
    if not cell.is_base:
        base_paths = work.cell(cell.base_id)
        base = Candidate(trained.base(cell, work, split), artifact.load(base_paths.artifact))
        base_digest = store.artifact_sha256(store.verify(base_paths, deep=False)["files"])

    timeline = Timeline()

    def tick(what: str) -> None:
        event = {"stage": "measure", "what": what}
        timeline.event(event)
        progress(event)

    inputs = {same_kind.BASE_ARTIFACT: base_digest, same_kind.IMAGES: split.fingerprint}
    facts = {**_facts(cell, runtimes.on_cpu(cell.measure.runtimes)), **inputs}
    earlier = [e for e in store.measurements(paths, deep=True)[0] if e.artifact == digest]
    known = same_kind.known(paths, earlier, facts, done.record(cell))
    measured = measure(
        mine, base, split, cell.measure, device, tick, None if known is None else known.values
    )
    ran = gpu.ran(cell.measure.runtimes, measured)
    facts = {**_facts(cell, ran), **inputs}  # the time, and what changed meanwhile
    facts |= {} if known is None else {same_kind.ACCURACY_OF: known.name}
    facts = {**facts, "seconds": clock.now() - began, "phases": timeline.seconds()}
    data = store.result_bytes(cell.to_json(), facts, [], measured)
    return store.publish_measurement(paths, facts["machine"], data, digest, done.record(cell))


def measure_again(
    cell: Cell,
    work: Work,
    data_root: Path,
    device: str,
    threads: int | None,
    progress: Progress,
) -> store.MeasurementEntry:
    """One more measurement of a cell that is trained; raises UserError where it is not, and as
    `measure_cell`. The caller holds its lock: what is damaged is set aside, as in training, since
    nobody else would look at it that closely."""
    paths = work.cell(cell.id)
    if paths.manifest.exists() and not store.is_done(paths, deep=True):
        aside = ", ".join(path.name for path in store.withdraw(paths))
        raise UserError(
            f"{cell.name} ({cell.id}) was damaged, and what was is set aside ({aside}); expected "
            "`netpress run` or `submit` to make that again"
        )
    if not done.is_trained(cell, work):
        raise UserError(
            f"{cell.name} ({cell.id}) is not trained, so it cannot be measured; expected `netpress "
            "run` or `submit` to train it"
        )
    require_threads(cell.measure.threads)
    origin.loaded()
    torch.set_num_threads(threads or hardware.training_cores())
    split = data.load(cell.dataset, cell.recipe, cell.seed, data_root, work.cache)
    where = machine(cell.recipe, device).device
    return measure_cell(
        cell, work, split, where, lambda event: progress({"cell": cell.id, **event})
    )


def keep_earlier(paths: CellPaths) -> None:
    """Gives the measurement that an earlier version put into result.h5 a file of its own, before
    result.h5 is written anew; it stays that of the artifact that lies there now. One that has such
    a file already, of an attempt that was killed before it wrote result.h5, is of the artifact
    before."""
    try:
        result = store.read_result(paths.result, with_history=False)
    except (FileNotFoundError, Corrupt):
        return
    if "accuracy" not in result.measured or not paths.artifact.is_dir():
        return
    kept = (store.read_result(e.path, e.sha256) for e in store.measurements(paths, deep=True)[0])
    if any(each.facts == result.facts for each in kept):
        return
    machine = hardware.name_of(result.facts)
    prefix = paths.artifact.name
    files = {
        f"{prefix}/{file.relative_to(paths.artifact).as_posix()}": store.fingerprint(file)
        for file in paths.artifact.rglob("*")
        if not file.is_dir()
    }
    data = store.result_bytes(result.cell, result.facts, [], result.measured)
    made_with = result.facts.get(done.MADE_WITH) or {}
    store.publish_measurement(paths, machine, data, store.artifact_sha256(files), made_with)


def _candidate(paths: CellPaths) -> Candidate:
    return Candidate(read_model(paths.model), artifact.load(paths.artifact))


def _facts(cell: Cell, ran: Sequence[str]) -> dict[str, Any]:
    """Of the machine, and of the runtimes that ``ran`` on it."""
    with hardware.using(cell.measure.threads):  # what all threads are
        described = hardware.machine(on_gpu=bool(runtimes.on_gpu(ran)))
    return {
        **origin.loaded().facts(),
        done.MADE_WITH: done.record(cell),
        **described,
        "runtimes": [*ran, runtimes.REFERENCE],
    }
