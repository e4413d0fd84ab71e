"""Accuracy against what a model costs, in bytes or in time: one mark a technique."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from pipeline import runtimes
from pipeline.measure.series import Series
from pipeline.report.answer import Group, deviation, groups, mean, settings
from pipeline.report.figures import chosen, look
from pipeline.report.figures.look import BASE, Drawn
from pipeline.report.metrics import METRIC
from pipeline.report.row import Row
from pipeline.techniques import CONTROLS

MOST_PANELS = 8
MOST_FAMILIES = 30  # that have a mark of their own
MOST_MARKED = 150  # techniques of one panel
MOST_SEED_DOTS = 250
DOT_CELLS = (120, 80)  # of a panel: of the dots in one, the first is drawn
BELOW = "one point below the base"
FRONTIER = "frontier"
OTHERS = "other techniques"
LINE: dict[str, Any] = {"color": "#555555", "linewidth": 0.8}
STEP: dict[str, Any] = {"color": "#BBBBBB", "linewidth": 2.5}
DOT: dict[str, Any] = {"color": "#AAAAAA", "marker": ".", "markersize": 3}


@dataclass(frozen=True)
class Cost:
    """What accuracy is drawn against."""

    title: str
    axis: str
    of: Callable[[Row], float | None]
    tick: Callable[[float], str]


def size(value: float) -> str:
    """Bytes in a decimal unit: 50 kB, 2 MB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor * 0.9999:
            return f"{value / factor:.4g} {unit}"
    return f"{value:.4g} B"


def duration(value_ms: float) -> str:
    """Milliseconds as µs, ms or s."""
    if value_ms >= 999.9:
        return f"{value_ms / 1000:.4g} s"
    return f"{value_ms:.4g} ms" if value_ms >= 0.0999 else f"{value_ms * 1000:.4g} µs"


STORED = Cost(
    "Accuracy against stored bytes",
    "stored bytes (log scale): smaller is to the left",
    lambda row: row.stored_bytes,
    size,
)
LATENCY = Cost(
    "Accuracy against latency",
    "median latency, batch 1, all threads (log scale): faster is to the left",
    lambda row: row.latency_ms(Series(runtimes.DEFAULT, "artifact", "all", 1), 50),
    duration,
)


@dataclass(frozen=True)
class Point:
    """A technique: its rows, and the means over them. Cost in bytes or ms, accuracy in %."""

    group: Group
    costs: tuple[float, ...]
    accuracies: tuple[float, ...]

    @property
    def at(self) -> tuple[float, float]:
        return mean(self.costs), mean(self.accuracies)

    @property
    def family(self) -> str:
        return self.group.family


def draw(rows: Sequence[Row], cost: Cost) -> Drawn | None:
    """None where nothing has both an accuracy and this cost."""
    measured = [row for row in rows if row.accuracy is not None and (cost.of(row) or 0) > 0]
    panels = {key: _points(members, cost) for key, members in settings(measured).items()}
    if not panels:
        return None
    shown = dict(list(panels.items())[:MOST_PANELS])
    marks = _marks(measured, shown.values())
    names = ["base", *marks, FRONTIER, BELOW, OTHERS]
    columns = min(2, len(shown))
    width = max(look.PANEL_INCHES[0] * columns, 7.0)
    canvas, axes = look.grid(
        len(shown), columns, look.PANEL_INCHES, look.legend_rows(names, width), width
    )
    dots = sum(len(point.costs) for points in shown.values() for point in points)
    others = 0
    for axis, (setting, points) in zip(axes, shown.items(), strict=True):
        look.heading(axis, ", ".join(setting))
        others += _panel(axis, points, marks, cost, dots <= MOST_SEED_DOTS)
    drawn = {"base": BASE} if any(p.group.is_base for ps in shown.values() for p in ps) else {}
    drawn |= {name: mark | _line(name, measured) for name, mark in marks.items()}
    drawn |= {FRONTIER: {**STEP, "linestyle": "-"}}
    if any(map(_reaches_one_point, shown.values())):
        drawn |= {BELOW: {**LINE, "linestyle": look.DASHES}}
    drawn |= {OTHERS: DOT} if others else {}
    look.legend(canvas, drawn)
    return Drawn(canvas, cost.title, _caption(panels, dots, others), _alt(cost, panels))


