"""How every figure looks, and how it becomes bytes: without a display, and always the same ones.

Techniques differ in colour *and* marker, so that they are distinguishable in grey and to readers
who see colours differently (Okabe and Ito's palette, dark enough for white paper). Controls are
grey and hollow.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import string
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends import _backend_pdf_ps
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from pipeline.report.row import Row
from pipeline.techniques import CONTROLS

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A5195", "#8C564B")
MARKERS = "osD^vPX<>phd8"
FILLS = ("full", "bottom", "left")
GREYS = ("#555555", "#808080", "#6B6B6B", "#999999")
STYLE: dict[Any, Any] = {  # matplotlib's type of a key is a list of them all
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "svg.fonttype": "path",
    "svg.hashsalt": "netpress",
    "pdf.fonttype": 42,  # publishers refuse Type 3
    "text.parse_math": False,  # names are text, also those with a dollar
    "axes.unicode_minus": False,
}
BASE: dict[str, Any] = {"color": "black", "marker": "*", "markersize": 13}
DASHES = (0, (4, 3))
LETTERS = string.ascii_letters + string.digits + string.punctuation + " ×±µ·–−…→≤≥Δλ"
PANEL_INCHES = (5.6, 3.8)
LEGEND_ROW_INCHES = 0.21
LEGEND_MARK_INCHES = 0.45
CHARACTER_INCHES = 0.075
LONGEST_NAME = 30
LONGEST_HEADING = 36


@dataclass(frozen=True)
class Figure:
    """What a report shows, and what stands in it: in words for `alt`, with every rule by which
    something was left out for `caption`."""

    svg: bytes
    pdf: bytes
    title: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Drawn:
    """A figure before it is bytes."""

    canvas: Canvas
    title: str
    caption: str
    alt: str

    def figure(self) -> Figure:
        _lay_out(self.canvas)
        return Figure(
            svg_bytes(self.canvas), pdf_bytes(self.canvas), self.title, self.caption, self.alt
        )


# What the one above has no letters of, the first of these that is installed has.
MORE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Hiragino Sans",
    "PingFang SC",
    "Microsoft YaHei",
    "Arial Unicode MS",
)


@contextmanager
def style() -> Iterator[None]:
    """A context in which figures are made and written, whatever the user's own style is. A letter
    that no font has is an empty box; matplotlib's warnings about it are for nobody."""
    own = {"backend": "svg", **STYLE, "font.family": [STYLE["font.family"], *_more_fonts()]}
    with (
        matplotlib.rc_context({**matplotlib.rcParamsDefault, **own}),
        warnings.catch_warnings(),
        _subsets_kept(),
    ):
        warnings.filterwarnings("ignore", r"(?s).*Glyph .* missing from", UserWarning)
        yield


@dataclass(frozen=True)
class _Subset:
    """Some letters of a font, as matplotlib embeds them: what it reads of the result of
    `get_glyphs_subset`, closed or not. `glyph_index_map`: index in the font -> index here."""

    file: bytes
    glyph_index_map: Mapping[int, int]

    @property
    def font(self) -> _Subset:
        return self

    def save(self, to: IO[bytes], **_: Any) -> None:
        to.write(self.file)

    def __enter__(self) -> _Subset:
        return self

    def __exit__(self, *_: object) -> None:
        return


@contextmanager
def _subsets_kept() -> Iterator[None]:
    """In place of matplotlib's own choice of letters for each font of each PDF, which takes half of
    a report's time: all of LETTERS, chosen once, and what else that PDF has."""
    choose = getattr(_backend_pdf_ps, "get_glyphs_subset", None)
    if choose is None:  # another version of matplotlib: slower, nothing else
        yield
        return

    def kept(path: str, letters: Iterable[Any]) -> _Subset:
        wanted = frozenset(letters)  # characters until matplotlib 3.10, then indices of glyphs
        known = _letters_of(path, all(isinstance(each, str) for each in wanted))
        return _chosen(choose, path, known, wanted - known)

    _backend_pdf_ps.get_glyphs_subset = kept  # type: ignore[assignment]  # as much as it reads
    try:
        yield
    finally:
        _backend_pdf_ps.get_glyphs_subset = choose


