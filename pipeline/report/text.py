"""report.md: the answer first, then the numbers it comes from, then how to repeat it."""

from __future__ import annotations

from pipeline.report import content
from pipeline.report.answer import Row
from pipeline.report.content import Answer, Code, Section, Sentence, Table
from pipeline.report.frames import Frames
from pipeline.report.tables import code, escape, fenced, markdown
from pipeline.report.usage import Used
from pipeline.report.usage import lines as usage_lines
from pipeline.sweep import Sweep


def report(
    sweep: Sweep, frames: Frames, rows: list[Row], figure: str | None, used: Used | None = None
) -> str:
    """The whole of report.md; `figure`: the path of accuracy-bytes.svg from it, None without.
    `used`: what the jobs used of what they asked for, where they were SLURM's."""
    parts = [
        f"# {escape(content.title(sweep))}\n",
        f"{content.counts(sweep, frames)}\n",
        "## The answer\n",
        *(_answer(answer) for answer in content.answers(sweep, rows)),
        "" if rows else "There is no result yet.\n",
        "## Accuracy against size\n" if figure else "",
        _figure(figure) if figure else "",
        *_measured(frames),
        *_gaps(frames),
        *_usage(used),
        *_provenance(sweep, frames),
    ]
    return "\n".join(part for part in parts if part)


def sentence(parts: Sentence) -> str:
    return "".join(code(part) if isinstance(part, Code) else escape_inline(part) for part in parts)


def escape_inline(part: str) -> str:
    """As `escape`, with the spaces at its ends, which join it to its neighbours."""
    lead, trail = part[: len(part) - len(part.lstrip())], part[len(part.rstrip()) :]
    return f"{lead}{escape(part)}{trail}" if part.strip() else part


def _answer(answer: Answer) -> str:
    points = "".join(f"- {question}: {sentence(said)}\n" for question, said in answer.points)
    return f"{_setting(answer)}, each against its own base:\n\n{points}"


def _setting(of: Answer | Table) -> str:
    return f"**{escape(of.dataset)}, {escape(of.model)}**"


def _figure(path: str) -> str:
    return (
        f"![Accuracy against stored bytes on a log scale, one mark a technique, with the base and "
        f"a dashed line one point below it.]({path})\n"
    )


def _measured(frames: Frames) -> list[str]:
    if frames.cells.empty:
        return []
    sections = (content.results(frames), content.latency(frames), content.simulated(frames))
    return [part for section in sections if section for part in _section(section)]


def _section(section: Section) -> list[str]:
    about = f"{section.about}\n" if section.about else ""
    return [f"## {section.title}\n", about, *map(_table, section.tables)]


def _table(table: Table) -> str:
    headings = [column.heading for column in table.columns]
    lines = ([value.text for value in line] for line in table.lines)
    return f"{_setting(table)}\n\n{markdown(headings, lines)}"


def _gaps(frames: Frames) -> list[str]:
    if not frames.gaps:
        return []
    lines = [[gap.cell.name, gap.cell.id, gap.reason] for gap in frames.gaps]
    return ["## Gaps\n", markdown(["cell", "id", "reason"], lines, text_columns=3)]


def _usage(used: Used | None) -> list[str]:
    if used is None:
        return []
    return ["## What the jobs used\n", *(f"{escape(line)}\n" for line in usage_lines(used))]


def _provenance(sweep: Sweep, frames: Frames) -> list[str]:
    facts = "".join(f"- {label}: {escape(value)}\n" for label, value in content.facts(frames))
    repeat = f"To repeat it: {code(content.repeat(sweep))}. The sweep file:\n"
    return ["## How it was made\n", facts, repeat, fenced(sweep.text, "yaml")]
