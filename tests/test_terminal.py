"""What reaches a terminal: one line, nothing that moves, hides or reorders."""

from __future__ import annotations

import ast
import io
import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import cli, cli_output, terminal
from pipeline.errors import UserError
from pipeline.gaps import Gap
from pipeline.orchestrate.display import Lines
from pipeline.paths import CODE
from pipeline.report import tables
from pipeline.report.frames import Frames
from pipeline.verify.check import Check


@pytest.mark.parametrize(
    "text, shown",
    [
        ("plain, Ünïcode 猫, 😀", "plain, Ünïcode 猫, 😀"),
        ("a\x1b[31mb\r\n\t", r"a\x1b[31mb\r\n\t"),
        ("\u202egnp.tac\u2066\u200f", r"\u202egnp.tac\u2066\u200f"),
        ("\x9b2J\x7f\x00", r"\x9b2J\x7f\x00"),
        ("\udcff\u2028\ufeff", r"\udcff\u2028\ufeff"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_is_not_printable_is_its_escape(text, shown):
    assert terminal.printable(text) == shown


@given(st.text(alphabet=st.characters()))
def test_every_text_becomes_one_printable_line(text):
    line = terminal.printable(text)
    assert line.isprintable() and (line == text) == text.isprintable()
    assert line.encode().decode() == line
    cut = terminal.sentence(text * 50)
    assert cut.isprintable() and len(cut) <= 500


def test_a_long_sentence_keeps_its_beginning_and_its_end():
    cut = terminal.sentence("file.yaml:3: " + "x" * 5000 + "; expected a number")
    assert len(cut) == 500 and cut.startswith("file.yaml:3: xx") and " ... " in cut
    assert cut.endswith("x; expected a number")


def test_errors_notes_and_lines_of_every_command_go_through_it(tmp_path, capsys):
    name = tmp_path / "\x1b[2J\u202e.yaml"
    assert cli.main(["plan", str(name)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.isprintable() and r"\x1b[2J\u202e.yaml" in line
    cli_output.show(["tab\there\x1b]0;", "two"])
    assert capsys.readouterr().out == "tab     here\\x1b]0;\ntwo\n"
    cli_output.show({"name": "\x1b"})
    assert json.loads(capsys.readouterr().out) == {"name": "\x1b"}
    assert cli_output.fail(str(UserError("a\nb" * 1000))) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert len(line) == len("netpress: ") + 500


# Those that hand on what went through it already, or what a library lays out; and the script that
# measures where there is no netpress.
PRINTS = {
    "terminal.py",
    "cli_output.py",
    "cli_predict.py",
    "display.py",
    "state.py",
    "tables.py",
    "top.py",
    "watch.py",
    "bench.py",
}


def test_nothing_else_prints():
    """Every other module gives its lines and sentences to `pipeline.terminal`."""
    own = [*(CODE / "pipeline").rglob("*.py"), *(CODE / "jobs").rglob("*.py")]
    printing = {
        f"{path.name}:{node.lineno}"
        for path in own
        if path.name not in PRINTS
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "click.echo")
    }
    [of_help] = printing  # click's own text
    assert of_help.startswith("cli.py:")


def test_a_sentence_and_a_note_are_one_short_line(capsys):
    for show in (terminal.tell, cli_output.warn):
        show("a\x1b[2J\n" * 1000)
        [line] = capsys.readouterr().err.splitlines()
        assert line.isprintable() and len(line) == len("netpress: ") + 500
    line = Check("artifacts/\u202e", "differs", "x\n" * 1000).line
    assert line.isprintable() and len(line) == 500


def test_progress_and_gaps_go_through_it():
    out = io.StringIO()
    Lines([], [], out).say("reason \x1b[2J\n")
    assert out.getvalue() == "reason \\x1b[2J\\n\n"
    out = io.StringIO()
    cell = SimpleNamespace(name="a/b/c/0", id="0" * 16)
    gap = Gap(cell, "failed: \x1b]0;owned\x07")
    tables.print_summary(Frames((), (gap,)), out)
    assert out.getvalue().strip() == f"a/b/c/0 ({'0' * 16}): failed: \\x1b]0;owned\\x07"
