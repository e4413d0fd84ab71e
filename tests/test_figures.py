"""Figures: marks are where the numbers are, nothing empty, nothing unnamed, the same bytes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy
import pytest
from fontTools.ttLib import TTFont
from matplotlib.colors import to_hex

from pipeline import cli, report, runtimes, verify
from pipeline.measure.series import Series
from pipeline.orchestrate import plan
from pipeline.paths import CODE, Work
from pipeline.report import cards, figures, plot, points
from pipeline.report.figures import chosen, look, spread, tradeoff
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
    plots = figures.draw(*some(seeds=(0, 1)))
    assert {"accuracy-bytes", "accuracy-latency"} <= set(plots)
    for figure in plots.values():
        text = figure.svg.decode()
        ElementTree.fromstring(text)
        assert "dc:date" not in text and "<script" not in text and b"Date" not in figure.pdf
        links = re.findall(r'(?:xlink:)?href="(?!data:)([^"]+)"', text)
        assert links and all(link.startswith("#") for link in links)
        assert figure.pdf.startswith(b"%PDF") and figure.caption and figure.alt and figure.title


@pytest.mark.parametrize("name", ["latency", "classes", "accuracy-bytes"])
def test_the_last_digits_of_a_layout_are_in_no_byte(name):
    """The solver adds up in another order in another process, and ids are made of such digits."""
    rows, evidence = some()
    first, second = (drawn(rows, evidence)[name] for _ in range(2))
    engine = second.canvas.get_layout_engine()
    left, bottom, width, height = engine.get()["rect"]
    engine.set(rect=(left + 1e-12, bottom + 1e-12, width - 3e-12, height - 3e-12))
    one, other = first.figure(), second.figure()
    assert (one.svg, one.pdf) == (other.svg, other.pdf)
    for axis in first.canvas.axes:
        sides = axis.get_position(original=True).bounds
        assert numpy.allclose(sides, numpy.round(sides, 6), rtol=0, atol=1e-15)


def test_no_result_no_figure():
    assert figures.draw([], lambda cell_id: None) == {}


# --- looks -----------------------------------------------------------------------------------


def test_39_techniques_differ_in_grey():
    many = [look.technique_look(i) for i in range(39)]
    assert len({(mark["marker"], mark["fillstyle"]) for mark in many}) == 39
    assert len({mark["marker"] for mark in many[: len(look.MARKERS)]}) == len(look.MARKERS) == 13


def test_controls_are_hollow_and_grey():
    rows, _ = some(("kd", "student-alone", "other"))
    styles = look.looks(rows)
    assert list(styles) == ["kd", "other", "student-alone"]
    assert styles["student-alone"]["markerfacecolor"] == "white"
    red, green, blue = re.findall("..", to_hex(styles["student-alone"]["color"])[1:])
    assert red == green == blue
    assert look.dashes("student-alone") == look.DASHES and look.dashes("kd") == "-"


def test_a_technique_looks_the_same_in_every_figure():
    """Also where others have several operating points, or are missing."""
    rows, _ = some(("kd", "half", "prune-0.1", "prune-0.2", "student-alone", "last"))
    rows = [replace(r, family="prune") if r.technique.startswith("prune") else r for r in rows]
    styles = look.looks(rows)
    assert list(styles) == ["kd", "half", "prune", "last", "student-alone"]
    shown = {name: name for name in ("student-alone", "last", "half")}
    shown |= {name: "prune" for name in ("prune-0.2", "prune-0.1")}
    own = look.looks_of(shown, rows)
    assert {name: own[name] for name in ("student-alone", "last", "half")} == {
        name: styles[name] for name in ("student-alone", "last", "half")
    }
    assert own["prune-0.2"] == styles["prune"]
    assert own["prune-0.1"] == look.technique_look(4)  # which no family has
    ids = {row.technique: "there" for row in rows}
    answer = cards.Answer(rows[0].dataset, rows[0].model, (), ())
    few = [row for row in rows if row.technique in ("base", "last")]
    whole, part = (plot.plot(some_rows, answer, ids, 1, rows).marks for some_rows in (rows, few))
    [before], [after] = ([m for m in marks if m.lines[0] == "last"] for marks in (whole, part))
    assert (after.shape, after.look.split()[:2]) == (before.shape, before.look.split()[:2])
    assert "k3" in after.look


# --- accuracy against bytes, and against latency ---------------------------------------------


def test_marks_are_where_the_numbers_are():
    rows, evidence = some(("half",), seeds=(0, 1))
    plots = drawn(rows, evidence)
    for name, cost in (("accuracy-bytes", tradeoff.STORED), ("accuracy-latency", tradeoff.LATENCY)):
        axis = plots[name].canvas.axes[0]
        for technique, marker in (("base", "*"), ("half", look.MARKERS[0])):
            mine = [row for row in rows if row.technique == technique]
            expected = (sum(map(cost.of, mine)) / 2, 50 * sum(row.accuracy for row in mine))
            assert marks(axis, marker) == [pytest.approx(expected)]


def test_the_frontier_steps_over_the_means_that_nothing_beats():
    shapes = {
        "small": (8, 0.004),
        "worse": (4, 0.006),
        "good": (2, 0.001),
        "student-alone": (16, 0.0),
    }
    sweep = results.sweep(techniques=tuple(shapes))
    rows, evidence = results.in_memory(
        sweep, lambda cell: results.recorded(cell, *shapes.get(cell.technique, (1, 0)))
    )
    axis = drawn(rows, evidence)["accuracy-bytes"].canvas.axes[0]
    step = next(line for line in axis.lines if line.get_drawstyle() == "steps-post")
    sizes = [row.stored_bytes for row in rows]
    assert list(step.get_xdata())[:-1] == [sizes[1], sizes[3], sizes[0]]  # no control, none worse
    assert list(step.get_ydata())[:-1] == pytest.approx([98.6, 98.9, 99.0])


def test_operating_points_are_joined_controls_with_dashes():
    rows, evidence = some(("tiny-0.5", "tiny-0.25", "student-alone-0.5", "student-alone-0.25"))
    axis = drawn(rows, evidence)["accuracy-bytes"].canvas.axes[0]
    joined = {
        line.get_color(): line
        for line in axis.lines
        if len(line.get_xdata()) == 2 and list(line.get_xdata()) != [0, 1]  # across the panel
    }
    assert not joined[look.COLOURS[0]].is_dashed() and joined[look.GREYS[0]].is_dashed()


def test_one_point_below_the_base_is_drawn_only_where_it_is_near():
    for drop, expected in ((0.002, False), (0.006, True)):
        rows, evidence = results.in_memory(
            results.sweep(), lambda cell, d=drop: results.recorded(cell, drop=d)
        )
        canvas = drawn(rows, evidence)["accuracy-bytes"].canvas
        low, _ = canvas.axes[0].get_ylim()
        assert (low < 98) == (tradeoff.BELOW in labels(canvas)) == expected


def test_names_are_text_in_every_legend():
    names = ("_hidden", "$x^2$", "<script>")
    rows, evidence = some(names)
    plots = drawn(rows, evidence)
    for name in ("accuracy-bytes", "training-curves"):
        assert {"base", *names} <= set(labels(plots[name].canvas))
    lines = [text.get_text() for text in plots["latency"].canvas.axes[0].get_yticklabels()]
    assert lines == ["base", *names]
    for figure in figures.draw(rows, evidence).values():
        assert b"<script" not in figure.svg


def test_a_name_that_is_too_long_loses_its_middle():
    assert look.short("a" * look.LONGEST_NAME) == "a" * look.LONGEST_NAME
    assert look.short("begin" + "x" * 90 + "end", 11) == "begin…xxend"


def test_names_that_are_alike_when_shortened_stay_apart():
    names = (f"{'a' * 20}{middle}{'b' * 20}" for middle in "xy")
    plots = drawn(*some(tuple(names)))
    for name, others in (("latency", 1), ("channels", 1), ("classes", 0)):
        assert len(plots[name].canvas.axes[0].get_yticks()) == others + 2


def test_many_techniques_are_dots_and_the_frontier_is_named():
    one = results.in_memory(results.sweep())[0][1]
    rows = [
        replace(
            one,
            id=f"{i:016x}",
            technique=f"t{i}",
            family=f"t{i}",
            is_base=i == 0,
            accuracy=0.5 + (i % 997) / 2000,
            stored_bytes=1000 + i,
        )
        for i in range(3000)
    ]
    figure = tradeoff.draw(rows, tradeoff.STORED)
    assert "2,969 more techniques" in figure.caption
    assert len(figure.figure().svg) < 300_000
    best = [p.group.technique for p in points.frontier(points.points(rows, points.STORED))]
    assert set(best[1:20]) <= set(labels(figure.canvas))


# --- curves ----------------------------------------------------------------------------------


def curve(axis, colour) -> list[tuple[float, float]]:
    line = next(x for x in axis.lines if x.get_color() == colour and x.get_linewidth() == 1.4)
    return list(zip(*line.get_data(), strict=True))


def test_stages_follow_each_other_in_the_curves():
    sweep = results.sweep(techniques=("half",))
    rows, evidence = results.in_memory(
        sweep,
        history=lambda cell: results.trained(8, ("train",) if cell.is_base else ("prune", "tune")),
    )
    figure = drawn(rows, evidence)["training-curves"]
    accuracy, loss = figure.canvas.axes
    stages = results.trained(8, ("prune", "tune"))
    loss_curve = curve(loss, look.COLOURS[0])
    assert [x for x, _ in loss_curve] == [*range(1, 9), 8.5, *range(9, 17)]
    assert [y for _, y in loss_curve if y == y] == pytest.approx(
        [y for stage in stages for y in stage.columns["held_out_loss"]]
    )
    errors = [100 * (1 - a) for stage in stages for a in stage.columns["held_out_accuracy"]]
    assert [y for _, y in curve(accuracy, look.COLOURS[0]) if y == y] == pytest.approx(errors)
    assert any(list(line.get_xdata()) == [8.5, 8.5] for line in accuracy.lines)
    assert "dotted vertical line" in figure.caption


def test_operating_points_differ_in_the_curves():
    names = ("tiny-0.5", "tiny-0.25", "student-alone-0.5", "student-alone-0.25")
    rows, evidence = some(names)
    figure = drawn(rows, evidence)["training-curves"]
    (legend,) = figure.canvas.legends
    marks = [(x.get_marker(), x.get_fillstyle(), x.get_color()) for x in legend.get_lines()]
    assert labels(figure.canvas) == ["base", *names]
    assert len(set(marks)) == 5
    assert f"Stages: finetune (base, {', '.join(names)})." in figure.caption


def test_seeds_are_thin_lines_around_their_mean():
    rows, evidence = some(("half",), seeds=range(7))
    axis = drawn(rows, evidence)["training-curves"].canvas.axes[0]
    thin = [line for line in axis.lines if line.get_linewidth() == 0.5]
    assert len(thin) == 2 * 5


@pytest.mark.parametrize("columns", [{}, {"loss": []}, {"seconds": [1.0]}])
def test_without_a_training_there_are_no_curves(columns):
    stage = results.StageHistory(0, "quantize", columns)
    rows, evidence = results.in_memory(results.sweep(), history=lambda cell: [stage])
    assert "training-curves" not in drawn(rows, evidence)


# --- what is measured of each layer, call, class and image -----------------------------------


def texts(axis) -> list[str]:
    return [text.get_text() for text in axis.texts]


def test_channels_are_those_of_the_results():
    sweep = results.sweep(techniques=("half", "other-shape"))

    def values(cell):
        left = {"base": [64, 128, 10], "half": [32, 128, 5], "other-shape": [1, 2]}
        return results.recorded(cell, channels=1) | {"channels": numpy.array(left[cell.technique])}

    rows, evidence = results.in_memory(sweep, values)
    axis = drawn(rows, evidence)["channels"].canvas.axes[0]
    assert texts(axis) == ["64", "128", "10", "32", "128", "5"]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["base", "half"]
    assert axis.collections[0].get_array().tolist() == [[1, 1, 1], [0.5, 1, 0.5]]


def test_similarity_has_a_line_a_technique_and_a_band_of_two_bases():
    sweep = results.sweep(techniques=("half", "base-anew"), seeds=(0, 1))
    cka = {"half": [0.9, 0.7], "base-anew": [0.8, 0.4]}

    def values(cell):
        alike = numpy.array(cka.get(cell.technique, [1, 1])) - 0.1 * cell.seed
        similarities = {"similarity/cka": alike, "similarity/svcca": alike / 2}
        return results.recorded(cell, channels=1) | ({} if cell.is_base else similarities)

    rows, evidence = results.in_memory(sweep, values)
    figure = drawn(rows, evidence)["similarity"]
    for axis, factor in zip(figure.canvas.axes, (1, 0.5), strict=True):
        [line] = axis.lines
        assert line.get_ydata() == pytest.approx(factor * numpy.array([0.85, 0.65]))
        low, high = axis.collections[0].get_paths()[0].get_extents().intervaly
        assert (low, high) == pytest.approx((factor * 0.3 - 0.01, factor * 0.8 + 0.01))
    assert "grey band (base-anew" in figure.caption and "n = 2" in figure.caption
    assert "half 0.65, base-anew 0.35" in figure.alt
    alone = results.in_memory(results.sweep(techniques=("base-anew",)), values)
    assert "similarity" not in drawn(*alone)


def layers_compared(pairs):
    """Values of cells whose layers were compared: technique -> [M, M]."""

    def values(cell):
        recorded = results.recorded(
            cell, channels=1, drop=0.01 if cell.technique == "half" else 0.002
        )
        if cell.technique in pairs:
            matrix = pairs[cell.technique] + 0.01 * cell.seed
            alike = numpy.full(max(len(matrix), 2), 0.9)
            recorded |= {"similarity/cka": alike, "similarity/svcca": alike}
            recorded["similarity/cka_pairs"] = matrix
        return recorded

    return values


def test_layers_are_compared_with_each_of_the_bases():
    """Of what loses most, with another base beside; of a cell that is chosen, alone."""
    sweep = results.sweep(techniques=("kd", "half", "base-anew"), seeds=(0, 1))
    pairs = {
        "kd": numpy.array([[0.9, 0.1], [0.2, 0.8]]),
        "half": numpy.array([[0.7, 0.3], [0.4, -0.05]]),
        "base-anew": numpy.array([[0.6, 0.5], [0.5, 0.6]]),
    }
    rows, evidence = results.in_memory(sweep, layers_compared(pairs))
    figure = drawn(rows, evidence)["layer-pairs"]
    shown = [axis for axis in figure.canvas.axes if axis.get_xlabel() == "layer of the base"]
    for axis, name in zip(shown, ("half", "base-anew"), strict=True):
        assert numpy.allclose(axis.collections[0].get_array(), pairs[name])
        assert axis.get_ylabel() == "layer of the network" and name in axis.get_title("left")
    assert texts(shown[0]) == ["0.70", "0.30", "0.40", "-0.05"]
    assert "loses most" in figure.caption and "half on digits, vgg16_bn, seed 0" in figure.caption
    assert "CKA of 0.32 on average with the same layer of the base and 0.35" in figure.alt
    kd = next(row.id for row in rows if row.technique == "kd" and row.seed == 1)
    figure = dict(figures.drawn(rows, evidence, kd))["layer-pairs"]
    axis = figure.canvas.axes[0]
    assert numpy.allclose(axis.collections[0].get_array(), pairs["kd"] + 0.01)
    assert "kd on digits, vgg16_bn, seed 1" in figure.caption and "loses" not in figure.caption
    before = results.in_memory(sweep, layers_compared({}))  # of an earlier version
    assert "layer-pairs" not in drawn(*before)


def test_a_report_remembers_whose_layers_it_compares(tmp_path, capsys):
    """By the cell's name; one of an earlier version has nothing to show, and changes nothing."""
    text = "name: test\nmodels: [vgg16_bn]\ndatasets: [digits]\nseeds: [0, 1]\n"
    (tmp_path / "test.yaml").write_text(text + "techniques: [base, kd, dkd]\n")
    sweep, work = plan.load_sweep(tmp_path / "test.yaml"), Work(tmp_path / "work")
    for cell in sweep.cells:
        alike = numpy.full(2, 0.5)
        values = {"similarity/cka": alike, "similarity/svcca": alike}
        if cell.technique == "kd":
            values["similarity/cka_pairs"] = numpy.full((2, 2), 0.1 * cell.seed)
        results.publish(cell, work, results.recorded(cell, channels=1) | values)
    paths, _ = report.build(sweep, work, tmp_path / "out")
    default = paths.svg("layer-pairs").read_bytes()
    assert "kd on digits, vgg16_bn, seed 0" in paths.markdown.read_text()
    shutil.rmtree(work.root)
    command = ["report", str(paths.folder), "--similarity"]
    assert cli.main([*command, "digits/vgg16_bn/kd/1"]) == 0
    assert "kd on digits, vgg16_bn, seed 1" in paths.markdown.read_text()
    assert paths.svg("layer-pairs").read_bytes() != default
    checks = verify.checks(paths.folder, tmp_path, tmp_path, accuracy=False, speed=False)
    outcomes = {check.what: check.outcome for check in checks}
    assert outcomes["figures/layer-pairs.svg"] == outcomes["index.html"] == "ok"
    before = paths.merged.read_bytes()
    assert cli.main([*command, "digits/vgg16_bn/dkd/1"]) == 2
    assert "were not compared with each of its base's" in capsys.readouterr().err
    assert paths.merged.read_bytes() == before
    assert cli.main([*command, ""]) == 0  # the default again
    assert paths.svg("layer-pairs").read_bytes() == default


