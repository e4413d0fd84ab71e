"""Accuracy against parameters, of bases from fresh weights and from other ones, and of what is made
of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes

from pipeline.report.answer import Group, deviation, groups, mean
from pipeline.report.figures import chosen, look
from pipeline.report.figures.look import BASE, Drawn
from pipeline.report.row import Row
from pipeline.report.starts import Pair, left_out, pairs
from pipeline.sweep import Sweep

MOST_FAMILIES = 4
FRESH = "fresh weights"
Setting = tuple[str, str]


def draw(rows: Sequence[Row], sweep: Sweep | None) -> Drawn | None:
    """None where no base starts from other weights, beside the same from fresh ones."""
    panels = dict(list(pairs(sweep, rows).items())[: chosen.MOST_PANELS]) if sweep else {}
    if not sweep or not panels:
        return None
    names = look.families(
        row for members in panels.values() for p in members for row in p.other.rows
    )
    families = sorted(names, key=lambda name: not _several(rows, name))[:MOST_FAMILIES]
    marks: dict[str, dict] = {"base": BASE}
    marks |= {name: {**look.looks(rows)[name], "linestyle": "-"} for name in families}
    marks[FRESH] = {"color": "#555555", "linestyle": look.DASHES}
    marks["other weights"] = {"color": "#555555", "linestyle": "-"}
    columns = min(2, len(panels))
    width = max(look.PANEL_INCHES[0] * columns, 7.0)
    legend_rows = look.legend_rows(list(marks), width)
    canvas, axes = look.grid(len(panels), columns, look.PANEL_INCHES, legend_rows, width)
    for axis, (setting, members) in zip(axes, panels.items(), strict=True):
        look.heading(axis, ", ".join(setting))
        fresh = [row for pair in members for row in pair.fresh.rows]
        other = [row for pair in members for row in pair.other.rows]
        for side, dashes in ((fresh, look.DASHES), (other, "-")):
            for family in families:
                _curve(axis, side, family, {**marks[family], "linestyle": dashes})
            _curve(axis, side, "base", {**BASE, "linestyle": "none"})
        axis.set_xscale("log")
        look.log_ticks(axis.xaxis, _parameters)
        axis.set_xlabel("parameters (log scale): smaller is to the left")
        axis.set_ylabel("accuracy, %")
    look.legend(canvas, marks)
    return Drawn(
        canvas,
        "Accuracy against parameters, by what a base starts from",
        _caption(sweep, panels, families),
        _alt(panels),
    )


def _several(rows: Iterable[Row], family: str) -> bool:
    """Whether a family has several operating points."""
    return len({row.technique for row in rows if row.family == family}) > 1


def _curve(axis: Axes, rows: Sequence[Row], family: str, look_of: dict) -> None:
    """Means over seeds with their deviations, from the smallest to the base."""
    points = [
        _point(group)
        for group in groups(rows)
        if group.family == family or (group.is_base and family != "base")
    ]
    known = sorted(point for point in points if point[0] > 0 and point[1] == point[1])
    if not known:
        return
    x, y, errors = zip(*known, strict=True)
    axis.errorbar(
        x,
        y,
        [0.0 if e != e else e for e in errors],
        capsize=2,
        elinewidth=0.8,
        linewidth=1.3,
        **look_of,
    )


def _point(group: Group) -> tuple[float, float, float]:
    """Parameters, and accuracy with its deviation in %."""
    accuracies = [None if row.accuracy is None else 100 * row.accuracy for row in group.rows]
    return mean(row.parameters for row in group.rows), mean(accuracies), deviation(accuracies)


def _parameters(count: float) -> str:
    for unit, factor in (("M", 1e6), ("k", 1e3)):
        if count >= 0.9999 * factor:
            return f"{count / factor:.4g} {unit}"
    return f"{count:.4g}"


# --- in words --------------------------------------------------------------------------------


def _caption(sweep: Sweep, panels: dict, families: Sequence[str]) -> str:
    every = [pair for members in panels.values() for pair in members]
    seeds = [len(pair.other.rows) for pair in every]
    curves = f" Curves are the operating points of {', '.join(families)}, to the base's."
    curves = curves if families else ""
    return (
        "Accuracy on the test set against the number of parameters: bases from fresh weights "
        "(dashed) and bases that start from other weights (solid), trained and compressed in the "
        f"same way{_but(sweep, every)}; means and standard deviations over seeds "
        f"({chosen.several(seeds)}).{curves}"
    )


def _but(sweep: Sweep, every: Sequence[Pair]) -> str:
    """What is not the same."""
    names = left_out(sweep, every)
    without = f"from other weights without the recipe's {', '.join(names)}" if names else ""
    tuned = "with settings that held-out images chose for each"
    clauses = [without, tuned if any(pair.is_tuned for pair in every) else ""]
    return f", but {' and '.join(filter(None, clauses))}" if any(clauses) else ""


def _alt(panels: dict) -> str:
    sentences = []
    for setting, members in panels.items():
        texts = [
            f"{pair.name} {_accuracy(pair.fresh)} and {_accuracy(pair.other)}" for pair in members
        ]
        sentences.append(
            f"On {', '.join(setting)}, from fresh and from other weights: {', '.join(texts)}."
        )
    return " ".join(sentences)


def _accuracy(group: Group) -> str:
    return f"{100 * mean(row.accuracy for row in group.rows):.2f} %"
