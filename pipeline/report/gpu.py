"""Speed on a GPU: what it took there, how much faster than the base, and what an image cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from pipeline.measure.series import CPU, GPU_BATCHES, Series
from pipeline.report import content
from pipeline.report.answer import Group, groups, settings
from pipeline.report.document import Column, Line, Section, Sentence, Table, Value, spread, table_of
from pipeline.report.frames import Frames
from pipeline.report.row import PERCENTILES, Row, ratio

LARGEST = GPU_BATCHES[-1]
Read = Callable[[Row, Series], float | None]

ABOUT = (
    "Each GPU timed the artifacts and their bases in turns: medians of single calls, in which "
    "images come from the host and logits go back to it. Images a second and energy are of calls "
    f"back to back, {LARGEST:,} images each."
)
NOTES: tuple[Sentence, ...] = (
    (
        "pytorch-cuda runs the float network with the weights that are deployed, compiled and in "
        "one CUDA graph: nothing is computed in integers there.",
    ),
    ("Energy is that of the whole card, as its driver counts it.",),
)


def section(frames: Frames) -> Section | None:
    """None where nothing was to be measured on a GPU."""
    known = frames.every or frames.rows
    every, notes = [row for row in known if any(runtimes_of(row))], tuple(_notes(known))
    if not every:
        return Section("gpu", "Speed on a GPU", notes, (), ()) if notes else None
    tables = tuple(_table(*setting, rows) for setting, rows in settings(every).items())
    return Section("gpu", "Speed on a GPU", ((ABOUT,),), tables, (*NOTES, *notes))


def _notes(rows: Iterable[Row]) -> Iterator[Sentence]:
    """What a runtime did otherwise, with the techniques that it is reported for."""
    of: dict[str, dict[str, None]] = {}
    for row in rows:
        for note in row.runtime_notes:
            of.setdefault(note, {})[row.technique] = None
    for note, techniques in of.items():
        yield (f"{note} ({', '.join(techniques)}).",)


def runtimes_of(row: Row) -> list[tuple[str, str]]:
    """(runtime, device) of what ran the row's artifact on another device than the CPU."""
    named = ((s.runtime, s.device) for s in row.latencies if s.device != CPU)
    return list(dict.fromkeys(named))


def _table(dataset: str, model: str, rows: Sequence[Row]) -> Table:
    columns = dict(_columns())
    lines = [
        (_line(group, runtime, device, columns), Line(group, False))
        for technique in groups(rows)
        for runtime, device in dict.fromkeys(r for row in technique.rows for r in runtimes_of(row))
        for group in _by_machine(technique, (runtime, device))
    ]
    head = (Column("technique"), Column("runtime"), Column("GPU"), Column("n"), *columns)
    return table_of(
        dataset, model, head, (line for line, _ in lines), (about for _, about in lines)
    )


def _columns() -> Iterator[tuple[Column, tuple[int, Read]]]:
    for batch in GPU_BATCHES:
        yield Column(f"batch {batch:,}", "gpu_ms", "latency, ms"), (batch, _p50)
    for batch in GPU_BATCHES:
        yield (
            Column(f"batch {batch:,}", "gpu_speedup", "speedup over the base, ×"),
            (batch, speedup),
        )
    yield Column("images/s", "images_per_s"), (LARGEST, _images_per_s)
    yield Column("mJ an image", "image_joules"), (LARGEST, _joules)


def _by_machine(technique: Group, runtime: tuple[str, str]) -> list[Group]:
    """The rows in which this runtime ran, those of each machine together."""
    by_machine: dict[str, list[Row]] = {}
    for row in technique.rows:
        if runtime in runtimes_of(row):
            by_machine.setdefault(row.machine, []).append(row)
    return [Group(tuple(rows)) for rows in by_machine.values()]


def _card(row: Row) -> str:
    return str((row.facts.get("hardware") or {}).get("gpu") or "unknown")


def _line(
    group: Group, runtime: str, device: str, columns: dict[Column, tuple[int, Read]]
) -> tuple[Value, ...]:
    def values() -> Iterator[Value]:
        for column, (batch, read) in columns.items():
            series = Series(runtime, "artifact", "all", batch, device)
            yield spread([read(row, series) for row in group.rows], column.key)

    n = len(group.rows)
    name = content.shown(group.technique, group.family)
    return Value(name), Value(runtime), Value(_card(group.rows[0])), Value(str(n), n), *values()


def _p50(row: Row, series: Series) -> float | None:
    return row.latency_ms(series, 50)


def speedup(row: Row, series: Series) -> float | None:
    """Median latency of the base over the artifact's, on this runtime."""
    own = row.latency_ms(series, 50)
    if row.is_base:
        return None if own is None else 1.0
    return ratio(row.latency_ms(series._replace(model="base"), 50), own)


def _images_per_s(row: Row, series: Series) -> float | None:
    return row.images_per_s.get(series)


def _joules(row: Row, series: Series) -> float | None:
    return row.joules_per_image.get(series)


def as_json(row: Row) -> dict[str, Any]:
    """What was measured of a row on a GPU: runtime -> batch -> numbers; energy in joules."""
    return {
        runtime: {f"batch{batch}": dict(_numbers(row, runtime, device, batch)) for batch in batches}
        for (runtime, device), batches in _batches(row)
    }


def _batches(row: Row) -> Iterable[tuple[tuple[str, str], list[int]]]:
    for runtime, device in runtimes_of(row):
        known = (s.batch for s in row.latencies if (s.runtime, s.device) == (runtime, device))
        yield (runtime, device), sorted(set(known))


def _numbers(row: Row, runtime: str, device: str, batch: int) -> Iterator[tuple[str, float | None]]:
    series = Series(runtime, "artifact", "all", batch, device)
    for percentile in PERCENTILES:
        yield f"p{percentile}", row.latency_ms(series, percentile)
    yield "speedup", speedup(row, series)
    yield "images_per_s", _images_per_s(row, series)
    yield "joules_per_image", _joules(row, series)
