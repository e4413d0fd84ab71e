"""Where the names of marks stand in the page's plot: beside them, over as little else as possible.

The plot has the width of the screen while letters and marks keep their size, so that each place is
judged on a small and a large one. Places are in % of the plot, from the left and from above; boxes
are (left, top, right, bottom) in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Box = tuple[float, float, float, float]
Line = tuple[float, float, float, float]  # x1, y1, x2, y2

SIZES = ((470.0, 430.0), (820.0, 470.0))
LETTER, ASCENT, DESCENT = 7.6, 11.0, 4.0  # of a name
MARK = 8.0  # from the middle of a mark to its side
# What a name costs: for each pixel of its area over another name, a mark or the outside, for each
# pixel of a line below it, and for each place that was tried before.
NAME, OVER_MARK, OUTSIDE, OVER_LINE, LATER = 6.0, 3.0, 4.0, 6.0, 4.0


@dataclass(frozen=True)
class Place:
    """Of a name, from its mark, in pixels: `anchor`: which of its ends is there, as SVG has it."""

    dx: int
    dy: int
    anchor: str


PLACES = tuple(
    Place(side * dx, dy, "middle" if dx == 0 else "start" if side > 0 else "end")
    for dx, dy, sides in (
        (15, -8, (1, -1)),
        (17, 4, (1, -1)),
        (15, 19, (1, -1)),
        (0, -17, (1,)),
        (0, 27, (1,)),
        (12, -24, (1, -1)),
        (12, 35, (1, -1)),
        (0, -34, (1,)),
        (0, 44, (1,)),
        (0, -52, (1,)),
        (0, 62, (1,)),
    )
    for side in sides
)


def places(
    named: Iterable[tuple[float, float, str]],
    marks: Sequence[tuple[float, float]],
    lines: Sequence[Line],
) -> list[Place]:
    """One for each of `named` (x, y, the name); `marks`: x, y of all of them."""
    chosen: list[Place] = []
    taken: list[list[Box]] = [[] for _ in SIZES]
    for x, y, name in named:
        costs = [
            sum(
                _cost(_box(x, y, name, place, size), marks, lines, others, size)
                for size, others in zip(SIZES, taken, strict=True)
            )
            + LATER * i
            for i, place in enumerate(PLACES)
        ]
        best = PLACES[costs.index(min(costs))]
        chosen.append(best)
        for size, others in zip(SIZES, taken, strict=True):
            others.append(_box(x, y, name, best, size))
    return chosen


def _box(x: float, y: float, name: str, place: Place, size: tuple[float, float]) -> Box:
    width = LETTER * len(name)
    left = x * size[0] / 100 + place.dx
    left -= {"start": 0.0, "middle": width / 2, "end": width}[place.anchor]
    baseline = y * size[1] / 100 + place.dy
    return left, baseline - ASCENT, left + width, baseline + DESCENT


def _cost(
    box: Box,
    marks: Iterable[tuple[float, float]],
    lines: Iterable[Line],
    others: Iterable[Box],
    size: tuple[float, float],
) -> float:
    width, height = size
    middles = ((x * width / 100, y * height / 100) for x, y in marks)
    around = ((x - MARK, y - MARK, x + MARK, y + MARK) for x, y in middles)
    scaled = (
        (x1 * width / 100, y1 * height / 100, x2 * width / 100, y2 * height / 100)
        for x1, y1, x2, y2 in lines
    )
    inside = _overlap(box, (0.0, 0.0, width, height))
    return (
        OUTSIDE * ((box[2] - box[0]) * (box[3] - box[1]) - inside)
        + NAME * sum(_overlap(box, other) for other in others)
        + OVER_MARK * sum(_overlap(box, mark) for mark in around)
        + OVER_LINE * sum(_length_inside(line, box) for line in scaled)
    )


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0


def _length_inside(line: Line, box: Box) -> float:
    """Of the part of a line that is in the box (Liang and Barsky)."""
    x, y, dx, dy = line[0], line[1], line[2] - line[0], line[3] - line[1]
    first, last = 0.0, 1.0
    for step, room in ((-dx, x - box[0]), (dx, box[2] - x), (-dy, y - box[1]), (dy, box[3] - y)):
        if step == 0 and room < 0:
            return 0.0
        if step < 0:
            first = max(first, room / step)
        elif step > 0:
            last = min(last, room / step)
    return float(max(0.0, last - first) * (dx * dx + dy * dy) ** 0.5)