def test_of_many_layers_some_are_compared_and_named_by_their_numbers():
    many = numpy.linspace(0, 1, 64 * 64).reshape(64, 64)
    values = layers_compared({"half": many})

    def of_many_layers(cell):
        alike = numpy.ones(127)  # every second of them is in the result
        return values(cell) | {"similarity/cka": alike, "similarity/svcca": alike}

    plots = drawn(*results.in_memory(results.sweep(techniques=("half",)), of_many_layers))
    axis = plots["layer-pairs"].canvas.axes[0]
    assert axis.collections[0].get_array().shape == (44, 44)
    names = [int(label.get_text()) for label in axis.get_yticklabels()]
    assert (names[0], names[-1], len(names)) == (1, 127, 44)
    assert {name % 2 for name in names} == {1} and "some are shown" in plots["layer-pairs"].caption


def test_boxes_are_the_percentiles_of_artifact_and_base():
    rows, evidence = some(("half",))
    axis = drawn(rows, evidence)["latency"].canvas.axes[0]
    samples = evidence(rows[1].id).latency
    for model, marker in (("artifact", "o"), ("base", "D")):
        expected = numpy.percentile(
            samples[Series(runtimes.DEFAULT, model, "all", 1)], (25, 50, 75)
        )
        x, y = marks(axis, marker)[-1]
        box = next(patch for patch in axis.patches if patch.get_y() < y < patch.get_y() + 0.32)
        assert [box.get_x(), x, box.get_x() + box.get_width()] == pytest.approx(expected)


