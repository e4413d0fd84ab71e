"""The study's tables with ours beside them: row by row, and only where the report is about them."""

from __future__ import annotations

import pytest

from pipeline import report
from pipeline.paths import Work
from pipeline.report import study
from pipeline.techniques import CONTROLS, TECHNIQUES
from tests import results

ALL = ("ptq-int8", "qat-int8", "prune-filters", "kd", "small-and-int8", "prune-random")


@pytest.fixture
def made(tmp_path):
    """rows of results -> the study's section and the report that has it."""

    def made(techniques=ALL, seeds=(0,), datasets=("mnist",), leave_out=(), **shape):
        sweep = results.sweep(techniques=techniques, seeds=seeds, datasets=datasets, **shape)
        work = Work(tmp_path / "work")
        for cell in sweep.cells:
            if cell.technique not in leave_out:
                results.publish(cell, work, results.measured(cell, 4.0, 0.002))
        section = study.section(report.read(sweep, work).rows)
        return section, results.markdown(sweep, work)

    return made


def lines(table) -> dict[str, list[str]]:
    """technique here -> the texts of its line."""
    return {line[1].text: [value.text for value in line] for line in table.lines}


def test_its_rows_are_techniques_that_there_are_and_no_controls():
    named = [name for names in (*study.ROWS.values(), study.MORE) for name in names]
    assert len(named) == len(set(named)) and set(named) <= set(TECHNIQUES) - CONTROLS
    for rows in study.STUDY.values():
        assert set(rows) <= set(study.ROWS) and study.BASE in rows
    assert study.PRUNED in study.MNIST and study.PRUNED not in study.CIFAR10


def test_the_studys_numbers_are_those_of_its_tables(made):
    section, _ = made(datasets=("mnist", "cifar10-jpeg"))
    mnist, cifar = map(lines, section.tables)
    theirs = {name: line[3:7] for name, line in mnist.items()}
    assert theirs["base"] == ["70.5", "98.2", "10", "1.00"]
    assert theirs["qat-int8"] == ["16.1", "97.8", "12", "1.20"]
    assert theirs["prune-filters"] == ["26.3", "96.7", "15", "1.50"]
    assert theirs["kd"] == ["30.0", "98.1", "18", "1.80"]
    theirs = {name: line[3:7] for name, line in cifar.items()}
    assert theirs["base"] == ["70.8", "86.7", "18", "1.00"]
    assert theirs["qat-int8"] == ["30.1", "82.5", "23", "1.28"]
    assert theirs["prune-filters"] == ["missing", "", "", ""]
    assert theirs["kd"] == ["30.0", "81.1", "28", "1.56"]


def test_ours_stand_beside_with_mean_deviation_and_n(made):
    section, text = made(seeds=(0, 1, 2))
    line = lines(section.tables[0])["qat-int8"]
    assert line[0] == "quantization-aware training" and line[2] == "3"
    assert line[7:11] == ["14.7", "98.81 ± 0.01", "3.12", "0.250"]
    deployed, simulated = float(line[11].split()[0]), float(line[12].split()[0])
    assert deployed == pytest.approx(0.25, abs=0.02)
    assert simulated == pytest.approx(1.25, abs=0.08)  # 2.5 against 2: slower than the base
    assert "validation accuracy" in text and "A100" in text and "test set" in text
    assert f"has a relative latency of {simulated:.2f}; the int8 artifact has" in text


def test_what_it_has_and_we_do_not_is_a_line_without_ours(made):
    section, text = made(techniques=("qat-int8",), leave_out=("qat-int8",))
    texts = [[value.text for value in line] for line in section.tables[0].lines]
    assert [line[:3] for line in texts[1:]] == [
        ["quantization-aware training", "no result", "0"],
        ["pruning", "no result", "0"],
        ["distillation (soft logits; attention transfer)", "no result", "0"],
    ]
    assert texts[1][7:] == [""] * 6
    assert "the int8 artifact has" not in text


def test_every_operating_point_of_a_row_is_there_and_what_is_not_in_the_study_comes_last(made):
    section, _ = made(techniques=("prune-filters-0.5", "prune-filters-0.25", "ptq-int8"))
    rows = [(line[0].text, line[1].text) for line in section.tables[0].lines]
    assert ("pruning", "prune-filters-0.5") in rows and ("pruning", "prune-filters-0.25") in rows
    assert rows[-1] == (study.NOT_THERE, "ptq-int8")


def test_controls_are_not_among_its_rows(made):
    section, _ = made()
    assert "prune-random" not in lines(section.tables[0])


@pytest.mark.parametrize(
    "shape",
    [{"datasets": ("digits",)}, {"models": (("vgg11_bn", 1.0),)}],
    ids=["other data", "other network"],
)
def test_other_reports_are_not_about_the_study(made, shape):
    section, text = made(**shape)
    assert section is None and "## Comparison with the study" not in text


def test_another_width_and_jpeg_are_said(made):
    _, text = made(datasets=("cifar10-jpeg",), models=(("vgg16_bn", 0.5),))
    assert "`vgg16_bn-w0.5` is not as wide as the study's VGG-16" in text
    assert "`cifar10-jpeg` is CIFAR-10 stored as JPEG files" in text


def test_what_was_not_measured_is_empty(tmp_path):
    sweep, work = results.sweep(techniques=("qat-int8",), datasets=("mnist",)), Work(tmp_path)
    for cell in sweep.cells:
        values = {"accuracy": 0.9, "stored_bytes": 1000}
        results.publish(cell, work, values, facts={})
    section = study.section(report.read(sweep, work).rows)
    line = lines(section.tables[0])["qat-int8"]
    assert line[7:] == ["0.00100", "90.00", "", "", "", ""]
    assert all("the int8 artifact" not in part for sentence in section.about for part in sentence)
