r"""paper.tex: the report as two pages that compile, `pdflatex paper; bibtex paper; pdflatex paper`
twice. Figures and references.bib lie beside it; the method is written from the sweep's settings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from pipeline.paths import references as bibliography
from pipeline.report import cards, content, latex, provenance
from pipeline.report.cards import Answer
from pipeline.report.document import Code, Column, Section, Sentence, Table
from pipeline.report.frames import Frames
from pipeline.report.metrics import SPEEDUP, speedup_key
from pipeline.report.points import STORED
from pipeline.sweep import Cell, Model, Sweep
from pipeline.techniques import about

if TYPE_CHECKING:
    from pipeline.report.figures import Figure

MOST_SETTINGS = 4  # pairs of data set and model
MOST_LINES = 20  # of a table; more are cut to the frontier
MOST_TECHNIQUES = 30
PRETRAINED = "hubens2020pretraining"  # of a model that starts from other weights
COLUMNS = (
    Column("accuracy, %", "accuracy"),
    Column("drop, points", "accuracy_drop"),
    Column("size, MB", "stored_bytes"),
    Column("ratio, ×", "stored_ratio"),
    Column("speedup, ×", speedup_key(SPEEDUP, "all", 1)),
)
PREAMBLE = r"""\documentclass[10pt,twocolumn]{article}
\usepackage[T1]{fontenc}
\IfFileExists{lmodern.sty}{\usepackage{lmodern}}{}
\usepackage[a4paper,margin=18mm]{geometry}
\usepackage{booktabs}
\usepackage{siunitx}
\sisetup{separate-uncertainty,table-align-uncertainty=false}
\usepackage{graphicx}
\setlength{\emergencystretch}{3em}
\renewcommand{\topfraction}{0.9}
\renewcommand{\dbltopfraction}{0.9}
\renewcommand{\dblfloatpagefraction}{0.9}
\renewcommand{\textfraction}{0.05}
\date{}"""


def paper(sweep: Sweep, frames: Frames, figures: Mapping[str, Figure]) -> str:
    """The text of paper.tex. `figures`: by the path of each from there, without the suffix."""
    keys = cited(sweep)
    shown = [(path, figure) for path, figure in figures.items() if figure.title == STORED.title]
    parts = [
        f"% {latex.comment(content.title(sweep))}\n% pdflatex paper; bibtex paper; pdflatex paper",
        PREAMBLE,
        rf"\title{{{latex.escape(content.title(sweep))}}}",
        r"\author{}",
        "\\begin{document}\n\\maketitle",
        *_answers(sweep, frames),
        *(_figure(path, figure) for path, figure in shown),
        *_method(sweep, frames),
        *_tables(frames),
        "\\bibliographystyle{plain}\n\\bibliography{references}" if keys else "",
        r"\end{document}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def cited(sweep: Sweep) -> list[str]:
    """Keys of the sources of all that the sweep uses, each once, in the order of the text."""
    keys = [key for cell in sweep.cells for key in sources("dataset", cell.dataset.name)]
    keys += [key for cell in sweep.cells for key in _of_model(cell.model)]
    keys += [key for cell in sweep.cells for key in _of_stages(cell)]
    return list(dict.fromkeys(keys))


def sources(kind: str, name: str) -> list[str]:
    """Keys of a model or data set: `kind` is `model` or `dataset`."""
    return [
        key
        for key, patterns in _named().items()
        if any(which == kind and fnmatchcase(name, pattern) for which, pattern in patterns)
    ]


@cache
def keys() -> frozenset[str]:
    """All keys of references.bib."""
    return frozenset(re.findall(r"^@\w+\{([^,\s]+),", _bib(), re.M))


@cache
def _named() -> dict[str, list[tuple[str, str]]]:
    """Key -> [(kind, pattern of names)], of the field `netpress`."""
    patterns = {}
    for entry in re.split(r"^(?=@)", _bib(), flags=re.M)[1:]:
        key = re.findall(r"@\w+\{([^,\s]+),", entry)[0]
        listed = re.findall(r"^\s*netpress\s*=\s*\{([^}]*)\}", entry, re.M)
        pairs = [part.split() for text in listed for part in text.split(",")]
        patterns[key] = [(kind, pattern) for kind, pattern in pairs]
    return patterns


@cache
def _bib() -> str:
    return bibliography().read_text(encoding="utf-8")


def _of_model(model: Model) -> list[str]:
    """With the source of the comparison that a base with other weights is made for."""
    return [*sources("model", model.name), *([PRETRAINED] if model.start else [])]


def _of_stages(cell: Cell) -> list[str]:
    own = [stage.settings for stage in cell.stages if _is_ours(stage.settings)]
    return [key for settings in own for key in about(settings).references()]


def _is_ours(settings: BaseModel) -> bool:
    """Of a stage that ships. Of a plug-in's, defaults and sources are known only where it is, and a
    report is the same everywhere."""
    return type(settings).__module__.startswith("pipeline.")


def _cite(keys: Iterable[str]) -> str:
    listed = ",".join(dict.fromkeys(keys))
    return rf"~\cite{{{listed}}}" if listed else ""


# --- its parts -------------------------------------------------------------------------------


def _answers(sweep: Sweep, frames: Frames) -> Iterator[str]:
    yield "\\section*{The answer}"
    yield latex.escape(content.counts(sweep, frames))
    every = cards.answers(sweep, frames.compared().rows)
    yield from map(_answer, every[:MOST_SETTINGS])
    if not every:
        yield "There is no result yet."
    if len(every) > MOST_SETTINGS:
        yield (
            f"Shown are the first {MOST_SETTINGS} of {len(every)} pairs of data set and model; the "
            "tables of all are beside this file."
        )


def _answer(answer: Answer) -> str:
    points = "\n".join(
        rf"\item {card.question}: {sentence(card.sentence)}" for card in answer.cards
    )
    setting = latex.escape(f"{answer.dataset}, {answer.model}")
    return f"\\paragraph{{{setting}}}\n\\begin{{itemize}}\n{points}\n\\end{{itemize}}"


def sentence(parts: Sentence) -> str:
    shown = (
        rf"\texttt{{{latex.escape(part)}}}" if isinstance(part, Code) else _inline(part)
        for part in parts
    )
    return "".join(shown)


def _inline(part: str) -> str:
    """Escaped, with the spaces at its ends, which join it to its neighbours."""
    lead, trail = " " * part.startswith(" "), " " * part.endswith(" ")
    return f"{lead}{latex.escape(part)}{trail}"


def _figure(path: str, figure: Figure) -> str:
    caption = latex.escape(f"{figure.title}. {figure.caption}")
    return (
        "\\begin{figure*}\n\\centering\n"
        f"\\includegraphics[width=\\textwidth,height=0.42\\textheight,keepaspectratio]{{{path}.pdf}}"
        f"\n\\caption{{{caption}}}\n\\end{{figure*}}"
    )


def _method(sweep: Sweep, frames: Frames) -> Iterator[str]:
    yield "\\section*{Method}"
    facts = dict(provenance.facts(sweep, frames, {}))
    yield _data(sweep)
    recipe = [f"{label}: {text}." for label, text in facts.items() if label.startswith("Recipe")]
    seeds = [f"Seeds: {facts['Seeds']}."]
    shared = [f"{facts['Shared'][:1].upper()}{facts['Shared'][1:]}."] if "Shared" in facts else []
    yield latex.escape(" ".join([*recipe, *seeds, *shared]))
    yield _techniques(sweep)
    yield latex.escape(
        "Size is the bytes of the artifact's files as they are stored; accuracy is the artifact's "
        "own on the test set; latency is measured on ONNX Runtime, warmed up and interleaved "
        "with the base in one process."
    )
    hardware = [
        f"{label}: {facts[label]}." for label in ("CPU", "GPU", "Versions") if label in facts
    ]
    if hardware:
        yield latex.escape(" ".join(hardware))


def _data(sweep: Sweep) -> str:
    """Which networks on which data, each with its source."""
    datasets = dict.fromkeys(cell.dataset.name for cell in sweep.cells)
    models = {cell.model.label: cell.model for cell in sweep.cells}
    on = _listed(latex.escape(n) + _cite(sources("dataset", n)) for n in datasets)
    of = _listed(latex.escape(label) + _cite(_of_model(each)) for label, each in models.items())
    return f"Networks: {of}; data: {on}."


def _techniques(sweep: Sweep) -> str:
    """Each technique as its chain of stages, with the settings that are no defaults."""
    first: dict[str, Cell] = {}
    for cell in sweep.cells:
        if not cell.is_base:
            first.setdefault(cell.technique, cell)
    if not first:
        return ""
    chains = [
        rf"\texttt{{{latex.escape(name)}}}: {_chain(cell)}{_cite(_of_stages(cell))}"
        for name, cell in list(first.items())[:MOST_TECHNIQUES]
    ]
    left = len(first) - len(chains)
    more = f"; and {left} others, in \\texttt{{sweep.yaml}}" if left else ""
    return f"Techniques, as stages after the base's training: {'; '.join(chains)}{more}."


def _chain(cell: Cell) -> str:
    stages = (f"{stage.name}{_settings(stage.settings)}" for stage in cell.stages)
    return latex.escape(", then ".join(stages))


def _settings(settings: BaseModel) -> str:
    """` (parameters kept 0.25)`; "" where all are defaults, which of a plug-in are shown."""
    fields = type(settings).model_fields if _is_ours(settings) else {}
    all_of_them = settings.model_dump(mode="json")
    given = {
        name: value
        for name, value in (all_of_them if fields else dict(sorted(all_of_them.items()))).items()
        if name not in fields or value != fields[name].default
    }
    text = ", ".join(f"{name.replace('_', ' ')} {_said(value)}" for name, value in given.items())
    return f" ({text})" if text else ""


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _tables(frames: Frames) -> Iterator[str]:
    if not frames.rows:
        return
    section = content.results(frames.compared(), COLUMNS)
    for table in section.tables[:MOST_SETTINGS]:
        yield _table(section, table)


def _table(section: Section, table: Table) -> str:
    shown = _cut(table)
    cut = len(shown.lines) < len(table.lines)
    rule = f" Of {len(table.lines):,} techniques those on the frontier." if cut else ""
    caption = latex.escape(
        f"Results on {table.caption}. The drop is against the base, the speedup at batch 1.{rule}"
    )
    deviations = any("±" in value.text for line in shown.lines for value in line)
    kind, width = ("table*", "0.8\\textwidth") if deviations else ("table", "\\columnwidth")
    return (
        f"\\begin{{{kind}}}\n\\centering\n\\caption{{{caption}}}\n"
        f"\\resizebox{{{width}}}{{!}}{{%\n"
        f"{latex.tabular(section, shown).rstrip()}}}\n\\end{{{kind}}}"
    )


def _cut(table: Table) -> Table:
    if len(table.lines) <= MOST_LINES:
        return table
    kept = [i for i, line in enumerate(table.about) if line.on_frontier][:MOST_LINES]
    return replace(
        table,
        lines=tuple(table.lines[i] for i in kept),
        about=tuple(table.about[i] for i in kept),
    )
