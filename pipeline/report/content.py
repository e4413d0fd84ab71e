"""What a report says, as plain data: report.md and index.html write the same words and numbers.

A sentence is a tuple of parts, each text or `Code`. Nothing here is escaped; each writer does that
for its own format.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.paths import sweep_file
from pipeline.report.answer import (
    ONE_POINT,
    Group,
    Row,
    deviation,
    fastest,
    mean,
    settings,
    smallest,
)
from pipeline.report.frames import Frames
from pipeline.report.metrics import BATCHES, METRIC, PERCENTILES, latency_key
from pipeline.sweep import Sweep


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
    """A line a technique of one data set and model; the first column is its name, the second n."""

    dataset: str
    model: str
    columns: tuple[Column, ...]
    lines: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True)
class Section:
    title: str
    about: str
    tables: tuple[Table, ...]


# --- what a table has ------------------------------------------------------------------------


def _columns(group: str, *keys: str) -> tuple[Column, ...]:
    return tuple(Column(METRIC[key].heading, key, group) for key in keys)


def _latency_columns() -> Iterator[Column]:
    for threads, percentiles in (("all", PERCENTILES), ("one", (50,))):
        said = "all threads" if threads == "all" else "one thread"
        for batch in BATCHES:
            for p in percentiles:
                key = latency_key("onnxruntime", "artifact", threads, batch, p)
                heading = f"{said}, batch {batch.removeprefix('batch')}, p{p}"
                yield Column(heading, key, "latency, ms")


RESULTS = (
    *_columns("accuracy", "accuracy", "accuracy_drop", "agreement"),
    *_columns("size", "stored_bytes", "stored_ratio", "runnable_bytes"),
    *_columns("work", "parameters", "macs", "macs_ratio"),
    *_columns("speed", "speedup_all_batch1", "speedup_all_batch64", "test_set_seconds"),
    *_columns("integers", "integer_share"),
)
LATENCY = tuple(_latency_columns())
SIMULATED = tuple(
    Column(heading, key)
    for heading, key in (
        ("stored, MB", "stored_bytes"),
        ("simulated model in PyTorch, ms", "pytorch_simulated_all_batch1_p50_ms"),
        ("faster, ×", "simulated_speedup_all_batch1"),
        ("deployed artifact, ms", "onnxruntime_artifact_all_batch1_p50_ms"),
        ("faster than base artifact, ×", "speedup_all_batch1"),
        ("faster than base in PyTorch eager, ×", "speedup_over_pytorch_all_batch1"),
        ("predictions that agree, %", "simulated_agreement"),
    )
)


def results(frames: Frames, columns: Sequence[Column] = RESULTS) -> Section:
    return Section(
        "Results",
        "Everything here is of the artifact that would be deployed: its bytes on disk, its own "
        "accuracy on the whole test set, its speed on ONNX Runtime with all threads, as the ratio "
        "of medians of the base artifact and of this one, interleaved in one process. "
        "With several seeds: mean ± sample standard deviation over n of them.",
        tables(frames, columns),
    )


def latency(frames: Frames) -> Section:
    return Section("Latency of the artifact, ms", "", tables(frames, LATENCY))


def simulated(frames: Frames) -> Section | None:
    """None where no simulated model was timed."""
    if frames.cells["pytorch_simulated_all_batch1_p50_ms"].isna().all():
        return None
    return Section(
        "Simulated beside deployed",
        "The simulated model is what training works with: full-precision numbers in PyTorch that "
        "imitate the compressed network. Timing it says nothing about the network that would be "
        "deployed; it is here because it is often timed instead. Batch 1, all threads, medians. "
        "The first time and the speed-up next to it are simulated, the rest is deployed.",
        tables(frames, SIMULATED),
    )


def tables(frames: Frames, columns: Sequence[Column]) -> tuple[Table, ...]:
    """One a (data set, model); a line a technique, a column each that has any number."""
    found = []
    for (dataset, model), cells in frames.cells.groupby(["dataset", "model"], sort=False):
        present = [column for column in columns if cells[column.key].notna().any()]
        numbers = {column.key: cells[column.key].tolist() for column in present}
        techniques = cells["technique"].astype(str).tolist()
        lines = [
            (Value(technique), Value(str(len(seeds)), len(seeds)),
             *(_spread([numbers[column.key][i] for i in seeds], column.key) for column in present))
            for technique, seeds in _places(techniques).items()
        ]  # fmt: skip
        head = (Column("technique"), Column("n"), *present)
        found.append(Table(str(dataset), str(model), head, tuple(lines)))
    return tuple(found)


def _places(names: Iterable[str]) -> dict[str, list[int]]:
    """Where each name stands, in the order in which they come."""
    found: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        found.setdefault(name, []).append(i)
    return found


def _spread(numbers: Sequence[float], key: str) -> Value:
    middle = mean(numbers)
    return Value(METRIC[key].show(middle, deviation(numbers)), middle if middle == middle else None)


# --- the answer ------------------------------------------------------------------------------


def title(sweep: Sweep) -> str:
    return f"{sweep.name}: how small and how fast before it gets worse"


def counts(sweep: Sweep, frames: Frames) -> str:
    done, missing = len(frames.cells), len(frames.gaps)
    seeds = sorted({cell.seed for cell in sweep.cells})
    listed = ", ".join(map(str, seeds)) if len(seeds) <= 10 else f"{seeds[0]} to {seeds[-1]}"
    gaps = f" {missing} are missing and are named below." if missing else ""
    return f"{done} of {done + missing} cells have a result (seeds: {listed}).{gaps}"


def answers(sweep: Sweep, rows: list[Row]) -> list[Answer]:
    """One a (data set, model); none without results."""
    return [_answer(sweep, *setting, members) for setting, members in settings(rows).items()]


def _answer(sweep: Sweep, dataset: str, model: str, rows: list[Row]) -> Answer:
    asked = (
        ("Smallest at no loss", smallest(rows, 0.0), 0.0),
        ("Smallest within one point", smallest(rows), ONE_POINT),
        ("Fastest within one point", fastest(rows), ONE_POINT),
    )
    points = ((question, _sentence(sweep, group, limit)) for question, group, limit in asked)
    return Answer(dataset, model, tuple(points))


def _sentence(sweep: Sweep, group: Group | None, limit: float) -> Sentence:
    if group is None:
        return ("no model that was measured.",)
    cell = group.cell(limit)
    if cell["is_base"]:
        return (f"the base itself, {_numbers(group)}; no compressed model qualifies.",)
    seed = f" (seed {cell['seed']})" if len(group.rows) > 1 else ""
    return (
        Code(cell["technique"]),
        f", {_numbers(group)}, {_gains(group)}. To take it away: ",
        Code(f"netpress export {name(sweep)} {cell['id']}"),
        f"{seed}.",
    )


def _numbers(group: Group) -> str:
    accuracies = [row["accuracy"] for row in group.rows]
    accuracy = METRIC["accuracy"].show(mean(accuracies), deviation(accuracies))
    stored = METRIC["stored_bytes"].say(group.stored_bytes)
    seeds = f" (n = {len(accuracies)})" if len(accuracies) > 1 else ""
    return f"{accuracy} %{seeds} in {stored}"


def _gains(group: Group) -> str:
    drop = METRIC["accuracy_drop"].show(abs(group.drop))
    side = "below" if group.drop > 0 else "above"
    change = "as accurate as" if float(drop) == 0 else f"{drop} points {side}"
    ratio = METRIC["stored_ratio"].show(mean(row["stored_ratio"] for row in group.rows))
    speed = METRIC["speedup_all_batch1"].show(group.speedup)
    faster = f", {speed} times as fast at batch 1" if speed else ""
    smaller = f", {ratio} times smaller" if ratio else ""
    return f"{change} its base{smaller}{faster}"


# --- where it comes from ---------------------------------------------------------------------


def repeat(sweep: Sweep) -> str:
    """The command that makes all of it again."""
    return f"netpress run {name(sweep)}"


def facts(frames: Frames) -> list[tuple[str, str]]:
    """(label, value): hardware, versions, commit; where cells differ, each value with its count."""
    said = [json.loads(text) for text in frames.cells["facts"]]
    hardware = [fact.get("hardware") or {} for fact in said]
    found = (
        ("CPU", _counted(_cpu(h) for h in hardware)),
        ("CPU flags", _counted(_listed(h.get("flags")) for h in hardware)),
        ("GPU", _counted(h.get("gpu") for h in hardware)),
        ("Trained on", _counted(fact.get("device") for fact in said)),
        ("Precision of training", _counted(fact.get("precision") for fact in said)),
        ("Versions", _counted(_versions(fact.get("versions") or {}) for fact in said)),
        ("Commit", _counted(fact.get("commit") for fact in said)),
        ("Time of all cells together", _time(frames)),
    )
    return [(label, value) for label, value in found if value]


def _counted(values: Iterable[Any]) -> str:
    """The value, or each of several with the number of cells that it holds for."""
    counts = Counter(str(value) for value in values if value)
    if len(counts) < 2:
        return next(iter(counts), "")
    said = (f"{v} ({n} {'cell' if n == 1 else 'cells'})" for v, n in sorted(counts.items()))
    return "; ".join(said)


def _cpu(hardware: dict[str, Any]) -> str:
    cores = hardware.get("cores")
    return f"{hardware.get('cpu', '')}{f', {cores} cores' if cores else ''}".strip(", ")


def _listed(flags: Any) -> str:
    return flags if isinstance(flags, str) else " ".join(map(str, flags or ()))


def _versions(versions: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


def _time(frames: Frames) -> str:
    seconds = frames.cells["seconds"].dropna()
    return "" if seconds.empty else f"{seconds.sum() / 60:.1f} minutes"


def name(sweep: Sweep) -> str:
    """How the user names this sweep: the shipped name, else its file's."""
    try:
        shipped = sweep_file(sweep.name).samefile(sweep.path)
    except (UserError, OSError):
        shipped = False
    return sweep.name if shipped else sweep.path.name
