"""What a reader asks first: which compressed model to take. Plain Python over the report's rows.

Seeds of one technique are judged together, by their means: taking the luckiest seed on the test
set would be choosing by it. Controls are there to be compared with and are never the answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from pipeline.techniques import CONTROLS

if TYPE_CHECKING:
    from pipeline.report.row import Row

ONE_POINT = 0.01
SLACK = 1e-9  # 0.99 - 0.98 is a little more than 0.01


@dataclass(frozen=True)
class Group:
    """The rows of one technique on one data set and model, one for each seed."""

    rows: tuple[Row, ...]

    @property
    def technique(self) -> str:
        return self.rows[0].technique

    @property
    def family(self) -> str:
        return self.rows[0].family

    @property
    def is_base(self) -> bool:
        return self.rows[0].is_base

    @property
    def is_control(self) -> bool:
        return self.family in CONTROLS

    @property
    def drop(self) -> float:
        return mean(row.accuracy_drop for row in self.rows)

    @property
    def stored_bytes(self) -> float:
        return mean(row.stored_bytes for row in self.rows)

    @property
    def speedup(self) -> float:
        """At batch 1, all threads; NaN where it was not measured."""
        return mean(row.speedup("all", 1) for row in self.rows)

    def within(self, limit: float) -> bool:
        """Whether it loses at most `limit`."""
        return _within(self.drop, limit)

    def cell(self, limit: float) -> Row:
        """The one to take away: the smallest seed that is itself within `limit`."""
        good = [row for row in self.rows if _within(row.accuracy_drop, limit)]
        return min(good or self.rows, key=lambda row: (row.stored_bytes, row.seed))


def groups(rows: Iterable[Row]) -> list[Group]:
    """In the order of the rows."""
    by_name: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        by_name.setdefault((*row.setting, row.technique), []).append(row)
    return [Group(tuple(members)) for members in by_name.values()]


def settings(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """The rows of each (data set, model): what is compared with each other."""
    by_setting: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_setting.setdefault(row.setting, []).append(row)
    return by_setting


def smallest(rows: Iterable[Row], limit: float = ONE_POINT) -> Group | None:
    """The technique with the fewest stored bytes among those that lose at most `limit`."""
    return min(_good(rows, limit), key=lambda g: (g.stored_bytes, g.drop), default=None)


def fastest(rows: Iterable[Row], limit: float = ONE_POINT) -> Group | None:
    """The technique with the highest speed-up at batch 1 among those that lose at most `limit`."""
    timed = [group for group in _good(rows, limit) if group.speedup > 0]
    return max(timed, key=lambda g: (g.speedup, -g.drop), default=None)


def nearest(rows: Iterable[Row]) -> Group | None:
    """The compressed model that loses least, however much that is."""
    known = [g for g in _candidates(rows) if not g.is_base and g.drop == g.drop]
    return min(known, key=lambda g: (g.drop, g.stored_bytes), default=None)


def best(rows: Iterable[Row]) -> Row | None:
    """The row of the smallest good model: fewest stored bytes, at most one point below its base."""
    group = smallest(rows)
    return group.cell(ONE_POINT) if group else None


def mean(values: Iterable[float | None]) -> float:
    """NaN where a value is missing, since a mean over fewer seeds would not be that of n."""
    return fmean(float("nan") if value is None else value for value in values)


def deviation(values: Sequence[float | None]) -> float:
    """The sample's standard deviation; NaN for one value, or where one is missing."""
    known = [value for value in values if value is not None and value == value]
    return stdev(known) if len(known) == len(values) >= 2 else float("nan")


def _good(rows: Iterable[Row], limit: float) -> list[Group]:
    return [group for group in _candidates(rows) if group.within(limit)]


def _candidates(rows: Iterable[Row]) -> list[Group]:
    return [group for group in groups(rows) if not group.is_control]


def _within(drop: float | None, limit: float) -> bool:
    return drop is not None and drop <= limit + SLACK
