"""Small runs for tests/benchmarks/faults.py: each can be ended at any operation on the disk, and is
then repeated. What is published in them is small; the code that publishes is the real one.

This module imports little: each of its runs is a fork, which takes the longer the larger it is.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from pipeline import catalog, report, store, sweep
from pipeline.orchestrate import export, ledger, snapshot
from pipeline.paths import ReportPaths, Work
from pipeline.report.owned import Owned
from pipeline.store import claims
from tests import cells, results


@dataclass(frozen=True)
class Scenario:
    """`before` makes the folder, `act` is the run, `products` is what has to be there at the end,
    `sound` raises where half of something has a live name. `pairs`: how often two faults are tried,
    the less often the longer a run takes; none where it takes seconds. `keeps`: what a run
    could not remove stays, since no later one has anything to do in its folder."""

    name: str
    before: Callable[[Path], None]
    act: Callable[[Path], None]
    products: Callable[[Path], object]
    sound: Callable[[Path], None]
    pairs: int = 1_400
    keeps: bool = False


@cache
def some_sweep(techniques: str = "base, ptq-int8") -> sweep.Sweep:
    """Small, such as a user may write it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "test.yaml"
        model = "models: [{name: vgg11_bn, width: 0.125}]"
        more = f"datasets: [digits]\ntechniques: [{techniques}]\ntraining: {{epochs: 2}}"
        path.write_text(f"name: test\n{model}\n{more}\n")
        return sweep.load(path, catalog.built_in())


def _nothing(folder: Path) -> None:
    pass


def _told(folder: Path) -> Path:
    """Beside the folder, where no fault happens: what a run was told to be on disk."""
    return folder.parent / "told"


def _tell(folder: Path, what: str) -> None:
    with _told(folder).open("a") as file:
        file.write(f"{what}\n")


def _was_told(folder: Path) -> set[str]:
    return set(_told(folder).read_text().split()) if _told(folder).exists() else set()


# --- a cell ----------------------------------------------------------------------------------


def base_done(folder: Path) -> None:
    results.publish(some_sweep().cells[0], Work(folder))


def publish(folder: Path) -> None:
    """What a cell publishes, under its lock; its numbers are made up."""
    cell, work = some_sweep().cells[1], Work(folder)
    with store.lock_cell(work.cell(cell.id)):
        if store.is_done(work.cell(cell.id), deep=True):
            return
        if work.cell(cell.id).manifest.exists():
            store.withdraw(work.cell(cell.id))
        attempt = store.new_attempt(work.cell(cell.id), "1_0")
        store.write_usage(attempt, store.Usage("1_0"))
        results.publish(cell, work)
        _tell(folder, cell.id)


