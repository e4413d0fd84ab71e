"""Accuracy against what a model costs: the points that figures draw, and which are on the frontier.

Plain numbers: the page draws them as it does, matplotlib draws them for papers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from pipeline import runtimes
from pipeline.measure.series import Series
from pipeline.report.answer import Group, deviation, groups, mean
from pipeline.report.metrics import METRIC
from pipeline.report.published import Anchor, anchors
from pipeline.report.row import Row

MOST_MARKS = 2000  # of a figure
REACH = 0.6  # how far below the results' own range, in parts of it, anchors are drawn in place
FAR_POINTS, FAR_RANGES = 5.0, 3.0  # see `far_below`


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

    @cached_property
    def at(self) -> tuple[float, float]:
        return mean(self.costs), mean(self.accuracies)

    @property
    def spread(self) -> float:
        """Standard deviation of the accuracy over seeds; NaN for one."""
        return deviation(self.accuracies)

    @property
    def family(self) -> str:
        return self.group.family


def points(rows: Iterable[Row], cost: Cost) -> list[Point]:
    """Of the rows that have both; one a technique, in the order of the rows."""
    measured = (row for row in rows if row.accuracy is not None and (cost.of(row) or 0) > 0)
    return [
        Point(
            group,
            tuple(value for row in group.rows if (value := cost.of(row)) is not None),
            tuple(100 * row.accuracy for row in group.rows if row.accuracy is not None),
        )
        for group in groups(measured)
    ]


def frontier(points: Iterable[Point]) -> list[Point]:
    """Those than which none is both cheaper and more accurate; controls are left out."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.at[0], -p.at[1])):
        if not point.group.is_control and (not best or point.at[1] > best[-1].at[1]):
            best.append(point)
    return best


def on_frontier(rows: Iterable[Row]) -> frozenset[str]:
    """Names of the techniques on the frontier of stored bytes, and of the base."""
    every = points(rows, STORED)
    best = [*frontier(every), *(point for point in every if point.group.is_base)]
    return frozenset(point.group.technique for point in best)


def base_accuracy(points: Iterable[Point]) -> float | None:
    """Of the base, %; None where it is not among them."""
    return next((point.at[1] for point in points if point.group.is_base), None)


def thinned(best: Sequence[Point], most: int) -> list[Point]:
    """At most so many of them, evenly, with the first and the last."""
    if len(best) <= most:
        return list(best)
    return [best[round(i * (len(best) - 1) / (most - 1))] for i in range(most)]


# --- published results beside them -----------------------------------------------------------


@dataclass(frozen=True)
class Placed:
    """An anchor at the accuracy, in %, that our base less its own drop would have. `below`: that
    is far below all results, and it is drawn at the lower edge."""

    anchor: Anchor
    cost: float
    accuracy: float
    below: bool


def placed(points: Sequence[Point], dataset: str) -> list[Placed]:
    """The anchors that have stored bytes and a base of their own; none where we have no base."""
    base = base_accuracy(points)
    if base is None:
        return []
    low, high = least_and_most(points)
    least = low - REACH * max(high - low, 0.1)
    return [
        Placed(anchor, anchor.bytes, base - anchor.drop, base - anchor.drop < least)
        for anchor in anchors(dataset)
        if anchor.bytes is not None and anchor.drop is not None
    ]


def far_below(points: Sequence[Point]) -> frozenset[str]:
    """Names of techniques that are drawn at the lower edge, since a scale that reached them would
    press all others together: fewer than half, below a gap of more than ``FAR_POINTS`` points and
    of ``FAR_RANGES`` times the range of what is above it. Never the base, nor what is above it."""
    downwards = sorted(points, key=lambda point: -point.at[1])
    low, high = math.inf, -math.inf
    based = all(not point.group.is_base for point in downwards)
    for count, (point, other) in enumerate(pairwise(downwards), 1):
        based = based or point.group.is_base
        values = list(_reached([point]))
        low, high = min(low, *values), max(high, *values)
        gap = point.at[1] - other.at[1]
        if (
            based
            and 2 * count > len(downwards)
            and gap > max(FAR_POINTS, FAR_RANGES * (high - low))
        ):
            return frozenset(p.group.technique for p in downwards[count:])
    return frozenset()


def about_far(points: Sequence[Point]) -> str:
    """Names and accuracies of what is drawn at the lower edge; "" where nothing is."""
    far = far_below(points)
    lost = [p for p in sorted(points, key=lambda p: -p.at[1]) if p.group.technique in far]
    named = [f"{p.group.technique} ({METRIC['accuracy'].show(p.at[1] / 100)} %)" for p in lost[:8]]
    more = f" and {len(lost) - 8:,} more" if len(lost) > 8 else ""
    return f"At the lower edge, far below the others: {', '.join(named)}{more}." if named else ""


def least_and_most(points: Sequence[Point]) -> tuple[float, float]:
    """Of all means and their deviations, %, without what is far below."""
    values = list(_reached(in_view(points)))
    return min(values), max(values)


def in_view(points: Sequence[Point]) -> list[Point]:
    """Those that are not far below."""
    far = far_below(points)
    return [point for point in points if point.group.technique not in far]


def _reached(points: Iterable[Point]) -> Iterator[float]:
    for point in points:
        spread = point.spread if point.spread == point.spread else 0.0
        yield point.at[1] - spread
        yield min(100.0, point.at[1] + spread) if spread else point.at[1]