@pytest.mark.parametrize("calls", [10, 100])
def test_lines_of_few_calls_reach_from_the_fastest_to_the_slowest(calls):
    samples = numpy.linspace(1, 2, calls) ** 4

    def timed(cell):
        values = results.recorded(cell)
        return {name: samples if "latency/" in name else v for name, v in values.items()}

    rows, evidence = results.in_memory(results.sweep(), timed)
    made = drawn(rows, evidence)["latency"]
    ends = {tuple(line.get_xdata()) for line in made.canvas.axes[0].lines if line.get_zorder() == 2}
    few = calls < 100
    assert ends == {tuple(numpy.percentile(samples, (0, 100) if few else (1, 99)))}
    assert (f"lines {spread.FASTEST_TO_SLOWEST}." in made.caption) == few
    assert (f"lines {spread.INNER}." in made.caption) != few
    assert f"{calls} calls)" in made.caption


def test_the_ticks_of_a_narrow_panel_are_apart():
    with look.style():
        _, [axis] = look.grid(1, 1, (3, 3))
        axis.set_xscale("log")
        axis.set_xlim(18, 55)
        look.log_ticks(axis.xaxis, points.duration, apart=0.2)
        ticks = axis.get_xticks()
    least = (55 / 18) ** 0.2
    assert len(ticks) >= 2 and all(b / a >= least for a, b in zip(ticks, ticks[1:], strict=False))


