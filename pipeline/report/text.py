"""report.md: the picture and the answer first, then the numbers they come from, then how to repeat
it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.report import cards, content, jobs, provenance
from pipeline.report.cards import Answer
from pipeline.report.document import Code, Section, Sentence, Table
from pipeline.report.frames import Frames
from pipeline.report.jobs import Usage
from pipeline.report.points import STORED
from pipeline.report.tables import code, escape, fenced, markdown
from pipeline.sweep import Sweep

if TYPE_CHECKING:
    from pipeline.report.figures import Figure


def report(
    sweep: Sweep,
    frames: Frames,
    figures: Mapping[str, Figure],
    usages: Mapping[str, Usage],
    measured: Sequence[Section],
) -> str:
    """The whole of report.md. `figures`: by the path of each from there; `usages`: a cell's id ->
    its job's record of usage; `measured`: as sections.measured has it."""
    first = {path: figure for path, figure in figures.items() if figure.title == STORED.title}
    others = {path: figure for path, figure in figures.items() if path not in first}
    parts = [
        f"# {escape(content.title(sweep))}\n",
        f"{content.counts(sweep, frames)}\n",
        *(_figure(path, figure) for path, figure in first.items()),
        "## The answer\n",
        *(_answer(answer) for answer in cards.answers(sweep, frames.compared().rows)),
        "" if frames.rows else "There is no result yet.\n",
        *map(_section, measured),
        *_figures(others),
        *_gaps(frames),
        *_jobs(sweep, usages),
        *_provenance(sweep, frames, usages),
    ]
    return "\n".join(part for part in parts if part)


def sentence(parts: Sentence) -> str:
    return "".join(code(part) if isinstance(part, Code) else escape_inline(part) for part in parts)


def escape_inline(part: str) -> str:
    """As `escape`, with the spaces at its ends, which join it to its neighbours."""
    lead, trail = part[: len(part) - len(part.lstrip())], part[len(part.rstrip()) :]
    return f"{lead}{escape(part)}{trail}" if part.strip() else part


def _answer(answer: Answer) -> str:
    points = "".join(f"- {card.question}: {sentence(card.sentence)}\n" for card in answer.cards)
    setting = f"**{escape(answer.dataset)}, {escape(answer.model)}**"
    return f"{setting}, each technique compared with its own base:\n\n{points}"


def _figures(figures: Mapping[str, Figure]) -> list[str]:
    if not figures:
        return []
    return ["## Figures\n", *(_figure(path, figure) for path, figure in figures.items())]


def _figure(path: str, figure: Figure) -> str:
    below = f"*{escape(figure.title)}.* {escape(figure.caption)}"
    return f"![{escape(figure.alt)}]({path})\n\n{below}\n"


def _section(section: Section) -> str:
    about = "".join(f"{sentence(parts)}\n\n" for parts in section.about)
    notes = "".join(f"- {sentence(parts)}\n" for parts in section.notes)
    below = f"\nNotes:\n\n{notes}" if notes else ""
    return f"## {section.title}\n\n{about}" + "\n".join(map(_table, section.tables)) + below


def _table(table: Table) -> str:
    lines = ([value.text for value in line] for line in table.lines)
    texts = [i for i, numeric in enumerate(table.are_numbers) if not numeric]
    caption = f"**{escape(table.caption)}**\n\n" if table.caption else ""
    return f"{caption}{markdown(table.headings, lines, texts)}"


def _gaps(frames: Frames) -> list[str]:
    if not frames.gaps:
        return []
    lines = [[gap.cell.name, gap.cell.id, gap.reason] for gap in frames.gaps]
    return ["## Gaps\n", markdown(["cell", "id", "reason"], lines, (0, 1, 2))]


def _jobs(sweep: Sweep, usages: Mapping[str, Usage]) -> list[str]:
    section = jobs.section(sweep, usages)
    return [_section(section)] if section else []


def _provenance(sweep: Sweep, frames: Frames, usages: Mapping[str, Usage]) -> list[str]:
    known = provenance.facts(sweep, frames, usages)
    facts = "".join(f"- {escape(label)}: {escape(value)}\n" for label, value in known)
    repeat = f"To reproduce: {code(content.repeat(sweep))}. The sweep file:\n"
    return ["## Provenance\n", facts, repeat, fenced(sweep.text, "yaml")]
