"""Measure a shared report again: its files against results.h5, its artifacts against its numbers.

Everything is checked that can be checked on this machine, a line each; what cannot says why.
Nothing in the report is trusted, and nothing in it is changed.

Predictions. On the same CPU flags and the same ONNX Runtime the same kernels run, in the same order
of summation, so every prediction must be the recorded one. Elsewhere sums are rounded in another
order, which moves logits in their last digits, and only images on which two classes are nearly even
change sides: OTHER_CPU of them may. 8-bit products that saturate (x86 without VNNI) are another
computation, of which nothing can be said here.

Speed is information: it is another machine's. Only where a model that was recorded as faster by
more than SPEED_MARGIN is slower by more than that, on the same CPU flags, it differs. A base that
is not in the report is made anew with random weights in its recorded shape: the time of dense
products does not depend on their values.
"""

from __future__ import annotations

import base64
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from pipeline import hardware, store
from pipeline.errors import Corrupt, UserError
from pipeline.paths import ReportPaths
from pipeline.report import artifacts, made, merged, reading
from pipeline.report.merged import Published
from pipeline.report.metrics import BATCHES, THREADS, speedup_key
from pipeline.sweep import Cell

if TYPE_CHECKING:
    from pipeline.artifact import Artifact
    from pipeline.data import Split

OK, DIFFERS, UNCHECKED, NOTE = "ok", "differs", "unchecked", "note"
OTHER_CPU = 0.002
SPEED_MARGIN = 0.05
SAME = 1e-9  # of numbers that are computed again from the same numbers
DRAWN_BY = re.compile(rb"Matplotlib v([0-9][\w.]*)")
IN_PAGE = re.compile(rb"data:image/svg\+xml;base64,([A-Za-z0-9+/]*)=*")


@dataclass(frozen=True)
class Check:
    """`what` was looked at, how it was found (OK, DIFFERS, UNCHECKED or NOTE), and why."""

    what: str
    found: str
    why: str = ""

    @property
    def line(self) -> str:
        said = f"{self.found:9} {self.what}{': ' if self.why else ''}{self.why}"
        return "".join(c if c.isprintable() else "?" for c in said)  # strangers wrote some of it

    def to_json(self) -> dict[str, str]:
        return {"what": self.what, "found": self.found, "why": self.why}


def checks(
    folder: Path, data_root: Path, cache: Path, *, accuracy: bool = True, speed: bool = True
) -> Iterator[Check]:
    """One after the other, as they are done: whoever reads a line need not wait for the last.

    `cache`: for decoded images. Raises UserError where `folder` is no report of this version.
    """
    paths = ReportPaths(folder)
    if not paths.merged.is_file():
        raise UserError(f"{folder}: no report, expected a folder with {paths.merged.name} in it")
    try:
        published = merged.read(paths.merged)
    except Corrupt as error:
        yield Check(paths.merged.name, DIFFERS, _without(folder, error))
        return
    yield Check(paths.merged.name, OK, f"whole, {len(published.frames.cells)} results")
    try:
        yield from _numbers(published)
        yield from _files(published, paths)
        yield from _artifacts(_Bench(published, paths, data_root, cache), accuracy, speed)
    except Corrupt as error:  # a file of somebody who sealed what netpress never writes
        yield Check(paths.merged.name, DIFFERS, _without(folder, error))


def _without(folder: Path, error: Exception) -> str:
    return str(error).replace(f"{folder}/", "")


# --- results.h5 and what was made from it ----------------------------------------------------


def _numbers(published: Published) -> Iterator[Check]:
    """Accuracy and agreement follow from the predictions that were recorded beside them."""
    asked = [(published.path, cell_id) for cell_id in published.frames.cells["id"]]
    known, wrong = 0, False
    for checked, found in reading.in_chunks(_numbers_of, asked):
        known, wrong = known + checked, wrong or bool(found)
        yield from found
    if known and not wrong:
        yield Check("accuracies", OK, f"follow from the predictions in {known} results")


def _numbers_of(asked: Sequence[tuple[Path, str]]) -> tuple[int, list[Check]]:
    """How many of these results have predictions, and what does not follow from them."""
    known, wrong = 0, []
    with store.open_hdf5(asked[0][0], checked=True) as file:
        for _, cell_id in asked:
            measured = reading.result_of(file, cell_id, everything=True).measured
            expected = _from_predictions(measured)
            known += bool(expected)
            wrong += [
                Check(
                    f"{cell_id} {name}",
                    DIFFERS,
                    f"{measured.get(name)} recorded, its predictions give {value}",
                )
                for name, value in expected.items()
                if not _same(measured.get(name), value)
            ]
    return known, wrong


