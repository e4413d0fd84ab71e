"""The study that netpress reproduces, with the results of this report beside it, row by row.

VGG-16 on MNIST and CIFAR-10, on one A100 of ASU's Sol cluster: size, validation accuracy and time
to classify the test set, as its tables have them. The study timed masks and simulated quantization
in PyTorch; this report has the deployable artifacts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.report.answer import Group, groups, mean, settings
from pipeline.report.document import Code, Column, Section, Sentence, Table, Value, spread, table_of
from pipeline.report.metrics import METRIC, SIMULATED, speedup_key
from pipeline.report.row import Row, ratio


@dataclass(frozen=True)
class Reference:
    """One row of the study."""

    stored_bytes: float
    accuracy: float
    test_set_seconds: float


BASE, QUANTIZED, PRUNED = "base", "quantization-aware training", "pruning"
DISTILLED = "distillation (soft logits; attention transfer)"
# Its rows, and the techniques here that do the same.
ROWS: dict[str, tuple[str, ...]] = {
    BASE: ("base",),
    QUANTIZED: ("qat-int8",),
    PRUNED: ("prune-filters",),
    DISTILLED: ("kd", "attention-transfer", "attention-transfer-kd"),
}
NOT_THERE = "not in the study"
MORE = ("ptq-int8", "small-and-int8")  # shown below its rows

MNIST = {
    BASE: Reference(70.5e6, 0.982, 10),
    QUANTIZED: Reference(16.1e6, 0.978, 12),
    PRUNED: Reference(26.3e6, 0.967, 15),
    DISTILLED: Reference(30.0e6, 0.981, 18),
}
CIFAR10 = {  # it has no pruned network here
    BASE: Reference(70.8e6, 0.867, 18),
    QUANTIZED: Reference(30.1e6, 0.825, 23),
    DISTILLED: Reference(30.0e6, 0.811, 28),
}
STUDY = {"mnist": MNIST, "cifar10": CIFAR10, "cifar10-jpeg": CIFAR10}  # by data set

COLUMNS = (
    Column("row of the study"),
    Column("technique"),
    Column("n"),
    Column("MB", "stored_bytes", "study"),
    Column("accuracy, %", "accuracy", "study"),
    Column("test set, s", "test_set_seconds", "study"),
    Column("test set, relative latency, ×", "relative_latency", "study"),
    Column("MB", "stored_bytes", "this report"),
    Column("accuracy, %", "accuracy", "this report"),
    Column("test set, s", "test_set_seconds", "this report"),
    Column("test set, relative latency, ×", "relative_latency", "this report"),
    Column("batch 64, relative latency, ×", "relative_latency", "this report"),
    Column(
        "simulated in PyTorch, batch 64, relative latency, ×", "relative_latency", "this report"
    ),
)


def section(rows: Iterable[Row]) -> Section | None:
    """None where the report is not about the study's network on one of its data sets."""
    compared = [
        (dataset, model, members)
        for (dataset, model), members in settings(rows).items()
        if dataset in STUDY and model.startswith("vgg16")
    ]
    if not compared:
        return None
    about = tuple(_why(*one) for one in compared)
    notes = tuple(_notes(one[:2] for one in compared))
    tables = tuple(_table(*one) for one in compared)
    return Section("study", "Comparison with the study", about, tables, notes)


def _notes(settings: Iterable[tuple[str, str]]) -> Iterator[Sentence]:
    yield (
        "The study has one run for each row: validation accuracy, and the time to classify the "
        "test set in PyTorch on a node with an A100. This report has the artifacts: size on disk, "
        "accuracy on the test set, and the time to classify it on ONNX Runtime on the hardware "
        "named below (batches of 64, all threads). Absolute times are therefore not comparable. "
        "Relative latency, a time divided by that of its own base, is: above 1 is slower than the "
        "base.",
    )
    datasets, models = (dict.fromkeys(names) for names in zip(*settings, strict=True))
    if "cifar10-jpeg" in datasets:
        yield (
            Code("cifar10-jpeg"),
            " is CIFAR-10 stored as JPEG files, whose pixels differ slightly from the study's.",
        )
    for model in models:
        if "-w" in model:
            yield (
                Code(model),
                " is not as wide as the study's VGG-16, so sizes are not comparable.",
            )


WHY = {
    QUANTIZED: "Quantization simulated in PyTorch, as in training and in the study's timing, has a "
    "relative latency of {simulated}; the int8 artifact has {deployed}.",
    PRUNED: "Pruning removes filters here, while a mask leaves the number of MACs unchanged: "
    "relative latency {simulated} in PyTorch, {deployed} deployed.",
    DISTILLED: "Students are smaller networks: relative latency {simulated} in PyTorch, {deployed} "
    "deployed.",
}


def _why(dataset: str, model: str, rows: Sequence[Row]) -> Sentence:
    """Why the study's models are slower than their base, and the same here; batch 64."""
    theirs = [_of_base(STUDY[dataset], row) for row in STUDY[dataset] if row != BASE]
    sentences = [
        f"{dataset}, {model}: every compressed model of the study is slower than its base "
        f"(relative latency {_range(theirs)})."
    ]
    by_row = _by_row(rows)
    if not any(by_row[name] for name in STUDY[dataset] if name != BASE):
        sentences.append("None of its techniques is in this report.")
    for name, text in WHY.items():
        simulated = _averages(_simulated, by_row[name])
        deployed = _averages(_deployed, by_row[name])
        if simulated and deployed:
            sentences.append(text.format(simulated=_range(simulated), deployed=_range(deployed)))
    return (" ".join(sentences),)


