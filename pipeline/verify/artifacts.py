"""The artifacts of a report, measured again.

Predictions. On the same CPU flags and the same ONNX Runtime the same kernels run, in the same order
of summation, so every prediction must be the recorded one. Elsewhere sums are rounded in another
order, which moves logits in their last digits, and only images on which two classes are nearly even
change sides: OTHER_CPU of them may. Where a model's 8-bit products can saturate on this CPU (x86
without VNNI), that is another computation, which is not comparable.

Speed is information: it is another machine's. Only where a model that was recorded as faster by
more than SPEED_MARGIN is slower by more than that, on the same CPU flags, it differs. A base that
is not in the report is made anew with random weights in its recorded shape: the time of dense
products does not depend on their values.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy

from pipeline import hardware, runtimes, store
from pipeline.errors import Corrupt, UserError
from pipeline.measure.series import BATCHES, THREADS, Threads
from pipeline.paths import ReportPaths, shell_word
from pipeline.report import artifacts as report_artifacts
from pipeline.report.measured import CLASSIFIED_ON
from pipeline.report.merged import Published
from pipeline.report.row import Row
from pipeline.sweep import Cell
from pipeline.verify.check import DIFFERS, NOTE, OK, UNCHECKED, Check, same, without

if TYPE_CHECKING:
    from pipeline.artifact import Artifact
    from pipeline.data import Split

OTHER_CPU = 0.002
SPEED_MARGIN = 0.05
MOST_MACS = 10**15  # of a test set: hours


def artifacts(bench: Bench, accuracy: bool, speed: bool) -> Iterator[Check]:
    done = set(bench.published.frames.ids)
    present = report_artifacts.present(bench.paths)
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


def _artifact(bench: Bench, cell: Cell, accuracy: bool, speed: bool) -> Iterator[Check]:
    """A tampered artifact is not measured: it is not the one that the numbers are of."""
    from pipeline import artifact

    folder = bench.paths.artifact(cell.id)
    what = f"{bench.paths.name(folder)} {cell.name}"
    if wrong := report_artifacts.differs(folder, bench.published.artifact(cell.id)):
        yield Check(what, DIFFERS, wrong)
        return
    try:
        loaded = artifact.load(folder)
        runtimes.session(loaded, threads=1)
        yield from _measured(bench, what, cell, loaded, accuracy, speed)
    except (Corrupt, UserError) as error:
        yield Check(what, DIFFERS, without(folder, error))


def _measured(
    bench: Bench, what: str, cell: Cell, loaded: Artifact, accuracy: bool, speed: bool
) -> Iterator[Check]:
    result = bench.published.result(cell.id)
    yield from _stored(what, loaded, result)
    yield from _counted(what, loaded, result)
    yield _kernels(what, loaded, result)
    if accuracy:
        yield _accuracy(bench, what, cell, loaded, result)
        yield from _elsewhere(bench, what, cell, loaded, result)
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


def _counted(what: str, loaded: Artifact, result: store.Result) -> Iterator[Check]:
    """Parameters and MACs of the network that the artifact says it is of, and the subnormal numbers
    in its model."""
    from pipeline.measure import complexity

    counted = {"subnormals": complexity.subnormals(loaded.model)}
    try:
        counted["parameters"], counted["macs"] = _complexity(loaded)
    except UserError as error:
        yield Check(f"{what} parameters and MACs", UNCHECKED, str(error))
    recorded = {name: result.measured.get(name) for name in counted}
    wrong = [name for name, number in counted.items() if not same(recorded[name], number)]
    for name in wrong:
        numbers = f"{counted[name]:,} here, {_number(recorded[name])} recorded"
        yield Check(f"{what} {name}", DIFFERS, numbers)
    if not wrong:
        yield Check(f"{what} {', '.join(counted)}", OK, "counted again")


def _complexity(loaded: Artifact) -> tuple[int, int]:
    """(parameters, MACs an image); UserError where they cannot be counted."""
    from pipeline.measure import complexity
    from pipeline.models import MODELS
    from pipeline.models.spec import NetworkSpec

    try:
        spec = NetworkSpec.from_json(loaded.manifest["network"])
        if spec.model not in MODELS:
            raise UserError("it is of an own network, whose code is not run")
        return complexity.count(spec)
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError("another version describes its network in another way") from error


def _number(recorded: Any) -> str:
    return f"{recorded:,}" if isinstance(recorded, (int, float)) else "nothing"


def _kernels(what: str, loaded: Artifact, result: store.Result) -> Check:
    what += " integer kernels"
    share, recorded = runtimes.kernels(loaded).integer_share, result.measured.get("integer_share")
    if same(recorded, share):
        return Check(what, OK, f"{share:.1%} of the work")
    shares = f"{share:.1%} of the work here, {_share(recorded)} recorded"
    timed_elsewhere = "of a machine that only timed it" if recorded is None else ""
    if other := _other_machine(result) or (CLASSIFIED_ON in result.facts and timed_elsewhere):
        return Check(what, UNCHECKED, f"{shares}; {other}")
    return Check(what, DIFFERS, shares)


def _share(recorded: Any) -> str:
    return f"{recorded:.1%}" if isinstance(recorded, (int, float)) else "nothing"


def _other_machine(result: store.Result) -> str:
    """In what this machine differs where kernels are chosen; "" where in nothing."""
    [(package, here)] = runtimes.versions([runtimes.DEFAULT]).items()
    flags, version = _flags(result), _recorded(result, "versions", package)
    parts = []
    if flags != hardware.cpu_flags():
        parts.append(f"other CPU flags: {' '.join(hardware.cpu_flags())} here, {' '.join(flags)}")
    if version != here:
        parts.append(f"ONNX Runtime {here} here, {version}")
    return "; ".join(parts) + (" recorded" if parts else "")


def _flags(result: store.Result) -> tuple[str, ...]:
    flags = _recorded(result, "hardware", "flags")
    return tuple(map(str, flags)) if isinstance(flags, list) else ()


def _recorded(result: store.Result, part: str, name: str) -> Any:
    facts = result.facts.get(part) if isinstance(result.facts, dict) else None
    return facts.get(name) if isinstance(facts, dict) else None


def _accuracy(bench: Bench, what: str, cell: Cell, loaded: Artifact, result: store.Result) -> Check:
    from pipeline.measure import inference

    what += " accuracy"
    recorded, labels = (result.measured.get(name) for name in ("predictions", "labels"))
    try:
        test = bench.images_of(cell, result)
    except UserError as error:
        return Check(what, UNCHECKED, f"{error} (`netpress fetch {bench.called}`)")
    images, known = test
    if not (_is_of(recorded, known) and _is_of(labels, known) and numpy.array_equal(labels, known)):
        return Check(what, DIFFERS, "its recorded labels are not those of the test set")
    if tuple(images.shape[1:]) != loaded.shape:
        return Check(what, DIFFERS, "the artifact takes images of another shape")
    if loaded.cost.macs * len(images) > MOST_MACS:
        return Check(what, UNCHECKED, f"{loaded.cost.macs:,} operations an image take too long")
    own = inference.timed_logits(loaded, images)[0].argmax(1)
    changed, share = int((own != recorded).sum()), float(numpy.mean(own == known))
    message = (
        f"{share:.2%} here, {float(numpy.mean(recorded == known)):.2%} recorded; "
        f"{changed} of {len(known)} predictions differ"
    )
    other = elsewhere(result)
    return Check(what, *_judged(changed, len(known), loaded, other, message))


def elsewhere(result: store.Result) -> str:
    """Why predictions here may differ from the recorded ones; "" where none may."""
    return _other_machine(result) or _lent(result)


def _lent(result: store.Result) -> str:
    """Where predictions are of another machine than the times, and not of the same kind of CPU."""
    facts = result.facts if isinstance(result.facts, dict) else {}
    if CLASSIFIED_ON not in facts or "accuracy_of" in facts:
        return ""
    return f"predicted on {facts[CLASSIFIED_ON]}"


def _elsewhere(
    bench: Bench, what: str, cell: Cell, loaded: Artifact, result: store.Result
) -> Iterator[Check]:
    """Accuracy on the other runtimes that were measured; their predictions were not kept."""
    from pipeline.measure import gpu, inference

    for name in gpu.ran(cell.measure.runtimes[1:], result.measured):
        where = f"{what} accuracy on {name}"
        try:
            runtimes.of_artifacts(name)
            images, labels = bench.images_of(cell, result)
        except UserError as error:
            yield Check(where, UNCHECKED, str(error))
            continue
        own = inference.timed_logits(loaded, images, name)[0].argmax(1)
        share = float(numpy.mean(own == labels))
        recorded = result.measured.get(f"runtimes/{name}/accuracy")
        near = isinstance(recorded, float) and abs(share - recorded) <= OTHER_CPU
        message = f"{share:.2%} here, {_share(recorded)} recorded"
        if not near and loaded.unfit():
            yield Check(where, UNCHECKED, f"{message}; 8-bit products saturate on this CPU")
        else:
            yield Check(where, OK if near else DIFFERS, message)


def _judged(
    changed: int, images: int, loaded: Artifact, other: str, message: str
) -> tuple[str, str]:
    allowed = max(1, round(OTHER_CPU * images)) if other else 0
    if changed <= allowed:
        return OK, message + (f" ({allowed} may: {other})" if other else "")
    if other and loaded.unfit():
        return UNCHECKED, f"{message}; 8-bit products saturate on this CPU ({other})"
    return DIFFERS, message + (f", expected at most {allowed} ({other})" if other else "")


def _is_of(values: Any, known: numpy.ndarray) -> TypeGuard[numpy.ndarray]:
    return isinstance(values, numpy.ndarray) and values.shape == known.shape


def _speed(
    bench: Bench, what: str, cell: Cell, loaded: Artifact, result: store.Result
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
            which = f"batch {batch}, {threads} thread{'s' * (threads == 'all')}"
            if batch > min(loaded.cost.images, base.cost.images):
                needs = f"{loaded.cost.image_bytes:,} bytes of memory an image"
                yield Check(f"{what} speed, {which}", UNCHECKED, f"it needs {needs}")
                continue
            here = _speedup(loaded, base, cell, threads, batch)
            recorded = bench.row(cell).speedup(threads, batch)
            faster = recorded is not None and recorded > 1 + SPEED_MARGIN
            slower = faster and here < 1 - SPEED_MARGIN and same
            known = "no speedup" if recorded is None else f"{recorded:.2f}"
            times = f"speedup {here:.2f} here, {known} recorded"
            yield Check(f"{what} speed, {which}", DIFFERS if slower else NOTE, times)


def _that_cpu(result: store.Result) -> str:
    cpu, number = (_recorded(result, "hardware", name) for name in ("cpu", "cores"))
    recorded = _cpu(str(cpu)[:80], number)
    return "" if recorded == _this_cpu() else f", recorded on {recorded}"


def _cpu(name: str, number: Any) -> str:
    return f"{name}, {str(number)[:10]} core{'s' * (number != 1)}"


def _this_cpu() -> str:
    return _cpu(hardware.cpu_name(), hardware.cores())


def _speedup(loaded: Artifact, base: Artifact, cell: Cell, threads: Threads, batch: int) -> float:
    """Median time of the base over that of the artifact, interleaved as when it was recorded."""
    from pipeline.measure import inference, latency

    number = inference.thread_count(threads)
    images = inference.any_images(loaded.shape, batch)
    contenders = {
        name: inference.run_of(runtimes.session(model, number), images)
        for name, model in (("artifact", loaded), ("base", base))
    }
    ms = latency.interleaved(contenders, cell.measure.repeats, cell.measure.seconds)
    return float(numpy.median(ms["base"]) / numpy.median(ms["artifact"]))


# --- what it takes ---------------------------------------------------------------------------


@dataclass
class Bench:
    """A report under examination, and what is made once for all of its artifacts."""

    published: Published
    paths: ReportPaths
    data_root: Path
    cache: Path
    _splits: dict[tuple[str, str], Any] = field(default_factory=dict)
    _bases: dict[str, Artifact] = field(default_factory=dict)

    @property
    def called(self) -> str:
        """How the user names the sweep in a command."""
        return shell_word(self.published.sweep.path.name)

    @cached_property
    def _rows(self) -> dict[str, Row]:
        return {row.id: row for row in self.published.frames.rows}

    def row(self, cell: Cell) -> Row:
        return self._rows[cell.id]

    def images_of(self, cell: Cell, result: store.Result) -> tuple[numpy.ndarray, numpy.ndarray]:
        """(images uint8 [N, C, H, W], labels [N]); UserError where this machine has not the same.

        A path in a stranger's file is not followed: images are looked for under the data root.
        """
        split = self._split(cell)
        if split.fingerprint != result.facts.get("dataset_fingerprint"):
            raise UserError(f"{split.name}: its images here are not those that were measured")
        return split.test.array(), split.test.labels.numpy()

    def _split(self, cell: Cell) -> Split:
        from pipeline import data

        key = (cell.dataset.canonical, cell.recipe.canonical)
        if key not in self._splits:
            own = None if cell.dataset.name in data.DATASETS else cell.dataset.name
            if own and cell.dataset.folder is None:
                raise UserError(f"{own}: is of a plug-in, and none is loaded for a report")
            dataset = cell.dataset.model_copy(update={"folder": own})
            split = data.load(dataset, cell.recipe, cell.seed, self.data_root, self.cache)
            self._splits[key] = split
        return self._splits[key]

    def own_base(self, cell: Cell) -> Artifact | None:
        """The base's artifact; None where it is not in the report."""
        from pipeline import artifact

        own = self.paths.artifact(cell.base_id)
        if own.is_dir() and not report_artifacts.differs(
            own, self.published.artifact(cell.base_id)
        ):
            return artifact.load(own)
        return None

    def base(self, cell: Cell, loaded: Artifact) -> tuple[Artifact, str]:
        """What an artifact is timed against, and what to call it."""
        own = self.own_base(cell)
        if own is not None:
            return own, "its base"
        if cell.base_id not in self._bases:
            self._bases[cell.base_id] = _random_base(cell, loaded)
        return self._bases[cell.base_id], "a base of its shape with random weights"


def _random_base(cell: Cell, loaded: Artifact) -> Artifact:
    """The artifact of an untrained base of the recorded model."""
    from pipeline import artifact
    from pipeline.models import module_of, network

    recorded = loaded.manifest["network"]
    spec = module_of(cell.model.name).spec(
        cell.model.name,
        cell.model.width,
        loaded.shape,
        len(loaded.classes),
        int(recorded["zero_point"]),
        float(recorded["scale"]),
    )
    with tempfile.TemporaryDirectory() as folder:
        made_in = Path(folder) / "base"
        blank = numpy.zeros((1, *loaded.shape), numpy.uint8)
        artifact.write(network.new(spec, 0), made_in, {}, blank, loaded.classes)
        return artifact.load(made_in)
