r"""The report's tables for LaTeX: a tabular each, for \input, in the style of booktabs.

    \usepackage{booktabs}

Everything is escaped: no name or number can be a command, a comment or an end of a line.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from itertools import groupby

from pipeline.report.document import Section, Table

ESCAPED = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "{''}",
    "`": r"\textasciigrave{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "\u2212": "$-$",
}
ACCENTED = "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝßàáâãäåæçèéêëìíîïñòóôõöøùúûüýÿ"
MOST_LETTERS = 64  # of a file's name, with those of `paths.checked_name` only


def tables(sections: Iterable[Section]) -> dict[str, str]:
    """Name of a file -> its text, of every table that there is."""
    texts: dict[str, str] = {}
    for section in sections:
        for table in section.tables:
            name = file_name(f"{section.id}-{table.name}")
            if name in texts:  # data set a-b with model c, and a with b-c
                name = file_name(f"{section.id}-{table.caption}")
            texts[name] = tabular(section, table)
    return texts


def tabular(section: Section, table: Table) -> str:
    numbers = table.are_numbers
    lines = [
        f"% {comment(section.title)}: {comment(table.caption)}",
        r"% \usepackage{booktabs}; where it is too wide, "
        r"\resizebox{\textwidth}{!}{\input{...}} of graphicx",
        rf"\begin{{tabular}}{{{''.join('r' if number else 'l' for number in numbers)}}}",
        r"\toprule",
        *_groups(table),
        _row(map(_heading, (column.heading for column in table.columns), numbers)),
        r"\midrule",
        *(_row(_cell(value.text) for value in line) for line in table.lines),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """`text` as itself; a character that a font for Latin letters has not, by its number."""
    line = re.sub(r"(?<![^ ])-(?=[0-9])", "\u2212", " ".join(text.split()))
    return "".join(map(_escaped, line)).replace("--", "-{}-").replace("--", "-{}-")


def _escaped(letter: str) -> str:
    if letter in ESCAPED:
        return ESCAPED[letter]
    if letter.isprintable() and (letter.isascii() or letter in ACCENTED):
        return letter
    return f"[U+{ord(letter):04X}]"


def file_name(text: str) -> str:
    """`text` where it can be a file's name, else as much of it as can, and a hash of it all."""
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", text)
    if kept == text and len(text) <= MOST_LETTERS:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{kept[: MOST_LETTERS - 9]}-{digest}"


def _groups(table: Table) -> Iterator[str]:
    """The upper line of the heading, and a rule below each group; nothing where there is none."""
    if not any(column.group for column in table.columns):
        return
    cells, rules, last = [], [], 0
    for name, members in groupby(table.columns, lambda column: column.group):
        first, last = last + 1, last + len(list(members))
        cells.append(rf"\multicolumn{{{last - first + 1}}}{{c}}{{{escape(name)}}}")
        if name:
            rules.append(rf"\cmidrule(lr){{{first}-{last}}}")
    yield rf"{' & '.join(cells)} \\"
    yield " ".join(rules)


def _row(cells: Iterable[str]) -> str:
    return rf"{' & '.join(cells)} \\"


def _heading(text: str, number: bool) -> str:
    """One part below the other, as columns of numbers are narrow."""
    parts = [_cell(part) for part in text.split(", ")]
    if len(parts) == 1:
        return parts[0]
    stacked = r"\\".join(parts)
    return rf"\shortstack[{'r' if number else 'l'}]{{{stacked}}}"


def _cell(text: str) -> str:
    """What starts with [ would be an argument of the line's end before it, * a star of it."""
    shown = escape(text)
    return f"{{}}{shown}" if shown[:1] in ("[", "*") else shown


def comment(text: str) -> str:
    return " ".join(text.split())
