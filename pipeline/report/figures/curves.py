"""Training curves: held-out accuracy and loss against the epoch, stages one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator

from pipeline.report.evidence import Evidence
from pipeline.report.figures import chosen, look
from pipeline.report.figures.chosen import Read
from pipeline.report.figures.look import BASE, Drawn
from pipeline.report.row import Row
from pipeline.store import StageHistory

MOST_TECHNIQUES = 8
MOST_POINTS = 3500  # of all lines together
FEW_EPOCHS = 4  # each has a mark
ACCURACY = "held_out_accuracy"
LOSSES = ("held_out_loss", "loss")
LABEL = {
    ACCURACY: "held-out accuracy, % (log scale of the error)",
    "held_out_loss": "held-out loss (log scale)",
    "loss": "training loss (log scale)",
}
LEAST_ERROR = 0.01  # %, so that an accuracy of 100 % has a place
PANEL_INCHES = (4.9, 3.3)
BETWEEN: dict[str, Any] = {
    "color": "#666666",
    "linewidth": 0.9,
    "linestyle": (0, (1, 2)),
    "zorder": 0.5,
}

Setting = tuple[str, str]


@dataclass(frozen=True)
class Curves:
    """A technique's histories, one a seed, of those that trained."""

    technique: str
    family: str
    is_base: bool
    histories: tuple[tuple[StageHistory, ...], ...]

    def lines(self, key: str) -> list[numpy.ndarray]:
        """Of each seed: x and y, [2, epochs]; NaN between two stages."""
        return [line for history in self.histories if (line := _line(history, key)).size]

    @property
    def ends(self) -> set[int]:
        """After how many epochs a stage ended and another began."""
        sums = (numpy.cumsum([_epochs(stage) for stage in h])[:-1] for h in self.histories)
        return {int(end) for ends in sums for end in ends}


def draw(rows: Sequence[Row], read: Read) -> Drawn | None:
    """None where no cell has a history."""
    names = chosen.techniques(rows, MOST_TECHNIQUES)
    by_setting: dict[Setting, list[Curves]] = {}
    for setting, members in chosen.panels(rows).items():
        curves = [c for c in _curves(members, names, read) if c.histories]
        if curves:
            by_setting[setting] = curves
    keys = _keys(by_setting)
    if not keys:
        return None
    marks = _marks(rows, [c for curves in by_setting.values() for c in curves])
    width = PANEL_INCHES[0] * max(2, len(keys))
    panels = [
        (setting, key)
        for setting, members in by_setting.items()
        for key in keys
        if any(curves.lines(key) for curves in members)
    ]
    canvas, axes = look.grid(
        len(panels), len(keys), PANEL_INCHES, look.legend_rows(list(marks), width), width
    )
    every = _every(by_setting, keys)
    for axis, (setting, key) in zip(axes, panels, strict=True):
        look.heading(axis, ", ".join(setting))
        _panel(axis, by_setting[setting], key, marks, every)
    look.legend(canvas, marks)
    caption = f"{_caption(by_setting, every)} {chosen.left_out(rows, names)}".strip()
    return Drawn(canvas, "Training curves", caption, _alt(by_setting))


def _curves(rows: Sequence[Row], names: Sequence[str], read: Read) -> Iterator[Curves]:
    for members in (chosen.bases(rows), *(chosen.seeds(rows, name) for name in names)):
        if members:
            first = members[0]
            histories = (_trained(read(row.id)) for row in members)
            yield Curves(
                first.technique,
                first.family,
                first.is_base,
                tuple(history for history in histories if history),
            )


def _trained(evidence: Evidence | None) -> tuple[StageHistory, ...]:
    """The stages of a cell that trained, in order."""
    stages = evidence.history if evidence else ()
    return tuple(sorted((s for s in stages if _epochs(s)), key=lambda s: s.index))


def _epochs(stage: StageHistory) -> int:
    return max((len(stage.columns.get(key, ())) for key in (ACCURACY, *LOSSES)), default=0)


