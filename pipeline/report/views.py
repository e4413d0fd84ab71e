"""Tables and sections as the page has them: with ids, groups of columns, and lines that fold."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

from markupsafe import Markup

from pipeline.gaps import Gap
from pipeline.hardware import machine_name
from pipeline.report import content
from pipeline.report.answer import groups
from pipeline.report.document import Column, Line, Section, Sentence, Table, Value, spread
from pipeline.report.frames import Frames
from pipeline.report.metrics import METRIC
from pipeline.report.points import on_frontier
from pipeline.report.provenance import machine
from pipeline.report.row import Row

UPRIGHT_COLUMNS = 9
FOLDED_FROM = 12  # lines
MIXED = "mixed"  # in the place of a machine's number; what is of several is none's
BY_MACHINE = ("results", "machines", "gpu")  # ids of the sections with lines for each machine
EVERY_CELL = (
    "accuracy",
    "accuracy_drop",
    "stored_bytes",
    "stored_ratio",
    "speedup_all_batch1",
    "training_seconds",
    "peak_memory_bytes",
)
# Control characters, halves of pairs, and what turns the direction of the text around it.
UNFIT = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)


def clean(text: str) -> str:
    """`text` without what a page cannot show, or what would change how its neighbours read."""
    return text if isinstance(text, Markup) else UNFIT.sub("\ufffd", text)


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


class Machines:
    """The machines that measured, the one that measured most first. `first`: its number where cells
    were measured on several, so that one has to be chosen; else "". `shown`: those whose numbers
    the report's other sections have."""

    def __init__(self, frames: Frames):
        every = frames.every or frames.rows
        called = {row.machine: machine_of(row) for row in every}
        names = dict.fromkeys(called.get(name, "") for name in frames.machines)
        self.names = [name for name in names if name]
        self._number = {name: str(i) for i, name in enumerate(self.names)}
        several = len(every) > len({row.id for row in every})
        self.first = "0" if several and len(self.names) > 1 else ""
        self.shown = [n for n in self.names if n in set(map(machine_of, frames.rows))]

    def of(self, rows: Iterable[Row]) -> str:
        """The number of the one that all of these rows are of, MIXED where of several; "" where
        there are not several to choose from."""
        numbers = {self._number.get(machine_of(row), MIXED) for row in rows}
        if len(self.names) < 2 or not numbers:
            return ""
        return numbers.pop() if len(numbers) == 1 else MIXED


def machine_of(row: Row) -> str:
    """As a reader chooses it: its CPU, after its name where it has one of its own."""
    described, hardware = machine(row.facts), row.facts.get("hardware") or {}
    cpu, cores, gpu, flags = (hardware.get(key) for key in ("cpu", "cores", "gpu", "flags"))
    if row.machine == machine_name(cpu, cores, flags=flags):
        return described
    if gpu and row.machine == machine_name(cpu, cores, gpu, flags):
        return f"{described}, {gpu}"
    return f"{row.machine} ({described})" if described else row.machine


@dataclass(frozen=True)
class Columns:
    """Neighbouring columns that are shown and hidden together."""

    name: str
    columns: int


@dataclass(frozen=True)
class Lined:
    """A line of a table: `id` is a link's target."""

    id: str
    front: bool
    on: str
    name: str
    cells: tuple[Markup, ...]


