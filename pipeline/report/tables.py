"""Tables: Markdown and CSV for files, plain columns for the terminal. Everything is escaped."""

from __future__ import annotations

import csv
import errno
import io
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

from pipeline import runtimes
from pipeline.measure.series import Series
from pipeline.report import images
from pipeline.report.answer import Group, fastest, groups, mean, settings, smallest
from pipeline.report.frames import Frames
from pipeline.report.metrics import METRIC, METRICS, SPEEDUP, latency_key, speedup_key
from pipeline.report.row import COUNTS, IDENTITY, Row
from pipeline.terminal import printable

if TYPE_CHECKING:
    import pandas
    import rich.table

ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


# --- Markdown --------------------------------------------------------------------------------


def escape(text: Any) -> str:
    """`text` as itself in a Markdown line or table cell: no markup, no HTML, no new line."""
    line = "".join(c if c.isprintable() else " " for c in str(text))
    line = re.sub(r"[&<>]", lambda m: ENTITIES[m[0]], " ".join(line.split()))
    line = re.sub(r"([\\`*|\[\]~$])", r"\\\1", line)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)


def markdown(
    headings: Sequence[str], lines: Iterable[Sequence[str]], texts: Collection[int] = (0,)
) -> str:
    """A pipe table; columns in `texts` to the left, numbers to the right. Ends with \\n."""
    rule = [":--" if i in texts else "--:" for i in range(len(headings))]
    rows = [[escape(h) for h in headings], rule, *([escape(v) for v in line] for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def code(text: str) -> str:
    """`text` as inline code; newlines and backticks cannot end it."""
    line = " ".join(text.split())
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if "`" in line else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def fenced(text: str, language: str = "") -> str:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


# --- CSV -------------------------------------------------------------------------------------


def csv_text(frame: pandas.DataFrame) -> str:
    """One line a cell, raw values in full precision, empty where nothing was measured."""
    columns = [*IDENTITY, *(metric.key for metric in METRICS)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for values in frame[columns].itertuples(index=False):
        writer.writerow(
            _csv_value(name, value) for name, value in zip(columns, values, strict=True)
        )
    return out.getvalue()


def _csv_value(name: str, value: Any) -> str:
    if isinstance(value, str):  # a spreadsheet would run what starts like a formula
        return f"'{value}" if value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
    if value != value:  # NaN
        return ""
    return str(int(value)) if name in COUNTS else str(value)


# --- the terminal ----------------------------------------------------------------------------

SUMMARY = (  # heading, metric; latency at batch 1
    ("accuracy\n%", "accuracy"),
    ("drop\npoints", "accuracy_drop"),
    ("stored\nMB", "stored_bytes"),
    ("ratio\n×", "stored_ratio"),
    ("latency\nms", latency_key(Series(runtimes.DEFAULT, "artifact", "all", 1), 50)),
    ("speedup\nbatch 1", speedup_key(SPEEDUP, "all", 1)),
    ("speedup\nbatch 64", speedup_key(SPEEDUP, "all", 64)),
)


DROPPED = ("speedup\nbatch 64", "latency\nms", "n", "ratio\n×")  # first where there is no room
QUESTIONS = (
    "smallest without accuracy loss",
    "smallest within one percentage point",
    "fastest within one percentage point",
)
TERMINAL_COLUMNS = 80


def print_summary(frames: Frames, file: IO[str] | None = None) -> None:
    """A table a (data set, model), a line a technique (the mean over its n seeds), the best marked;
    then the gaps. Fits 80 columns; a name is never cut."""
    from rich.console import Console
    from rich.text import Text

    class Printer(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError(errno.EPIPE, "nobody reads this")  # rich would end the process

    # As wide as it must be: a terminal that is narrower wraps, which loses nothing.
    console = Printer(file=file, highlight=False, soft_wrap=True, width=1000)
    for (dataset, model), rows in settings(frames.compared().rows).items():
        marks = _marks(rows)
        console.print(Text(f"{dataset}, {model}", style="bold"))
        console.print(_summary_table(rows, marks))
        for number in sorted({number for numbers in marks.values() for number in numbers}):
            console.print(Text(f"{number}: {QUESTIONS[int(number) - 1]}"))
        console.print()
    for sentence in images.sentences(frames.rows):
        console.print(Text(sentence))
    for gap in frames.gaps:
        console.print(Text(printable(f"{gap.cell.name} ({gap.cell.id}): {gap.reason}")))


def _marks(rows: list[Row]) -> dict[str, list[str]]:
    """Technique -> the numbers of the questions that it is the answer to; a base is none."""
    marks: dict[str, list[str]] = {}
    for number, group in enumerate((smallest(rows, 0.0), smallest(rows), fastest(rows)), 1):
        if group is not None and not group.is_base:
            marks.setdefault(group.technique, []).append(str(number))
    return marks


def _summary_table(rows: list[Row], marks: Mapping[str, list[str]]) -> rich.table.Table:
    from rich.table import Table
    from rich.text import Text

    headings = ["", "technique", "n", *(heading for heading, _ in SUMMARY)]
    lines = [_summary_line(group, marks) for group in groups(rows)]
    shown = _that_fit(headings, lines)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for i in shown:
        table.add_column(headings[i], justify="left" if i < 2 else "right", no_wrap=True)
    for line in lines:
        style = "bold" if line[0] else ""
        table.add_row(*(Text(line[i], style=style) for i in shown))
    return table


def _that_fit(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> list[int]:
    """Numbers of the columns that fit into a terminal; a name needs the room that it needs."""
    widths = [
        max(
            len(part)
            for text in (heading, *(line[i] for line in lines))
            for part in text.split("\n")
        )
        for i, heading in enumerate(headings)
    ]
    shown = [i for i, width in enumerate(widths) if width]
    for heading in DROPPED:
        if sum(widths[i] + 1 for i in shown) > TERMINAL_COLUMNS + 1:
            shown = [i for i in shown if headings[i] != heading]
    return shown


def _summary_line(group: Group, marks: Mapping[str, list[str]]) -> list[str]:
    metrics = [METRIC[key] for _, key in SUMMARY]
    numbers = [metric.show(mean(metric.of(row) for row in group.rows)) for metric in metrics]
    mark = "" if group.is_base else ",".join(marks.get(group.technique, ()))
    return [mark, group.technique, str(len(group.rows)), *numbers]
