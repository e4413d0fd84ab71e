"""Accuracy against stored bytes as the page draws it: one plot a (data set, model).

Places are percentages of the plot, so that it fits every screen with letters and marks of the same
size; colours are the style sheet's. A mark is a link to its row, which every reader can follow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from pipeline.report import cards, labels, points
from pipeline.report.answer import Group
from pipeline.report.cards import Answer
from pipeline.report.figures import look
from pipeline.report.metrics import METRIC
from pipeline.report.points import MOST_MARKS, STORED, Placed, Point, base_accuracy, frontier, size
from pipeline.report.row import Row
from pipeline.techniques import CONTROLS

MOST_PLOTS = 100
MOST_FAMILIES = 30  # with a look of their own
BASE_SHAPE, DOT_SHAPE, FAR_SHAPE = "star", "dot", "far"
LEFT, RIGHT, ROOM = 5.0, 95.0, 0.08  # of the width; of the height above and below
EDGE = 98.0  # from above: where what is below the scale is drawn


# --- shapes ----------------------------------------------------------------------------------


def _polygon(radius: float, corners: int, turn: float = 0.0, inner: float = 1.0) -> str:
    """A path around 0, 0. `inner`: of a star, how far every second corner is from the middle."""
    count = corners if inner == 1.0 else 2 * corners
    places = []
    for i in range(count):
        angle = math.radians(turn - 90) + 2 * math.pi * i / count
        far = radius if inner == 1.0 or i % 2 == 0 else radius * inner
        places.append(f"{far * math.cos(angle):.1f} {far * math.sin(angle):.1f}")
    return f"M{'L'.join(places)}Z"


CROSS = "M-1.9-5.2H1.9V-1.9H5.2V1.9H1.9V5.2H-1.9V1.9H-5.2V-1.9H-1.9Z"
# By the name of matplotlib's marker, so that the figures for papers have the same.
SHAPES = {
    "o": "M4.8 0A4.8 4.8 0 1 1-4.8 0A4.8 4.8 0 1 1 4.8 0Z",
    "s": "M-4.4-4.4H4.4V4.4H-4.4Z",
    "D": _polygon(6, 4),
    "^": _polygon(6, 3),
    "v": _polygon(6, 3, 180),
    "P": CROSS,
    "X": "M-5-2.6-2.6-5 0-2.4 2.6-5 5-2.6 2.4 0 5 2.6 2.6 5 0 2.4-2.6 5-5 2.6-2.4 0Z",
    "<": _polygon(6, 3, -90),
    ">": _polygon(6, 3, 90),
    "p": _polygon(5.6, 5),
    "h": _polygon(5.6, 6),
    "d": "M0-6.5 4 0 0 6.5-4 0Z",
    "8": _polygon(5.4, 8, 22.5),
    BASE_SHAPE: _polygon(9, 5, 0, 0.42),
    DOT_SHAPE: "M2 0A2 2 0 1 1-2 0A2 2 0 1 1 2 0Z",
    FAR_SHAPE: "M-5-2.5H5L0 5Z",
}
NAMES = {name: f"mark-{i}" for i, name in enumerate(SHAPES)}  # as ids


# --- what is drawn ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """`x`, `y`, `low`, `high` in % of the plot, from the left and from above; `low` and `high` are
    the deviation's, "" without one. `lines`: what it stands for; `href`: its row, "" where it has
    none; `numbers`: of the answers that it is; `place`: of its name then."""

    x: str
    y: str
    shape: str
    look: str
    lines: tuple[str, ...]
    href: str = ""
    low: str = ""
    high: str = ""
    numbers: str = ""
    place: labels.Place = labels.PLACES[0]

    @property
    def at(self) -> tuple[float, float]:
        return float(self.x), float(self.y)


@dataclass(frozen=True)
class Segment:
    x1: str
    y1: str
    x2: str
    y2: str
    look: str = ""

    @property
    def ends(self) -> labels.Line:
        return float(self.x1), float(self.y1), float(self.x2), float(self.y2)


@dataclass(frozen=True)
class Entry:
    """A line of the legend."""

    shape: str
    look: str
    name: str


@dataclass(frozen=True)
class Plot:
    """`x_ticks`, `y_ticks`, `changes` (points over the base): (place, label); `base`: the place of
    its accuracy, "" without one; `words`: the same for those who do not see it."""

    marks: tuple[Mark, ...]
    anchors: tuple[Mark, ...]
    x_ticks: tuple[tuple[str, str], ...]
    y_ticks: tuple[tuple[str, str], ...]
    changes: tuple[tuple[str, str], ...]
    steps: tuple[Segment, ...]
    joins: tuple[Segment, ...]
    base: str
    legend: tuple[Entry, ...]
    words: str
    left_out: str
    far: str


@dataclass(frozen=True)
class Scale:
    """Bytes on a log scale, accuracy in %, as percentages of the plot."""

    least_bytes: float
    most_bytes: float
    low: float
    high: float

    @classmethod
    def of(cls, every: Sequence[Point], anchors: Sequence[Placed]) -> Scale:
        sizes = [point.at[0] for point in every] + [placed.cost for placed in anchors]
        ys = [point.at[1] for point in points.in_view(every)]
        ys += [placed.accuracy for placed in anchors if not placed.below]
        room = max(ROOM * (max(ys) - min(ys)), 0.03)
        ratio = max(1.0, (1.2 * min(sizes) / max(sizes)) ** 0.5)  # at least a factor of 1.2
        return cls(min(sizes) / ratio, max(sizes) * ratio, min(ys) - 1.6 * room, max(ys) + room)

    def x(self, stored: float) -> str:
        part = math.log(stored / self.least_bytes) / math.log(self.most_bytes / self.least_bytes)
        return _place(LEFT + (RIGHT - LEFT) * part)

    def y(self, accuracy: float, edge: float = EDGE) -> str:
        """`edge`: where it is drawn that is below the scale; what is above it is at the top."""
        return _place(min(edge, max(0.0, 100 * (self.high - accuracy) / (self.high - self.low))))

    @property
    def x_ticks(self) -> Iterator[tuple[str, str]]:
        first, last = math.log10(self.least_bytes), math.log10(self.most_bytes)
        decades = range(math.floor(first), math.ceil(last) + 1)
        for each in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), range(10, 100)):
            of = 1 if each[0] == 1 else 10
            ticks = [sub / of * 10.0**decade for decade in decades for sub in each]
            inside = [t for t in ticks if self.least_bytes <= t <= self.most_bytes]
            if len(inside) >= 3:
                break
        every = inside[:: math.ceil(len(inside) / 6)]
        return ((self.x(tick), size(tick)) for tick in every)

    def y_ticks(self, zero: float = 0.0) -> Iterator[tuple[str, float]]:
        """(place, value) at round distances from `zero`."""
        step = _round_step((self.high - self.low) / 5)
        first = math.ceil((self.low - zero) / step)
        last = math.floor((self.high - zero) / step)
        for i in range(first, last + 1):
            yield self.y(zero + i * step), i * step

    @property
    def decimals(self) -> int:
        return max(0, -math.floor(math.log10(_round_step((self.high - self.low) / 5)) + 1e-9))


def _round_step(least: float) -> float:
    decade: float = 10.0 ** math.floor(math.log10(least))
    return next(m * decade for m in (1, 2, 5, 10) if m * decade >= least * 0.999)


def _place(percent: float) -> str:
    text = f"{percent:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


# --- the plot of one (data set, model) -------------------------------------------------------


def plot(
    rows: Sequence[Row],
    answer: Answer,
    row_ids: Mapping[str, str],
    plots: int,
    every_row: Sequence[Row],
) -> Plot | None:
    """`row_ids`: technique -> the row that its mark is a link to; `plots`: of the whole page;
    `every_row`: of the report, so that a technique looks the same in each of its figures. None
    where nothing has both an accuracy and a size."""
    every = points.points(rows, STORED)
    if not every:
        return None
    anchors = points.placed(every, answer.dataset)
    drawing = _Drawing(rows, every, answer, row_ids, Scale.of(every, anchors), every_row)
    chosen = _chosen(every, answer, max(20, MOST_MARKS // plots))
    best = points.thinned(frontier(every), len(chosen))
    base, scale = base_accuracy(every), drawing.scale
    place = "" if base is None else scale.y(base)
    marks = list(map(drawing.mark, sorted(chosen, key=lambda p: p.at)))
    around = tuple(map(drawing.anchor, anchors))
    steps, joins = tuple(drawing.steps(best)), tuple(drawing.joins(chosen))
    deviations = (Segment(mark.x, mark.low, mark.x, mark.high) for mark in marks if mark.low)
    lines = [segment.ends for segment in (*steps, *joins, *deviations)]
    lines += [Segment("0", place, "100", place).ends] if place else []
    changes = () if base is None else ((p, _change(v, scale)) for p, v in scale.y_ticks(base))
    return Plot(
        marks=tuple(_named_apart(marks, around, lines)),
        anchors=around,
        x_ticks=tuple(scale.x_ticks),
        y_ticks=tuple((place, f"{v:.{scale.decimals}f}") for place, v in scale.y_ticks()),
        changes=tuple(changes),
        steps=steps,
        joins=joins,
        base=place,
        legend=tuple(drawing.legend(chosen, anchors)),
        words=_words(answer, best),
        left_out=_left_out(len(chosen), len(every)),
        far=points.about_far(every),
    )


def _chosen(every: Sequence[Point], answer: Answer, most: int) -> list[Point]:
    """At most so many: the base and the answers, the frontier, then others in order."""
    if len(every) <= most:
        return list(every)
    named = {card.group.technique for card in answer.cards if card.group}
    first = [p for p in every if p.group.is_base or p.group.technique in named]
    best = points.thinned(frontier(every), most // 2)
    ids = dict.fromkeys(id(p) for p in (*first, *best, *every))
    kept = set(list(ids)[:most])
    return [p for p in every if id(p) in kept]


class _Drawing:
    """What the parts of one plot share."""

    def __init__(
        self,
        rows: Sequence[Row],
        every: Sequence[Point],
        answer: Answer,
        row_ids: Mapping[str, str],
        scale: Scale,
        every_row: Sequence[Row],
    ):
        self.answer, self.scale, self.row_ids = answer, scale, row_ids
        self.base = cards.base_of(rows)
        self.best = {id(point) for point in frontier(every)}
        self.far = points.far_below(every)
        styles = _looks([*every_row, *rows])  # other machines may have measured more
        self.looks = {name: styles[name] for name in look.families(rows)[:MOST_FAMILIES]}

    def mark(self, point: Point) -> Mark:
        x, y = point.at
        spread, far = point.spread, point.group.technique in self.far
        low, high = (
            (self.scale.y(y - spread, 100.0), self.scale.y(min(100.0, y + spread)))
            if spread > 0 and not far
            else ("", "")
        )
        shape, classes = self._look(point)
        shape = FAR_SHAPE if far else shape
        return Mark(
            self.scale.x(x),
            self.scale.y(y),
            NAMES[shape],
            f"{classes} front" if id(point) in self.best else classes,
            tuple(_lines(point.group, self.base, id(point) in self.best)),
            f"#{self.row_ids[point.group.technique]}",
            low,
            high,
            self._numbers(point.group),
        )

    def anchor(self, placed: Placed) -> Mark:
        anchor = placed.anchor
        kind = "study" if anchor.is_study else "published"
        hints = [anchor.source, anchor.note, "second-hand" if anchor.second_hand else ""]
        drop = METRIC["accuracy_drop"].show(anchor.drop / 100 if anchor.drop else 0.0)
        lines = (
            anchor.method,
            f"{anchor.network or 'network not stated'}, {size(placed.cost)}",
            f"{anchor.accuracy:g} %, {drop} points below its own base",
            "; ".join(hint for hint in hints if hint),
        )
        shape = FAR_SHAPE if placed.below else {"study": "s", "published": "D"}[kind]
        y = _place(EDGE) if placed.below else self.scale.y(placed.accuracy)
        return Mark(self.scale.x(placed.cost), y, NAMES[shape], f"anchor {kind}", lines)

    def steps(self, best: Sequence[Point]) -> Iterator[Segment]:
        """From each of the frontier to the next, and on to the right."""
        for one, other in pairwise(best):
            yield self._across(one, self.scale.x(other.at[0]))
            x = self.scale.x(other.at[0])
            yield Segment(x, self.scale.y(one.at[1]), x, self.scale.y(other.at[1]))
        if best:
            yield self._across(best[-1], "100")

    def _across(self, point: Point, to: str) -> Segment:
        y = self.scale.y(point.at[1])
        return Segment(self.scale.x(point.at[0]), y, to, y)

    def joins(self, chosen: Iterable[Point]) -> Iterator[Segment]:
        """Operating points of one technique."""
        families: dict[str, list[Point]] = {}
        for point in chosen:
            if point.family in self.looks:
                families.setdefault(point.family, []).append(point)
        for family, members in families.items():
            for one, other in pairwise(sorted(members, key=lambda p: p.at)):
                ends = (self._at(one), self._at(other))
                yield Segment(*ends[0], *ends[1], self.looks[family][1])

    def legend(self, chosen: Sequence[Point], anchors: Sequence[Placed]) -> Iterator[Entry]:
        there = {point.family for point in chosen if not point.group.is_base}
        if any(point.group.is_base for point in chosen):
            yield Entry(NAMES[BASE_SHAPE], "base", "base")
        for family, (shape, classes) in self.looks.items():
            if family in there:
                control = " (control)" if family in CONTROLS else ""
                yield Entry(NAMES[shape], classes, f"{family}{control}")
        if there - set(self.looks):
            yield Entry(NAMES[DOT_SHAPE], "other", "other techniques")
        if any(placed.anchor.is_study for placed in anchors):
            yield Entry(NAMES["s"], "anchor study", "the study")
        if any(not placed.anchor.is_study for placed in anchors):
            yield Entry(NAMES["D"], "anchor published", "published by others")

    def _at(self, point: Point) -> tuple[str, str]:
        return self.scale.x(point.at[0]), self.scale.y(point.at[1])

    def _look(self, point: Point) -> tuple[str, str]:
        if point.group.is_base:
            return BASE_SHAPE, "base"
        return self.looks.get(point.family, (DOT_SHAPE, "other"))

    def _numbers(self, group: Group) -> str:
        """Of the cards whose answer it is: `2, 3`."""
        cards = enumerate(self.answer.cards, 1)
        wanted = group.technique
        return ", ".join(str(i) for i, c in cards if c.group and c.group.technique == wanted)


def _named_apart(
    marks: Sequence[Mark], anchors: Iterable[Mark], lines: Sequence[labels.Line]
) -> Iterator[Mark]:
    """With places for the names of those that have one."""
    named = [(*mark.at, f"{mark.numbers} {mark.lines[0]}") for mark in marks if mark.numbers]
    places = iter(labels.places(named, [mark.at for mark in (*marks, *anchors)], lines))
    for mark in marks:
        yield replace(mark, place=next(places)) if mark.numbers else mark


def _looks(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Family -> (shape, classes): colour and shape as in the figures for papers."""
    styles = {}
    for name, drawn in look.looks(rows).items():
        if name in CONTROLS:
            styles[name] = (drawn["marker"], "control")
        else:
            colour = look.COLOURS.index(drawn["color"])
            styles[name] = (drawn["marker"], f"k{colour} f{look.FILLS.index(drawn['fillstyle'])}")
    return styles