@dataclass(frozen=True)
class View(Table):
    """A table as the page has it, `name` being its id there; the first column stays in sight.
    `by_machine`: whether its lines are shown and hidden with the machine that is chosen."""

    by_machine: bool = False

    @property
    def heads(self) -> Iterator[dict[str, str]]:
        """`first`: which way a column is sorted at first, so that the best comes first."""
        for column, numeric in zip(self.columns, self.are_numbers, strict=True):
            better = METRIC[column.key].better if column.key in METRIC else ""
            up = better == "lower" or not numeric
            other = "n" if numeric else "text"
            yield {
                "heading": column.heading,
                "classes": "name" if column is self.columns[0] else other,
                "first": "ascending" if up else "descending",
            }

    @cached_property
    def groups(self) -> tuple[Columns, ...]:
        """The upper line of the heading; () where no columns belong together."""
        if not any(column.group for column in self.columns):
            return ()
        runs = groupby(self.columns[1:], lambda column: column.group)
        return (Columns("", 1), *(Columns(name, len(list(run))) for name, run in runs))

    def rows(self, most: int, machines: Machines) -> Iterator[Lined]:
        """The first lines."""
        for i, line in enumerate(self.lines[:most]):
            yield Lined(
                self.row_id(i),
                self._front(i),
                self._on(i, machines),
                line[0].text,
                tuple(self.cell(j, value) for j, value in enumerate(line) if j),
            )

    def row_id(self, i: int) -> str:
        return f"{self.name}-r{i}"

    def row_ids(self, machines: Machines, machine: str = "") -> dict[str, str]:
        """Technique -> the id of its first row, or of its first of a machine (by its number)."""
        ids: dict[str, str] = {}
        for i, line in enumerate(self.about):
            if not machine or machine == self._on(i, machines):
                ids.setdefault(line.group.technique, self.row_id(i))
        return ids

    @property
    def folds(self) -> bool:
        """Whether only the frontier is shown at first."""
        front = sum(line.on_frontier for line in self.about)
        return len(self.lines) > FOLDED_FROM and 0 < front < len(self.lines)

    def rest_front(self, first: int) -> str:
        """Numbers of the lines after the first that are on the frontier."""
        numbers = (i for i, line in enumerate(self.about) if i >= first and line.on_frontier)
        return " ".join(map(str, numbers))

    def rest_on(self, first: int, machines: Machines) -> str:
        """The machines of each of those lines."""
        numbers = [self._on(i, machines) for i in range(first, len(self.about))]
        return ",".join(numbers) if any(numbers) else ""

    def _front(self, i: int) -> bool:
        return bool(self.about) and self.about[i].on_frontier

    def _on(self, i: int, machines: Machines) -> str:
        known = self.by_machine and self.about
        return machines.of(self.about[i].group.rows) if known else ""

    def cell(self, i: int, value: Value) -> Markup:
        if not self.are_numbers[i]:
            return Markup("<td class=text>") + clean(value.text)
        number, plus_minus, deviation = value.text.partition(" ± ")
        small = Markup(" <small>± {}</small>").format(deviation) if plus_minus else ""
        return Markup("<td>") + number + small

    def plain(self, lines: Iterable[Sequence[Value]]) -> str:
        """Lines with tabs between their columns, for page.js and for those who run no script."""
        texts = [[" ".join(value.text.split()) for value in line] for line in lines]
        width = max(len(line[0]) for line in texts)
        return "\n".join("\t".join([line[0].ljust(width), *line[1:]]) for line in texts)

    @property
    def hiding(self) -> Iterator[str]:
        """Style: a rule for each group of columns that can be hidden."""
        last = 1
        for group in self.groups[1:]:
            first, last = last + 1, last + group.columns
            if group.name:
                of = f":nth-child(n+{first}):nth-child(-n+{last})"
                table = f"#{self.name}-table.no-{slug(group.name)}"
                hidden = f"{table} .columns>{of},{table} tbody>tr>{of}{{display:none}}"
                yield f"@media screen{{{hidden}}}\n"


@dataclass(frozen=True)
class Part:
    """A section of the page with tables."""

    id: str
    title: str
    about: tuple[Sentence, ...]
    tables: tuple[View, ...]
    notes: tuple[Sentence, ...] = ()
    controls: bool = False

    @property
    def by_machine(self) -> bool:
        """Whether it has lines for each machine, so that one can be chosen."""
        return all(view.by_machine for view in self.tables)

    @property
    def wide(self) -> bool:
        """Whether paper is turned for it."""
        return any(len(view.columns) > UPRIGHT_COLUMNS for view in self.tables)

    @property
    def groups(self) -> list[str]:
        """Of all its tables, each once."""
        names = (group.name for view in self.tables for group in view.groups)
        return [name for name in dict.fromkeys(names) if name]


