"""Accuracy against what a model costs, in bytes or in time: one mark a technique."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from matplotlib.axes import Axes

from pipeline.report.answer import settings
from pipeline.report.figures import chosen, look
from pipeline.report.figures.look import BASE, Drawn
from pipeline.report.metrics import METRIC
from pipeline.report.points import (
    LATENCY,
    MOST_MARKS,
    STORED,
    Cost,
    Placed,
    Point,
    about_far,
    base_accuracy,
    far_below,
    frontier,
    in_view,
    least_and_most,
    placed,
    points,
    thinned,
)
from pipeline.report.row import Row
from pipeline.techniques import CONTROLS

__all__ = ["BELOW", "LATENCY", "STORED", "draw"]

MOST_PANELS = 8
MOST_FAMILIES = 30  # that have a mark of their own
MOST_MARKED = 150  # techniques of one panel
MOST_SEED_DOTS = 250
MOST_ON_FRONTIER = 100  # of one panel
BELOW = "one point below the base"
FRONTIER = "frontier"
OTHERS = "other techniques"
PUBLISHED, STUDY = "published", "the study"
LONGEST_ANCHOR = 20
LINE: dict[str, Any] = {"color": "#555555", "linewidth": 0.8}
STEP: dict[str, Any] = {"color": "#BBBBBB", "linewidth": 2.5}
DOT: dict[str, Any] = {"color": "#AAAAAA", "marker": ".", "markersize": 3}
ANCHORS: dict[str, dict[str, Any]] = {
    STUDY: {"marker": "s"},
    PUBLISHED: {"marker": "D"},
}
ANCHOR: dict[str, Any] = {
    "color": "#A2362B",
    "markersize": 5.5,
    "markerfacecolor": "white",
    "markeredgewidth": 1.1,
}


def draw(rows: Sequence[Row], cost: Cost) -> Drawn | None:
    """None where nothing has both an accuracy and this cost."""
    panels = {
        key: panel_points
        for key, members in settings(rows).items()
        if (panel_points := points(members, cost))
    }
    if not panels:
        return None
    shown = dict(list(panels.items())[:MOST_PANELS])
    marks = _marks(rows, shown.values())
    anchors = {setting: _anchors(setting, shown[setting], cost) for setting in shown}
    kinds = [
        kind for kind in ANCHORS if any(kind == _kind(a) for many in anchors.values() for a in many)
    ]
    names = ["base", *marks, FRONTIER, BELOW, OTHERS, *kinds]
    columns = min(2, len(shown))
    width = max(look.PANEL_INCHES[0] * columns, 7.0)
    canvas, axes = look.grid(
        len(shown), columns, look.PANEL_INCHES, look.legend_rows(names, width), width
    )
    dots = sum(len(point.costs) for every in shown.values() for point in every)
    others = 0
    for axis, (setting, every) in zip(axes, shown.items(), strict=True):
        look.heading(axis, ", ".join(setting))
        panel = Panel(axis, every, marks, anchors[setting], dots <= MOST_SEED_DOTS)
        others += _panel(panel, cost, MOST_MARKS // len(shown))
    drawn = {"base": BASE} if any(p.group.is_base for ps in shown.values() for p in ps) else {}
    drawn |= {name: mark | _line(name, rows) for name, mark in marks.items()}
    drawn |= {FRONTIER: {**STEP, "linestyle": "-"}}
    if any(map(_reaches_one_point, shown.values())):
        drawn |= {BELOW: {**LINE, "linestyle": look.DASHES}}
    drawn |= {OTHERS: DOT} if others else {}
    drawn |= {kind: ANCHOR | ANCHORS[kind] for kind in kinds}
    look.legend(canvas, drawn)
    caption = _caption(panels, dots, others, bool(kinds))
    return Drawn(canvas, cost.title, caption, _alt(cost, panels))


@dataclass(frozen=True)
class Panel:
    """One (data set, model): what is drawn of it. `seeds`: whether each seed is a dot."""

    axis: Axes
    points: Sequence[Point]
    marks: Mapping[str, dict]
    anchors: Sequence[Placed]
    seeds: bool

    @cached_property
    def far(self) -> frozenset[str]:
        return far_below(self.points)

    @property
    def edge(self) -> float:
        """The accuracy at which what is far below is drawn."""
        low, high = self.axis.get_ylim()
        return low + 0.03 * (high - low)


def _anchors(setting: tuple[str, str], points: Sequence[Point], cost: Cost) -> list[Placed]:
    return placed(points, setting[0]) if cost is STORED else []


def _kind(placed: Placed) -> str:
    return STUDY if placed.anchor.is_study else PUBLISHED


def _line(family: str, rows: Iterable[Row]) -> dict:
    """What joins its operating points, where there are several."""
    several = len({row.technique for row in rows if row.family == family}) > 1
    return {"linestyle": look.dashes(family), "linewidth": 1} if several else {}


def _marks(rows: Sequence[Row], panels: Iterable[Sequence[Point]]) -> dict[str, dict]:
    """The look of each family that has one: those on a frontier, then the others in order."""
    looks = look.looks(rows)
    on_it = {point.family for points in panels for point in frontier(points)}
    kept = set(sorted(looks, key=lambda name: name not in on_it)[:MOST_FAMILIES])
    return {name: mark for name, mark in looks.items() if name in kept}


# --- one panel -------------------------------------------------------------------------------


def _panel(panel: Panel, cost: Cost, most: int) -> int:
    """Draws it with at most so many marks; how many techniques are only dots."""
    axis = panel.axis
    axis.set_xscale("log")
    best = thinned(frontier(panel.points), MOST_ON_FRONTIER)
    marked = _marked(panel, {id(point) for point in best})
    kept = {id(point) for point in marked}
    others = [point for point in panel.points if id(point) not in kept]
    _scale(panel)
    _one_point_band(axis, panel.points)
    _dots(panel, others, most - len(marked) - MOST_SEED_DOTS)
    for point in marked:
        mark = BASE if point.group.is_base else panel.marks[point.family]
        if point.group.technique in panel.far:
            _arrow(panel, point, mark)
        else:
            _mark(axis, point, mark, panel.seeds)
    _join_operating_points(axis, marked, panel.marks)
    _step(axis, best)
    _anchors_of(panel)
    look.log_ticks(axis.xaxis, cost.tick)
    axis.set_xlabel(cost.axis)
    axis.set_ylabel(METRIC["accuracy"].heading)
    return len(others)


def _marked(panel: Panel, best: set[int]) -> list[Point]:
    """Those with a mark of their own: all that can have one, or the base, the frontier and
    controls."""
    marked = [p for p in panel.points if p.group.is_base or p.family in panel.marks]
    if len(marked) <= MOST_MARKED:
        return marked
    first = [p for p in marked if p.group.is_base or id(p) in best]
    controls = [p for p in marked if p.group.is_control]
    return [*first, *controls[: max(0, MOST_MARKED - len(first))]]


def _scale(panel: Panel) -> None:
    """Room for all means and their deviations, for all seeds where they are drawn, and for what
    was published near to them; not for what is far below."""
    near = [placed for placed in panel.anchors if not placed.below]
    xs = [point.at[0] for point in panel.points] + [placed.cost for placed in panel.anchors]
    ys = [*least_and_most(panel.points), *(placed.accuracy for placed in near)]
    if panel.seeds:
        ys += [accuracy for point in in_view(panel.points) for accuracy in point.accuracies]
    ratio = max(max(xs) / min(xs), 1.2) ** 0.08
    room = max(0.12 * (max(ys) - min(ys)), 0.05)
    panel.axis.set_xlim(min(xs) / ratio, max(xs) * ratio)
    panel.axis.set_ylim(min(ys) - room, max(ys) + room)


def _anchors_of(panel: Panel) -> None:
    """With the names of those that are not the study's; one beside another has its name higher."""
    low, high = panel.axis.get_ylim()
    last, raised = None, False
    for one in sorted(panel.anchors, key=lambda p: (p.below, p.cost)):
        y = panel.edge if one.below else one.accuracy
        mark = ANCHOR | ANCHORS[_kind(one)] | ({"marker": "v"} if one.below else {})
        panel.axis.plot(one.cost, y, linestyle="none", zorder=2.5, **mark)
        if one.anchor.is_study:
            continue
        near = (
            last is not None and one.cost < 3 * last[0] and abs(y - last[1]) < 0.05 * (high - low)
        )
        raised = near and not raised
        _name_anchor(panel.axis, one.anchor.method, (one.cost, y), 11 if raised else 3)
        last = (one.cost, y)


