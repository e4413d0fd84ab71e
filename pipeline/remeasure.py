"""A report's models, or one model, measured again on this machine, with what is in the artifact.

Of a report there are no networks in PyTorch, so nothing simulated is timed, and a base that is not
in the report is one of its shape with random weights, as in `verify`. Where this machine lacks the
images, or cannot know what the base predicts on it, accuracy stays that of the machine that did.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from pipeline import artifact, clock, done, hardware, origin, runtimes, store
from pipeline.errors import Corrupt, UserError
from pipeline.measure import accuracy, gpu, inference, latency
from pipeline.measure.series import BATCHES, THREADS, Model, Series
from pipeline.orchestrate import bench as benches
from pipeline.paths import ReportPaths
from pipeline.report import artifacts, merged
from pipeline.report.measured import OF_CPU, TIMES
from pipeline.store import hdf5
from pipeline.sweep import Cell, Measure
from pipeline.verify.artifacts import Bench, elsewhere

if TYPE_CHECKING:
    import h5py

    from pipeline.artifact import Artifact

Say = Callable[[str], None]
FROM_PREDICTIONS = ("differing/", "simulated_agreement")
Found = tuple[str, dict[str, Any], dict[str, Any]]  # cell's id, facts, what was measured


# --- a report --------------------------------------------------------------------------------


def report(folder: Path, data_root: Path, cache: Path, say: Say) -> bool:
    """Measures every model that lies in the report, and adds each to its results.h5 as it comes; a
    model that cannot be measured, or is not the report's own, costs itself, and the answer is
    whether there is none. Raises UserError where there is no model."""
    paths = ReportPaths(folder)
    published = merged.read(paths.merged)
    bench = Bench(published, paths, data_root, cache)
    known = set(published.frames.ids)
    cells = [published.sweep.by_id[f.name] for f in artifacts.present(paths) if f.name in known]
    if not cells:
        raise UserError(
            f"{folder}: has no models to measure; `netpress report SWEEP --artifacts MB` adds them"
        )
    measured = 0
    for i, cell in enumerate(cells):
        say(f"[{i + 1}/{len(cells)}] {cell.name}")
        try:
            inference.require_threads(cell.measure.threads)
            with hardware.using(cell.measure.threads):
                one = (cell.id, *_measured(bench, cell))
        except (UserError, Corrupt) as error:
            say(f"[{i + 1}/{len(cells)}] {cell.name}: not measured: {error}")
        else:
            put(paths, [one])
            measured += 1
    return measured == len(cells)


def _measured(bench: Bench, cell: Cell) -> tuple[dict[str, Any], dict[str, Any]]:
    began, mine = clock.now(), _own(bench, cell)
    base = mine if cell.is_base else bench.base(cell, mine)[0]
    values = deployed(mine, base, cell.measure)
    result = bench.published.result(cell.id)
    try:
        images, labels = bench.images_of(cell, result)
    except UserError:  # another machine's accuracy stands
        return _facts(cell, began, values), values
    own, own_s = _classified(mine, images)
    theirs, theirs_s = _of_base(bench, cell, result, images, (own, own_s))
    if theirs is None or theirs.shape != labels.shape:
        return _facts(cell, began, values), values
    values |= accuracy.of_predictions(own, theirs, labels)
    values |= {
        "predictions": own.astype(numpy.uint16),
        "base_predictions": theirs.astype(numpy.uint16),
        "labels": labels.astype(numpy.uint16),
        "test_set_seconds": own_s,
        **({} if theirs_s is None else {"base_test_set_seconds": theirs_s}),
    }
    return _facts(cell, began, values), {**_kept(result, own, theirs), **values}


def _classified(model: Artifact, images: numpy.ndarray) -> tuple[numpy.ndarray, float]:
    """(classes [N], seconds for all)."""
    logits, seconds = inference.timed_logits(model, images)
    return logits.argmax(1), seconds


def _of_base(
    bench: Bench,
    cell: Cell,
    result: store.Result,
    images: numpy.ndarray,
    own: tuple[numpy.ndarray, float],
) -> tuple[numpy.ndarray | None, float | None]:
    """The same of the cell's base: a drop compares predictions of one machine. Those that are
    recorded are this machine's as well where it is of the same kind; None where nothing is."""
    if cell.is_base:
        return own
    base = bench.own_base(cell)
    if base is not None:
        return _classified(base, images)
    recorded = result.measured.get("base_predictions")
    if not isinstance(recorded, numpy.ndarray) or elsewhere(result):
        return None, None
    return recorded, None


def _own(bench: Bench, cell: Cell) -> Artifact:
    folder = bench.paths.artifact(cell.id)
    artifacts.require(folder, bench.published.artifact(cell.id))
    return artifact.load(folder)


def _kept(result: store.Result, own: numpy.ndarray, base: numpy.ndarray) -> dict[str, Any]:
    """What no machine decides, and what only the network in PyTorch yields. What was derived from
    predictions stays where these are the same: classes [N] here, of the model and of its base."""
    classes = {"predictions": own, "base_predictions": base}
    same = all(numpy.array_equal(result.measured.get(n, []), c) for n, c in classes.items())
    other = (*TIMES, *OF_CPU, *(() if same else FROM_PREDICTIONS))
    return {name: value for name, value in result.measured.items() if not name.startswith(other)}


def _facts(cell: Cell, began: float, values: dict[str, Any]) -> dict[str, Any]:
    ran = gpu.ran(cell.measure.runtimes, values)
    return {
        **origin.loaded().facts(),
        done.MADE_WITH: done.record(cell),
        **hardware.machine(on_gpu=bool(runtimes.on_gpu(ran))),
        "runtimes": ran,
        "seconds": clock.now() - began,
    }


