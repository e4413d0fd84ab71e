"""What every cell requested of the cluster and used, where it ran in a job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline import usage
from pipeline.report.document import Column, Section, Sentence, Table, Value, spread
from pipeline.report.metrics import METRIC
from pipeline.sweep import Cell, Sweep

Usage = dict[str, Any]  # the record of a cell's job; `pipeline.usage` reads it
COLUMNS = (
    Column("cell"),
    Column("job"),
    Column("attempts"),
    Column("wall time, min", "wall_s"),
    Column("GPU-hours", "gpu_hours"),
    Column("requested", "cores", "cores"),
    Column("used", "cores", "cores"),
    Column("requested", "gib", "memory, GiB"),
    Column("used", "gib", "memory, GiB"),
    Column("GPU memory used, GiB", "gib"),
    Column("GPU utilization, %", "share_of_time"),
)


def section(sweep: Sweep, usages: Mapping[str, Usage]) -> Section | None:
    """`usages`: a cell's id -> its job's record of usage. None where none ran in a job."""
    from pipeline.report.frames import in_order

    lines = tuple(_line(cell, usages[cell.id]) for cell in in_order(sweep) if cell.id in usages)
    if not lines:
        return None
    table = Table("jobs", "Cells that ran in a job", COLUMNS, lines)
    return Section("usage", "Resource usage", tuple(_about(sweep, usages)), (table,))


def _about(sweep: Sweep, usages: Mapping[str, Usage]) -> Iterator[Sentence]:
    if (used := usage.total(usages.values())) is not None:
        yield from ((line,) for line in usage.lines(used, usage.threads_of(sweep.cells)))
    yield from ((line,) for line in usage.costs(usages.values()))
    hours = METRIC["gpu_hours"].show(usage.gpu_hours(usages.values()))
    yield (
        f"{hours} GPU-hours: wall time × GPUs over all attempts, including failed ones. Times are "
        "sums over all attempts at a cell; requested and used resources are those of the last one.",
    )


def _line(cell: Cell, record: Usage) -> tuple[Value, ...]:
    requested, used = usage.request_of(record), record["used"]
    attempts = usage.of_all(record, "attempts")
    return (
        Value(cell.name),
        Value(str(record["job"])),
        Value(f"{attempts:g}", attempts),
        _value(usage.of_all(record, "wall_s"), "wall_s"),
        _value(usage.of_all(record, "gpu_s") / 3600, "gpu_hours"),
        Value(f"{requested['cores']:g}", requested["cores"]),
        _value(used["cores"], "cores"),
        Value(f"{requested['memory_bytes'] / usage.GIB:g}", requested["memory_bytes"]),
        _value(used["memory_bytes"], "gib"),
        _value(used["gpu_memory_bytes"] or None, "gib"),
        _value(used["gpu_busy"], "share_of_time"),
    )


def _value(number: float | None, key: str) -> Value:
    return spread([number], key)
