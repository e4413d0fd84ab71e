"""What a figure shows where there is more than it has room for; captions say by which rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module

from pipeline.data import DATASETS
from pipeline.report import content
from pipeline.report.answer import ONE_POINT, SLACK, Group, mean, settings
from pipeline.report.evidence import Evidence
from pipeline.report.figures import look
from pipeline.report.row import Row

Read = Callable[[str], Evidence | None]
Line = tuple[str, str]  # a technique, and the label of its line
MOST_PANELS = 4  # of figures that read evidence
MOST_SEEDS = 5
RULE = (
    "of each technique's operating points the smallest that loses at most one point on "
    "average, or else the most accurate"
)
LEAST_LOSS = "techniques before controls, those that lose least first"
CLASSES = "Classes are named as in the data set, those of images of one's own by their numbers."
FILLED = "then others in the order of the sweep"


def panels(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """The rows of each of the first (data set, model)."""
    return dict(list(settings(rows).items())[:MOST_PANELS])


def room(rows: Iterable[Row], most: int, most_together: int) -> int:
    """How many techniques a panel has room for, where all panels together have so much."""
    return max(1, min(most, most_together // max(1, len(panels(rows)))))


def techniques(rows: Sequence[Row], most: int) -> list[str]:
    """Names of at most so many, the base not among them: all, or one a family by RULE and, where
    there is still room, others in the order of the rows."""
    names = list(dict.fromkeys(row.technique for row in rows if not row.is_base))
    if len(names) <= most:
        return names
    kept = _representatives(rows, most)
    others = [name for name in names if name not in kept][: most - len(kept)]
    return [name for name in names if name in kept or name in others]


def _representatives(rows: Sequence[Row], most: int) -> list[str]:
    """One technique a family, by RULE; where those are too many, techniques before controls, and
    of them those that lose least. In the order of the rows."""
    families: dict[str, list[Group]] = {}
    for group in _over_settings(rows):
        families.setdefault(group.family, []).append(group)
    points = [min(members, key=_size_if_good) for members in families.values()]
    kept = sorted(points, key=lambda group: (group.is_control, _loss(group)))[:most]
    return [group.technique for group in points if group in kept]


def _over_settings(rows: Iterable[Row]) -> list[Group]:
    """A technique's rows of every data set and model together."""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        if not row.is_base:
            by_name.setdefault(row.technique, []).append(row)
    return [Group(tuple(members)) for members in by_name.values()]


def _size_if_good(group: Group) -> tuple[bool, float]:
    loss = _loss(group)
    good = loss <= ONE_POINT + SLACK
    return (not good, mean(map(_log_bytes, group.rows)) if good else loss)


def _log_bytes(row: Row) -> float | None:
    return None if row.stored_bytes is None else math.log(row.stored_bytes)


def _loss(group: Group) -> float:
    """Against the base; where there was none, the error."""
    loss = group.drop if group.drop == group.drop else 1 - mean(r.accuracy for r in group.rows)
    return loss if loss == loss else math.inf


def left_out(rows: Sequence[Row], shown: Sequence[str]) -> str:
    """Sentences for the caption about the techniques of these rows that are not in the figure, and
    about panels; "" for none."""
    names = {row.technique for row in rows if not row.is_base}
    sentences = []
    if len(shown) < len(names):
        families = {row.family for row in rows if not row.is_base}
        rules = [RULE] if len(families) < len(names) else []
        rules.append(LEAST_LOSS if len(families) > len(shown) else FILLED)
        sentences.append(
            f"Shown are {len(shown)} of {len(names):,} techniques: {'; '.join(rules)}."
        )
    count = len(settings(rows))
    if count > MOST_PANELS:
        sentences.append(
            f"Shown are the first {MOST_PANELS} of {count} pairs of data set and model."
        )
    return " ".join(sentences)


def seeds(rows: Iterable[Row], technique: str) -> list[Row]:
    """The first rows of a technique, one a seed."""
    return [row for row in rows if row.technique == technique][:MOST_SEEDS]


def bases(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.is_base][:MOST_SEEDS]


def line(row: Row) -> Line:
    """Two techniques whose short names are the same stay two."""
    return row.technique, line_name(row)


def line_name(row: Row, most: int = look.LONGEST_NAME) -> str:
    """A technique where it names a line: short, and saying whether it is a control."""
    return content.shown(look.short(row.technique, most), row.family)


def class_names(dataset: str, count: int) -> list[str]:
    """Of so many classes: their names in a data set that ships, else their numbers."""
    names = import_module(DATASETS[dataset].module).CLASSES if dataset in DATASETS else ()
    return list(names) if len(names) == count else [str(i) for i in range(count)]


def several(counts: Iterable[int]) -> str:
    """`n = 3`, or `n = 1 to 3`."""
    least, most = min(counts := list(counts)), max(counts)
    return f"n = {most}" if least == most else f"n = {least} to {most}"
