"""Figures: marks are where the numbers are, nothing empty, nothing unnamed, the same bytes."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
from matplotlib.colors import to_hex

from pipeline.report import figures
from pipeline.report.figures import look, tradeoff
from tests import results


@pytest.fixture(autouse=True)
def style():
    with look.style():
        yield


def drawn(rows, evidence) -> dict[str, look.Drawn]:
    return dict(figures.drawn(rows, evidence))


def marks(axis, marker) -> list[tuple[float, float]]:
    lines = [line for line in axis.lines if line.get_marker() == marker]
    return [(x, y) for line in lines for x, y in zip(*line.get_data(), strict=True)]


def labels(canvas) -> list[str]:
    return [text.get_text() for legend in canvas.legends for text in legend.get_texts()]


def some(techniques=("half", "tiny-0.5", "tiny-0.25"), **shape):
    return results.in_memory(results.sweep(techniques=techniques, **shape))


# --- bytes -----------------------------------------------------------------------------------


def test_each_figure_stands_alone_and_has_no_date():
    found = figures.draw(None, *some(seeds=(0, 1)))
    assert {"accuracy-bytes", "accuracy-latency"} <= set(found)
    for figure in found.values():
        text = figure.svg.decode()
        ElementTree.fromstring(text)
        assert "dc:date" not in text and "<script" not in text and b"Date" not in figure.pdf
        links = re.findall(r'(?:xlink:)?href="(?!data:)([^"]+)"', text)
        assert links and all(link.startswith("#") for link in links)
        assert figure.pdf.startswith(b"%PDF") and figure.caption and figure.alt and figure.title


def test_no_result_no_figure():
    assert figures.draw(None, [], lambda cell_id: None) == {}


# --- looks -----------------------------------------------------------------------------------


def test_39_techniques_differ_in_grey():
    many = [look.technique_look(i) for i in range(39)]
    assert len({(mark["marker"], mark["fillstyle"]) for mark in many}) == 39
    assert len({mark["marker"] for mark in many[: len(look.MARKERS)]}) == len(look.MARKERS) == 13


def test_controls_are_hollow_and_grey():
    rows, _ = some(("kd", "student-alone", "other"))
    found = look.looks(rows)
    assert list(found) == ["kd", "other", "student-alone"]
    assert found["student-alone"]["markerfacecolor"] == "white"
    red, green, blue = re.findall("..", to_hex(found["student-alone"]["color"])[1:])
    assert red == green == blue
    assert look.dashes("student-alone") == look.DASHES and look.dashes("kd") == "-"


# --- accuracy against bytes, and against latency ---------------------------------------------


def test_marks_are_where_the_numbers_are():
    rows, evidence = some(("half",), seeds=(0, 1))
    found = drawn(rows, evidence)
    for name, cost in (("accuracy-bytes", tradeoff.STORED), ("accuracy-latency", tradeoff.LATENCY)):
        axis = found[name].canvas.axes[0]
        for technique, marker in (("base", "*"), ("half", look.MARKERS[0])):
            mine = [row for row in rows if row["technique"] == technique]
            expected = (sum(map(cost.of, mine)) / 2, 50 * sum(row["accuracy"] for row in mine))
            assert marks(axis, marker) == [pytest.approx(expected)]