def _line(history: Sequence[StageHistory], key: str) -> numpy.ndarray:
    xs: list[float] = []
    ys: list[float] = []
    before = 0
    for stage in history:
        values = list(stage.columns.get(key, ()))
        xs += [before + 0.5] * bool(xs and values) + [before + 1 + i for i in range(len(values))]
        ys += [float("nan")] * bool(ys and values) + values
        before += _epochs(stage)
    line = numpy.array([xs, ys], dtype=float)
    return line if numpy.isfinite(line).all(0).any() else numpy.empty((2, 0))


def _keys(by_setting: dict[Setting, list[Curves]]) -> list[str]:
    """What there is to draw: accuracy, and the first of LOSSES."""

    def recorded(key: str) -> bool:
        return any(curves.lines(key) for members in by_setting.values() for curves in members)

    losses = [key for key in LOSSES if recorded(key)]
    return [key for key in (ACCURACY, *losses[:1]) if recorded(key)]


def _every(by_setting: dict[Setting, list[Curves]], keys: Sequence[str]) -> int:
    """One in how many epochs is drawn."""
    points = sum(
        line.shape[1]
        for members in by_setting.values()
        for curves in members
        for key in keys
        for line in curves.lines(key)
    )
    return -(-points // MOST_POINTS)


# --- one panel -------------------------------------------------------------------------------


def _panel(axis: Axes, members: Sequence[Curves], key: str, marks: dict, every: int) -> None:
    axis.set_yscale("log")
    for curves in members:
        lines = [_scaled(line, key) for line in curves.lines(key)]
        _draw(axis, lines, curves, marks[curves.technique], every)
    for end in sorted(set().union(*(curves.ends for curves in members))):
        axis.axvline(end + 0.5, **BETWEEN)
    last = max(line[0, -1] for curves in members for line in curves.lines(key))
    axis.set_xlim(0.5, last + max(0.5, 0.03 * last))  # no mark is cut
    few = FixedLocator(range(1, int(last) + 1))
    axis.xaxis.set_major_locator(few if last <= 8 else MaxNLocator(8, integer=True))
    axis.set_xlabel("epoch")
    axis.set_ylabel(LABEL[key])
    if key == ACCURACY:
        _accuracy_axis(axis)
    else:
        look.log_ticks(axis.yaxis, lambda loss: f"{loss:g}")


def _scaled(line: numpy.ndarray, key: str) -> numpy.ndarray:
    """What has a place on a log axis: the error in %, the loss."""
    x, y = line
    if key == ACCURACY:
        return numpy.array([x, numpy.maximum(100 * (1 - y), LEAST_ERROR)])
    return numpy.array([x, numpy.where(y > 0, y, numpy.nan)])


def _draw(axis: Axes, lines: list[numpy.ndarray], curves: Curves, mark: dict, every: int) -> None:
    """Seeds as thin lines, their mean as a thick one with marks where a stage ends."""
    line_style = {"color": mark["color"], "linestyle": look.dashes(curves.family)}
    for line in lines if len(lines) > 1 else ():
        axis.plot(*_thinned(line, every), linewidth=0.5, alpha=0.55, zorder=1.5, **line_style)
    if lines:
        length = min(line.shape[1] for line in lines)
        mean = numpy.mean([line[:, :length] for line in lines], axis=0)
        axis.plot(*_thinned(mean, every), linewidth=1.4, zorder=2, **line_style)
        axis.plot(*mean[:, _marked(mean)], zorder=3, **{**mark, "linestyle": "none"})


def _thinned(line: numpy.ndarray, every: int) -> numpy.ndarray:
    """One in so many points, with the last of each stage and the gaps between stages."""
    ends = numpy.flatnonzero(numpy.isnan(line[1]))
    kept = {*range(0, line.shape[1], every), *ends, *(ends - 1), line.shape[1] - 1}
    return line[:, sorted(i for i in kept if i >= 0)]


def _marked(line: numpy.ndarray) -> list[int]:
    """Where a stage ends; everywhere, where there are few epochs."""
    gaps = numpy.isnan(line[1])
    if (~gaps).sum() <= FEW_EPOCHS:
        return numpy.flatnonzero(~gaps).tolist()
    return [*(i - 1 for i in numpy.flatnonzero(gaps) if i), line.shape[1] - 1]


def _accuracy_axis(axis: Axes) -> None:
    """The error on a log axis, upside down, that says accuracies."""
    axis.invert_yaxis()
    look.log_ticks(axis.yaxis, lambda error: f"{100 - error:.5g}", mirrored_at=100)


def _marks(rows: Sequence[Row], curves: Iterable[Curves]) -> dict[str, dict]:
    """Of each technique, in the order of every legend: that of its family, as in other figures;
    where one has several operating points here, one of their own."""
    shown = {c.technique: c for c in sorted(curves, key=_order(rows))}
    own = len({c.family for c in shown.values()}) < len(shown)
    if own:
        points = {c.technique: c.family for c in shown.values() if not c.is_base}
        marks = look.looks_of(points, rows)
    else:
        marks = look.looks(rows)
    return {
        name: _mark(c, BASE if c.is_base else marks[name if own else c.family])
        for name, c in shown.items()
    }


def _mark(curves: Curves, mark: dict) -> dict:
    return {
        **mark,
        "markersize": 0.8 * mark["markersize"],
        "linewidth": 1.4,
        "linestyle": look.dashes(curves.family),
    }


def _order(rows: Iterable[Row]) -> Callable[[Curves], tuple[bool, int]]:
    """Sorts curves: the base, techniques, controls, as in every legend."""
    places = {name: i for i, name in enumerate(look.families(rows))}
    return lambda curves: (not curves.is_base, places.get(curves.family, 0))


# --- in words --------------------------------------------------------------------------------


def _caption(by_setting: dict[Setting, list[Curves]], every: int) -> str:
    seeds = [len(curves.histories) for members in by_setting.values() for curves in members]
    sentences = [
        "Epochs of a cell's own stages, one after the other; all but the base start after the "
        f"base's training. {_stages(by_setting)}"
    ]
    if any(curves.ends for members in by_setting.values() for curves in members):
        sentences.append("A dotted vertical line is where a stage ends and the next begins.")
    if max(seeds) > 1:
        sentences.append(
            f"Thin lines are seeds ({chosen.several(seeds)}, at most the first "
            f"{chosen.MOST_SEEDS}), the thick line is their mean."
        )
    else:
        sentences.append("One seed each (n = 1).")
    sentences.append("Marks are at the ends of stages.")
    if every > 1:
        sentences.append(f"One in {every} epochs is drawn, and the last of each stage.")
    return " ".join(sentences)


def _stages(by_setting: dict[Setting, list[Curves]]) -> str:
    """Which stages trained in which techniques."""
    by_stages: dict[str, dict[str, None]] = {}
    for curves in (c for members in by_setting.values() for c in members):
        stages = max((h for h in curves.histories), key=len)
        by_stages.setdefault(", ".join(s.stage for s in stages), {})[curves.technique] = None
    sentences = [f"{stages} ({', '.join(names)})" for stages, names in by_stages.items()]
    return f"Stages: {'; '.join(sentences)}."


def _alt(by_setting: dict[Setting, list[Curves]]) -> str:
    sentences = []
    for setting, members in by_setting.items():
        ends = []
        for curves in members:
            last = [line[1, -1] for line in curves.lines(ACCURACY)]
            if last:
                ends.append(f"{curves.technique} {100 * numpy.mean(last):.2f} %")
        if ends:
            sentences.append(f"At the end, on {', '.join(setting)}: {', '.join(ends)}.")
    return " ".join(["Held-out accuracy and loss against the epoch.", *sentences])