def _line(family: str, rows: Iterable[Row]) -> dict:
    """What joins its operating points, where there are several."""
    several = len({row.technique for row in rows if row.family == family}) > 1
    return {"linestyle": look.dashes(family), "linewidth": 1} if several else {}


def frontier(points: Iterable[Point]) -> list[Point]:
    """Those than which none is both cheaper and more accurate; controls are left out."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.at[0], -p.at[1])):
        if not point.group.is_control and (not best or point.at[1] > best[-1].at[1]):
            best.append(point)
    return best


def _points(rows: Iterable[Row], cost: Cost) -> list[Point]:
    return [
        Point(
            group,
            tuple(value for row in group.rows if (value := cost.of(row)) is not None),
            tuple(100 * row.accuracy for row in group.rows if row.accuracy is not None),
        )
        for group in groups(rows)
    ]


def _marks(rows: Sequence[Row], panels: Iterable[Sequence[Point]]) -> dict[str, dict]:
    """The look of each family that has one: those on a frontier, then the others in order."""
    looks = look.looks(rows)
    on_it = {point.family for points in panels for point in frontier(points)}
    kept = set(sorted(looks, key=lambda name: name not in on_it)[:MOST_FAMILIES])
    return {name: mark for name, mark in looks.items() if name in kept}


# --- one panel -------------------------------------------------------------------------------


def _panel(axis: Axes, points: list[Point], marks: dict, cost: Cost, seeds: bool) -> int:
    """Draws it; how many techniques are only dots."""
    axis.set_xscale("log")
    best = frontier(points)
    marked = [p for p in points if p.group.is_base or p.family in marks]
    if len(marked) > MOST_MARKED:
        marked = [p for p in marked if p in best or p.group.is_base or p.group.is_control]
    others = [p for p in points if p not in marked]
    _scale(axis, points, seeds)
    _dots(axis, others)
    for point in marked:
        _mark(axis, point, BASE if point.group.is_base else marks[point.family], seeds)
    _join_operating_points(axis, marked, marks)
    _step(axis, best)
    _one_point_band(axis, points)
    look.log_ticks(axis.xaxis, cost.tick)
    axis.set_xlabel(cost.axis)
    axis.set_ylabel(METRIC["accuracy"].heading)
    return len(others)


def _scale(axis: Axes, points: Sequence[Point], seeds: bool) -> None:
    """Room for all means and their deviations, and for all seeds where they are drawn."""
    xs, ys = zip(*(point.at for point in points), strict=True)
    low, high = list(ys), list(ys)
    for point in points:
        spread = deviation(point.accuracies)
        if spread == spread:
            low.append(point.at[1] - spread)
            high.append(min(100, point.at[1] + spread))
        if seeds:
            low += point.accuracies
            high += point.accuracies
    ratio = max(max(xs) / min(xs), 1.2) ** 0.08
    room = max(0.12 * (max(high) - min(low)), 0.05)
    axis.set_xlim(min(xs) / ratio, max(xs) * ratio)
    axis.set_ylim(min(low) - room, max(high) + room)


def _mark(axis: Axes, point: Point, mark: dict, seeds: bool) -> None:
    """The mean over seeds with its standard deviation; each seed as a small dot."""
    if len(point.costs) > 1:
        if seeds:
            axis.plot(
                point.costs,
                point.accuracies,
                linestyle="none",
                marker=".",
                markersize=3.5,
                color=mark["color"],
                alpha=0.6,
                zorder=2,
            )
        axis.errorbar(
            *point.at,
            yerr=deviation(point.accuracies),
            color=mark["color"],
            capsize=2.5,
            linewidth=1,
            zorder=2,
        )
    axis.plot(*point.at, linestyle="none", zorder=3, **mark)


def _dots(axis: Axes, points: Sequence[Point]) -> None:
    """Small ones, of those that would cover each other the first."""
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    span = math.log(right / left)
    kept: dict[tuple[int, int], tuple[float, float]] = {}
    for x, y in (point.at for point in points):
        place = (
            int(DOT_CELLS[0] * math.log(x / left) / span),
            int(DOT_CELLS[1] * (y - bottom) / (top - bottom)),
        )
        kept.setdefault(place, (x, y))
    if kept:
        axis.plot(*zip(*kept.values(), strict=True), linestyle="none", zorder=1, **DOT)


def _join_operating_points(axis: Axes, points: Sequence[Point], marks: dict[str, dict]) -> None:
    families: dict[str, list[Point]] = {}
    for point in points:
        families.setdefault(point.family, []).append(point)
    for family, members in families.items():
        if len(members) > 1:
            places = sorted(point.at for point in members)
            axis.plot(
                *zip(*places, strict=True),
                color=marks[family]["color"],
                linewidth=1,
                linestyle=look.dashes(family),
                zorder=1,
            )


def _step(axis: Axes, best: Sequence[Point]) -> None:
    """From each to the next, and on to the right: what can be had for at most so much."""
    places = [point.at for point in best]
    if places:
        places.append((axis.get_xlim()[1], places[-1][1]))
        axis.step(*zip(*places, strict=True), where="post", zorder=0.5, **STEP)


def _one_point_band(axis: Axes, points: Sequence[Point]) -> None:
    """The base's accuracy, and a dashed line one point below it where that is not far off."""
    for accuracy in _of_base(points):
        axis.axhline(accuracy, zorder=1, **LINE)
        if _reaches_one_point(points):
            axis.axhline(accuracy - 1, linestyle=look.DASHES, zorder=1, **LINE)
            bottom, top = axis.get_ylim()
            axis.set_ylim(min(bottom, accuracy - 1.1), top)


