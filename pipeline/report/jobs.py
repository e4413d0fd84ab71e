"""What every cell asked of the cluster and used, where it ran in a job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline import usage
from pipeline.report.content import Column, Section, Sentence, Table, Value, spread
from pipeline.report.metrics import METRIC
from pipeline.sweep import Cell, Sweep

Said = dict[str, Any]
COLUMNS = (
    Column("cell"),
    Column("job"),
    Column("attempts"),
    Column("wall time, min", "wall_s"),
    Column("GPU-hours", "gpu_hours"),
    Column("asked", "cores", "cores"),
    Column("used", "cores", "cores"),
    Column("asked", "gib", "memory, GiB"),
    Column("used", "gib", "memory, GiB"),
    Column("GPU memory used, GiB", "gib"),
    Column("GPU busy, %", "share_of_time"),
)


def section(sweep: Sweep, said: Mapping[str, Said]) -> Section | None:
    """`said`: a cell's id -> what it said of its job. None where none ran in a job."""
    from pipeline.report.frames import in_order

    lines = tuple(_line(cell, said[cell.id]) for cell in in_order(sweep) if cell.id in said)
    if not lines:
        return None
    table = Table("jobs", "Every cell that ran in a job", COLUMNS, lines)
    return Section("usage", "What the jobs used", tuple(_about(said)), (table,))


def _about(said: Mapping[str, Said]) -> Iterator[Sentence]:
    yield from ((line,) for line in usage.lines(usage.total(said.values())))
    hours = METRIC["gpu_hours"].show(usage.gpu_hours(said.values()))
    yield (
        f"{hours} GPU-hours: wall time × GPUs, of all attempts, those that failed among them. "
        "Times are of all attempts at a cell; what was asked and used is of the last.",
    )


def _line(cell: Cell, said: Said) -> tuple[Value, ...]:
    asked, used = said["asked"], said["used"]
    attempts = usage.of_all(said, "attempts")
    return (
        Value(cell.name),
        Value(str(said["job"])),
        Value(f"{attempts:g}", attempts),
        _value(usage.of_all(said, "wall_s"), "wall_s"),
        _value(usage.of_all(said, "gpu_s") / 3600, "gpu_hours"),
        Value(f"{asked['cores']:g}", asked["cores"]),
        _value(used["cores"], "cores"),
        Value(f"{asked['memory_bytes'] / usage.GIB:g}", asked["memory_bytes"]),
        _value(used["memory_bytes"], "gib"),
        _value(used["gpu_memory_bytes"] or None, "gib"),
        _value(used["gpu_busy"], "share_of_time"),
    )


def _value(number: float | None, key: str) -> Value:
    return spread([number], key)