def parts(measured: Sequence[Section], frames: Frames) -> Iterator[Part]:
    """As in report.md, but with latency in the tables of results, where it can be hidden, and with
    a line for each machine that measured a technique."""
    by_id = {section.id: section for section in measured}
    if measured and len(frames.every) > len(frames.rows):  # with the columns that only others have
        by_id["results"] = content.results(frames, every=frames.every)
        by_id["latency"] = content.latency(frames, frames.every)
    for section in measured:
        if section.id == "results":
            whole = _beside(by_id["results"], by_id["latency"])
            tables = tuple(_elsewhere(table, frames) for table in whole.tables)
            yield part(replace(whole, tables=tables), controls=True)
        elif section.id != "latency":
            yield part(section)


def _beside(section: Section, other: Section) -> Section:
    """The columns of both, whose tables have the same lines; the first two are name and n."""
    tables = tuple(
        replace(
            table,
            columns=(*table.columns, *more.columns[2:]),
            lines=tuple((*a, *b[2:]) for a, b in zip(table.lines, more.lines, strict=True)),
        )
        for table, more in zip(section.tables, other.tables, strict=True)
    )
    return replace(section, tables=tables, notes=(*section.notes, *other.about))


def _elsewhere(table: Table, frames: Frames) -> Table:
    """With all that a machine measured of a technique, where that is not what is shown of it."""
    shown = {frozenset((row.id, row.machine) for row in line.group.rows) for line in table.about}
    own = [row for row in frames.every if row.setting == (table.dataset, table.model)]
    lines, about = list(table.lines), list(table.about)
    for name in frames.machines:
        members = [row for row in own if row.machine == name]
        best = on_frontier(members)
        for group in groups(members):
            if frozenset((row.id, row.machine) for row in group.rows) in shown:
                continue
            first, *rest = content.line(group, table.columns[2:], ())
            lines.append((Value(f"{first.text} on {name}"), *rest))
            about.append(Line(group, group.technique in best))
    return replace(table, lines=tuple(lines), about=tuple(about))


def part(section: Section, controls: bool = False) -> Part:
    views = (_view(f"{section.id}-{i}", section.id, t) for i, t in enumerate(section.tables))
    return Part(section.id, section.title, section.about, tuple(views), section.notes, controls)


def _view(id: str, section: str, table: Table) -> View:
    parts = (table.caption, table.columns, table.lines, table.dataset, table.model, table.about)
    return View(id, *parts, by_machine=section in BY_MACHINE)


def gaps(gaps: Sequence[Gap]) -> Part:
    columns = (Column("cell"), Column("reason"), Column("id"))
    lines = tuple((Value(g.cell.name), Value(g.reason), Value(g.cell.id)) for g in gaps)
    about = (_reasons(gaps),) if gaps else (("None: every cell has a result.",),)
    views = (View("gaps-0", "Cells without a result", columns, lines),) if gaps else ()
    return Part("gaps", "Gaps", about, views, controls=len(gaps) > 10)


def _reasons(gaps: Sequence[Gap]) -> Sentence:
    """How often the commonest reasons are the reason."""
    often = [f"{reason} ({n:,})" for reason, n in Counter(g.reason for g in gaps).most_common(5)]
    cells = "1 cell has" if len(gaps) == 1 else f"{len(gaps):,} cells have"
    return (f"{cells} no result" + (f", mostly: {'; '.join(often)}." if len(gaps) > 10 else "."),)


def every_cell(frames: Frames) -> View:
    every = [METRIC[content.in_its_unit(key, frames.rows)] for key in EVERY_CELL]
    metrics = [m for m in every if any(m.of(row) is not None for row in frames.rows)]
    columns = (Column("cell"), *(Column(m.heading, m.key) for m in metrics), Column("id"))
    lines = (
        (
            Value(f"{row.dataset}/{row.model}/{row.technique}/{row.seed}"),
            *(spread([metric.of(row)], metric.key) for metric in metrics),
            Value(row.id),
        )
        for row in frames.rows
    )
    return View("cells", "All cells", columns, tuple(lines))