# --- in words --------------------------------------------------------------------------------


def _lines(group: Group, base: Group | None, best: bool) -> Iterator[str]:
    yield group.technique
    for fact in cards.facts(group, base):
        yield f"{fact.value}, {fact.change}" if fact.change else fact.value
    hints = [
        f"n = {len(group.rows)} seeds" if len(group.rows) > 1 else "",
        "control" if group.is_control else "",
        "on the frontier" if best else "",
    ]
    if any(hints):
        yield ", ".join(hint for hint in hints if hint)


def _change(points: float, scale: Scale) -> str:
    return "base" if abs(points) < 1e-9 else f"{points:+.{scale.decimals}f}".replace("-", "\u2212")


def _words(answer: Answer, best: Sequence[Point]) -> str:
    names = [point.group.technique for point in best]
    listed = ", ".join(names[:8]) + (" and others" if len(names) > 8 else "")
    return (
        f"Accuracy in % against stored bytes on a log scale, of {answer.dataset}, {answer.model}. "
        f"On the frontier, from the smallest: {listed}."
    )


def _left_out(shown: int, count: int) -> str:
    if shown == count:
        return ""
    return (
        f"{shown:,} of {count:,} techniques are drawn: the base, the answers, the frontier, then "
        "others in the order of the sweep. The table has all."
    )
