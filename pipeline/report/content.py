"""What was measured, as tables; and the text about the whole report.

All of it is plain data (`document`): report.md, index.html and LaTeX write the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import replace

from pipeline import runtimes
from pipeline.arguments import sweep_file
from pipeline.errors import UserError
from pipeline.measure.series import BATCHES, THREADS, Series, Threads
from pipeline.paths import shell_word, shipped_sweeps
from pipeline.report import images, points, versions
from pipeline.report.answer import Group, groups, settings
from pipeline.report.document import Column, Line, Section, Sentence, Table, Value, spread, table_of
from pipeline.report.frames import Frames
from pipeline.report.measured import CLASSIFIED_ON
from pipeline.report.metrics import (
    IN_KILOBYTES,
    LEAST_CALLS,
    LEAST_IN_MB,
    LEAST_OF_RATIO,
    METRIC,
    OVER_REFERENCE,
    SIMULATED,
    SPEEDUP,
    Metric,
    joules_key,
    latency_key,
    speedup_key,
)
from pipeline.report.row import PERCENTILES, Row
from pipeline.sweep import Sweep
from pipeline.techniques import CONTROLS

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


ENERGY = "energy"
FEW = "\u2013"  # in the place of a number of too few calls
RESULTS = (
    *_columns("accuracy", "accuracy", "accuracy_drop", "agreement"),
    *_columns("size", "stored_bytes", "stored_ratio", "runnable_bytes"),
    *_columns("complexity", "parameters", "macs", "macs_ratio"),
    *_columns("speed", "speedup_all_batch1", "speedup_all_batch64", "test_set_seconds"),
    *_columns(ENERGY, *map(joules_key, BATCHES)),
    *_columns("quantization", "integer_share"),
    Column("epochs", "training_epochs", "cost"),
    Column("s", "training_seconds", "cost"),
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


def results(
    frames: Frames, columns: Sequence[Column] = RESULTS, every: Iterable[Row] = ()
) -> Section:
    """With a note on energy where any was measured; `every`: as `tables` has it."""
    about = (
        "Measured on the deployable artifact: its bytes on disk, its own accuracy on the "
        f"test set, its speed on ONNX Runtime. {_about_spread(frames)}"
    )
    made = tables(frames, columns, every)
    has_energy = any(column.group == ENERGY for table in made for column in table.columns)
    notes = (*RESULTS_NOTES, *([ABOUT_ENERGY] if has_energy else []))
    return Section("results", "Results", ((about,),), made, notes)


ABOUT_ENERGY: Sentence = (
    "Energy an image is that of the CPU's packages and their memory (RAPL) during calls back to "
    "back on all threads, idle power included.",
)


RESULTS_NOTES: tuple[Sentence, ...] = (
    (
        "The compression ratio is the base's stored size divided by the artifact's; the MAC "
        "reduction is the same for multiply-accumulate operations (MACs).",
    ),
    (
        "The speedup is the median latency of the base artifact divided by that of the artifact, "
        "both warmed up and interleaved in one process, with all threads.",
    ),
    (
        "What a technique costs is the epochs and the time that its own stages trained for; those "
        "of the base come on top where it starts from it, or is taught by it.",
    ),
    (
        "Agreement is the share of test images for which artifact and base predict the same class. "
        "The int8 share is the part of the MACs that runs in integer kernels.",
    ),
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


def latency(frames: Frames, every: Iterable[Row] = ()) -> Section:
    timed = [Series(runtimes.DEFAULT, "artifact", t, b) for t in THREADS for b in BATCHES]
    calls = _calls((*frames.rows, *every), timed)
    about = (
        "Latency is in milliseconds for one batch on ONNX Runtime, as median (p50) of single "
        f"calls{f' ({calls})' if calls else ''}. The 90th percentile (p90) is shown from "
        f"{LEAST_CALLS[90]} calls on, the 99th (p99) from {LEAST_CALLS[99]} on."
    )
    return Section(
        "latency", "Latency of the artifact", ((about,),), tables(frames, LATENCY, every)
    )


def _calls(rows: Iterable[Row], timed: Container[Series]) -> str:
    """`10 calls a series`, or `7 to 10 calls a series`; "" where none was timed."""
    counts = {n for row in rows for series, n in row.calls.items() if series in timed}
    span = " to ".join(f"{n:,}" for n in sorted({min(counts), max(counts)})) if counts else ""
    return f"{span} call{'s' * (counts != {1})} a series" if counts else ""


def simulated(frames: Frames) -> Section | None:
    """None where no simulated model was timed."""
    if all(METRIC[SIMULATED_MS].of(row) is None for row in frames.rows):
        return None
    about = (
        "The network of training emulates the compressed one in full precision, in PyTorch: its "
        "latency does not predict that of the deployed artifact."
    )
    timed = [Series(runtimes.REFERENCE, model, "all", 1) for model in ("simulated", "base")]
    note = (
        "It is listed because it is often reported instead. Medians at batch 1, all threads "
        f"(in PyTorch {_calls(frames.rows, timed)}); each speedup is over the base on the runtime "
        f"that the column names, {FEW} where one of the two has fewer than {LEAST_OF_RATIO} calls "
        "in PyTorch."
    )
    fewer = [int(row.simulated_images) for row in frames.rows if row.simulated_images]
    few = f" Its agreement is of {min(fewer):,} images or more, where it is slow." if fewer else ""
    disturbed = any(row.is_disturbed(s.model, "all", 1) for row in frames.rows for s in timed)
    busy = ABOUT_BUSY if disturbed else ""
    title = "Simulated and deployed latency"
    notes = ((note + few + busy,),)
    return Section("simulated", title, ((about,),), tables(frames, BESIDE), notes)


ABOUT_BUSY = (
    " A speedup is left out where the network in PyTorch took longer for a batch of 1 than for one "
    "of 64: the machine was busy with something else."
)


SPEEDUPS = tuple(
    Column(
        f"batch {batch}, {'all threads' if threads == 'all' else 'one thread'}",
        speedup_key(SPEEDUP, threads, batch),
        "speedup over the base, ×",
    )
    for threads in reversed(THREADS)
    for batch in BATCHES
)


def machines(frames: Frames) -> Section | None:
    """Speedups of each technique on each machine; None where no cell was measured on several."""
    if len(frames.every) == len({row.id for row in frames.every}):
        return None
    about = (
        "Each machine timed the artifacts and their bases in turns, on ONNX Runtime: speedups are "
        "of one machine each, and compare with each other along a technique."
    )
    made = (
        _by_machine(*setting, rows, frames.machines)
        for setting, rows in settings(frames.every).items()
    )
    return Section("machines", "Speed by machine", ((about,),), tuple(made))


def _by_machine(dataset: str, model: str, rows: Sequence[Row], names: Sequence[str]) -> Table:
    pairs = [
        (name, group)
        for technique in groups(rows)
        for name in names
        for group in groups(row for row in technique.rows if row.machine == name)
    ]
    head = (Column("technique"), Column("machine"), Column("n"), *SPEEDUPS)
    lines = (
        (first, Value(name), *rest)
        for name, group in pairs
        for first, *rest in [line(group, SPEEDUPS, ())]
    )
    return table_of(dataset, model, head, lines, (Line(group, False) for _, group in pairs))


def several_seeds(frames: Frames) -> bool:
    return any(len(group.rows) > 1 for group in groups(frames.rows))


def tables(
    frames: Frames, columns: Sequence[Column], every: Iterable[Row] = ()
) -> tuple[Table, ...]:
    """One a (data set, model); a line a technique, a column each that has any number to print, in
    `every` as well."""
    others = settings(every)
    return tuple(
        _table_of_rows(*setting, rows, columns, others.get(setting, ()))
        for setting, rows in settings(frames.rows).items()
    )


def _table_of_rows(
    dataset: str, model: str, rows: Sequence[Row], columns: Sequence[Column], others: Iterable[Row]
) -> Table:
    older, best = versions.behind(rows), points.on_frontier(rows)
    known = [*rows, *others]
    present = [c for c in columns if any(_is_shown(METRIC[c.key], row) for row in known)]
    present = [_in_its_unit(column, known) for column in present]
    head = (Column("technique"), Column("n"), *present)
    every = groups(rows)
    lines = (line(group, present, older) for group in every)
    about = (Line(group, group.technique in best) for group in every)
    return table_of(dataset, model, head, lines, about)


def _in_its_unit(column: Column, rows: Iterable[Row]) -> Column:
    """A size in kB, where one of them would begin with zeros in MB."""
    key = in_its_unit(column.key, rows)
    if key == column.key:
        return column
    return replace(column, key=key, heading=column.heading.replace("MB", "kB"))


def in_its_unit(key: str, rows: Iterable[Row]) -> str:
    values = [value for row in rows if (value := METRIC[key].of(row)) is not None]
    small = min(values, default=LEAST_IN_MB) < LEAST_IN_MB
    return IN_KILOBYTES.get(key, key) if small else key


def line(group: Group, columns: Iterable[Column], older: Container[str]) -> tuple[Value, ...]:
    n = len(group.rows)
    metrics = (METRIC[column.key] for column in columns)
    mark = f" {versions.MARK}" if any(row.id in older for row in group.rows) else ""
    return (
        Value(shown(group.technique, group.family) + mark),
        Value(str(n), n),
        *(_value(metric, group.rows) for metric in metrics),
    )


def _value(metric: Metric, rows: Sequence[Row]) -> Value:
    if any(metric.is_few(row) for row in rows):
        return Value(FEW)
    return spread([metric.of(row) for row in rows], metric.key)


def _is_shown(metric: Metric, row: Row) -> bool:
    return metric.of(row) is not None and not metric.is_few(row)


def shown(technique: str, family: str) -> str:
    """A technique as tables name it: controls are marked as such."""
    return f"{technique} (control)" if family in CONTROLS else technique


# --- the whole report ------------------------------------------------------------------------


def title(sweep: Sweep) -> str:
    return f"{sweep.name}: how small and how fast before it gets worse"


def counts(sweep: Sweep, frames: Frames) -> str:
    done, missing = len(frames.rows), len(frames.gaps)
    are = "1 is missing and is" if missing == 1 else f"{missing:,} are missing and are"
    gaps = f" {are} listed below with the reason." if missing else ""
    changed = "".join(f" {sentence}" for sentence in images.sentences(frames.rows))
    sentences = (versions.sentence, versions.needs, _lent, _several_machines)
    about = [sentence(frames.rows) for sentence in sentences]
    notes = "".join(f" {line}" for line in about if line)
    results = f"{done:,} of {done + missing:,} cells have a result ({seeds(sweep)})."
    return f"{results}{gaps}{changed}{notes}"


def _several_machines(rows: Sequence[Row]) -> str:
    """Where no machine measured all cells, so that a mean over seeds may be of several."""
    cells = Counter(row.machine for row in rows)
    if len(cells) < 2:
        return ""
    named = ", ".join(f"{name} ({count:,})" for name, count in cells.most_common())
    return (
        f"No machine measured all of them, so times and speedups are of several (cells): {named}; "
        "`--machine NAME` shows those of one."
    )


def _lent(rows: Sequence[Row]) -> str:
    """Where accuracy is of another machine than speed."""
    sentences = []
    for same_kind, why in (
        (False, "this machine had no images"),
        (True, "predictions are the same on CPUs of one kind"),
    ):
        lent = [row.facts for row in rows if CLASSIFIED_ON in row.facts]
        named = {str(f[CLASSIFIED_ON]) for f in lent if ("accuracy_of" in f) is same_kind}
        if named:
            sentences.append(f"Accuracy is as {', '.join(sorted(named))} measured it: {why}.")
    return " ".join(sentences)


def seeds(sweep: Sweep) -> str:
    """`seed: 0` or `seeds: 0, 1, 2`."""
    every = sorted({cell.seed for cell in sweep.cells})
    if len(every) == 1:
        return f"seed: {every[0]}"
    return f"seeds: {', '.join(map(str, every)) if len(every) <= 10 else _range(every)}"


def _range(seeds: list[int]) -> str:
    return f"{len(seeds)} of {seeds[0]} to {seeds[-1]}"


# --- how it is repeated ----------------------------------------------------------------------


def repeat(sweep: Sweep) -> str:
    """The command that makes all of it again."""
    return f"netpress run {shell_word(name(sweep))}"


def export(sweep: Sweep, cell_id: str) -> str:
    """The command that exports a model. A shipped sweep has one name everywhere; the file of
    another may lie anywhere, while its report is where netpress is called."""
    called = name(sweep)
    ships = (shipped_sweeps() / f"{called}.yaml").is_file()
    return f"netpress export {shell_word(called if ships else f'reports/{sweep.name}')} {cell_id}"


def name(sweep: Sweep) -> str:
    """How the user names this sweep: the shipped name, else its file's."""
    try:
        shipped = sweep_file(sweep.path.stem).samefile(sweep.path)
    except (UserError, OSError):
        shipped = False
    return sweep.path.stem if shipped else sweep.path.name
