"""What a figure shows where there is more than it has room for; captions say by which rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from pipeline.report.answer import ONE_POINT, SLACK, Group, Row, groups, mean, settings
from pipeline.report.evidence import Evidence

Read = Callable[[str], Evidence | None]
MOST_PANELS = 4  # of figures that read evidence
MOST_SEEDS = 5
RULE = ("of each technique's operating points the smallest that loses at most one point on "
        "average, or else the most accurate")  # fmt: skip


def first_settings(rows: Iterable[Row], most: int) -> dict[tuple[str, str], list[Row]]:
    """The first (data set, model) of the rows."""
    found = settings(rows)
    return dict(list(found.items())[:most])


def techniques(rows: Sequence[Row], most: int) -> list[str]:
    """Names of at most so many, the base not among them: all, or one a family by RULE."""
    names = dict.fromkeys(row["technique"] for row in rows if not row["is_base"])
    return list(names) if len(names) <= most else representatives(rows, most)


def representatives(rows: Sequence[Row], most: int) -> list[str]:
    """One technique a family, by RULE; where those are too many, techniques before controls, and
    of them those that lose least. In the order of the rows."""
    families: dict[str, list[Group]] = {}
    for group in _over_settings(rows):
        families.setdefault(group.rows[0]["family"], []).append(group)
    points = [min(members, key=_size_if_good) for members in families.values()]
    kept = sorted(points, key=lambda group: (group.is_control, _loss(group)))[:most]
    return [group.technique for group in points if group in kept]


def _over_settings(rows: Iterable[Row]) -> list[Group]:
    """A technique's rows of every data set and model together."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if not row["is_base"]:
            found.setdefault(row["technique"], []).append(row)
    return [Group(tuple(members)) for members in found.values()]


def _size_if_good(group: Group) -> tuple[bool, float]:
    loss = _loss(group)
    good = loss <= ONE_POINT + SLACK
    return (not good, mean(math.log(row["stored_bytes"]) for row in group.rows) if good else loss)


def _loss(group: Group) -> float:
    """Against the base; where there was none, the error."""
    loss = group.drop if group.drop == group.drop else 1 - mean(r["accuracy"] for r in group.rows)
    return loss if loss == loss else math.inf


def left_out(rows: Sequence[Row], shown: Sequence[str], panels: int = MOST_PANELS) -> str:
    """A sentence for the caption about the techniques that are not in the figure; "" for none."""
    names = {row["technique"] for row in rows if not row["is_base"]}
    said = []
    if len(shown) < len(names):
        said.append(f"Shown are {len(shown)} of {len(names):,} techniques: {RULE}.")
    count = len(settings(rows))
    if count > panels:
        said.append(f"Shown are the first {panels} of {count} pairs of data set and model.")
    return " ".join(said)


def seeds(rows: Iterable[Row], technique: str) -> list[Row]:
    """The first rows of a technique, one a seed."""
    return [row for row in rows if row["technique"] == technique][:MOST_SEEDS]


def bases(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["is_base"]][:MOST_SEEDS]


def by_name(rows: Iterable[Row]) -> dict[str, Group]:
    """Of one data set and model."""
    return {group.technique: group for group in groups(rows)}
