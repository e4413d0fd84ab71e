"""index.html: the whole report as one file that loads nothing from elsewhere.

First the answer and the figure that it is read off, for one data set and model at a time; then the
tables. Style and script stand in the page and are allowed by their hashes; figures for papers are
images in base64, which keeps their ids and styles apart from each other's and from the page's.
Where a table has very many lines, those after the first are in the page as text, which page.js
makes rows of on demand, so that a page about ten thousand results opens at once.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jinja2

from pipeline import __version__
from pipeline.paths import page_template
from pipeline.report import cards, chart, content, jobs, plot, provenance, views
from pipeline.report.answer import settings
from pipeline.report.cards import Answer
from pipeline.report.document import Code, Section
from pipeline.report.frames import Frames
from pipeline.report.jobs import Usage
from pipeline.report.plot import Plot
from pipeline.report.row import Row
from pipeline.report.views import Machines, Part, clean, slug
from pipeline.sweep import Sweep

if TYPE_CHECKING:
    from pipeline.report.figures import Figure

MOST_LINES = (200, 2000)  # that are rows of one table, and of all of them
LARGE_LINES = 500  # of all tables: from here on those out of sight are not laid out
MOST_GISTS = 6
FIRST_GROUPS = ("accuracy", "size", "speed")  # what a screen has room for, and shows at first
SHORT_TITLES = {  # by the id of a section
    "study": "Study",
    "machines": "Machines",
    "simulated": "Simulated latency",
    "tuned": "Chosen settings",
    "controls": "Controls",
    "starts": "Pre-training",
    "published": "Published",
}
DRAWN_ABOVE = "accuracy-bytes"  # which the page draws itself, at its top


@dataclass(frozen=True)
class Shown:
    """What the first screen has of one (data set, model), as one machine measured it. `plot`: None
    where it has no figure; `rows`: technique -> the id of its row; `on`: the machine's number, ""
    for what is shown where none is chosen."""

    id: str
    answer: Answer
    plot: Plot | None
    rows: Mapping[str, str]
    on: str = ""

    @property
    def has_answer(self) -> bool:
        """Whether a compressed model is the answer to a question."""
        return any(card.group and not card.group.is_base for card in self.answer.cards)


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
    compared = frames.compared()
    parts = list(views.parts(measured, compared))
    used = [views.part(section) for section in (jobs.section(sweep, usages),) if section]
    gaps = views.gaps(frames.gaps)
    every_cell = views.every_cell(frames)
    tables = [*(view for part in (*parts, gaps, *used) for view in part.tables), every_cell]
    machines = Machines(frames)
    shown = list(_shown(sweep, compared, parts, machines))
    whole = [one for one in shown if not one.on]
    style = _file("page.css") + "".join(rule for view in tables for rule in view.hiding)
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
            shown=shown,
            shapes={plot.NAMES[name]: path for name, path in plot.SHAPES.items()},
            opened=_opened([one for one in shown if one.on == machines.first] or whole),
            gists=_gists(whole),
            plots_left_out=len(whole) - sum(one.plot is not None for one in whole),
            datasets=list(dict.fromkeys(one.answer.dataset for one in whole)),
            models=list(dict.fromkeys(one.answer.model for one in whole)),
            machines=machines,
            several_seeds=content.several_seeds(frames),
            names_of={"study": plot.NAMES["s"], "ours": plot.NAMES["o"]},
            charts=chart.charts(compared.rows),
            parts=parts,
            gaps=gaps,
            every_cell=every_cell,
            figures=[_figure(name, f) for name, f in figures.items() if name != DRAWN_ABOVE],
            beside=DRAWN_ABOVE if DRAWN_ABOVE in figures else "",
            used=used,
            facts=provenance.facts(sweep, frames, usages),
            command=content.repeat(sweep),
            sweep_text=sweep.text,
            files=files,
            first_lines=_first_lines(len(tables)),
            first_groups=FIRST_GROUPS,
            short_titles=SHORT_TITLES,
            large=sum(len(view.lines) for view in tables) > LARGE_LINES,
        )
    )
    return page.encode()


def _shown(
    sweep: Sweep, frames: Frames, parts: Sequence[Part], machines: Machines
) -> Iterator[Shown]:
    """In the order of the tables of results, which is that of the answers; each pair of data set
    and model first as the report shows it, then as each of several machines measured it."""
    tables = [view for part in parts if part.id == "results" for view in part.tables]
    ways = [("", settings(frames.rows)), *_by_machine(frames, machines)]
    most = plot.MOST_PLOTS // len(ways)
    plots = len(ways) * min(len(tables), most)
    for i, (setting, table) in enumerate(zip(settings(frames.rows), tables, strict=True)):
        for number, measured in ways:
            rows = measured.get(setting, [])
            ids = table.row_ids(machines, number)
            answer = next(iter(cards.answers(sweep, rows)), Answer(*setting, (), ()))
            drawn = plot.plot(rows, answer, ids, plots, frames.rows) if i < most else None
            yield Shown(f"shown-{i}{number and '-'}{number}", answer, drawn, ids, number)


def _gists(shown: Sequence[Shown]) -> list[tuple[str, str]]:
    """(data set, and model where it has several; the answer in short), of the first ones."""
    answers = [one.answer for one in shown[:MOST_GISTS]]
    often = Counter(answer.dataset for answer in answers)
    return [
        (a.dataset if often[a.dataset] == 1 else f"{a.dataset}, {a.model}", a.gist)
        for a in answers
        if a.gist
    ]


def _opened(shown: Sequence[Shown]) -> Shown | None:
    """Which of them is in sight at first: the first that has an answer."""
    return next((one for one in shown if one.has_answer), next(iter(shown), None))


def _by_machine(
    frames: Frames, machines: Machines
) -> Iterator[tuple[str, Mapping[tuple[str, str], list[Row]]]]:
    """(number, pair of data set and model -> rows) of each machine, where there are several."""
    if len(machines.names) > 1:
        for number, name in enumerate(machines.names):
            own = [row for row in frames.every or frames.rows if views.machine_of(row) == name]
            yield str(number), settings(own)


def _first_lines(tables: int) -> int:
    """How many lines of each table are rows."""
    one, all_of_them = MOST_LINES
    return max(5, min(one, all_of_them // tables))


# --- figures for papers ----------------------------------------------------------------------


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