@cache
def _letters_of(path: str, as_text: bool) -> frozenset[Any]:
    if as_text:
        return frozenset(LETTERS)
    font = font_manager.get_font(path)
    return frozenset(font.get_char_index(ord(letter)) for letter in LETTERS) - {0}  # 0: it has none


@cache
def _chosen(
    choose: Callable[..., Any], path: str, known: frozenset[Any], more: frozenset[Any]
) -> _Subset:
    letters = sorted(known | more)
    with choose(path, "".join(letters) if isinstance(letters[0], str) else set(letters)) as chosen:
        file = io.BytesIO()
        getattr(chosen, "font", chosen).save(file, reorderTables=False)
        return _Subset(file.getvalue(), dict(getattr(chosen, "glyph_index_map", {})))


@cache
def _more_fonts() -> tuple[str, ...]:
    """The first of them that is installed. matplotlib keeps a list of fonts, which lacks those that
    were installed since it was made."""
    manager = font_manager.fontManager
    if not (fonts := _of_more_fonts(manager)):
        known = {font.fname for font in manager.ttflist}
        starts = tuple(_bare(name) for name in MORE_FONTS)
        for path in sorted({*font_manager.findSystemFonts()} - known):
            if _bare(Path(path).stem).startswith(starts):
                with suppress(OSError, RuntimeError):  # none that can be read
                    manager.addfont(path)
        fonts = _of_more_fonts(manager)
    return fonts[:1]


def _of_more_fonts(manager: font_manager.FontManager) -> tuple[str, ...]:
    installed = {font.name for font in manager.ttflist}
    return tuple(name for name in MORE_FONTS if name in installed)


def _bare(name: str) -> str:
    """A font's name as files are called: Noto Sans CJK JP is in NotoSansCJK-Regular.ttc."""
    return re.sub(r"[\W_]|(JP|SC|TC|KR)$", "", name).lower()


# --- bytes -----------------------------------------------------------------------------------

# Another version draws other bytes from the same numbers: `netpress verify` looks for this.
DRAWN_BY = f"Matplotlib v{matplotlib.__version__}"


def _lay_out(canvas: Canvas) -> None:
    """Once for both formats, since it takes long; and to a millionth of the figure, since the
    solver adds up in another order in another process, and matplotlib makes ids of all digits."""
    if (engine := canvas.get_layout_engine()) is None:  # its places are given
        return
    FigureCanvasSVG(canvas)  # which measures its letters
    engine.execute(canvas)
    canvas.set_layout_engine(None)  # a placeholder for it would have each format drawn twice
    for axis in canvas.axes:
        x, y, width, height = (round(v, 6) for v in axis.get_position(original=True).bounds)
        axis.set_position((x, y, width, height))


def svg_bytes(canvas: Canvas) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasSVG(canvas)
    canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": DRAWN_BY})
    return _compact(buffer.getvalue())


def _compact(svg: bytes) -> bytes:
    """The same drawing in about half of the bytes: without indentation, comments and ids that
    nothing refers to, the others short; places to a hundredth of a point, those of letters to one
    unit of their font, of which a point has ten or more. Scales of letters keep their digits."""
    svg = re.sub(rb"<!-- .*? -->\n", b"", re.sub(rb"\n +", b"\n", svg), flags=re.DOTALL)
    svg = re.sub(rb'(?:translate\(| d="| [xy]=")[^")]*', _rounded, svg)
    svg = re.sub(rb'(<use [^>]*) transform="translate\((-?[\d.]+) 0\)"/>', _beside, svg)
    svg = re.sub(rb' style="[^"]*"', lambda style: re.sub(rb"([:;]) ", rb"\1", style[0]), svg)
    return _with_short_ids(svg)


