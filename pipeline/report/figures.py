"""Figures, drawn without a display and the same to the byte from the same numbers.

Techniques differ in colour *and* marker, so that they are told apart in grey and by readers who
see colours differently (Okabe and Ito's palette, dark enough for white paper).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator

from pipeline.report.answer import Group, Row, deviation, groups, mean, settings
from pipeline.report.metrics import METRIC

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A5195", "#8C564B")
MARKERS = "osD^vPX<>phd8"
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "svg.fonttype": "path",
    "svg.hashsalt": "netpress",
    "text.parse_math": False,  # names are text, also those with a dollar
    "axes.unicode_minus": False,
}
BASE = {"color": "black", "marker": "*", "markersize": 13}
BELOW = "one point below the base"
PANEL_INCHES = (5.6, 3.8)
LEGEND_ROW_INCHES = 0.21
CHARACTER_INCHES = 0.065


def accuracy_bytes(rows: Sequence[Row]) -> bytes:
    """SVG: accuracy against stored bytes, a panel a (data set, model), one mark a technique."""
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": "svg", **STYLE}):
        return _svg(_accuracy_bytes(rows))


def _accuracy_bytes(rows: Sequence[Row]) -> Figure:
    panels = settings(rows)
    looks = _looks(rows)
    width = PANEL_INCHES[0] * max(min(2, len(panels)), 1.25)
    legend_columns = _legend_columns(looks, width)
    figure, axes = _grid(len(panels), width, -(-(len(looks) + 2) // legend_columns))
    for axis, ((dataset, model), members) in zip(axes, panels.items(), strict=True):
        axis.set_title(f"{dataset}, {model}", loc="left", fontsize=10, fontweight="bold")
        _panel(axis, members, looks)
    _legend(figure, looks, legend_columns)
    return figure


def _looks(rows: Iterable[Row]) -> dict[str, dict]:
    """How each family of operating points is drawn, everywhere: filled, then hollow, then half."""
    families = dict.fromkeys(row["family"] for row in rows if not row["is_base"])
    return {name: _look(i) for i, name in enumerate(families)}


def _legend_columns(looks: dict[str, dict], width: float) -> int:
    longest = max(map(len, [*looks, BELOW]))
    return max(1, int(width / (0.45 + CHARACTER_INCHES * longest)))


def _look(i: int) -> dict:
    colour = COLOURS[i % len(COLOURS)]
    full = i < len(MARKERS)
    return {
        "color": colour,
        "marker": MARKERS[i % len(MARKERS)],
        "markersize": 8 if MARKERS[i % len(MARKERS)] in "PX" else 7,
        "fillstyle": "full" if i < 2 * len(MARKERS) else "bottom",
        "markerfacecolor": "white" if i // len(MARKERS) == 1 else colour,
        "markerfacecoloralt": "white",
        "markeredgewidth": 0.6 if full else 1.4,
        "markeredgecolor": "black" if full else colour,
    }


def _grid(panels: int, width: float, legend_rows: int) -> tuple[Figure, list]:
    columns = min(2, panels)
    lines = -(-panels // columns)
    legend = LEGEND_ROW_INCHES * legend_rows + 0.15
    height = PANEL_INCHES[1] * lines + legend
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(rect=(0, legend / height, 1, 1 - legend / height))
    axes = figure.subplots(lines, columns, squeeze=False).ravel().tolist()
    for unused in axes[panels:]:
        unused.set_visible(False)
    return figure, axes[:panels]


def _panel(axis, rows: Sequence[Row], looks: dict[str, dict]) -> None:
    axis.set_xscale("log")
    members = groups(rows)
    for group in members:
        _mark(axis, group, BASE if group.rows[0]["is_base"] else looks[group.rows[0]["family"]])
    _join_operating_points(axis, members, looks)
    _one_point_band(axis, members)
    axis.xaxis.set_major_locator(LogLocator(subs=_ticks(rows)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
    axis.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    axis.set_xlabel("stored bytes (log scale): smaller is to the left")
    axis.set_ylabel(METRIC["accuracy"].heading)
    axis.margins(x=0.08, y=0.12)


def _mark(axis, group: Group, look: dict) -> None:
    """The mean over seeds with its standard deviation; each seed as a small dot."""
    accuracies = [100 * row["accuracy"] for row in group.rows]
    at = (group.stored_bytes, mean(accuracies))
    if len(group.rows) > 1:
        axis.plot([row["stored_bytes"] for row in group.rows], accuracies, linestyle="none",
                  marker=".", markersize=3.5, color=look["color"], alpha=0.6, zorder=2)  # fmt: skip
        axis.errorbar(*at, yerr=deviation(accuracies), color=look["color"], capsize=2.5,
                      linewidth=1, zorder=2)  # fmt: skip
    axis.plot(*at, linestyle="none", zorder=3, **look)


def _join_operating_points(axis, members: Sequence[Group], looks: dict[str, dict]) -> None:
    families: dict[str, list[Group]] = {}
    for group in members:
        families.setdefault(group.rows[0]["family"], []).append(group)
    for family, points in families.items():
        points = sorted(points, key=lambda g: g.stored_bytes)
        if len(points) > 1:
            axis.plot(
                [p.stored_bytes for p in points],
                [100 * mean(row["accuracy"] for row in p.rows) for p in points],
                color=looks[family]["color"], linewidth=1, zorder=1,
            )  # fmt: skip


def _one_point_band(axis, members: Sequence[Group]) -> None:
    """The base's accuracy, and a dashed line one point below it."""
    base = [group for group in members if group.rows[0]["is_base"]]
    if base:
        accuracy = 100 * mean(row["accuracy"] for row in base[0].rows)
        axis.axhline(accuracy, color="#555555", linewidth=0.8, zorder=1)
        axis.axhline(accuracy - 1, color="#555555", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)


def _ticks(rows: Sequence[Row]) -> tuple[float, ...]:
    """Where each decade has a tick with its size: the fewer decades, the more."""
    sizes = [row["stored_bytes"] for row in rows]
    span = max(sizes) / min(sizes)
    return (1, 1.5, 2, 3, 4, 5, 7) if span < 10 else (1, 2, 5) if span < 300 else (1,)


def _legend(figure: Figure, looks: dict[str, dict], columns: int) -> None:
    drawn = {"base": BASE, **looks}
    handles = [Line2D([], [], linestyle="none", **look) for look in drawn.values()]
    handles.append(Line2D([], [], color="#555555", linewidth=0.8, linestyle=(0, (4, 3))))
    names = [*drawn, BELOW]
    legend = figure.legend(handles, [str(i) for i in range(len(names))], loc="lower left",
                           ncols=columns, frameon=False, fontsize=8.5)  # fmt: skip
    # Set afterwards: matplotlib would hide a name that starts with an underscore.
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)


def size(value: float) -> str:
    """Bytes in a decimal unit: 50 kB, 2 MB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor * 0.9999:
            return f"{value / factor:g} {unit}"
    return f"{value:g} B"


def _svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasSVG(figure)
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