@store.shared()
def put(paths: ReportPaths, measurements: Iterable[Found]) -> None:
    """Adds measurements to the results.h5 of a report, which was read before; one that it has
    counts once. Raises UserError where a new report has no such cell any more."""
    with store.lock_folder(paths.lock):
        _put(paths.merged, measurements)


def _put(path: Path, measurements: Iterable[Found]) -> list[bool]:
    """The same with the lock held; returns of each whether it is new."""
    are_new: list[bool] = []

    def change(file: h5py.File) -> None:
        for cell_id, facts, measured in measurements:
            if cell_id not in file["cells"]:
                raise UserError(f"{path}: has no result of {cell_id} any more, so none is added")
            group = file["cells"][cell_id].require_group("measurements")
            earlier = [name for name in group if name.rpartition("-")[0] == facts["machine"]]
            described = json.dumps(facts, sort_keys=True, allow_nan=False)
            are_new.append(all(group[name].attrs.get("facts") != described for name in earlier))
            if not are_new[-1]:
                continue
            number = 1 + max((int(name.rpartition("-")[2]) for name in earlier), default=0)
            one = group.create_group(f"{facts['machine']}-{number}")
            one.attrs["facts"] = described
            for name, value in sorted(measured.items()):
                hdf5.put(one, f"measure/{name}", value)
        file.attrs.modify("format", merged.FORMAT)

    store.change_hdf5(path, change)
    return are_new


@store.shared()
def add(folder: Path, files: Iterable[Path]) -> dict[Path, benches.Added]:
    """What bench.py measured of models that lie in the report; all of the files or, raising
    UserError, none of them where one is no such file, or is of other models."""
    paths, read = ReportPaths(folder), {path: benches.read(path) for path in files}
    with store.lock_folder(paths.lock):
        found = [one for path, file in read.items() for one in _checked(file, paths, path)]
        are_new = iter(_put(paths.merged, found))
    return {
        path: benches.added(file, [next(are_new) for _ in file.cells])
        for path, file in read.items()
    }


def _checked(file: benches.Measured, paths: ReportPaths, path: Path) -> list[Found]:
    """What is in the file, each of a model in the report."""
    published = merged.read(paths.merged)
    benches.check_once(file, path)
    facts = benches.facts_of(file)
    measurements = []
    for cell in file.cells:
        model = paths.artifact(cell.id)
        if cell.id not in published.frames.ids or not model.is_dir():
            raise UserError(f"{path}: has cell {cell.id}, whose model is not in {paths.folder}")
        base = published.sweep.by_id[cell.id].base_id
        for cell_id, given, expected in (
            (cell.id, cell.model_sha256, hashlib.sha256(artifact.load(model).model).hexdigest()),
            (base, cell.base_sha256, _recorded(published, base)),
        ):
            if expected is not None and given != expected:
                raise UserError(
                    f"{path}: is of another model than that of {cell_id}: its SHA-256 is "
                    f"{given}, expected {expected}"
                )
        benches.check_name(file, cell, published.measurements(cell.id), path)
        measurements.append((cell.id, facts, benches.latencies(cell)))
    return measurements


def _recorded(published: merged.Published, cell_id: str) -> str | None:
    """SHA-256 of a model as the report has it; None where it has none, or stores it coded."""
    if cell_id not in published.frames.ids:
        return None
    file = published.artifact(cell_id).get(artifact.MODEL)
    return None if file is None else str(file["sha256"])


# --- a model ---------------------------------------------------------------------------------


def deployed(mine: Artifact, base: Artifact, settings: Measure) -> dict[str, Any]:
    """The artifact and its base in turns, on the runtimes of the settings: integer kernels, and
    samples in ms by the name of their series."""
    ran = runtimes.kernels(mine)
    values: dict[str, Any] = {
        "integer_kernels": ran.integer,
        "integer_share": ran.integer_share,
    }
    pairs: tuple[tuple[Model, Artifact], ...] = (("artifact", mine), ("base", base))
    for threads in THREADS:
        number = inference.thread_count(threads)
        sessions = {
            (runtime, model): runtimes.session(one, number, runtime)
            for runtime in runtimes.on_cpu(settings.runtimes)
            for model, one in pairs
        }
        for batch in BATCHES:
            images = inference.any_images(mine.shape, batch)
            runs = {key: inference.run_of(s, images) for key, s in sessions.items()}
            beside = [key for key in runs if key[0] != runtimes.DEFAULT]
            for (runtime, model), ms in latency.interleaved(
                runs, settings.repeats, settings.seconds, spinning=beside
            ).items():
                values[Series(runtime, model, threads, batch).name] = ms
    contenders = {model: gpu.Contender(one, None) for model, one in pairs[: 1 + (base is not mine)]}
    return values | gpu.measured(contenders, settings, None)


def artifact_lines(folder: Path) -> Iterator[str]:
    """One model's latencies on this machine, as text."""
    mine, settings = artifact.load(folder), Measure()
    yield f"{folder} on {hardware.cpu_name()}, {hardware.cores()} cores"
    values = deployed(mine, mine, settings)
    for threads in THREADS:
        for batch in BATCHES:
            ms = values[Series(runtimes.DEFAULT, "artifact", threads, batch).name]
            p50, p90 = numpy.percentile(ms, (50, 90))
            where = f"batch {batch}, {threads} thread{'s' * (threads == 'all')}"
            yield f"  {where}: {p50:.3g} ms (p90 {p90:.3g}), {batch / p50 * 1e3:,.0f} images/s"
