"""What a report says, as plain data: report.md and index.html write the same words and numbers.

A sentence is a tuple of parts, each text or `Code`. Nothing here is escaped; each writer does that
for its own format.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from pipeline import runtimes
from pipeline.errors import UserError
from pipeline.measure.series import BATCHES, Series, Threads
from pipeline.paths import shell_word, sweep_file
from pipeline.report import images, versions
from pipeline.report.answer import (
    ONE_POINT,
    Group,
    deviation,
    fastest,
    groups,
    mean,
    nearest,
    settings,
    smallest,
)
from pipeline.report.frames import Frames
from pipeline.report.metrics import (
    METRIC,
    OVER_REFERENCE,
    SIMULATED,
    SPEEDUP,
    latency_key,
    speedup_key,
)
from pipeline.report.row import PERCENTILES, Row
from pipeline.sweep import Sweep
from pipeline.techniques import CONTROLS


class Code(str):
    """A part of a sentence to be shown as code: a name, a command."""


Sentence = tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """`points`: (question, sentence) about one data set and model."""

    dataset: str
    model: str
    points: tuple[tuple[str, Sentence], ...]


@dataclass(frozen=True)
class Column:
    """`group`: what its neighbours have in common; `key`: its metric's, "" for a name or n."""

    heading: str
    key: str = ""
    group: str = ""


@dataclass(frozen=True)
class Value:
    """What a table shows, and what it is sorted by: the text itself where `number` is None."""

    text: str
    number: float | None = None


@dataclass(frozen=True)
class Table:
    """The first column names the line. `name`: what its file is named after."""

    name: str
    caption: str
    columns: tuple[Column, ...]
    lines: tuple[tuple[Value, ...], ...]

    @property
    def headings(self) -> list[str]:
        """Where there are no groups: those that several columns have say their group as well."""
        often = Counter(column.heading for column in self.columns)
        return [
            f"{column.group}: {column.heading}"
            if column.group and often[column.heading] > 1
            else column.heading
            for column in self.columns
        ]

    @cached_property
    def are_numbers(self) -> tuple[bool, ...]:
        """Of each column, whether it has numbers, or would where there were results."""
        return tuple(
            i > 0 and (bool(column.key) or any(line[i].number is not None for line in self.lines))
            for i, column in enumerate(self.columns)
        )


@dataclass(frozen=True)
class Section:
    """`id`: its own, and a part of its tables' file names."""

    id: str
    title: str
    about: tuple[Sentence, ...]
    tables: tuple[Table, ...]


# --- what a table has ------------------------------------------------------------------------


def _columns(group: str, *keys: str) -> tuple[Column, ...]:
    return tuple(Column(METRIC[key].heading, key, group) for key in keys)


def _latency_columns() -> Iterator[Column]:
    shown: tuple[tuple[Threads, tuple[int, ...]], ...] = (("all", PERCENTILES), ("one", (50,)))
    for threads, percentiles in shown:
        label = "all threads" if threads == "all" else "one thread"
        for batch in BATCHES:
            for p in percentiles:
                key = latency_key(Series(runtimes.DEFAULT, "artifact", threads, batch), p)
                yield Column(f"{label}, batch {batch}, p{p}", key, "latency, ms")


RESULTS = (
    *_columns("accuracy", "accuracy", "accuracy_drop", "agreement"),
    *_columns("size", "stored_bytes", "stored_ratio", "runnable_bytes"),
    *_columns("complexity", "parameters", "macs", "macs_ratio"),
    *_columns("speed", "speedup_all_batch1", "speedup_all_batch64", "test_set_seconds"),
    *_columns("quantization", "integer_share"),
)
LATENCY = tuple(_latency_columns())
SIMULATED_MS = latency_key(Series(runtimes.REFERENCE, "simulated", "all", 1), 50)
BESIDE = tuple(
    Column(heading, key, group)
    for heading, key, group in (
        ("ms", SIMULATED_MS, "simulated, in PyTorch"),
        (
            "speedup over the base in PyTorch, ×",
            speedup_key(SIMULATED, "all", 1),
            "simulated, in PyTorch",
        ),
        (
            "ms",
            latency_key(Series(runtimes.DEFAULT, "artifact", "all", 1), 50),
            "deployed artifact",
        ),
        ("speedup over the base artifact, ×", speedup_key(SPEEDUP, "all", 1), "deployed artifact"),
        (
            "speedup over the base in PyTorch, ×",
            speedup_key(OVER_REFERENCE, "all", 1),
            "deployed artifact",
        ),
        ("agreement of the predictions, %", "simulated_agreement", ""),
    )
)