def _damaged(folder: Path) -> None:
    base_done(folder)
    publish(folder)
    paths = Work(folder).cell(some_sweep().cells[1].id)
    for path in (paths.result, paths.artifact / "model.onnx"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")


def _measured(folder: Path) -> None:
    """Two machines measure a cell that is done, each once."""
    cell, work = some_sweep().cells[0], Work(folder)
    paths = work.cell(cell.id)
    with store.lock_cell(paths):
        there = {entry.machine for entry in store.measurements(paths, deep=True)[0]}
        for machine in ("one", "two"):
            if machine not in there:
                results.measure(cell, work, machine, "A CPU")
                _tell(folder, machine)


def _cells_are_sound(folder: Path) -> None:
    for cell in some_sweep().cells:
        paths = Work(folder).cell(cell.id)
        if paths.manifest.exists():
            store.verify(paths, deep=True)
        if paths.result.exists():
            store.read_result(paths.result)
        if paths.metrics.exists():
            store.read_history(paths.metrics)
        if paths.cell_json.exists():
            json.loads(paths.cell_json.read_bytes())
        entries, damaged = store.measurements(paths, deep=True)
        assert not damaged, damaged
        assert paths.manifest.exists() or cell.id not in _was_told(folder), "a cell is lost"
        for entry in entries:
            store.read_result(entry.path, entry.sha256)


def _measurements_are_sound(folder: Path) -> None:
    _cells_are_sound(folder)
    at = Work(folder).cell(some_sweep().cells[0].id)
    there = {entry.machine for entry in store.measurements(at)[0]}
    assert _was_told(folder) <= there, f"lost: {_was_told(folder) - there}"


def _published(folder: Path) -> object:
    _cells_are_sound(folder)
    places = [Work(folder).cell(cell.id) for cell in some_sweep().cells]
    return [
        (store.is_done(at, deep=True), {e.machine for e in store.measurements(at)[0]})
        for at in places
    ]


def _checkpoints(folder: Path) -> None:
    """Three epochs, each kept, of a network of one layer; then its weights alone."""
    from pipeline.models import network, vgg
    from pipeline.training.checkpoint import Checkpointer, Snapshot
    from pipeline.training.loop import Training

    paths = Work(folder).cell("0" * 16)
    with store.lock_cell(paths):
        kept = Checkpointer(paths.checkpoint, paths.metrics)
        loaded = kept.load()
        training = loaded.training if loaded else None
        if training is None:
            training = Training(network.new(vgg.spec("vgg11", 0.0625, (1, 8, 8), 4, 128, 0.01), 0))
        for epoch in range(training.epoch + 1, 4):
            training.epoch = epoch
            training.columns = {"loss": [1.0 / (i + 1) for i in range(epoch)]}
            kept.save(Snapshot(0, "train", training, ()), wait=True)
        done = (store.StageHistory(0, "train", training.columns),)
        kept.finish(Snapshot(1, "end", training, done), paths.model)
        store.publish_bytes(paths.metrics, store.history_bytes(done))


def _checkpoint_is_sound(folder: Path) -> None:
    from pipeline.training.checkpoint import Checkpointer

    paths = Work(folder).cell("0" * 16)
    if paths.metrics.exists():
        store.read_history(paths.metrics)
    if paths.checkpoint.exists():
        Checkpointer(paths.checkpoint, paths.metrics).load()
        assert not list(paths.checkpoint.glob("*.corrupt-*")), "a state that is half there"


def _checkpointed(folder: Path) -> object:
    paths = Work(folder).cell("0" * 16)
    history = [(h.stage, h.columns) for h in store.read_history(paths.metrics)]
    return sorted(p.name for p in paths.checkpoint.iterdir()), store.sha256(paths.model), history


# --- submissions -----------------------------------------------------------------------------


def submit(folder: Path) -> None:
    """Five submissions in a ledger, each once."""
    place = Work(folder).sweep("s")
    with ledger.locked(place) as known:
        for i in range(5):
            intent = f"intent{i}"
            if intent not in known.entries:
                facts = dict(tasks={"0": [f"cell{i}"]}, request={}, after=[], user="me")
                known.append("intent", intent=intent, name=f"n{i}", kind="cells", **facts)
            _tell(folder, intent)
            if known.entries[intent].open:
                known.append("submitted", intent=intent, job=100 + i)
                _tell(folder, str(100 + i))


def _submit_without_flock(folder: Path) -> None:
    """In a fork, on a file system that has no flock."""
    claims._flock = lambda descriptor, kind: None
    submit(folder)


def _ledger_is_sound(folder: Path) -> None:
    known = ledger.read(Work(folder).sweep("s"))
    assert list(known.entries) == [f"intent{i}" for i in range(len(known.entries))]
    there = {*known.entries, *map(str, known.jobs)}
    assert _was_told(folder) <= there, f"lost: {_was_told(folder) - there}"


def _submitted(folder: Path) -> object:
    return ledger.read(Work(folder).sweep("s")).jobs


CODE = {"pipeline/a.py": "a = 1\n", "pipeline/b/c.py": "c = 2\n", "jobs/d.py": "d = 3\n"}


def _checkout(folder: Path) -> None:
    for name, text in CODE.items():
        (folder / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "checkout" / name).write_text(text)


def _snapshot(folder: Path) -> None:
    snapshot.make(snapshot.of(Work(folder / "work"), code=folder / "checkout"))


def _snapshot_is_sound(folder: Path) -> None:
    for copy in (folder / "work" / "code").glob("[0-9a-f]*"):
        for name, text in CODE.items():
            assert (copy / name).read_text() == text, name


def _snapshots(folder: Path) -> object:
    """The names of its files; in one of them is where the checkout lies."""
    return [name.partition("/")[2] for name in _files(folder / "work" / "code")]


# --- what is taken away ----------------------------------------------------------------------


def _export(folder: Path) -> None:
    cell, work = some_sweep().cells[0], Work(folder / "work")
    if not (folder / "model").exists():
        export.export(some_sweep(), cell, work, folder / "model")


def _work_in_its_folder(folder: Path) -> None:
    base_done(folder / "work")


def _exported_is_sound(folder: Path) -> None:
    if (folder / "model").exists():
        assert len(_files(folder / "model")) == 3, "half a model"


def _files(folder: Path) -> dict[str, str]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): store.sha256(p) for p in files}