def _rounded(place: re.Match[bytes]) -> bytes:
    """A path or a place, to a hundredth."""
    short = re.sub(rb"(\.\d\d)\d+", rb"\1", place[0])
    short = re.sub(rb"(\.\d*?)0+(?!\d)", lambda digits: digits[1].rstrip(b"."), short)
    return re.sub(rb"\s*([MLQCz])\s*", rb"\1", short).rstrip()


def _beside(moved: re.Match[bytes]) -> bytes:
    return b'%b x="%d"/>' % (moved[1], round(float(moved[2])))


def _with_short_ids(svg: bytes) -> bytes:
    referred = dict.fromkeys(re.findall(rb'(?<=["(]#)[^")]+', svg))
    short = {old: b"i%d" % number for number, old in enumerate(referred)}
    own = re.compile(rb' id="([^"]*)"')
    svg = own.sub(lambda m: b' id="%b"' % short[m[1]] if m[1] in short else b"", svg)
    return re.sub(rb'(?<=["(]#)[^")]+', lambda m: short[m[0]], svg)


def pdf_bytes(canvas: Canvas) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasPdf(canvas)
    metadata = {"Creator": DRAWN_BY, "Producer": None, "CreationDate": None}
    canvas.savefig(buffer, format="pdf", metadata=metadata)
    return _fixed_prefixes(buffer.getvalue())


def _fixed_prefixes(pdf: bytes) -> bytes:
    """Matplotlib names the subsets of a font by a hash that differs from process to process."""
    prefixes = list(dict.fromkeys(re.findall(rb"/([A-Z]{6})\+", pdf)))
    for i, prefix in enumerate(prefixes):
        pdf = pdf.replace(b"/%s+" % prefix, b"/NETPR%c+" % (ord("A") + i))
    return pdf


# --- names and marks -------------------------------------------------------------------------


def families(rows: Iterable[Row]) -> list[str]:
    """Techniques, then controls, each in the order of the rows."""
    names = dict.fromkeys(row.family for row in rows if not row.is_base)
    return sorted(names, key=lambda name: name in CONTROLS)


def looks(rows: Iterable[Row]) -> dict[str, dict]:
    """How each family of operating points is drawn, in every figure: techniques in colours, then
    controls. `rows`: all of the report."""
    return _numbered(families(rows))[0]


def looks_of(family: Mapping[str, str], rows: Iterable[Row]) -> dict[str, dict]:
    """How each of these operating points, with its family, is drawn where they differ: the first
    one of a family as the family, the others as none."""
    marks, unused = _numbered(families(rows))
    first: dict[str, str] = {}
    for name, of in family.items():
        first.setdefault(of, name)
    return {
        name: marks[of] if first[of] == name else next(unused[of in CONTROLS])
        for name, of in family.items()
    }


def _numbered(names: Sequence[str]) -> tuple[dict[str, dict], tuple[Iterator[dict], ...]]:
    """The look of each of these families, and the looks of techniques and of controls that are
    left."""
    numbers = {which: itertools.count() for which in (False, True)}
    draw = {False: technique_look, True: control_look}
    marks = {name: draw[name in CONTROLS](next(numbers[name in CONTROLS])) for name in names}
    return marks, tuple(map(draw[which], numbers[which]) for which in (False, True))


