"""Whether a difference between two techniques is more than noise: intervals over seeds.

Seeds are paired: both techniques of a pair start from the same base, or teach from it, on the same
split. So what is judged is the mean of their differences, by Student's t distribution.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from pipeline.report.answer import Group, mean
from pipeline.report.document import Sentence
from pipeline.techniques import CHANCE

ERROR = 0.05  # how often an interval may miss the true mean


@dataclass(frozen=True)
class Interval:
    """Of a mean difference over n >= 2 seeds, in shares: the mean, the sample's standard deviation,
    and the interval that holds the true mean with probability `level`, if differences are
    normal."""

    n: int
    mean: float
    deviation: float
    low: float
    high: float
    level: float = 1 - ERROR

    @property
    def is_noise(self) -> bool:
        return self.low <= 0 <= self.high

    @property
    def text(self) -> str:
        return f"{100 * self.level:.4g} % interval {self.ends} points"

    @property
    def ends(self) -> str:
        """In percentage points."""
        return f"{_points(self.low)} to {_points(self.high)}"


@dataclass(frozen=True)
class Refined:
    """A refined technique and the plain one at the same operating point, of the same seeds in the
    same order; epochs of training that their weights have gone through."""

    technique: Group
    plain: Group
    epochs: int
    plain_epochs: int


def interval(differences: Sequence[float | None], of: int = 1) -> Interval | None:
    """None for fewer than two, or where one is missing. `of`: intervals of which any is then
    looked at; all of them together hold at 1 - ERROR (Bonferroni: each errs a part as often)."""
    known = [value for value in differences if value is not None and value == value]
    n = len(known)
    if n < 2 or n < len(differences):
        return None
    middle, deviation = fmean(known), stdev(known)
    level = 1 - ERROR / of
    reach = t_quantile((1 + level) / 2, n - 1) * deviation / math.sqrt(n)
    return Interval(n, middle, deviation, middle - reach, middle + reach, level)


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


def sentences(
    pairs: Iterable[tuple[Group, Group]], refined: Iterable[Refined]
) -> Iterator[Sentence]:
    """What pruning wins over chance, and what refined distillation wins over the plain one.
    `pairs`: techniques and their controls, of the same seeds in the same order."""
    by_control: dict[tuple[str, str, str], list[tuple[Group, Group]]] = {}
    for technique, control in pairs:
        if control.family == CHANCE:
            key = (*control.rows[0].setting, control.technique)
            by_control.setdefault(key, []).append((technique, control))
    for same_control in by_control.values():
        yield (_against_chance(same_control),)
    yield from ((text,) for text in map(_refined, refined) if text)


def _against_chance(pairs: Sequence[tuple[Group, Group]]) -> str:
    """Of the techniques at one operating point the best by held-out images, which the test set has
    no say in; by the test set, and reported as such, where there is no such accuracy. The best of
    several is chosen on the networks that are then judged, so its interval is one of as many."""
    mine, control, by = _best(pairs)
    at = f"at the operating point of {control.technique}"
    one, many = f"the one technique {at}", f"the best of {len(pairs)} techniques {at} by {by}"
    about = f"On {', '.join(mine.rows[0].setting)}, {mine.technique}, "
    about += f"{one if len(pairs) == 1 else many}, "
    apart = differences(mine, control)
    difference = interval(apart, of=len(pairs))
    if difference is None:
        return f"{about}{_unknown(apart)}: whether they differ by more than noise is not known."
    verdict = "so it does not differ from chance by more than noise"
    if not difference.is_noise:
        verdict = f"so it is {'better' if difference.mean > 0 else 'worse'} than chance"
    text = f"{about}is {_apart(difference)} {control.technique}, {verdict}."
    if len(pairs) > 1:
        text += (
            f" The interval's level is 1 \N{MINUS SIGN} {ERROR}/{len(pairs)} (Bonferroni), since "
            "the best is chosen on the same networks."
        )
    return text


def _best(pairs: Sequence[tuple[Group, Group]]) -> tuple[Group, Group, str]:
    """With its control, and by what it is the best of those that have it measured."""
    by = "held-out images"
    values = [mean(row.held_out_accuracy for row in mine.rows) for mine, _ in pairs]
    if any(value != value for value in values):
        by = "the test set, which makes it look better than it is"
        values = [mean(row.accuracy for row in mine.rows) for mine, _ in pairs]
    known = [-math.inf if value != value else value for value in values]
    return (*pairs[known.index(max(known))], by)


def _unknown(apart: Sequence[float | None]) -> str:
    """Why there is no interval."""
    if len(apart) < 2:
        return "has one seed in common with it"
    missing = sum(value is None for value in apart)
    return f"has {len(apart)} seeds in common with it, of which {missing} lacks an accuracy"


def _refined(pair: Refined) -> str:
    """ "" where both have fewer than two seeds in common."""
    difference = interval(differences(pair.technique, pair.plain))
    if difference is None:
        return ""
    above = difference.mean > difference.deviation
    mine, plain = pair.technique.technique, pair.plain.technique
    if pair.epochs != pair.plain_epochs:
        mine = f"{mine}, trained for {pair.epochs} epochs,"
        plain = f"{plain}, trained for {pair.plain_epochs}"
    return (
        f"On {', '.join(pair.technique.rows[0].setting)}, {mine} is {_apart(difference)} {plain}: "
        f"{'' if above else 'not '}above it by more than one standard deviation of the differences "
        f"({100 * difference.deviation:.2f} points)."
    )


def differences(mine: Group, other: Group) -> list[float | None]:
    """In accuracy, of the same seeds in the same order."""
    return [
        None if a.accuracy is None or b.accuracy is None else a.accuracy - b.accuracy
        for a, b in zip(mine.rows, other.rows, strict=True)
    ]


def _apart(difference: Interval) -> str:
    """`0.52 points above (95 % interval ..., n = 3)`, as it stands before a name."""
    side = "above" if difference.mean >= 0 else "below"
    return f"{abs(100 * difference.mean):.2f} points ({difference.text}, n = {difference.n}) {side}"


def _points(share: float) -> str:
    return f"{100 * share:.2f}".replace("-", "\N{MINUS SIGN}")
