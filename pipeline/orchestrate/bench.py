"""A folder that measures a sweep's models on a machine without netpress, and what comes back.

    bench.py            needs ONNX Runtime and NumPy alone; writes one file
    quota.py            how many processors a container may use; bench.py imports it
    bench.json          which models there are, and how they are measured
    models/SHA256.onnx  each in its runnable form

The file that comes back is a stranger's: it is bounded and typed, and it counts for the models
whose SHA-256 it has.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, cast

from pydantic import Field, TypeAdapter, ValidationError

from pipeline import done, hardware, paths, store
from pipeline.errors import Corrupt, UserError
from pipeline.measure.series import Model, Series, Threads
from pipeline.orchestrate.export import new_folder, taken
from pipeline.orchestrate.plan import quoted
from pipeline.orchestrate.reported import Reported
from pipeline.report.measured import Measurement, in_result
from pipeline.store import typed
from pipeline.sweep import Cell, Sweep
from pipeline.versions import SHARED

if TYPE_CHECKING:
    from pipeline.artifact import Artifact

FORMAT = 1
FILE_BYTES = 64 << 20
RUNTIME = "onnxruntime"

Load = Callable[[str], "Artifact"]  # a cell's id -> its model

Sample = Annotated[float, Field(gt=0, le=1e9)]
Short = Annotated[str, Field(max_length=200)]
SeriesName = Annotated[str, Field(pattern=r"^(artifact|base)/(one|all)/batch(1|64)$")]
Samples = Annotated[list[Sample], Field(min_length=1, max_length=100_000)]


class _Machine(typed.Typed):
    name: typed.Machine | None = None
    cpu: Short
    flags: Annotated[list[Short], Field(max_length=100)]
    cores: Annotated[int, Field(ge=1, le=100_000)]
    machine: Short
    system: Short


class _Cell(typed.Typed):
    id: typed.Id
    model_sha256: typed.Sha256
    base_sha256: typed.Sha256
    latency_ms: Annotated[dict[SeriesName, Samples], Field(min_length=1)]


class Measured(typed.Typed):
    """The file that bench.py writes."""

    format: Literal[1]
    measured_at: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    machine: _Machine
    versions: Annotated[dict[Short, Short], Field(max_length=20)]
    cells: Annotated[list[_Cell], Field(min_length=1, max_length=10_000)]


_ADAPTER = TypeAdapter(Measured)


# --- the folder ------------------------------------------------------------------------------


def export(sweep: Sweep, work: paths.Work, to: Path) -> Path:
    """Writes the folder, completely or not at all; returns its absolute path. Raises UserError
    where nothing is trained, an artifact is damaged, or `to` exists."""
    cells = [cell for cell in sweep.cells if done.is_trained(cell, work)]
    if not cells:
        raise UserError(
            f"{sweep.name}: nothing is trained yet, expected `netpress run {quoted(sweep)}` before"
        )
    again = f"`netpress run {quoted(sweep)}` makes it again"
    return _export(cells, lambda cell_id: _artifact(work.cell(cell_id)), to, again)


def export_reported(report: Reported, to: Path) -> Path:
    """The same of the models that lie in a report together with their bases'."""
    if not (cells := report.cells):
        raise UserError(
            f"{report.paths.folder}: has no model beside its base's, which it is timed with; "
            "`netpress report SWEEP --artifacts MB` adds models"
        )
    again = f"`netpress verify {report.word}` checks the report"
    return _export(cells, report.artifact, to, again)


def export_of(
    sweep: Sweep,
    work: paths.Work,
    to: Path,
    given: Reported | None,
    reports: Sequence[Reported],
) -> tuple[Path, str]:
    """(the folder, whose `measure --add` takes what it yields): of the report that is given, else
    of what the sweep has trained, else of a report of the sweep."""
    if given is None and not any(done.is_trained(cell, work) for cell in sweep.cells):
        given = next((report for report in reports if report.cells), None)
    if given is not None:
        return export_reported(given, to), given.word
    return export(sweep, work, to), quoted(sweep)