def _of_base(points: Iterable[Point]) -> list[float]:
    return [point.at[1] for point in points if point.group.is_base]


def _reaches_one_point(points: Sequence[Point]) -> bool:
    """Whether something loses half a point: otherwise the line would press all marks together."""
    worst = min(point.at[1] for point in points)
    return any(worst <= accuracy - 0.5 for accuracy in _of_base(points))


# --- in words --------------------------------------------------------------------------------


def _caption(panels: dict[tuple[str, str], list[Point]], dots: int, others: int) -> str:
    sentences = [
        "Each mark is a technique on the test set, the star is the base; operating points of one "
        "technique are joined. The grey steps are the Pareto frontier: no technique is both "
        "cheaper and more accurate than those on it."
    ]
    counts = [len(point.costs) for points in panels.values() for point in points]
    sentences.append(_about_seeds(counts, dots <= MOST_SEED_DOTS))
    if any(point.family in CONTROLS for points in panels.values() for point in points):
        sentences.append("Controls are hollow, grey and dashed, and not on the frontier.")
    if others:
        sentences.append(
            f"{others:,} more techniques are small dots, of those at one place the first: "
            f"marks are for the base, for at most {MOST_FAMILIES} techniques, those on "
            f"the frontier before others, and where one panel would have more than "
            f"{MOST_MARKED}, for those on the frontier and controls."
        )
    if len(panels) > MOST_PANELS:
        sentences.append(
            f"Shown are the first {MOST_PANELS} of {len(panels)} pairs of data set and model."
        )
    return " ".join(sentences)


def _about_seeds(counts: list[int], dots: bool) -> str:
    n = chosen.several(counts)
    if max(counts) == 1:
        return f"One seed each ({n})."
    shown = ", small dots are the seeds" if dots else ""
    return f"Means over seeds ({n}); bars are their standard deviation{shown}."


def _alt(cost: Cost, panels: dict[tuple[str, str], list[Point]]) -> str:
    sentences = []
    for setting, points in panels.items():
        names = [point.group.technique for point in frontier(points)]
        listed = ", ".join(names[:8]) + (" and others" if len(names) > 8 else "")
        sentences.append(f"On {', '.join(setting)} the frontier is made of {listed}.")
    return f"{cost.title}, {cost.axis.split(':')[0]}. {' '.join(sentences[:MOST_PANELS])}"
