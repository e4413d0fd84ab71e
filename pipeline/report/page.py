"""index.html: the whole report as one file that loads nothing from elsewhere.

Style and script stand in the page and are allowed by their hashes; figures are images in base64,
which keeps their ids and styles apart from each other's and from the page's. Where a table has very
many lines, those after the first are in the page as text, which page.js makes rows of on demand,
so that a page about ten thousand results opens at once.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from pipeline import __version__
from pipeline.gaps import Gap
from pipeline.paths import page_template
from pipeline.report import content, jobs, provenance
from pipeline.report.content import Code, Column, Section, Sentence, Table, Value, spread
from pipeline.report.frames import Frames
from pipeline.report.jobs import Usage
from pipeline.report.metrics import METRIC
from pipeline.sweep import Sweep

if TYPE_CHECKING:
    from pipeline.report.figures import Figure

MOST_LINES = (200, 2000)  # that are rows of one table, and of all of them
LARGE_LINES = 500  # of all tables: from here on those out of sight are not laid out
UPRIGHT_COLUMNS = 9
NARROW_GROUPS = ("accuracy", "size", "speed")  # what a narrow screen shows at first
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


@dataclass(frozen=True)
class Group:
    """Neighbouring columns that are shown and hidden together."""

    name: str
    columns: int


class View(Table):
    """A table as the page has it, `name` being its id there; the first column stays in sight."""

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
    def groups(self) -> tuple[Group, ...]:
        """The upper line of the heading; () where no columns belong together."""
        if not any(column.group for column in self.columns):
            return ()
        runs = groupby(self.columns[1:], lambda column: column.group)
        return (Group("", 1), *(Group(name, len(list(run))) for name, run in runs))

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
                yield f"{table} .columns>{of},{table} tbody>tr>{of}{{display:none}}\n"


@dataclass(frozen=True)
class Part:
    """A section of the page with tables."""

    id: str
    title: str
    about: tuple[Sentence, ...]
    tables: tuple[View, ...]
    controls: bool = False

    @property
    def wide(self) -> bool:
        """Whether paper is turned for it."""
        return any(len(view.columns) > UPRIGHT_COLUMNS for view in self.tables)

    @property
    def groups(self) -> list[str]:
        """Of all its tables, each once."""
        names = (group.name for view in self.tables for group in view.groups)
        return [name for name in dict.fromkeys(names) if name]


def html(
    sweep: Sweep,
    frames: Frames,
    figures: Mapping[str, Figure],
    usages: Mapping[str, Usage],
    measured: Sequence[Section],
    files: Sequence[str] = (),
) -> bytes:
    """The page. `figures`: by name, in reading order; `usages`: a cell's id -> its job's record of
    usage; `measured`: as sections.measured has it; `files`: what lies beside it, by its path."""
    parts = list(_parts(measured))
    used = [_part(section) for section in (jobs.section(sweep, usages),) if section]
    gaps = _gaps(frames.gaps)
    every_cell = _every_cell(frames)
    views = [*(view for part in (*parts, gaps, *used) for view in part.tables), every_cell]
    style = _file("page.css") + "".join(rule for view in views for rule in view.hiding)
    script = _file("page.js")
    page = (
        _environment()
        .get_template("page.html.j2")
        .render(
            version=__version__,
            policy=_policy(style, script),
            style=style,
            script=script,
            title=content.title(sweep),
            counts=content.counts(sweep, frames),
            answers=content.answers(sweep, frames.rows),
            several_seeds=content.several_seeds(frames),
            parts=parts,
            gaps=gaps,
            every_cell=every_cell,
            figures=[_figure(name, figure) for name, figure in figures.items()],
            used=used,
            facts=provenance.facts(sweep, frames, usages),
            command=content.repeat(sweep),
            sweep_text=sweep.text,
            files=files,
            first_lines=_first_lines(len(views)),
            narrow_groups=NARROW_GROUPS,
            large=sum(len(view.lines) for view in views) > LARGE_LINES,
        )
    )
    return page.encode()


def _first_lines(tables: int) -> int:
    """How many lines of each table are rows."""
    one, all_of_them = MOST_LINES
    return max(5, min(one, all_of_them // tables))


def clean(text: str) -> str:
    """`text` without what a page cannot show, or what would change how its neighbours read."""
    return text if isinstance(text, Markup) else UNFIT.sub("\ufffd", text)


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


# --- its parts -------------------------------------------------------------------------------


def _parts(measured: Sequence[Section]) -> Iterator[Part]:
    """As in report.md, but with latency in the tables of results, where it can be hidden."""
    by_id = {section.id: section for section in measured}
    for section in measured:
        if section.id == "results":
            yield _part(_beside(section, by_id["latency"]), controls=True)
        elif section.id != "latency":
            yield _part(section)


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
    return replace(section, about=(*section.about, *other.about), tables=tables)


def _part(section: Section, controls: bool = False) -> Part:
    views = (_view(f"{section.id}-{i}", table) for i, table in enumerate(section.tables))
    return Part(section.id, section.title, section.about, tuple(views), controls)


def _view(id: str, table: Table) -> View:
    return View(id, table.caption, table.columns, table.lines)


def _gaps(gaps: Sequence[Gap]) -> Part:
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


def _every_cell(frames: Frames) -> View:
    every = [METRIC[key] for key in EVERY_CELL]
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


def _figure(name: str, figure: Figure) -> dict[str, Any]:
    return {
        "name": name,
        "title": figure.title,
        "caption": figure.caption,
        "alt": figure.alt,
        "pdf": bool(figure.pdf),
        "base64": base64.b64encode(figure.svg).decode(),
        "size": _size(figure.svg),
    }


def _size(svg: bytes) -> str:
    """Attributes that keep its place before it is drawn; a point is 4/3 pixels."""
    root = re.findall(rb"<svg\b[^>]*>", svg[:4000])[0]
    sides = [re.findall(rb'\b%b="([\d.]+)pt"' % side, root)[0] for side in (b"width", b"height")]
    width, height = (round(float(points) * 4 / 3) for points in sides)
    return f' width="{width}" height="{height}"'


# --- the page itself -------------------------------------------------------------------------


def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(page_template()),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalized,
    )
    made.filters["slug"] = slug
    made.tests["code"] = lambda part: isinstance(part, Code)
    return made


def _finalized(value: Any) -> Any:
    return clean(value) if isinstance(value, str) else value


def _policy(style: str, script: str) -> str:
    """Content-Security-Policy: this style, this script, images that stand in the page; no more."""
    return (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        f"img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _file(name: str) -> str:
    return (page_template() / name).read_text(encoding="utf-8")
