"""What a report is made of, as plain data: report.md, index.html and LaTeX write the same words and
numbers.

A sentence is a tuple of parts, each text or `Code`. Nothing here is escaped; each writer does that
for its own format.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from pipeline.report.answer import Group, deviation, mean
from pipeline.report.metrics import METRIC


class Code(str):
    """A part of a sentence to be shown as code: a name, a command."""


Sentence = tuple[str, ...]


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
class Line:
    """What a line of a table is about: a technique, and whether it is on the frontier."""

    group: Group
    on_frontier: bool


@dataclass(frozen=True)
class Table:
    """The first column names the line. `name`: what its file is named after; `dataset`, `model`:
    what it is about, "" where about several; `about`: a `Line` for each of its lines, or ()."""

    name: str
    caption: str
    columns: tuple[Column, ...]
    lines: tuple[tuple[Value, ...], ...]
    dataset: str = ""
    model: str = ""
    about: tuple[Line, ...] = ()

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
    """`id`: its own, and a part of its tables' file names. `about`: what it shows, in a short
    paragraph; `notes`: methods and caveats, after the tables."""

    id: str
    title: str
    about: tuple[Sentence, ...]
    tables: tuple[Table, ...]
    notes: tuple[Sentence, ...] = ()


def table_of(
    dataset: str,
    model: str,
    columns: Iterable[Column],
    lines: Iterable[tuple[Value, ...]],
    about: Iterable[Line] = (),
) -> Table:
    """A table about one data set and model."""
    name, caption = f"{dataset}-{model}", f"{dataset}, {model}"
    return Table(name, caption, tuple(columns), tuple(lines), dataset, model, tuple(about))


def spread(numbers: Sequence[float | None], key: str) -> Value:
    """Mean ± deviation of a metric; empty where a number is missing, or where there are none."""
    if not numbers or any(number is None or number != number for number in numbers):
        return Value("")
    middle = mean(numbers)
    return Value(METRIC[key].show(middle, deviation(numbers)), middle)