def _export(cells: Sequence[Cell], load: Load, to: Path, again: str) -> Path:
    target = new_folder(to)
    try:
        with store.shared():
            store.publish_new_folder(target, lambda folder: _fill(folder, cells, load))
    except Corrupt as error:
        raise UserError(f"{error}; {again}") from error
    except FileExistsError:  # made while models were copied
        raise taken(to) from None
    except OSError as error:
        raise UserError(f"{to}: cannot be written: {error.strerror or error}") from error
    return target


def advice(target: str) -> str:
    """`target`: the sweep or report, as a word for the shell."""
    again = f"`netpress measure {target} --add measured.json`"
    return f"run `python bench.py` in it on any machine, then {again} here"


def _fill(folder: Path, cells: Sequence[Cell], load: Load) -> None:
    for script in paths.bench_scripts():
        shutil.copyfile(script, folder / script.name)
    models = store.make_folder(folder / "models")
    written: dict[str, dict[str, Any]] = {}
    for cell_id in dict.fromkeys(i for cell in cells for i in (cell.base_id, cell.id)):
        artifact = load(cell_id)
        digest = hashlib.sha256(artifact.model).hexdigest()
        (models / f"{digest}.onnx").write_bytes(artifact.model)
        written[cell_id] = {"model": digest, "shape": list(artifact.shape)}
    listed = [
        {"id": c.id, "name": c.name, **written[c.id], "base": written[c.base_id]["model"]}
        for c in cells
    ]
    how = {"repeats": cells[0].measure.repeats, "seconds": cells[0].measure.seconds}
    content = store.json_bytes({"format": FORMAT, **how, "cells": listed})
    (folder / "bench.json").write_bytes(content)


def _artifact(cell: paths.CellPaths) -> Artifact:
    from pipeline import artifact  # here, since it loads ONNX

    store.verify(cell)
    return artifact.load(cell.artifact)


# --- the file --------------------------------------------------------------------------------


def read(path: Path) -> Measured:
    """A file that bench.py wrote; UserError for anything else."""
    try:
        data = store.read_regular(path, FILE_BYTES)
        typed.check_json("it", data.decode())
        return _ADAPTER.validate_json(data)
    except ValidationError as error:
        problem = f"{path}: {typed.problem(error)}"
    except Corrupt as error:
        problem = str(error)
    except ValueError as error:
        problem = f"{path}: {error}"
    except OSError as error:
        problem = f"{path}: cannot be read: {error.strerror or error}"
    raise UserError(f"{problem}; expected the file that bench.py writes")


class Added(NamedTuple):
    """What became of a file: how many of its cells were new, and how many were there already."""

    machine: str
    new: int
    earlier: int


def added(file: Measured, are_new: Sequence[bool]) -> Added:
    new = sum(are_new)
    return Added(facts_of(file)["machine"], new, len(are_new) - new)


@dataclass(frozen=True)
class Addition:
    """A file, and what it has of the cells of a sweep."""

    file: Measured
    cells: tuple[tuple[Cell, _Cell], ...]

    def publish(self, work: paths.Work) -> Added:
        return added(self.file, [_publish(*cell, self.file, work) for cell in self.cells])


def addition(sweep: Sweep, work: paths.Work, path: Path) -> Addition:
    """What a file adds to a sweep; publishes nothing. Raises UserError where the file is none, has
    a cell that is not the sweep's, or is of other models."""
    file = read(path)
    return Addition(file, tuple(_checked(file, sweep, work, path)))


def _checked(
    file: Measured, sweep: Sweep, work: paths.Work, path: Path
) -> Iterator[tuple[Cell, _Cell]]:
    check_once(file, path)
    models: dict[str, str] = {}
    for measured in file.cells:
        cell = sweep.by_id.get(measured.id)
        if cell is None:
            raise UserError(f"{path}: has cell {measured.id}, which is none of {sweep.name}'s")
        for cell_id, digest in (
            (cell.id, measured.model_sha256),
            (cell.base_id, measured.base_sha256),
        ):
            if cell_id not in models:
                models[cell_id] = _model_sha256(work.cell(cell_id), path)
            if models[cell_id] != digest:
                raise UserError(
                    f"{path}: is of another model than that of {cell.name} ({cell.id}): its "
                    f"SHA-256 is {digest}, expected {models[cell_id]}"
                )
        check_name(file, measured, _measurements(work.cell(cell.id), file), path)
        yield cell, measured