def test_the_change_of_a_class_is_in_points():
    def values(cell):
        labels = numpy.array([0, 0, 0, 0, 1, 1, 3], dtype=numpy.uint16)
        own = labels if cell.is_base else numpy.array([0, 0, 0, 1, 1, 1, 0], dtype=numpy.uint16)
        base = numpy.array([0, 0, 1, 1, 1, 1, 3], dtype=numpy.uint16)
        return results.measured(cell) | {
            "labels": labels,
            "predictions": own,
            "base_predictions": base,
        }

    rows, evidence = results.in_memory(results.sweep(), values)
    figure = drawn(rows, evidence)["classes"]
    assert texts(figure.canvas.axes[0]) == ["+25.0", "0", "", "-100.0"]
    assert "half on class 3: -100.00 points" in figure.alt


def test_classes_have_the_names_of_a_data_set_that_ships():
    rows, evidence = some(("half",), datasets=("cifar10-jpeg", "own"))
    plots = drawn(rows, evidence)
    names = [
        [x.get_text() for x in axis.get_xticklabels()] for axis in plots["classes"].canvas.axes
    ]
    assert names[0][:3] == ["airplane", "automobile", "bird"] and len(names[0]) == 10
    assert names[1] == [str(i) for i in range(10)]
    shown, differing = texts(plots["pictures"].canvas.axes[0]), evidence(rows[1].id).differing
    assert names[0][differing["label"][0]] in shown and str(differing["label"][0]) in shown
    assert chosen.class_names("cifar10-jpeg", 2) == ["0", "1"]  # other images under its name