def _name_anchor(axis: Axes, name: str, at: tuple[float, float], points_above: int) -> None:
    axis.annotate(
        look.short(name, LONGEST_ANCHOR),
        at,
        xytext=(5, points_above),
        textcoords="offset points",
        fontsize=6.5,
        color=ANCHOR["color"],
    )


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
            yerr=point.spread,
            color=mark["color"],
            capsize=2.5,
            linewidth=1,
            zorder=2,
        )
    axis.plot(*point.at, linestyle="none", zorder=3, **mark)


def _arrow(panel: Panel, point: Point, mark: dict) -> None:
    """At the lower edge; the caption has its accuracy."""
    place = (point.at[0], panel.edge)
    panel.axis.plot(*place, linestyle="none", zorder=3, **mark | {"marker": "v"})


def _dots(panel: Panel, points: Sequence[Point], most: int) -> None:
    """At most so many small ones, of those that would cover each other the first."""
    axis = panel.axis
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    span = math.log(right / left)
    high = max(1, int(math.sqrt(max(1, most) / 1.5)))
    wide = max(1, most // high)
    kept: dict[tuple[int, int], tuple[float, float]] = {}
    for x, accuracy in (point.at for point in points):
        y = max(accuracy, panel.edge)
        place = (int(wide * math.log(x / left) / span), int(high * (y - bottom) / (top - bottom)))
        kept.setdefault(place, (x, y))
    if kept:
        axis.plot(*zip(*kept.values(), strict=True), linestyle="none", zorder=1, **DOT)


def _join_operating_points(axis: Axes, points: Sequence[Point], marks: Mapping[str, dict]) -> None:
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
    accuracy = base_accuracy(points)
    if accuracy is None:
        return
    axis.axhline(accuracy, zorder=1, **LINE)
    if _reaches_one_point(points):
        axis.axhline(accuracy - 1, linestyle=look.DASHES, zorder=1, **LINE)
        bottom, top = axis.get_ylim()
        axis.set_ylim(min(bottom, accuracy - 1.1), top)


def _reaches_one_point(points: Sequence[Point]) -> bool:
    """Whether something loses half a point: otherwise the line would press all marks together."""
    base = base_accuracy(points)
    return base is not None and min(point.at[1] for point in in_view(points)) <= base - 0.5


ABOUT_ANCHORS = (
    "Published results and those of the study are placed by their drop against their own base, "
    "since bases differ; what is far below is an arrow at the lower edge."
)


# --- in words --------------------------------------------------------------------------------


def _caption(
    panels: dict[tuple[str, str], list[Point]], dots: int, others: int, anchors: bool
) -> str:
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
            f"{MOST_MARKED}, for those on the frontier and controls; at most {MOST_MARKS:,} marks "
            "in all."
        )
    sentences += [
        f"{', '.join(key)}: {about}" if len(panels) > 1 else about
        for key, points in list(panels.items())[:MOST_PANELS]
        if (about := about_far(points))
    ]
    if anchors:
        sentences.append(ABOUT_ANCHORS)
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
    for setting, every in panels.items():
        names = [point.group.technique for point in frontier(every)]
        listed = ", ".join(names[:8]) + (" and others" if len(names) > 8 else "")
        sentences.append(f"On {', '.join(setting)} the frontier is made of {listed}.")
    return f"{cost.title}, {cost.axis.split(':')[0]}. {' '.join(sentences[:MOST_PANELS])}"