def check_once(file: Measured, path: Path) -> None:
    """Raises UserError where the file has a cell twice."""
    ids = [measured.id for measured in file.cells]
    if len(set(ids)) < len(ids):
        raise UserError(f"{path}: has a cell more than once; expected each once")


def check_name(file: Measured, cell: _Cell, others: Iterable[Measurement], path: Path) -> None:
    """Raises UserError where the file's machine is called as another one of `others`, which
    measured the cell: one of the two would not be shown. The same one may measure again."""
    facts = facts_of(file)
    for other in others:
        if other.machine == facts["machine"] and not _is_of_bench(other, facts, cell):
            raise UserError(
                f"{path}: its machine is called {other.machine}, as another that measured cell "
                f"{cell.id}; expected a name of its own: `python bench.py --name NAME`, or as "
                "`name` of `machine` in the file"
            )


def _is_of_bench(other: Measurement, facts: Mapping[str, Any], cell: _Cell) -> bool:
    """Whether bench.py measured it, on a machine of the same kind; at the same moment, the same."""
    described, own = other.facts.get("hardware") or {}, facts["hardware"]
    kind = ("cpu", "flags", "cores")
    if other.facts.keys() != facts.keys() or any(described.get(k) != own[k] for k in kind):
        return False
    values = latencies(cell)
    same = values.keys() == other.measured.keys() and all(
        ms.tolist() == other.measured[name].tolist() for name, ms in values.items()
    )
    return same or other.facts != facts


def _measurements(cell: paths.CellPaths, file: Measured) -> Iterator[Measurement]:
    """What the work root has of the cell under the name of the file's machine."""
    own = in_result(store.read_result(cell.result, with_history=False))
    yield from [own] if own else []
    for entry in store.measurements(cell)[0]:
        if entry.machine == facts_of(file)["machine"]:
            read = store.read_result(entry.path, entry.sha256, with_history=False)
            yield Measurement(entry.name, read.facts, read.measured)


def _model_sha256(cell: paths.CellPaths, path: Path) -> str:
    try:
        return hashlib.sha256(_artifact(cell).model).hexdigest()
    except Corrupt as error:
        raise UserError(f"{path}: cannot be compared with the sweep's models: {error}") from error


def _publish(cell: Cell, measured: _Cell, file: Measured, work: paths.Work) -> bool:
    """A file that is added twice counts once; returns whether this one is new."""
    folder, facts = work.cell(cell.id), facts_of(file)
    data = store.result_bytes(cell.to_json(), facts, [], latencies(measured))
    digest = hashlib.sha256(data).hexdigest()
    with store.lock_cell(folder):
        entries, _ = store.measurements(folder)
        if any(entry.sha256 == digest for entry in entries):
            return False
        artifact = store.artifact_sha256(store.verify(folder, deep=False)["files"])
        made_with = {"measurement": SHARED["measurement"]}  # less than any sweep requests
        store.publish_measurement(folder, facts["machine"], data, artifact, made_with)
        return True


def facts_of(file: Measured) -> dict[str, Any]:
    """As a measurement's facts, of the machine that the file names."""
    machine = file.machine
    return {
        "machine": machine.name
        or hardware.machine_name(machine.cpu, machine.cores, flags=machine.flags),
        "hardware": {**machine.model_dump(exclude={"name"}), "gpu": None},
        "versions": file.versions,
        "runtimes": [RUNTIME],
        "threads": machine.cores,
        "measured_at": file.measured_at,
    }


def latencies(cell: _Cell) -> dict[str, Any]:
    """Name of a series in result.h5 -> its samples in ms; of a base, which has nothing beside it,
    its own count as those of its base."""
    import numpy

    samples = {_series(name): numpy.array(ms) for name, ms in cell.latency_ms.items()}
    if cell.model_sha256 == cell.base_sha256:
        samples |= {s._replace(model="base"): ms for s, ms in samples.items()}
    return {series.name: ms for series, ms in samples.items()}


def _series(name: str) -> Series:
    model, threads, batch = name.split("/")
    number = int(batch.removeprefix("batch"))
    return Series(RUNTIME, cast(Model, model), cast(Threads, threads), number)
