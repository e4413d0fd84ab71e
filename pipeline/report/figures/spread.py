"""How long single calls took: the artifact beside its base, timed in turns in one process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from pipeline import runtimes
from pipeline.measure.series import BATCHES, Model, Series
from pipeline.report.figures import chosen, look
from pipeline.report.figures.chosen import Read
from pipeline.report.figures.look import Canvas, Drawn
from pipeline.report.metrics import LEAST_CALLS
from pipeline.report.points import duration
from pipeline.report.row import Row

MOST_LINES = 12, 24  # of techniques in a panel, in a figure
LINE_INCHES, AROUND_INCHES = 0.36, 0.95
WIDTH_INCHES = 9.2
BOX_HEIGHT = 0.32
TICKS_APART = 0.16  # of a panel's width
MOST_LETTERS = 42  # of a heading
ARTIFACT = {"color": "#0072B2", "marker": "o", "markersize": 5}
OF_BASE = {"color": "#444444", "marker": "D", "markersize": 4.5, "markerfacecolor": "white"}
QUARTILES = (25, 50, 75)
CAPTION = (
    "Time of single calls on ONNX Runtime with all threads, for one batch: marks are medians, "
    "boxes reach from the 25th to the 75th percentile, lines {ends}. Filled is the artifact, "
    "hollow its base, timed in turns in one process; samples of the seeds together ({n}; {calls} "
    "calls)."
)
FASTEST_TO_SLOWEST = "from the fastest to the slowest call"
INNER = "from the 1st to the 99th"


@dataclass(frozen=True)
class Pair:
    """Samples in ms: the artifact's, and its base's; none where that was not timed."""

    artifact: numpy.ndarray
    base: numpy.ndarray

    @property
    def timed(self) -> list[numpy.ndarray]:
        return [samples for samples in (self.artifact, self.base) if samples.size]


Samples = dict[chosen.Line, Pair]
Panel = dict[int, Samples]  # by batch


def draw(rows: Sequence[Row], read: Read) -> Drawn | None:
    """None where no latency was measured."""
    names = chosen.techniques(rows, chosen.room(rows, *MOST_LINES))
    panels: dict[tuple[str, str], Panel] = {}
    counts = []
    for setting, members in chosen.panels(rows).items():
        lines = {chosen.line(seeds[0]): seeds for seeds in _lines(members, names)}
        panel = {batch: _timed(lines, batch, read) for batch in BATCHES}
        if any(panel.values()):
            panels[setting] = panel
            counts += [len(lines[name]) for name in _names(panel)]
    if not panels:
        return None
    canvas = _draw(panels)
    about = CAPTION.format(n=chosen.several(counts), **_about_calls(panels.values()))
    caption = f"{about} {chosen.left_out(rows, names)}"
    return Drawn(canvas, "Latency of single calls", caption.strip(), _alt(panels))


def _about_calls(panels: Iterable[Panel]) -> dict[str, str]:
    """How many calls there are, and from where to where lines reach."""
    pairs = (pair for panel in panels for samples in panel.values() for pair in samples.values())
    counts = [samples.size for pair in pairs for samples in pair.timed]
    few, most = min(counts), max(counts)
    ends = FASTEST_TO_SLOWEST if few < LEAST_CALLS[99] else INNER
    if few < LEAST_CALLS[99] <= most:
        ends = f"{INNER} (of fewer than {LEAST_CALLS[99]} calls {ends})"
    return {"ends": ends, "calls": f"{few:,}" if few == most else f"{few:,} to {most:,}"}


def _ends(samples: numpy.ndarray) -> tuple[float, float]:
    """Of the line: percentiles that calls are too few for would be the outliers themselves."""
    inner = samples.size >= LEAST_CALLS[99]
    low, high = numpy.percentile(samples, (1, 99) if inner else (0, 100))
    return float(low), float(high)


def _lines(rows: Sequence[Row], names: Sequence[str]) -> Iterable[list[Row]]:
    """The rows of the base, then of each technique that there is."""
    return filter(None, [chosen.bases(rows), *(chosen.seeds(rows, name) for name in names)])


def _timed(lines: dict[chosen.Line, list[Row]], batch: int, read: Read) -> Samples:
    pairs = {}
    for name, rows in lines.items():
        own = _samples(rows, "artifact", batch, read)
        if own.size:
            base = numpy.empty(0) if rows[0].is_base else _samples(rows, "base", batch, read)
            pairs[name] = Pair(own, base)
    return pairs


def _samples(rows: Iterable[Row], model: Model, batch: int, read: Read) -> numpy.ndarray:
    """Of all seeds together, ms; empty where there are none."""
    series = Series(runtimes.DEFAULT, model, "all", batch)
    parts = [e.latency[series] for row in rows if (e := read(row.id)) and series in e.latency]
    samples = numpy.concatenate(parts) if parts else numpy.empty(0)
    return samples[samples > 0]


# --- panels ----------------------------------------------------------------------------------


def _draw(panels: dict[tuple[str, str], Panel]) -> Canvas:
    batches = [batch for batch in BATCHES if any(panel[batch] for panel in panels.values())]
    heights = [LINE_INCHES * len(_names(panel)) + AROUND_INCHES for panel in panels.values()]
    legend = look.LEGEND_ROW_INCHES + 0.15
    height = sum(heights) + legend
    low = legend / height
    engine = ConstrainedLayoutEngine(rect=(0, low, 1, 1 - low))
    canvas = Canvas((WIDTH_INCHES, height), layout=engine)
    axes = canvas.subplots(len(panels), len(batches), squeeze=False, height_ratios=heights)
    for line, (setting, panel) in zip(axes, panels.items(), strict=True):
        timed = [batch for batch in batches if panel[batch]]
        for axis, batch in zip(line, timed, strict=False):
            look.heading(axis, ", ".join(setting), f": batch {batch}", MOST_LETTERS)
            _panel(axis, panel[batch], _names(panel), named=axis is line[0])
        for axis in line[len(timed) :]:
            axis.remove()
    look.legend(canvas, {"artifact": ARTIFACT, "its base": OF_BASE})
    return canvas


def _names(panel: Panel) -> list[chosen.Line]:
    """Of all batches, so that a technique has one line."""
    return list(dict.fromkeys(name for samples in panel.values() for name in samples))


def _panel(axis: Axes, pairs: Samples, names: Sequence[chosen.Line], named: bool) -> None:
    axis.set_xscale("log")
    for i, name in enumerate(names):
        both = pairs[name].timed if name in pairs else []
        for samples, mark, side in zip(both, (ARTIFACT, OF_BASE), (-1, 1), strict=False):
            _box(axis, samples, i + (0.19 * side if len(both) > 1 else 0), mark)
        axis.axhline(i + 0.5, color="#DDDDDD", linewidth=0.6, zorder=0.5)
    every = [s for pair in pairs.values() for s in pair.timed]
    low, high = min(_ends(s)[0] for s in every), max(_ends(s)[1] for s in every)
    room = max(high / low, 1.05) ** 0.05
    axis.set_xlim(low / room, high * room)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_yticks(range(len(names)), [shown if named else "" for _, shown in names])
    axis.tick_params(axis="y", length=0)
    axis.grid(False, axis="y")
    look.log_ticks(axis.xaxis, duration, apart=TICKS_APART)
    axis.set_xlabel("one call (log scale)")


def _box(axis: Axes, samples: numpy.ndarray, y: float, mark: dict) -> None:
    low, middle, high = numpy.percentile(samples, QUARTILES)
    colour = mark["color"]
    inside = "white" if "markerfacecolor" in mark else "#9CCBE8"
    axis.plot(_ends(samples), [y, y], color=colour, linewidth=1, zorder=2)
    axis.add_patch(
        Rectangle(
            (low, y - BOX_HEIGHT / 2),
            high - low,
            BOX_HEIGHT,
            linewidth=0.8,
            facecolor=inside,
            edgecolor=colour,
            zorder=3,
        )
    )
    axis.plot([middle], [y], zorder=4, linestyle="none", **mark)


def _alt(panels: dict[tuple[str, str], Panel]) -> str:
    sentences = []
    for setting, panel in panels.items():
        medians = [
            f"{name} {numpy.median(pair.artifact):.3g} ms"
            for (_, name), pair in panel[BATCHES[0]].items()
        ]
        if medians:
            sentences.append(f"Medians at batch 1 on {', '.join(setting)}: {', '.join(medians)}.")
    return " ".join(["Latency of single calls, the artifact beside its base.", *sentences])