def test_pictures_are_shown_as_they_are():
    rows, evidence = some(("half",))
    differing = evidence(rows[1].id).differing
    axis = drawn(rows, evidence)["pictures"].canvas.axes[0]
    assert len(axis.images) == 8
    for image, pixels, index in zip(
        axis.images, differing["pixels"], differing["index"], strict=False
    ):
        assert (image.get_array() == pixels.transpose(1, 2, 0)).all()
        assert str(index) in texts(axis)
    wrong = (differing["own"][:8] != differing["label"][:8]).sum() + (
        differing["base"][:8] != differing["label"][:8]
    ).sum()
    assert sum("×" in text for text in texts(axis)) == wrong


def test_grey_pictures_stay_grey():
    rows, evidence = results.in_memory(
        results.sweep(), lambda cell: results.recorded(cell, channels=1)
    )
    image = drawn(rows, evidence)["pictures"].canvas.axes[0].images[0].get_array()
    assert image.shape == (32, 32, 3) and (image[..., 0] == image[..., 2]).all()


# --- what is left out ------------------------------------------------------------------------


def test_figures_without_anything_to_show_are_left_out():
    bare = {"accuracy": 0.9, "stored_bytes": 1000}
    rows, evidence = results.in_memory(results.sweep(), lambda cell: bare, lambda cell: [])
    assert list(drawn(rows, evidence)) == ["accuracy-bytes"]
    assert list(drawn(rows, lambda cell_id: None)) == ["accuracy-bytes"]