def _range(times: Sequence[float]) -> str:
    """`1.20`, or `1.20 to 1.80` of several."""
    shown = [METRIC["relative_latency"].show(time) for time in (min(times), max(times))]
    return " to ".join(dict.fromkeys(shown))


def _table(dataset: str, model: str, rows: Sequence[Row]) -> Table:
    lines = [
        _line(name, STUDY[dataset], group)
        for name, members in _by_row(rows).items()
        for group in members or (None,)
        if members or name != NOT_THERE
    ]
    return table_of(dataset, model, COLUMNS, lines)


def _by_row(rows: Iterable[Row]) -> dict[str, list[Group]]:
    """Row of the study, and then what is not in it -> what is here of it."""
    every = groups(rows)
    wanted = {**ROWS, NOT_THERE: MORE}
    return {
        name: [group for group in every if group.family in families]
        for name, families in wanted.items()
    }


def _line(name: str, study: dict[str, Reference], group: Group | None) -> tuple[Value, ...]:
    rows = group.rows if group else ()
    return (
        Value(name),
        Value(group.technique if group else "no result"),
        Value(str(len(rows)), len(rows)),
        *_theirs(study, name),
        *(
            spread([METRIC[key].of(row) for row in rows], key)
            for key in ("stored_bytes", "accuracy", "test_set_seconds")
        ),
        *(
            spread([time(row) for row in rows], "relative_latency")
            for time in (_test_set, _deployed, _simulated)
        ),
    )


def _theirs(study: dict[str, Reference], name: str) -> tuple[Value, ...]:
    """Decimals as the study prints them."""
    theirs = study.get(name)
    if theirs is None:
        return (Value("" if name == NOT_THERE else "missing"), *[Value("")] * 3)
    return (
        Value(f"{theirs.stored_bytes / 1e6:.1f}", theirs.stored_bytes),
        Value(f"{theirs.accuracy * 100:.1f}", theirs.accuracy),
        Value(f"{theirs.test_set_seconds:g}", theirs.test_set_seconds),
        spread([_of_base(study, name)], "relative_latency"),
    )


# --- relative latency: a time divided by the base's -------------------------------------------


def _of_base(study: dict[str, Reference], name: str) -> float:
    return study[name].test_set_seconds / study[BASE].test_set_seconds


def _test_set(row: Row) -> float | None:
    return ratio(row.test_set_seconds, row.base_test_set_seconds)


def _simulated(row: Row) -> float | None:
    metric = METRIC[speedup_key(SIMULATED, "all", 64)]
    return None if metric.is_few(row) else _inverse(metric.of(row))


def _deployed(row: Row) -> float | None:
    return _inverse(row.speedup("all", 64))


def _inverse(speedup: float | None) -> float | None:
    return 1 / speedup if speedup else None


def _averages(time: Callable[[Row], float | None], members: Sequence[Group]) -> Sequence[float]:
    """Of each technique; empty where one has none."""
    averages = [_average(time, group) for group in members]
    known = [value for value in averages if value is not None]
    return known if len(known) == len(averages) else ()


def _average(time: Callable[[Row], float | None], group: Group) -> float | None:
    value = mean(time(row) for row in group.rows)
    return value if value == value else None


# --- the same as a chart ----------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A number of the study and ours, each relative to its own base; None: not there."""

    theirs: float | None
    ours: float | None


@dataclass(frozen=True)
class Ratios:
    """A technique here beside a row of the study: size and time as parts of the base's, accuracy
    in points over the base's."""

    row: str
    technique: str
    size: Pair
    time: Pair
    accuracy: Pair


def ratios(rows: Sequence[Row]) -> list[Ratios]:
    """Of one (data set, model); () where the study has nothing on it."""
    first = rows[0]
    study = STUDY.get(first.dataset, {}) if first.model.startswith("vgg16") else {}
    base = study.get(BASE)
    if base is None:
        return []
    return [
        _ratios(name, study.get(name), base, group)
        for name, members in _by_row(rows).items()
        for group in members
        if name != BASE
    ]


def _ratios(name: str, theirs: Reference | None, base: Reference, group: Group) -> Ratios:
    size = _average(lambda row: ratio(row.stored_bytes, row.base_stored_bytes), group)
    gained = None if group.drop != group.drop else -100 * group.drop
    if theirs is None:
        pairs = [Pair(None, ours) for ours in (size, _average(_test_set, group), gained)]
    else:
        pairs = [
            Pair(theirs.stored_bytes / base.stored_bytes, size),
            Pair(theirs.test_set_seconds / base.test_set_seconds, _average(_test_set, group)),
            Pair(100 * (theirs.accuracy - base.accuracy), gained),
        ]
    return Ratios("" if name == NOT_THERE else name, group.technique, *pairs)