def _decode(folder: Path) -> None:
    """A data set comes into the cache."""
    from pipeline.data import cache as kept

    pixels, labels = np.arange(64, dtype=np.uint8).reshape(4, 1, 4, 4), np.arange(4) % 2
    kept.load(
        folder, "tiny", "k" * 16, lambda: kept.Decoded(("a", "b"), pixels, labels, pixels, labels)
    )


def _cache_is_sound(folder: Path) -> None:
    from pipeline.data import cache as kept
    from pipeline.data import entries

    if (at := entries.arrays(folder, "tiny", "k" * 16)).exists():
        assert kept._read(at, "k" * 16) is not None


# --- reports ---------------------------------------------------------------------------------

DRAWN = ("index.html", "report.md", "figures/a.svg", "figures/b.svg", "tables/c.tex")


def _publish_owned(folder: Path) -> None:
    """Files in the place of those that a report has, one of an earlier report too many."""
    owned = Owned.of(ReportPaths(folder / "test"))
    owned.begin()
    owned.claim(DRAWN)
    for name in DRAWN:
        store.publish_bytes(folder / "test" / name, f"{name} of the new one".encode())
    owned.remove(["figures/old.svg"])
    owned.publish()


def _earlier_owned(folder: Path) -> None:
    owned = Owned.of(ReportPaths(folder / "test"))
    owned.begin()
    owned.claim(["figures/old.svg", "index.html"])
    for name in ("figures/old.svg", "index.html"):
        store.publish_bytes(folder / "test" / name, f"{name} of an earlier one".encode())


def _owned_is_sound(folder: Path) -> None:
    listed = json.loads((folder / "test" / "files.json").read_bytes())["netpress_report"]
    for name, _ in _files(folder / "test").items():
        if not store.TEMPORARY.fullmatch(Path(name).name):
            assert name in listed, f"{name} is nobody's"
            assert name == "files.json" or b" one" in (folder / "test" / name).read_bytes()


def _report(folder: Path) -> None:
    report.build(some_sweep(), Work(folder / "work"), folder / "reports", 10**9)


def _work_of_report(folder: Path) -> None:
    for cell in some_sweep().cells:
        results.publish(cell, Work(folder / "work"))


def _report_is_sound(folder: Path) -> None:
    _cells_are_sound(folder / "work")
    paths = ReportPaths(folder / "reports" / "test")
    if paths.merged.exists():
        store.check_seal(paths.merged)


def _reported(folder: Path) -> object:
    """The bytes of a report."""
    return _files(folder / "reports")


QUICK = (
    Scenario("publish", base_done, publish, _published, _cells_are_sound, 500),
    Scenario("damaged", _damaged, publish, _published, _nothing, 500),
    Scenario("measure", base_done, _measured, _published, _measurements_are_sound, 500),
    Scenario("checkpoint", _nothing, _checkpoints, _checkpointed, _checkpoint_is_sound, 300),
    Scenario("ledger", _nothing, submit, _submitted, _ledger_is_sound),
    Scenario("no-flock", _nothing, _submit_without_flock, _submitted, _ledger_is_sound),
    Scenario(
        "snapshot",
        _checkout,
        _snapshot,
        _snapshots,
        _snapshot_is_sound,
    ),
    Scenario(
        "export",
        _work_in_its_folder,
        _export,
        lambda f: _files(f / "model"),
        _exported_is_sound,
        keeps=True,
    ),
    Scenario("cache", _nothing, _decode, _files, _cache_is_sound),
    Scenario("owned", _earlier_owned, _publish_owned, lambda f: _files(f), _owned_is_sound),
)
REPORT = Scenario("report", _work_of_report, _report, _reported, _report_is_sound, 0)


def cell_scenario() -> Scenario:
    """A real cell: trained on 32 digits, exported, measured."""
    training = {"epochs": 1, "batch_size": 32, "train_images": 32, "test_images": 16}
    with tempfile.TemporaryDirectory() as folder:
        base = cells.cells(Path(folder), ["base"], training=training)["base"]

    def act(folder: Path) -> None:
        cells.run(base, Work(folder))

    def products(folder: Path) -> object:
        paths = Work(folder).cell(base.id)
        store.verify(paths, deep=True)
        return {name: store.sha256(paths.folder / name) for name in ("artifact/model.onnx",)}

    def sound(folder: Path) -> None:
        paths = Work(folder).cell(base.id)
        if paths.manifest.exists():
            store.verify(paths, deep=True)
        if paths.metrics.exists():
            store.read_history(paths.metrics)

    return Scenario("cell", _nothing, act, products, sound, 0)