def test_the_rule_is_said_by_which_something_is_left_out():
    def said(names):
        return drawn(*some(names))["training-curves"].caption

    assert "Shown are" not in said(("a", "b"))
    differ, points = [f"t{i}x" for i in range(9)], [f"t-0.{i}" for i in range(1, 10)]
    assert f"Shown are 8 of 9 techniques: {chosen.LEAST_LOSS}." in said(differ)
    assert f"8 of 9 techniques: {chosen.RULE}; {chosen.FILLED}." in said(points)
    assert f"8 of 18 techniques: {chosen.RULE}; {chosen.LEAST_LOSS}." in said(differ + points)


def test_a_batch_that_was_not_timed_has_no_panel():
    def values(cell):
        recorded = results.recorded(cell)
        if cell.dataset.name == "a":
            recorded = {k: v for k, v in recorded.items() if not k.endswith("batch1")}
        return recorded

    rows, evidence = results.in_memory(results.sweep(datasets=("a", "b")), values)
    canvas = drawn(rows, evidence)["latency"].canvas
    headings = [axis.get_title("left") for axis in canvas.axes]
    assert headings == [f"{d}, vgg16_bn: batch {b}" for d, b in (("a", 64), ("b", 1), ("b", 64))]
    assert [text.get_text() for text in canvas.axes[0].get_yticklabels()] == ["base", "half"]