def results(frames: Frames, columns: Sequence[Column] = RESULTS) -> Section:
    about = (
        "All values are measured on the deployable artifact: its size on disk as stored and as "
        "run, its own accuracy on the test set, and its speed on ONNX Runtime. The compression "
        "ratio is the base's stored size divided by the artifact's; the MAC reduction is the same "
        "for multiply-accumulate operations (MACs). The speedup is the median latency of the base "
        "artifact divided by that of the artifact, both warmed up and interleaved in one process, "
        "with all threads. Agreement is the share of test images for which artifact and base "
        "predict the same class. The int8 share is the part of the MACs that runs in integer "
        "kernels. "
    )
    return Section(
        "results", "Results", ((f"{about}{_about_spread(frames)}",),), tables(frames, columns)
    )


def _about_spread(frames: Frames) -> str:
    if several_seeds(frames):
        return (
            "Values over several seeds are the mean ± sample standard deviation of n seeds; ± is "
            "omitted where all seeds gave the same value."
        )
    return (
        "There is one seed for each technique (n = 1), so the variation between seeds is unknown."
    )


def latency(frames: Frames) -> Section:
    about = (
        "Latency is in milliseconds for one batch on ONNX Runtime, as median (p50), 90th and 99th "
        "percentile of single calls."
    )
    return Section("latency", "Latency of the artifact", ((about,),), tables(frames, LATENCY))


def simulated(frames: Frames) -> Section | None:
    """None where no simulated model was timed."""
    if all(METRIC[SIMULATED_MS].of(row) is None for row in frames.rows):
        return None
    about = (
        "The simulated network is the one used in training: full-precision arithmetic in PyTorch "
        "that emulates the compressed network. Its latency does not predict that of the deployed "
        "artifact; it is listed because it is often reported instead. Medians at batch 1, all "
        "threads."
    )
    return Section(
        "simulated", "Simulated and deployed latency", ((about,),), tables(frames, BESIDE)
    )


def several_seeds(frames: Frames) -> bool:
    return any(len(group.rows) > 1 for group in groups(frames.rows))


def tables(frames: Frames, columns: Sequence[Column]) -> tuple[Table, ...]:
    """One a (data set, model); a line a technique, a column each that has any number."""
    return tuple(
        _table_of_rows(*setting, rows, columns) for setting, rows in settings(frames.rows).items()
    )


def _table_of_rows(
    dataset: str, model: str, rows: Sequence[Row], columns: Sequence[Column]
) -> Table:
    older = versions.behind(rows)
    numbers = {column: [METRIC[column.key].of(row) for row in rows] for column in columns}
    present = [c for c in columns if any(number is not None for number in numbers[c])]
    head = (Column("technique"), Column("n"), *present)
    lines = (_line(group, present, older) for group in groups(rows))
    return table_of(dataset, model, head, lines)


def _line(group: Group, columns: Iterable[Column], older: Container[str]) -> tuple[Value, ...]:
    n = len(group.rows)
    metrics = (METRIC[column.key] for column in columns)
    mark = f" {versions.MARK}" if any(row.id in older for row in group.rows) else ""
    return (
        Value(shown(group.technique, group.family) + mark),
        Value(str(n), n),
        *(spread([metric.of(row) for row in group.rows], metric.key) for metric in metrics),
    )


def table_of(dataset: str, model: str, columns: Iterable[Column], lines: Iterable) -> Table:
    """A table about one data set and model."""
    return Table(f"{dataset}-{model}", f"{dataset}, {model}", tuple(columns), tuple(lines))


def shown(technique: str, family: str) -> str:
    """A technique as tables name it: controls say that they are."""
    return f"{technique} (control)" if family in CONTROLS else technique


def spread(numbers: Sequence[float | None], key: str) -> Value:
    """Mean ± deviation of a metric; empty where a number is missing, or where there are none."""
    if not numbers or any(number is None or number != number for number in numbers):
        return Value("")
    middle = mean(numbers)
    return Value(METRIC[key].show(middle, deviation(numbers)), middle)


# --- the answer ------------------------------------------------------------------------------


def title(sweep: Sweep) -> str:
    return f"{sweep.name}: how small and how fast before it gets worse"


