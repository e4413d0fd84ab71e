"""Tables of coloured numbers: a line a technique, a column a layer or a class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as Canvas

from pipeline.report.figures import look

MOST_LINES = 12, 24  # of techniques in a panel, in a figure
MOST_NUMBERS = 560  # of a figure: each costs some hundred bytes
LINE_INCHES, AROUND_INCHES = 0.27, 1.0
WIDTH_INCHES, NAME_INCHES = 8.4, 2.2
LONGEST_COLUMN = 16
LONGEST_HEADING = 80
NARROWEST_INCHES = 0.3  # of a cell that has a number


@dataclass(frozen=True)
class Heat:
    """A panel. `values` [lines, columns] decide the colour, `texts` stand in the cells."""

    heading: str
    lines: tuple[str, ...]
    columns: tuple[str, ...]
    values: numpy.ndarray
    texts: tuple[tuple[str, ...], ...]


def draw(
    panels: Sequence[Heat],
    colours: str,
    limits: tuple[float, float],
    axis_label: str,
    bar_label: str,
    bar_tick: Callable[[float], str],
    side_label: str = "",
) -> Canvas:
    """Panels below each other, as high as their lines. `axis_label` is of the columns, `side_label`
    of the lines."""
    heights = [LINE_INCHES * len(panel.lines) + AROUND_INCHES for panel in panels]
    canvas = Canvas(figsize=(WIDTH_INCHES, sum(heights)), layout="constrained")
    axes = canvas.subplots(len(panels), 1, squeeze=False, height_ratios=heights).ravel().tolist()
    norm = Normalize(*limits)
    with_numbers = sum(panel.values.size for panel in panels) <= MOST_NUMBERS
    for axis, panel in zip(axes, panels, strict=True):
        look.heading(axis, panel.heading, most=LONGEST_HEADING)
        _panel(axis, panel, colours, norm, with_numbers)
        axis.set_xlabel(axis_label)
        axis.set_ylabel(side_label)
    bar = canvas.colorbar(
        ScalarMappable(norm, colours),
        ax=axes,
        fraction=0.03,
        pad=0.015,
        aspect=16,
        shrink=min(1.0, 2.4 / sum(heights)),
    )
    bar.set_label(bar_label)
    bar.ax.yaxis.set_major_formatter(lambda value, _: bar_tick(value))
    bar.outline.set_visible(False)
    return canvas


def _panel(axis: Axes, panel: Heat, colours: str, norm: Normalize, with_numbers: bool) -> None:
    lines, columns = panel.values.shape
    mesh = axis.pcolormesh(panel.values, cmap=colours, norm=norm, edgecolors="white", linewidth=0.8)
    mesh.set_rasterized(False)
    axis.set_ylim(lines, 0)
    axis.grid(False)
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)
    _name(axis.set_yticks, panel.lines, 1)
    room = (WIDTH_INCHES - NAME_INCHES) / columns
    names = [look.short(name, LONGEST_COLUMN) for name in panel.columns]
    _name(axis.set_xticks, names, max(1, int(numpy.ceil(NARROWEST_INCHES / room))))
    if max(map(len, names)) * look.CHARACTER_INCHES > room:
        axis.tick_params(axis="x", labelrotation=30)
    if with_numbers and room >= NARROWEST_INCHES:
        _numbers(axis, panel, mesh)


def _name(set_ticks: Callable, names: Sequence[str], every: int) -> None:
    """One in so many is named, in the middle of its cell."""
    places = range(0, len(names), every)
    set_ticks([i + 0.5 for i in places], [names[i] for i in places])


def _numbers(axis: Axes, panel: Heat, mesh: ScalarMappable) -> None:
    for i, texts in enumerate(panel.texts):
        for j, text in enumerate(texts):
            colour = mesh.to_rgba(panel.values[i, j])
            axis.text(
                j + 0.5,
                i + 0.53,
                text,
                ha="center",
                va="center",
                fontsize=7,
                color="white" if _luminance(colour) < 0.45 else "black",
            )


def _luminance(colour: numpy.ndarray) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
