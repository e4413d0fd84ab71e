"""Settings that the sweep's `tune` tries: all candidates, and which of them the held-out images
choose. The test set has no say in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pipeline.report.answer import Group, groups, mean, settings
from pipeline.report.document import Column, Section, Sentence, Table, Value, spread, table_of
from pipeline.report.row import Row
from pipeline.sweep import Sweep

COLUMNS = (
    Column("technique"),
    Column("tuned"),
    Column("chosen"),
    Column("n"),
    Column("held-out accuracy, %", "held_out_accuracy"),
    Column("accuracy, %", "accuracy"),
)
ABOUT: Sentence = (
    "Each technique's settings are chosen among a few by its accuracy on held-out images, which "
    "are neither trained on nor tested on. All candidates are shown here; in other tables and in "
    "figures are those that are chosen, and all of them in the list of all cells alone.",
)


def section(sweep: Sweep, rows: Sequence[Row]) -> Section | None:
    """None where the sweep tunes nothing that there is yet."""
    tables = tuple(_tables(sweep, rows))
    if not tables:
        return None
    return Section("tuned", "Settings chosen on held-out images", (ABOUT,), tables)


def chosen(sweep: Sweep, rows: Iterable[Row]) -> dict[str, str]:
    """Operating point -> technique, of the rows of one data set and model: the candidate with the
    highest mean held-out accuracy, of equal ones the first."""
    best: dict[str, tuple[float, str]] = {}
    for group in _candidates(sweep, rows):
        accuracy = mean(row.held_out_accuracy for row in group.rows)
        point = sweep.tuned[group.technique]
        if accuracy == accuracy and (point not in best or accuracy > best[point][0]):
            best[point] = accuracy, group.technique
    return {point: technique for point, (_, technique) in best.items()}


def set_apart(sweep: Sweep, rows: Sequence[Row]) -> frozenset[str]:
    """Ids of the rows of candidates that were not chosen. Where held-out images chose none yet, all
    are compared."""
    ids: set[str] = set()
    for members in settings(rows).values():
        best = chosen(sweep, members)
        for row in members:
            point = sweep.tuned.get(row.technique)
            if point in best and best[point] != row.technique:
                ids.add(row.id)
    return frozenset(ids)


def _candidates(sweep: Sweep, rows: Iterable[Row]) -> list[Group]:
    return [group for group in groups(rows) if group.technique in sweep.tuned]


def _tables(sweep: Sweep, rows: Sequence[Row]) -> Iterator[Table]:
    for setting, members in settings(rows).items():
        best = set(chosen(sweep, members).values())
        lines = [_line(sweep, group, best) for group in _candidates(sweep, members)]
        if lines:
            yield table_of(*setting, COLUMNS, lines)


def _line(sweep: Sweep, group: Group, best: set[str]) -> tuple[Value, ...]:
    n = len(group.rows)
    return (
        Value(group.technique),
        Value(sweep.tuned[group.technique]),
        Value("chosen" if group.technique in best else ""),
        Value(str(n), n),
        spread([row.held_out_accuracy for row in group.rows], "held_out_accuracy"),
        spread([row.accuracy for row in group.rows], "accuracy"),
    )