def _from_predictions(measured: dict[str, Any]) -> dict[str, float]:
    names = ("predictions", "base_predictions", "labels")
    found = [measured.get(name) for name in names]
    if not all(isinstance(f, numpy.ndarray) and f.shape == found[0].shape for f in found):
        return {}
    own, base, labels = found
    accuracy, base_accuracy = float(numpy.mean(own == labels)), float(numpy.mean(base == labels))
    return {
        "accuracy": accuracy,
        "base_accuracy": base_accuracy,
        "accuracy_drop": base_accuracy - accuracy,
        "agreement": float(numpy.mean(own == base)),
    }


def _same(recorded: Any, value: float) -> bool:
    return isinstance(recorded, (int, float)) and abs(recorded - value) <= SAME


def _files(published: Published, paths: ReportPaths) -> Iterator[Check]:
    """Every other file is what results.h5 gives, to the byte."""
    expected = made(published, paths)
    for path, data in expected.items():
        yield Check(paths.name(path), *_compared(path, data))
    for path in paths.drawn_or_set():
        if path not in expected:
            yield Check(paths.name(path), DIFFERS, "is not part of this report")


def _compared(path: Path, expected: bytes) -> tuple[str, str]:
    try:
        found = path.read_bytes()
    except OSError as error:
        return DIFFERS, f"cannot be read ({error.strerror})"
    if found == expected:
        return OK, ""
    if drawn := _other_drawing(found, expected):
        return UNCHECKED, drawn
    return DIFFERS, "is not what results.h5 gives"


def _other_drawing(found: bytes, expected: bytes) -> str:
    """Where only another matplotlib drew the figure, or those in the page: which one. Its lines of
    the same numbers are not the same bytes."""
    theirs, ours = _drawn_by(found), _drawn_by(expected)
    if not theirs or not ours or theirs == ours:
        return ""
    if IN_PAGE.search(expected) and IN_PAGE.sub(b"", found) != IN_PAGE.sub(b"", expected):
        return ""
    return f"drawn by matplotlib {theirs}, here is {ours}"


def _drawn_by(data: bytes) -> str:
    """What a figure says, or the first one of a page; "" where none says it."""
    if picture := IN_PAGE.search(data):
        whole = len(picture[1]) // 4 * 4  # somebody may have cut it
        data = base64.b64decode(picture[1][:whole])
    version = DRAWN_BY.search(data)
    return version[1].decode() if version else ""


# --- artifacts -------------------------------------------------------------------------------


def _artifacts(bench: _Bench, accuracy: bool, speed: bool) -> Iterator[Check]:
    done = set(bench.published.frames.cells["id"])
    present = artifacts.present(bench.paths)
    for folder in present:
        name = bench.paths.name(folder)
        if folder.name not in done:
            yield Check(name, DIFFERS, "results.h5 has no such result")
            continue
        yield from _artifact(bench, bench.published.sweep.by_id[folder.name], accuracy, speed)
    if missing := len(done - {folder.name for folder in present}):
        yield Check(
            "artifacts",
            UNCHECKED,
            f"{missing} of {len(done)} results have theirs not in this report; "
            f"`netpress run {bench.called}` makes them again",
        )


def _artifact(bench: _Bench, cell: Cell, accuracy: bool, speed: bool) -> Iterator[Check]:
    """A tampered artifact is not measured: it is not the one that the numbers are of."""
    from pipeline import artifact

    folder, result = bench.paths.artifact(cell.id), bench.published.result(cell.id)
    what = f"{bench.paths.name(folder)} {cell.name}"
    if wrong := artifacts.differs(folder, bench.published.artifact(cell.id)):
        yield Check(what, DIFFERS, wrong)
        return
    try:
        loaded = artifact.load(folder)
        loaded.session(threads=1)
    except (Corrupt, UserError) as error:
        yield Check(what, DIFFERS, _without(folder, error))
        return
    yield from _stored(what, loaded, result)
    yield _kernels(what, loaded, result)
    if accuracy:
        yield _accuracy(bench, what, cell, loaded, result)
    if speed and not cell.is_base:
        yield from _speed(bench, what, cell, loaded, result)


def _stored(what: str, loaded: Artifact, result: store.Result) -> Iterator[Check]:
    for name, value in (
        ("stored_bytes", loaded.stored_bytes),
        ("runnable_bytes", loaded.runnable_bytes),
    ):
        recorded = result.measured.get(name)
        if recorded != value:
            yield Check(f"{what} {name}", DIFFERS, f"{value} here, {recorded} recorded")
    if result.measured.get("stored_bytes") == loaded.stored_bytes:
        yield Check(what, OK, f"loads, {loaded.stored_bytes:,} bytes stored as recorded")