def technique_look(i: int) -> dict:
    marker, fill = MARKERS[i % len(MARKERS)], FILLS[i // len(MARKERS) % len(FILLS)]
    colour = COLOURS[i % len(COLOURS)]
    return {
        "color": colour,
        "marker": marker,
        "markersize": 8 if marker in "PX" else 7,
        "fillstyle": fill,
        "markerfacecoloralt": "white",
        "markeredgewidth": 0.6 if fill == "full" else 1.2,
        "markeredgecolor": "black" if fill == "full" else colour,
    }


def control_look(i: int) -> dict:
    marker, grey = MARKERS[i % len(MARKERS)], GREYS[i % len(GREYS)]
    return {
        "color": grey,
        "marker": marker,
        "markersize": 7,
        "markerfacecolor": "white",
        "markeredgewidth": 1.2,
        "markeredgecolor": grey,
    }


def dashes(family: str) -> object:
    """The style of a family's line."""
    return DASHES if family in CONTROLS else "-"


def short(name: str, most: int = LONGEST_NAME) -> str:
    """A name that fits: what is too long loses its middle."""
    if len(name) <= most:
        return name
    end = most // 2
    return f"{name[: most - end - 1]}…{name[-end:]}"


# --- panels and legends ----------------------------------------------------------------------


def grid(
    panels: int,
    columns: int,
    panel_inches: tuple[float, float],
    legend_rows: int = 0,
    least_width: float = 0.0,
) -> tuple[Canvas, list[Axes]]:
    """Panels in lines of `columns`, with room for a legend of so many rows below them."""
    lines = -(-panels // columns)
    legend = LEGEND_ROW_INCHES * legend_rows + 0.15 if legend_rows else 0.0
    width = max(panel_inches[0] * columns, least_width)
    height = panel_inches[1] * lines + legend
    low = legend / height
    canvas = Canvas((width, height), layout=ConstrainedLayoutEngine(rect=(0, low, 1, 1 - low)))
    axes = canvas.subplots(lines, columns, squeeze=False).ravel().tolist()
    for unused in axes[panels:]:
        unused.remove()
    return canvas, axes[:panels]


def heading(axis: Axes, text: str, more: str = "", most: int = LONGEST_HEADING) -> None:
    """Data set and model over a panel, no longer than the narrowest one."""
    text = short(text, most - len(more)) + more
    axis.set_title(text, loc="left", fontsize=10, fontweight="bold")


def log_ticks(
    axis: Axis,
    say: Callable[[float], str],
    mirrored_at: float | None = None,
    apart: float = 0.0,
) -> None:
    """Ticks of a log axis that has its limits: round numbers, as many as have room, formatted by
    `say`. `mirrored_at`: a tick is at this number less a round one; `apart`: at least so far from
    the one before it, as a part of the axis."""
    low, high = sorted(axis.get_view_interval())
    inside = [tick for tick in _round_numbers(low, high, mirrored_at) if low <= tick <= high]
    axis.set_major_locator(FixedLocator(_apart(inside, (high / low) ** apart)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: say(value)))
    axis.set_minor_locator(NullLocator())


def _apart(ticks: Iterable[float], factor: float) -> list[float]:
    """Each at least `factor` times the one that is kept before it."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or tick >= kept[-1] * factor:
            kept.append(tick)
    return kept


def _round_numbers(low: float, high: float, mirrored_at: float | None) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for each in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [sub * 10.0**decade for decade in decades for sub in each]
        if sum(low <= tick <= high for tick in ticks) >= 4:
            return ticks
    if mirrored_at is None:
        return list(map(float, MaxNLocator(5).tick_values(low, high)))
    shown = MaxNLocator(5).tick_values(mirrored_at - high, mirrored_at - low)
    return [mirrored_at - value for value in shown]


def legend_columns(names: Iterable[str], width_inches: float) -> int:
    longest = max(len(short(name)) for name in names)
    return max(1, int(width_inches / (LEGEND_MARK_INCHES + CHARACTER_INCHES * longest)))


def legend_rows(names: Sequence[str], width_inches: float) -> int:
    return -(-len(names) // legend_columns(names, width_inches))


def legend(canvas: Canvas, marks: Mapping[str, dict]) -> None:
    """Below the panels: name -> how its line or mark is drawn."""
    names = list(marks)
    handles = [Line2D([], [], **{"linestyle": "none", **mark}) for mark in marks.values()]
    made = canvas.legend(
        handles,
        [str(i) for i in range(len(names))],
        loc="lower left",
        frameon=False,
        ncols=legend_columns(names, canvas.get_figwidth()),
        fontsize=8.5,
    )
    # Set afterwards: matplotlib would hide a name that starts with an underscore.
    for text, name in zip(made.get_texts(), names, strict=True):
        text.set_text(short(name))
