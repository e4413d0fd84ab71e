"""A technique far below the others does not press them together in the figures."""

from __future__ import annotations

import re
import statistics
from dataclasses import replace

import pytest

from pipeline.report import answer, cards, frames, labels, page, plot, points, sections, views
from pipeline.report.figures import look, tradeoff
from tests import results


def rows(drops, seeds=(0,)):
    """One technique for each drop, in accuracy 0..1."""
    drop = {f"t{i}": each for i, each in enumerate(drops)}
    sweep = results.sweep(techniques=tuple(drop), seeds=seeds)
    return sweep, results.in_memory(
        sweep,
        lambda cell: results.measured(
            cell, 2.0 + len(cell.technique), drop.get(cell.technique, 0.0) + 0.001 * cell.seed
        ),
    )[0]


def on_page(drops, seeds=(0,)):
    sweep, measured_rows = rows(drops, seeds)
    every = frames.Frames.of(measured_rows, ())
    parts = list(views.parts(sections.measured(sweep, every), every))
    return list(page._shown(sweep, every, parts, views.Machines(every)))


@pytest.mark.parametrize(
    ("drops", "far"),
    [
        ([0.0, 0.01, 0.6], {"t2"}),
        ([0.0, 0.01, 0.5, 0.6], {"t2", "t3"}),
        ([0.0, 0.01, 0.045], set()),  # less than five points
        ([0.0, 0.1, 0.2, 0.3, 0.4], set()),  # one after the other
        ([0.0, 0.6, 0.6, 0.6], set()),  # most are there
        ([0.6], set()),  # nothing beside the base
        ([-0.3, -0.3, -0.3], set()),  # the base itself
        ([-0.3, -0.3, -0.3, 0.6], set()),  # the base is far below most
        ([], set()),
    ],
)
def test_few_techniques_below_a_gap_are_far_below(drops, far):
    every = points.points(rows(drops)[1], points.STORED)
    assert points.far_below(every) == far
    low, high = points.least_and_most(every)
    inside = [p.at[1] for p in every if p.group.technique not in far]
    assert (low, high) == (min(inside), max(inside))


@pytest.mark.parametrize("near", [0.006, 0.01])  # a line one point below the base, or none
def test_the_figure_for_papers_has_an_arrow_at_its_lower_edge(near):
    _, found = rows([0.0, near, 0.6], seeds=(0, 1))
    [far] = [p for p in points.points(found, points.STORED) if p.at[1] < 80]
    with look.style():
        drawn = tradeoff.draw(found, points.STORED)
        [axis] = drawn.canvas.axes
    low, high = axis.get_ylim()
    assert low > far.at[1] + 20
    [arrow] = [line for line in axis.lines if line.get_marker() == "v"]
    assert 0 < (arrow.get_ydata()[0] - low) / (high - low) < 0.05
    assert arrow.get_xdata()[0] == far.at[0]
    assert f"far below the others: t2 ({far.at[1]:.2f} %)" in drawn.caption


def test_the_page_has_it_at_the_lower_edge_and_says_so():
    [shown] = on_page([0.0, 0.01, 0.6], seeds=(0, 1))
    marks = {mark.lines[0]: mark for mark in shown.plot.marks}
    assert marks["t2"].shape == plot.NAMES[plot.FAR_SHAPE] and not marks["t2"].low
    assert float(marks["t2"].y) == plot.EDGE > float(marks["t1"].y) > 40
    assert marks["t1"].low
    assert re.fullmatch(r"At the .* others: t2 \(\d\d\.\d\d %\)\.", shown.plot.far)
    [shown] = on_page([0.0, 0.01])
    assert shown.plot.far == ""


def _boxes(named, places, size):
    return [labels._box(*one, place, size) for one, place in zip(named, places, strict=True)]


@pytest.mark.parametrize("size", labels.SIZES)
def test_names_of_answers_stand_where_nothing_else_is(size):
    named = [(50.0, 25.0, "1 deep-compression-0.97"), (8.0, 30.0, "3 small-dense-rate-0.0625-0.3")]
    named += [(7.0, 50.0, "2 small-dense-rate-0.03125-0.3"), (93.0, 27.0, "4 inq-5")]
    marks = [(x, y) for x, y, _ in named] + [(70.0, 22.0), (66.0, 25.0), (30.0, 27.0), (95.0, 25.0)]
    lines = [(0.0, 25.5, 100.0, 25.5), (50.0, 25.0, 70.0, 25.0), (70.0, 25.0, 70.0, 22.0)]
    boxes = _boxes(named, labels.places(named, marks, lines), size)
    for i, box in enumerate(boxes):
        assert labels._overlap(box, (0, 0, *size)) == pytest.approx(
            (box[2] - box[0]) * (box[3] - box[1])
        )
        assert not any(labels._overlap(box, other) for other in boxes[:i])
        scaled = [(x * size[0] / 100, y * size[1] / 100) for x, y in marks]
        around = [(x - 7, y - 7, x + 7, y + 7) for x, y in scaled]
        assert not any(labels._overlap(box, mark) for mark in around)
        level = 25.5 * size[1] / 100
        assert not box[1] < level < box[3]


def test_the_scale_of_the_page_follows_the_marks_not_their_deviations():
    _, found = rows([0.01, 0.02], seeds=(0, 1))
    wild = [
        replace(one, accuracy=one.accuracy + (0.05 if one.seed else -0.05))
        if one.technique == "t1"
        else one
        for one in found
    ]
    every = points.points(wild, points.STORED)
    means = [point.at[1] for point in every]
    scale = plot.Scale.of(every, [])
    assert scale.low > min(means) - 1 and scale.high < max(means) + 1
    widest = max(every, key=lambda point: point.spread)
    assert float(scale.y(widest.at[1] - widest.spread, 100.0)) == 100 > float(plot.EDGE)


def test_a_card_has_the_deviation_apart():
    group = answer.Group(tuple(r for r in rows([0.02], seeds=(0, 1))[1] if r.technique == "t0"))
    facts = {fact.label: fact for fact in cards.facts(group)}
    accuracy = facts["accuracy"]
    values = [100 * row.accuracy for row in group.rows]
    assert (accuracy.mean, accuracy.unit) == (f"{statistics.mean(values):.2f}", "%")
    assert accuracy.deviation == f"{statistics.stdev(values):.2f}" != "0.00"
    assert accuracy.value == f"{accuracy.mean} ± {accuracy.deviation} %"
    assert accuracy.change.endswith("lower") and accuracy.is_worse
    assert facts["size"].deviation == "" and facts["size"].value == f"{facts['size'].mean} MB"