def _kernels(what: str, loaded: Artifact, result: store.Result) -> Check:
    from pipeline.measure import kernels

    what += " integer kernels"
    share, recorded = kernels.executed(loaded).integer_share, result.measured.get("integer_share")
    if _same(recorded, share):
        return Check(what, OK, f"{share:.1%} of the work")
    said = f"{share:.1%} of the work here, {_share(recorded)} recorded"
    if other := _other_machine(result):
        return Check(what, UNCHECKED, f"{said}; {other}")
    return Check(what, DIFFERS, said)


def _share(recorded: Any) -> str:
    return f"{recorded:.1%}" if isinstance(recorded, (int, float)) else "nothing"


def _other_machine(result: store.Result) -> str:
    """In what this machine differs where kernels are chosen; "" where in nothing."""
    import onnxruntime

    flags, version = _flags(result), _recorded(result, "versions", "onnxruntime")
    parts = []
    if flags != hardware.cpu_flags():
        parts.append(f"other CPU flags: {' '.join(hardware.cpu_flags())} here, {' '.join(flags)}")
    if version != onnxruntime.__version__:
        parts.append(f"ONNX Runtime {onnxruntime.__version__} here, {version}")
    return "; ".join(parts) + (" recorded" if parts else "")


def _flags(result: store.Result) -> tuple[str, ...]:
    flags = _recorded(result, "hardware", "flags")
    return tuple(map(str, flags)) if isinstance(flags, list) else ()


def _recorded(result: store.Result, part: str, name: str) -> Any:
    found = result.facts.get(part) if isinstance(result.facts, dict) else None
    return found.get(name) if isinstance(found, dict) else None


def _accuracy(
    bench: _Bench, what: str, cell: Cell, loaded: Artifact, result: store.Result
) -> Check:
    what += " accuracy"
    recorded, labels = (result.measured.get(name) for name in ("predictions", "labels"))
    try:
        test = bench.images_of(cell, result)
    except UserError as error:
        return Check(what, UNCHECKED, f"{error} (`netpress fetch {bench.called}`)")
    images, known = test
    if not (_is_of(recorded, known) and _is_of(labels, known) and (labels == known).all()):
        return Check(what, DIFFERS, "its recorded labels are not those of the test set")
    if tuple(images.shape[1:]) != loaded.shape:
        return Check(what, DIFFERS, "the artifact takes images of another shape")
    own = _classes(loaded, images)
    changed, share = int((own != recorded).sum()), float(numpy.mean(own == known))
    said = (
        f"{share:.2%} here, {float(numpy.mean(recorded == known)):.2%} recorded; "
        f"{changed} of {len(known)} predictions differ"
    )
    return Check(what, *_judged(changed, len(known), loaded, _other_machine(result), said))


def _judged(changed: int, images: int, loaded: Artifact, other: str, said: str) -> tuple[str, str]:
    allowed = max(1, round(OTHER_CPU * images)) if other else 0
    if changed <= allowed:
        return OK, said + (f" ({allowed} may: {other})" if other else "")
    if other and loaded.quantized and hardware.saturates():
        return UNCHECKED, f"{said}; 8-bit products saturate on this CPU ({other})"
    return DIFFERS, said + (f", expected at most {allowed} ({other})" if other else "")


def _is_of(values: Any, known: numpy.ndarray) -> bool:
    return isinstance(values, numpy.ndarray) and values.shape == known.shape


def _classes(loaded: Artifact, images: numpy.ndarray) -> numpy.ndarray:
    """Class [N] of each image, 64 at a time as when they were recorded."""
    from pipeline.artifact import logits

    return numpy.concatenate([s.argmax(1) for s in logits(loaded.session(), images)])


def _speed(
    bench: _Bench, what: str, cell: Cell, loaded: Artifact, result: store.Result
) -> Iterator[Check]:
    try:
        base, about = bench.base(cell, loaded)
    except (Corrupt, UserError, ValueError, LookupError, TypeError) as error:
        yield Check(f"{what} speed", UNCHECKED, f"its base cannot be made: {error}")
        return
    yield Check(f"{what} speed", NOTE, f"against {about}, on {_this_cpu()}{_that_cpu(result)}")
    same = _flags(result) == hardware.cpu_flags()
    for threads in THREADS:
        for batch in BATCHES:
            here = _speedup(loaded, base, cell, threads, int(batch.removeprefix("batch")))
            recorded = bench.row(cell)[speedup_key("speedup", threads, batch)]
            slower = recorded > 1 + SPEED_MARGIN and here < 1 - SPEED_MARGIN and same
            which = (
                f"batch {batch.removeprefix('batch')}, {threads} thread{'s' * (threads == 'all')}"
            )
            said = f"{here:.2f} times as fast here, {recorded:.2f} recorded"
            yield Check(f"{what} speed, {which}", DIFFERS if slower else NOTE, said)