def counts(sweep: Sweep, frames: Frames) -> str:
    done, missing = len(frames.rows), len(frames.gaps)
    are = "1 is missing and is" if missing == 1 else f"{missing:,} are missing and are"
    gaps = f" {are} listed below with the reason." if missing else ""
    changed = "".join(f" {sentence}" for sentence in images.sentences(frames.rows))
    about = [versions.sentence(frames.rows), versions.needs(frames.rows)]
    notes = "".join(f" {line}" for line in about if line)
    results = f"{done:,} of {done + missing:,} cells have a result ({seeds(sweep)})."
    return f"{results}{gaps}{changed}{notes}"


def seeds(sweep: Sweep) -> str:
    """`seed: 0` or `seeds: 0, 1, 2`."""
    every = sorted({cell.seed for cell in sweep.cells})
    if len(every) == 1:
        return f"seed: {every[0]}"
    return f"seeds: {', '.join(map(str, every)) if len(every) <= 10 else _range(every)}"


def _range(seeds: list[int]) -> str:
    return f"{len(seeds)} of {seeds[0]} to {seeds[-1]}"


def answers(sweep: Sweep, rows: Iterable[Row]) -> list[Answer]:
    """One a (data set, model); none without results."""
    return [_answer(sweep, *setting, members) for setting, members in settings(rows).items()]


def _answer(sweep: Sweep, dataset: str, model: str, rows: list[Row]) -> Answer:
    questions = (
        ("Smallest without accuracy loss", smallest(rows, 0.0), 0.0, "smaller"),
        ("Smallest within one percentage point", smallest(rows), ONE_POINT, "smaller"),
        ("Fastest within one percentage point", fastest(rows), ONE_POINT, "faster"),
    )
    near = nearest(rows)
    points = (
        (question, _sentence(sweep, group, limit, better, near))
        for question, group, limit, better in questions
    )
    return Answer(dataset, model, tuple(points))


def _sentence(
    sweep: Sweep, group: Group | None, limit: float, better: str, near: Group | None
) -> Sentence:
    if group is None:
        return ("no measured model qualifies", *_nearest(near))
    if group.is_base:
        lead = f"the base itself, {_numbers(group)}; no compressed model "
        if near is not None and near.within(limit):
            return (f"{lead}that qualifies is {better}.",)
        return (f"{lead}qualifies", *_nearest(near))
    cell = group.cell(limit)
    seed = f" (seed {cell.seed})" if len(group.rows) > 1 else ""
    return (
        Code(group.technique),
        f", {_numbers(group)}, {_gains(group)}. To export it: ",
        Code(f"netpress export {shell_word(name(sweep))} {cell.id}"),
        f"{seed}.",
    )


def _nearest(near: Group | None) -> Sentence:
    """How far the best of the others is from qualifying."""
    if near is None:
        return (".",)
    return ("; the nearest, ", Code(near.technique), f", is {_change(near)} its base.")


def _numbers(group: Group) -> str:
    accuracies = [row.accuracy for row in group.rows]
    accuracy = METRIC["accuracy"].show(mean(accuracies), deviation(accuracies))
    stored = METRIC["stored_bytes"].say(group.stored_bytes)
    seeds = f" (n = {len(accuracies)})" if len(accuracies) > 1 else ""
    return f"{accuracy} %{seeds} in {stored}"


def _change(group: Group) -> str:
    drop = METRIC["accuracy_drop"].show(abs(group.drop))
    side = "below" if group.drop > 0 else "above"
    return "as accurate as" if float(drop) == 0 else f"{drop} percentage points {side}"


def _gains(group: Group) -> str:
    ratio = METRIC["stored_ratio"].show(mean(row.stored_ratio for row in group.rows))
    speed = METRIC["speedup_all_batch1"].show(group.speedup)
    faster = f", speedup {speed} at batch 1" if speed else ""
    smaller = f", compression ratio {ratio}" if ratio else ""
    return f"{_change(group)} its base{smaller}{faster}"


# --- how it is repeated ----------------------------------------------------------------------


def repeat(sweep: Sweep) -> str:
    """The command that makes all of it again."""
    return f"netpress run {shell_word(name(sweep))}"


def name(sweep: Sweep) -> str:
    """How the user names this sweep: the shipped name, else its file's."""
    try:
        shipped = sweep_file(sweep.path.stem).samefile(sweep.path)
    except (UserError, OSError):
        shipped = False
    return sweep.path.stem if shipped else sweep.path.name
