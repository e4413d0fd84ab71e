"""The comparison with the study as a chart: for each technique, what the study has and what is
here, as parts of the base's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.report import study
from pipeline.report.answer import settings
from pipeline.report.metrics import METRIC
from pipeline.report.row import Row
from pipeline.report.study import Pair, Ratios

NEAR = 45.0  # % of a scale's width
EDGE = 6.0  # % of a scale's width that stay free at its ends


@dataclass(frozen=True)
class Scale:
    """From a number to % of the width. `base`: where the base is."""

    heading: str
    low: float
    high: float
    log: bool

    def x(self, value: float) -> str:
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return f"{EDGE + (100 - 2 * EDGE) * (at - low) / (high - low):.1f}"

    @property
    def base(self) -> str:
        return self.x(1.0 if self.log else 0.0)


@dataclass(frozen=True)
class Dots:
    """Places of the base, the study and this report in % of the width, "" where not there; and the
    numbers."""

    base: str
    theirs: str
    ours: str
    theirs_text: str
    ours_text: str

    @property
    def are_near(self) -> bool:
        """Whether the two numbers would cover each other below their marks."""
        return abs(float(self.theirs) - float(self.ours)) < NEAR

    @property
    def theirs_anchor(self) -> str:
        return _anchor(float(self.theirs))

    @property
    def ours_anchor(self) -> str:
        return _anchor(float(self.ours))


def _anchor(x: float) -> str:
    """Which part of a number is below its mark, so that none leaves its scale."""
    return "start" if x < 30 else "end" if x > 70 else "middle"


@dataclass(frozen=True)
class ChartLine:
    row: str
    technique: str
    cells: tuple[Dots, ...]


@dataclass(frozen=True)
class Chart:
    """Of one (data set, model)."""

    dataset: str
    model: str
    headings: tuple[str, ...]
    lines: tuple[ChartLine, ...]


def charts(rows: Iterable[Row]) -> list[Chart]:
    """One a (data set, model) with a technique of the study, all with the same scales."""
    every = {setting: study.ratios(members) for setting, members in settings(rows).items()}
    known = {setting: lines for setting, lines in every.items() if any(map(_is_theirs, lines))}
    scales = _scales([line for lines in known.values() for line in lines])
    headings = tuple(scale.heading for scale in scales)
    return [
        Chart(*setting, headings, tuple(_line(line, scales) for line in lines))
        for setting, lines in known.items()
    ]


def _is_theirs(line: Ratios) -> bool:
    return any(pair.theirs is not None for pair in (line.size, line.time, line.accuracy))


def _scales(lines: Sequence[Ratios]) -> list[Scale]:
    kinds = (
        ("size, × the base's", True, lambda line: line.size),
        ("time for the test set, × the base's", True, lambda line: line.time),
        ("accuracy, points over the base", False, lambda line: line.accuracy),
    )
    return [_scale(name, log, map(of, lines)) for name, log, of in kinds]


def _scale(heading: str, log: bool, pairs: Iterable[Pair]) -> Scale:
    values = [1.0 if log else 0.0, *_values(pairs, log)]
    low, high = min(values), max(values)
    if low == high:
        low, high = (low / 2, high * 2) if log else (low - 1, high + 1)
    return Scale(heading, low, high, log)


def _values(pairs: Iterable[Pair], log: bool) -> Iterator[float]:
    for pair in pairs:
        for value in (pair.theirs, pair.ours):
            if value is not None and not (log and value <= 0):
                yield value


def _line(line: Ratios, scales: Sequence[Scale]) -> ChartLine:
    pairs = zip(scales, (line.size, line.time, line.accuracy), strict=True)
    return ChartLine(line.row, line.technique, tuple(_dots(*one) for one in pairs))


def _dots(scale: Scale, pair: Pair) -> Dots:
    return Dots(
        scale.base,
        _x(scale, pair.theirs),
        _x(scale, pair.ours),
        _text(scale, pair.theirs),
        _text(scale, pair.ours),
    )


def _x(scale: Scale, value: float | None) -> str:
    return "" if value is None or (scale.log and value <= 0) else scale.x(value)


def _text(scale: Scale, value: float | None) -> str:
    if value is None:
        return ""
    if scale.log:
        return METRIC["relative_latency"].show(value)
    shown = METRIC["accuracy_drop"].show(value / 100)
    return shown.replace("-", "\u2212") if shown.startswith("-") else f"+{shown}"
