"""Whether a difference between two techniques is more than noise: intervals over seeds.

Seeds are paired: both techniques of a pair start from the same base, or teach from it, on the same
split. So what is judged is the mean of their differences, by Student's t distribution.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from pipeline.report.answer import Group, groups, mean, settings
from pipeline.report.document import Sentence
from pipeline.report.row import Row
from pipeline.techniques import CHANCE, PLAIN

LEVEL = 0.95
PERCENT = round(100 * LEVEL)


@dataclass(frozen=True)
class Interval:
    """Of a mean difference over n >= 2 seeds, in shares: the mean, the sample's standard deviation,
    and the interval that holds the true mean with LEVEL, if differences are normal."""

    n: int
    mean: float
    deviation: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        return self.low <= 0 <= self.high

    @property
    def text(self) -> str:
        return f"{PERCENT} % interval {self.ends} points"

    @property
    def ends(self) -> str:
        """In percentage points."""
        return f"{_points(self.low)} to {_points(self.high)}"


def interval(differences: Sequence[float | None]) -> Interval | None:
    """None for fewer than two, or where one is missing."""
    known = [value for value in differences if value is not None and value == value]
    n = len(known)
    if n < 2 or n < len(differences):
        return None
    middle, deviation = fmean(known), stdev(known)
    reach = t_quantile((1 + LEVEL) / 2, n - 1) * deviation / math.sqrt(n)
    return Interval(n, middle, deviation, middle - reach, middle + reach)


def t_quantile(probability: float, degrees: int) -> float:
    """Of Student's t distribution with so many degrees of freedom, for 0.5 <= probability < 1."""
    low, high = 0.0, 1.0
    while _within(high, degrees) < 2 * probability - 1:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if _within(middle, degrees) < 2 * probability - 1:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _within(t: float, degrees: int) -> float:
    """P(|T| <= t): Abramowitz and Stegun 1972, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(1 + odd, degrees, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


# --- sentences -------------------------------------------------------------------------------


def sentences(rows: Sequence[Row], pairs: Iterable[tuple[Group, Group]]) -> Iterator[Sentence]:
    """What pruning wins over chance, and what refined distillation wins over the plain one.
    `pairs`: techniques and their controls, of the same seeds in the same order."""
    by_control: dict[tuple[str, str, str], list[tuple[Group, Group]]] = {}
    for technique, control in pairs:
        if control.family == CHANCE:
            key = (*control.rows[0].setting, control.technique)
            by_control.setdefault(key, []).append((technique, control))
    for found in by_control.values():
        yield (_against_chance(found),)
    for members in settings(rows).values():
        yield from ((text,) for text in _refined(groups(members)))


def _against_chance(pairs: Sequence[tuple[Group, Group]]) -> str:
    """Of the techniques at one operating point the best by held-out images, which the test set has
    no say in; by the test set, and that is said, where there is no such accuracy."""
    held_out = [mean(row.held_out_accuracy for row in mine.rows) for mine, _ in pairs]
    by_test = any(value != value for value in held_out)
    if by_test:
        held_out = [mean(row.accuracy for row in mine.rows) for mine, _ in pairs]
    best = max(range(len(pairs)), key=lambda i: held_out[i])
    mine, control = pairs[best]
    by = "the test set, which makes it look better than it is" if by_test else "held-out images"
    at = f"at the operating point of {control.technique}"
    one, many = f"the one technique {at}", f"the best of {len(pairs)} techniques {at} by {by}"
    about = f"On {', '.join(mine.rows[0].setting)}, {mine.technique}, "
    about += f"{one if len(pairs) == 1 else many}, "
    found = interval(differences(mine, control))
    if found is None:
        return (
            f"{about}has one seed in common with it: whether they differ by more than noise is not "
            "known."
        )
    verdict = "so it does not differ from chance by more than noise"
    if not found.is_noise:
        verdict = f"so it is {'better' if found.mean > 0 else 'worse'} than chance"
    return f"{about}is {_apart(found)} {control.technique}, {verdict}."


def _refined(every: Sequence[Group]) -> Iterator[str]:
    """Each refined technique beside the plain one, where both have two seeds in common."""
    for mine in every:
        for plain in every:
            if PLAIN.get(mine.family) != plain.family:
                continue
            both = {row.seed for row in mine.rows} & {row.seed for row in plain.rows}
            ours, theirs = (
                Group(tuple(row for row in group.rows if row.seed in both))
                for group in (mine, plain)
            )
            found = interval(differences(ours, theirs)) if len(both) > 1 else None
            if found is None:
                continue
            above = found.mean > found.deviation
            yield (
                f"On {', '.join(mine.rows[0].setting)}, {mine.technique} is {_apart(found)} "
                f"{plain.technique}: {'' if above else 'not '}above it by more than one standard "
                f"deviation of the differences ({100 * found.deviation:.2f} points)."
            )


def differences(mine: Group, other: Group) -> list[float | None]:
    """In accuracy, of the same seeds in the same order."""
    return [
        None if a.accuracy is None or b.accuracy is None else a.accuracy - b.accuracy
        for a, b in zip(mine.rows, other.rows, strict=True)
    ]


def _apart(found: Interval) -> str:
    """`0.52 points above (95 % interval ..., n = 3)`, as it stands before a name."""
    side = "above" if found.mean >= 0 else "below"
    return f"{abs(100 * found.mean):.2f} points ({found.text}, n = {found.n}) {side}"


def _points(share: float) -> str:
    return f"{100 * share:.2f}".replace("-", "\N{MINUS SIGN}")
