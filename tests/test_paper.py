"""paper.tex: two pages that compile, with the source of every technique that is used."""

from __future__ import annotations

import re
import shutil
import subprocess

from pipeline.orchestrate.plan import load_sweep
from pipeline.report import paper
from pipeline.report.figures import look, tradeoff
from pipeline.report.frames import Frames
from pipeline.report.points import STORED
from pipeline.techniques import CONTROLS, TECHNIQUES
from tests import results, tex

EVIL = r"a_b & 50% $x$ #1 {y} ~ ^ \input{/etc/passwd} <script>"


def made(sweep):
    """The text, and the figure that it includes."""
    rows = results.in_memory(sweep)[0]
    with look.style():
        figure = tradeoff.draw(rows, STORED).figure()
    return paper.paper(sweep, Frames(rows, ()), {"figures/accuracy-bytes": figure}), figure


def test_every_technique_that_ships_names_sources_that_there_are(tmp_path):
    names = [name for name in TECHNIQUES if name not in CONTROLS]
    file = tmp_path / "all.yaml"
    file.write_text(f"name: all\nmodels: [vgg16_bn]\ndatasets: [mnist]\ntechniques: {names}\n")
    sweep = load_sweep(file)
    for cell in sweep.cells:
        assert cell.is_base or paper._of_stages(cell), cell.technique
    keys = paper.cited(sweep)
    assert set(keys) <= paper.keys()
    assert {"lecun1998gradient", "simonyan2015very", "zagoruyko2017attention"} <= set(keys)
    text = made(sweep)[0]
    cited = {key for group in re.findall(r"\\cite\{([^}]*)\}", text) for key in group.split(",")}
    assert cited == set(keys)


def test_the_method_is_that_of_the_sweep(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(
        "name: own\nmodels: [vgg16_bn]\ndatasets: [mnist]\ntraining: {epochs: 7}\n"
        "techniques: [base, tiny]\n"
        "define: {tiny: [{prune: {parameters_kept: 0.125}}, {quantize: {ranges: learned}}]}\n"
    )
    text = made(load_sweep(file))[0]
    assert "7 epochs, batches of 128" in text
    assert r"\texttt{tiny}: prune (parameters kept 0.125), then quantize (ranges learned)" in text
    assert "esser2020lsq" in text and r"netpress export reports/own" in text


def test_a_table_of_many_lines_is_cut_to_the_frontier_and_says_so():
    text = made(results.sweep(techniques=[f"t{i:03}" for i in range(60)]))[0]
    assert "Of 61 techniques those on the frontier." in text
    assert len(re.findall(r"^t\d\d\d & ", text, re.M)) < paper.MOST_LINES


def test_it_compiles(tmp_path):
    tex.needed()
    sweep = results.sweep(
        techniques=("kd", EVIL), datasets=("mnist", f"d{EVIL}"), seeds=(0, 1), checked=False
    )
    text, figure = made(sweep)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "accuracy-bytes.pdf").write_bytes(figure.pdf)
    (tmp_path / "paper.tex").write_text(text)
    shutil.copy(paper.bibliography(), tmp_path / "references.bib")
    latex = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    commands = (latex, ["bibtex", "paper"], latex, latex)
    for command in commands:
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout[-2000:]
    log = (tmp_path / "paper.log").read_text(errors="replace")
    assert "Output written on paper.pdf (2 pages" in log
    assert "undefined" not in log and "Missing character" not in log
