"""Published results: every line has a source, and stands in the figure where it may."""

from __future__ import annotations

import csv

import pytest

from pipeline.paths import CODE, published_results
from pipeline.report import points, published
from pipeline.report.figures import look, tradeoff
from tests import results


def drawn(drop=0.002, datasets=("cifar10-jpeg",)):
    rows = results.in_memory(
        results.sweep(datasets=datasets), lambda cell: results.measured(cell, 4.0, drop)
    )[0]
    return rows, points.points(rows, points.STORED)


def test_the_data_file_is_that_of_the_reports_and_each_line_has_a_source():
    assert (CODE / "reports" / "published.csv").samefile(published_results())
    with open(published_results(), newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(published.every()) > 30
    for anchor in published.every():
        assert anchor.method and anchor.dataset and anchor.source
        costs = (anchor.bytes, anchor.parameters, anchor.macs, anchor.relative_macs)
        assert any(costs) or anchor.accuracy is not None
        assert anchor.accuracy is None or 0 < anchor.accuracy < 100
        if anchor.stated_drop is not None and anchor.base_accuracy is not None:
            assert anchor.base_accuracy - anchor.accuracy == pytest.approx(
                anchor.stated_drop, abs=0.051
            )


def test_the_smallest_model_within_a_point_is_the_anchor_to_beat():
    [anchor] = [a for a in published.every() if a.bytes == 129_000]
    assert (anchor.method, anchor.accuracy, anchor.drop) == ("LilNetX", 92.6, 0.8)
    assert anchor.second_hand and "2204.02965" in anchor.source


def test_anchors_are_placed_by_the_drop_against_their_own_base():
    rows, every = drawn()
    base = points.base_accuracy(every)
    placed = points.placed(every, "cifar10-jpeg")
    assert {p.anchor.is_study for p in placed} == {True, False}
    assert all(p.accuracy == base - p.anchor.drop and p.cost == p.anchor.bytes for p in placed)
    assert all(p.anchor.drop is not None for p in placed)
    far = {p.anchor.method: p.below for p in placed}
    assert far["EPR"] and not far["MIRACLE"]  # 3.4 points below its base, and none
    with look.style():
        axis = tradeoff.draw(rows, points.STORED).canvas.axes[0]
        low, _ = axis.get_ylim()
        arrows = [line for line in axis.lines if line.get_marker() == "v"]
        assert len(arrows) == sum(p.below for p in placed)
        assert all(line.get_ydata()[0] > low for line in arrows)
        assert not tradeoff.draw(rows, points.LATENCY).canvas.axes[0].texts


def test_other_data_and_no_base_have_none():
    every = drawn(datasets=("digits",))[1]
    assert points.placed(every, "digits") == []
    assert points.placed([p for p in every if not p.group.is_base], "cifar10") == []
    assert published.section(drawn(datasets=("digits",))[0]) is None


def test_the_table_says_what_was_read_second_hand():
    [table] = published.section(drawn()[0]).tables
    lines = {line[0].text: [value.text for value in line] for line in table.lines}
    assert lines["EPR"] == [
        "EPR",
        "VGG-16",
        "90.00",
        "93.40",
        "3.40",
        "0.101",
        "",
        "",
        "",
        "",
        "EPR; paper not stated; second-hand",
    ]
    assert lines["HRank"][-1] == "lmbxmu/HRank" and lines["HRank"][4] == "1.62"