def test_evidence_is_read_once_and_of_few_cells():
    names = [f"technique-{i}x" for i in range(100)]
    rows, evidence = results.in_memory(
        results.sweep(techniques=names, seeds=range(10)), results.measured
    )
    cell_ids = []
    dict(figures.drawn(rows, lambda cell_id: cell_ids.append(cell_id) or evidence(cell_id)))
    assert len(cell_ids) == len(set(cell_ids)) <= 5 * (12 + 1)


@pytest.mark.parametrize(
    "shape",
    [
        {"techniques": ()},
        {"techniques": ("_x",), "models": (("m", 1.0), ("m", 0.5), ("n", 1.0))},
        {
            "techniques": tuple(f"a-long-name-of-a-technique-{'x' * i}" for i in range(30)),
            "seeds": (0, 1, 2),
            "datasets": ("a", "b", "c", "d"),
        },
    ],
    ids=["base only", "three panels", "thirty techniques on four data sets"],
)
def test_any_shape_of_sweep_can_be_drawn_and_stays_small(shape):
    rows, evidence = some(**shape)
    for name, figure in figures.draw(rows, evidence).items():
        ElementTree.fromstring(figure.svg)
        assert len(figure.svg) < 300_000, name


def test_what_a_figure_refers_to_is_in_it():
    """Letters, marks and clip paths, whose ids are shortened."""
    rows, evidence = some(techniques=("-->", "a&b", 'a"b', "#a"))
    for name, figure in figures.draw(rows, evidence).items():
        ids = re.findall(rb' id="([^"]*)"', figure.svg)
        referred = re.findall(rb'(?:href="|url\()#([^")]*)', figure.svg)
        assert set(ids) == set(referred) and len(ids) == len(set(ids)), name
        assert len(referred) > 50, name


def test_another_process_draws_the_same_bytes():
    script = """
import hashlib
from pipeline.report import figures, points
from tests import results
found = figures.draw(*results.in_memory(results.sweep(techniques=("half", "tiny-0.5"))))
for name, figure in found.items():
    print(name, *(hashlib.sha256(data).hexdigest() for data in (figure.svg, figure.pdf)))
"""
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=CODE,
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(CODE)},
        ).stdout
        for seed in "12"
    }
    assert len(outputs) == 1 and outputs.pop().count("\n") == 7


def test_a_letter_that_no_font_has_is_no_warning(recwarn, monkeypatch):
    """And where a font that has it is installed, it is requested."""
    with look.style():
        canvas, [axis] = look.grid(1, 1, look.PANEL_INCHES)
        look.heading(axis, "猫 \U000e0041")
        assert look.Drawn(canvas, "", "", "").figure().svg
    assert not list(recwarn)
    fonts = [SimpleNamespace(name="Noto Sans CJK JP"), SimpleNamespace(name="DejaVu Sans")]
    monkeypatch.setattr(look.font_manager.fontManager, "ttflist", fonts)
    look._more_fonts.cache_clear()
    with look.style():
        assert look.matplotlib.rcParams["font.family"] == ["DejaVu Sans", "Noto Sans CJK JP"]
    look._more_fonts.cache_clear()


def test_a_font_that_was_installed_since_matplotlib_listed_them_is_used(tmp_path, monkeypatch):
    font = TTFont(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")
    for name in (1, 4, 16):
        font["name"].setName("Noto Sans CJK JP", name, 3, 1, 0x409)
        font["name"].setName("Noto Sans CJK JP", name, 1, 0, 0)
    font.save(tmp_path / "NotoSansCJK-Regular.ttc")
    (tmp_path / "NotoSansCJK-Bold.ttc").write_bytes(b"no font")
    listed = [f for f in look.font_manager.fontManager.ttflist if f.name not in look.MORE_FONTS]
    monkeypatch.setattr(look.font_manager.fontManager, "ttflist", listed)
    there = [str(path) for path in tmp_path.iterdir()]
    monkeypatch.setattr(look.font_manager, "findSystemFonts", lambda: there)
    look._more_fonts.cache_clear()
    try:
        assert look._more_fonts() == ("Noto Sans CJK JP",)
    finally:
        look._more_fonts.cache_clear()