def _that_cpu(result: store.Result) -> str:
    cpu, number = (_recorded(result, "hardware", name) for name in ("cpu", "cores"))
    recorded = _cpu(str(cpu)[:80], number)
    return "" if recorded == _this_cpu() else f", recorded on {recorded}"


def _cpu(name: str, number: Any) -> str:
    return f"{name}, {str(number)[:10]} core{'s' * (number != 1)}"


def _this_cpu() -> str:
    return _cpu(hardware.cpu_name(), hardware.cores())


def _speedup(loaded: Artifact, base: Artifact, cell: Cell, threads: str, batch: int) -> float:
    """Median time of the base over that of the artifact, interleaved as when it was recorded."""
    from pipeline.artifact import INPUT, OUTPUT
    from pipeline.measure import latency

    number = 1 if threads == "one" else hardware.cores()
    images = numpy.random.default_rng(0).integers(0, 256, (batch, *loaded.shape), numpy.uint8)

    def run(contender: Artifact) -> Callable[[], object]:
        session = contender.session(number)
        return lambda: session.run([OUTPUT], {INPUT: images})

    contenders = {"artifact": run(loaded), "base": run(base)}
    ms = latency.interleaved(contenders, cell.measure.repeats, cell.measure.seconds)
    return float(numpy.median(ms["base"]) / numpy.median(ms["artifact"]))


# --- what it takes ---------------------------------------------------------------------------


@dataclass
class _Bench:
    """A report under examination, and what is made once for all of its artifacts."""

    published: Published
    paths: ReportPaths
    data_root: Path
    cache: Path
    _splits: dict[tuple[str, str], Any] = field(default_factory=dict)
    _bases: dict[str, Artifact] = field(default_factory=dict)

    @property
    def called(self) -> str:
        return self.published.sweep.path.name

    @cached_property
    def _rows(self) -> dict[str, dict[str, Any]]:
        return {row["id"]: row for row in self.published.frames.cells.to_dict("records")}

    def row(self, cell: Cell) -> dict[str, Any]:
        return self._rows[cell.id]

    def images_of(self, cell: Cell, result: store.Result) -> tuple[numpy.ndarray, numpy.ndarray]:
        """(images uint8 [N, C, H, W], labels [N]); UserError where this machine has not the same.

        A path in a stranger's file is not followed: images are looked for under the data root.
        """
        split = self._split(cell)
        if split.fingerprint != result.facts.get("dataset_fingerprint"):
            raise UserError(f"{split.name}: its images here are not those that were measured")
        return split.test.pixels.numpy(), split.test.labels.numpy()

    def _split(self, cell: Cell) -> Split:
        from pipeline import data

        asked = (cell.dataset.canonical, cell.recipe.canonical)
        if asked not in self._splits:
            own = None if cell.dataset.name in data.DATASETS else cell.dataset.name
            dataset = cell.dataset.model_copy(update={"folder": own})
            split = data.load(dataset, cell.recipe, cell.seed, self.data_root, self.cache)
            self._splits[asked] = split
        return self._splits[asked]

    def base(self, cell: Cell, loaded: Artifact) -> tuple[Artifact, str]:
        """What an artifact is timed against, and what to call it."""
        from pipeline import artifact

        own = self.paths.artifact(cell.base_id)
        if own.is_dir() and not artifacts.differs(own, self.published.artifact(cell.base_id)):
            return artifact.load(own), "its base"
        if cell.base_id not in self._bases:
            self._bases[cell.base_id] = _random_base(cell, loaded)
        return self._bases[cell.base_id], "a base of its shape with random weights"


def _random_base(cell: Cell, loaded: Artifact) -> Artifact:
    """The artifact of an untrained base of the recorded model."""
    from pipeline import artifact
    from pipeline.models import module_of, network

    said = loaded.manifest["network"]
    spec = module_of(cell.model.name).spec(
        cell.model.name,
        cell.model.width,
        loaded.shape,
        len(loaded.classes),
        int(said["zero_point"]),
        float(said["scale"]),
    )
    with tempfile.TemporaryDirectory() as folder:
        made_in = Path(folder) / "base"
        blank = numpy.zeros((1, *loaded.shape), numpy.uint8)
        artifact.write(network.new(spec, 0), made_in, {}, blank, loaded.classes)
        return artifact.load(made_in)


def summary(found: list[Check]) -> str:
    """How many of each, in a line."""
    count = {kind: sum(c.found == kind for c in found) for kind in (OK, DIFFERS, UNCHECKED)}
    return (
        f"{count[OK]} as recorded, {count[DIFFERS]} differ, "
        f"{count[UNCHECKED]} cannot be checked here"
    )


def any_differs(found: list[Check]) -> bool:
    return any(check.found == DIFFERS for check in found)
