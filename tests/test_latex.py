"""Tables for LaTeX: as many columns in each line, everything escaped, and they compile."""

from __future__ import annotations

import re
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import report
from pipeline.paths import NAME, Work
from pipeline.report import frames, latex, sections
from pipeline.report.document import Column, Section, Table, Value
from pipeline.report.owned import Owned
from tests import results, tex

EVIL = r"a_b & 50% $x$ #1 {y} ~ ^ \input{/etc/passwd} <script>alert('1')</script> | `c` -- é ☃ [x]"


S = r"S\[table-format=-?\d+\.\d+(?:\(\d+\))?\]"


def table(text: str = EVIL, name: str = "a-b") -> Section:
    columns = (Column(text), Column("n"), Column(text, "accuracy", text), Column("y", "", text))
    lines = [(Value(text), Value("1", 1), Value("-0.12 ± 0.03", -0.12), Value("-1", -1.0))] * 2
    return Section("results", text, (), (Table(name, text, columns, tuple(lines)),))


def body(tabular: str) -> list[str]:
    """Its lines of cells."""
    return [line for line in tabular.splitlines() if line.endswith(r"\\")]


def cells(line: str) -> int:
    spans = [int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line)]
    return 1 + len(re.findall(r"(?<!\\)&", line)) + sum(spans)


