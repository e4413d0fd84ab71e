r"""The report's tables for LaTeX: a tabular each, for \input, written by pandas' Styler: rules of
booktabs, numbers aligned at the decimal point by siunitx.

    \usepackage{booktabs,siunitx}
    \sisetup{separate-uncertainty,table-align-uncertainty=false}

Everything is escaped: no name or number can be a command, a comment or an end of a line.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from pipeline.report.document import Section, Table

if TYPE_CHECKING:
    import pandas

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
    "†": r"\textdagger{}",
    "\u2212": "$-$",
    "\u2013": r"\textendash{}",
}
ACCENTED = "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝßàáâãäåæçèéêëìíîïñòóôõöøùúûüýÿ"
NUMBER = re.compile(r"(-?[0-9][0-9,]*(?:\.[0-9]+)?)(?: ± ([0-9][0-9,]*(?:\.[0-9]+)?))?")
TOP = r"\toprule"
REQUIRED = (
    r"% \usepackage{booktabs,siunitx} \sisetup{separate-uncertainty,table-align-uncertainty=false}"
    "\n"
    r"% where it is too wide: \resizebox{\textwidth}{!}{\input{...}} of graphicx"
)
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
    """A `tabular` whose columns of numbers are siunitx's; what is no number in one is its text."""
    from pandas import DataFrame

    numbers = table.are_numbers
    lines = [
        [
            _number(value.text) if number else _cell(value.text)
            for value, number in zip(line, numbers, strict=True)
        ]
        for line in table.lines
    ]
    frame = DataFrame(lines, columns=_columns(table), dtype=str)
    formats = [
        _format([line[i] for line in lines]) if number else "l" for i, number in enumerate(numbers)
    ]
    text = frame.style.hide(axis="index").to_latex(
        column_format="".join(formats), hrules=True, multicol_align="c", siunitx=True
    )
    return (
        f"% {comment(section.title)}: {comment(table.caption)}\n"
        f"{REQUIRED}\n{_with_rules(text, table)}"
    )


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


def _columns(table: Table) -> pandas.Index:
    """The headings, below those of the groups where there are any."""
    import pandas

    headings = [_heading(column.heading) for column in table.columns]
    if not any(column.group for column in table.columns):
        return pandas.Index(headings)
    return pandas.MultiIndex.from_arrays(
        [[escape(column.group) for column in table.columns], headings]
    )


def _with_rules(tabular: str, table: Table) -> str:
    """With a rule below each group of the heading, which Styler has no name for."""
    rules, last = [], 0
    for name, members in groupby(table.columns, lambda column: column.group):
        first, last = last + 1, last + len(list(members))
        if name:
            rules.append(rf"\cmidrule(lr){{{first}-{last}}}")
    top = f"{TOP}\n"
    before, after = tabular.split(top, 1)
    groups, below = after.split("\n", 1) if rules else ("", after)
    return f"{before}{top}{groups}\n{' '.join(rules)}\n{below}" if rules else tabular


def _heading(text: str) -> str:
    """One part below the other, as columns of numbers are narrow."""
    parts = [_cell(part) for part in text.split(", ")]
    if len(parts) == 1:
        return parts[0]
    stacked = r"\\".join(parts)
    return rf"\begin{{tabular}}[b]{{@{{}}c@{{}}}}{stacked}\end{{tabular}}"


def _number(text: str) -> str:
    """As siunitx reads it: a number and its uncertainty; in braces what is none."""
    match = NUMBER.fullmatch(text)
    if match is None:
        return f"{{{escape(text)}}}" if text else ""
    middle, deviation = (part and part.replace(",", "") for part in match.groups())
    return rf"{middle} \pm {deviation}" if deviation else middle


def _format(numbers: Sequence[str]) -> str:
    """A column as wide as its numbers: most digits before and behind the point, and the sign."""
    numbers = [text for text in numbers if text and not text.startswith("{")]
    middles = [text.split(" ")[0] for text in numbers]
    sign = "-" if any(text.startswith("-") for text in middles) else ""
    parts = [text.lstrip("-").partition(".") for text in middles]
    whole = max((len(part[0]) for part in parts), default=1)
    decimals = max((len(part[2]) for part in parts), default=0)
    deviations = [float(text.split(" ")[2]) for text in numbers if r"\pm" in text]
    digits = len(f"{max(deviations) * 10**decimals:.0f}") if deviations else 0
    uncertainty = f"({digits})" if digits else ""  # in units of the last decimal
    return f"S[table-format={sign}{whole}.{decimals}{uncertainty}]"


def _cell(text: str) -> str:
    """What starts with [ would be an argument of the line's end before it, * a star of it."""
    shown = escape(text)
    return f"{{}}{shown}" if shown[:1] in ("[", "*") else shown


def comment(text: str) -> str:
    return " ".join(text.split())