def layout(text: str) -> list[str]:
    """The kind of each column."""
    given = re.search(r"\\begin\{tabular\}\{(.+)\}$", text, re.M)[1]
    assert re.fullmatch(rf"(?:l|{S})+", given)
    return re.findall(rf"l|{S}", given)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The tables of a whole report: study, controls, several seeds, several data sets."""
    sweep = results.sweep(
        techniques=("qat-int8", "kd", "_x"),
        seeds=(0, 1, 2),
        datasets=("mnist", "cifar10-jpeg", "data_set.1"),
    )
    work = Work(tmp_path_factory.mktemp("work"))
    for cell in sweep.cells:
        results.publish(cell, work)
    report_frames = frames.read(sweep, work)
    return latex.tables(sections.measured(sweep, report_frames))


def test_every_table_of_the_report_is_a_file(made):
    settings = [f"{name}-vgg16_bn" for name in ("mnist", "cifar10-jpeg", "data_set.1")]
    kinds = ("results", "latency", "simulated")
    assert sorted(made) == sorted(
        [f"{kind}-{setting}" for kind in kinds for setting in settings]
        + [f"study-{setting}" for setting in settings[:2]]
        + ["published-cifar10-jpeg", "published-mnist"]
    )


def test_lines_have_as_many_cells_as_there_are_columns(made):
    for name, text in [*made.items(), *latex.tables([table()]).items()]:
        columns = len(layout(text))
        assert {cells(line) for line in body(text)} == {columns}, name
        for rule in re.findall(r"\\cmidrule\(lr\)\{(\d+)-(\d+)\}", text):
            assert 1 <= int(rule[0]) <= int(rule[1]) <= columns
        assert [
            len(re.findall(rf"^\\{r}$", text, re.M)) for r in ("toprule", "midrule", "bottomrule")
        ] == [1, 1, 1]


def test_a_line_is_what_was_measured(made):
    line = next(s for s in body(made["results-mnist-vgg16_bn"]) if s.startswith("qat-int8"))
    assert line.startswith(r"qat-int8 & 3 & 98.81 \pm 0.01 & 0.20 & ") and line.count("&") > 10
    assert r"\_x & 3" in made["results-data_set.1-vgg16_bn"]
    assert r" \pm " in made["study-mnist-vgg16_bn"]


@pytest.mark.parametrize(
    ("texts", "column", "shown"),
    [
        (["12.7 ± 0.4", "-0.07 ± 0.78"], "-2.2(2)", [r"12.7 \pm 0.4", r"-0.07 \pm 0.78"]),
        (["93.8 ± 32.0", "1,234"], "4.1(3)", [r"93.8 \pm 32.0", "1234"]),
        (["", "5"], "1.0", ["", "5"]),
        (["1.2", "1.0 to 2.3", "-", "[x]"], "1.1", ["1.2", "{1.0 to 2.3}", "{-}", "{[x]}"]),
        (["1e5", "±", "1 ± "], "1.0", ["{1e5}", r"{$\pm$}", r"{1 $\pm$}"]),
        ([], "1.0", []),
    ],
)
def test_a_column_of_numbers_is_siunitxs(texts, column, shown):
    lines = tuple((Value("a"), Value(text, 1.0)) for text in texts)
    columns = (Column("technique"), Column("accuracy, %", "accuracy"))
    section = Section("results", "r", (), (Table("a", "b", columns, lines),))
    text = latex.tables([section])["results-a"]
    assert layout(text) == ["l", f"S[table-format={column}]"]
    assert [line[: -len(r"\\")].split("&")[1].strip() for line in body(text)[1:]] == shown


@given(st.text(max_size=60))
def test_text_stands_for_itself(text):
    shown = latex.escape(text)
    assert "\n" not in shown
    known = re.sub(r"\\text[a-z]+\{\}|\\[{}$&%#_]|\$(?:\\pm|\\times|-)\$|-\{\}|\{''\}", "", shown)
    assert not re.search(r"[\\{}$&%#_~^<>\"|`]", known)
    assert known.isascii() or set(known) - set(map(chr, range(128))) <= set(latex.ACCENTED)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a_b%", r"a\_b\%"),
        ("-0.12 ± 0.03", r"$-$0.12 $\pm$ 0.03"),
        ("a--b", "a-{}-b"),
        ("\\", r"\textbackslash{}"),
        ("a\nb", "a b"),
        ("☃", "[U+2603]"),
        ("×", r"$\times$"),
        ("two †", r"two \textdagger{}"),
        ("kd-0.5", "kd-0.5"),
        ("<script>", r"\textless{}script\textgreater{}"),
    ],
)
def test_escaped(text, shown):
    assert latex.escape(text) == shown


def test_a_cell_is_no_argument_of_the_line_before():
    lines = body(latex.tables([table("[3pt] x")])["results-a-b"])
    assert len(lines) > 3 and not any(line.lstrip().startswith("[") for line in lines)
    starred = body(latex.tables([table("*")])["results-a-b"])
    assert not any(line.lstrip().startswith("*") for line in starred)


def test_comments_are_one_line():
    text = latex.tables([table("x\n\\input{y}\r\u2028z")])["results-a-b"]
    assert all(line[0] in "%\\{[x" for line in text.split("\n") if line), text
    assert not re.search(r"^\\input", text, re.M)


def test_files_have_names_that_can_be_and_none_is_lost():
    long = [table(name="d" * 64 + f"-m{i}") for i in range(3)]
    evil = [table(name="<script>/../x"), table(name="<script>\\..\\x")]
    twins = [table("a-b, c", "a-b-c"), table("a, b-c", "a-b-c")]
    for some in (long, evil, twins):
        names = list(latex.tables(some))
        assert len(names) == len(some) and all(NAME.fullmatch(name) for name in names)


def test_a_report_writes_them_and_takes_old_ones_away(tmp_path):
    sweep, work = results.sweep(), Work(tmp_path / "work")
    for cell in sweep.cells:
        results.publish(cell, work)
    paths = report.build(sweep, work, tmp_path)[0]
    names = sorted(path.name for path in paths.tables.iterdir())
    assert names == [f"{kind}-digits-vgg16_bn.tex" for kind in ("latency", "results", "simulated")]
    old = paths.latex("results-old")
    Owned.of(paths).claim([paths.name(old)])
    old.write_text("x")
    before = {path.name: path.read_bytes() for path in paths.tables.glob("*digits*")}
    assert old.name not in before
    report.build(sweep, work, tmp_path)
    assert {path.name: path.read_bytes() for path in paths.tables.iterdir()} == before


def test_they_compile(made, tmp_path):
    tex.needed()
    texts = [
        *made.values(),
        *latex.tables([table(), table("[3pt]", "c"), table("*", "d")]).values(),
    ]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.tex").write_text(text)
    inputs = "\n\n".join(rf"\input{{{i}.tex}}" for i in range(len(texts)))
    (tmp_path / "all.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs,siunitx}\n"
        "\\sisetup{separate-uncertainty,table-align-uncertainty=false}\n"
        f"\\begin{{document}}\n{inputs}\n\\end{{document}}\n"
    )
    compiled = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert compiled.returncode == 0, compiled.stdout[-2000:]
    log = (tmp_path / "all.log").read_text(errors="replace")
    assert "Output written on all.pdf" in log and "Missing character" not in log
