"""The images of the test set on which a compressed network and its base differ most."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy
from matplotlib.axes import Axes

from pipeline.report.figures import chosen, look
from pipeline.report.figures.chosen import Read
from pipeline.report.figures.look import Canvas, Drawn
from pipeline.report.row import Row

MOST_LINES = 4, 8  # of techniques in a panel, in a figure
MOST_PICTURES = 8
LONGEST_CLASS = 11
MOST_SIDE = 96  # pixels: of larger pictures every second, third, ... is drawn
SIDE_INCHES, STEP_INCHES, ROW_INCHES = 0.8, 0.92, 0.15
LEFT_INCHES, LINE_INCHES = 0.95, 1.8
BELOW = (("label", "label"), ("base", "base"), ("compressed", "own"))
CAPTION = (
    "Of each technique the images of the test set whose outputs differ most between it and its "
    "base, the most different first; of seed {seeds}. Above each its number in the test set, below "
    "it its label, and what the base and the compressed network say, with a cross where it is "
    "wrong. "
    "{classes}"
)


@dataclass(frozen=True)
class Line:
    """The pictures of one cell. As in Evidence.differing, the first of them."""

    heading: str
    seed: int
    differing: dict[str, numpy.ndarray]
    classes: list[str]

    @property
    def pictures(self) -> int:
        return len(self.differing["pixels"])


def draw(rows: Sequence[Row], read: Read) -> Drawn | None:
    """None where no cell has such images."""
    names = chosen.techniques(rows, chosen.room(rows, *MOST_LINES))
    lines = [
        line
        for setting, members in chosen.panels(rows).items()
        for line in _lines(setting, members, names, read)
    ]
    if not lines:
        return None
    seeds = ", ".join(map(str, sorted({line.seed for line in lines})))
    caption = CAPTION.format(seeds=seeds, classes=chosen.CLASSES)
    caption = f"{caption} {chosen.left_out(rows, names)}".strip()
    return Drawn(
        _draw(lines),
        "Images on which base and compressed network differ most",
        caption,
        _alt(lines),
    )


def _lines(
    setting: tuple[str, str], rows: Sequence[Row], names: Iterable[str], read: Read
) -> Iterator[Line]:
    """Of each technique, the first seed."""
    for name in names:
        for row in chosen.seeds(rows, name)[:1]:
            evidence = read(row.id)
            differing = evidence.differing if evidence else None
            if evidence and differing and len(differing["pixels"]):
                first = {key: values[:MOST_PICTURES] for key, values in differing.items()}
                first["pixels"] = _thinned(first["pixels"])
                heading = f"{', '.join(setting)}: {chosen.line_name(row)}"
                classes = _classes(setting[0], differing, evidence.labels)
                yield Line(heading, row.seed, first, classes)


def _classes(
    dataset: str, differing: Mapping[str, numpy.ndarray], labels: numpy.ndarray | None
) -> list[str]:
    """Names of all that the pictures are of or were taken for."""
    classes = [differing[key] for _, key in BELOW]
    classes += [labels] if labels is not None else []
    return chosen.class_names(dataset, 1 + max(int(numbers.max()) for numbers in classes))


def _draw(lines: Sequence[Line]) -> Canvas:
    """All in one pair of axes, in inches from the top left: many axes would take seconds."""
    columns = max(max(line.pictures for line in lines), 4)
    width, height = LEFT_INCHES + STEP_INCHES * columns, LINE_INCHES * len(lines)
    canvas = Canvas(figsize=(width, height))
    axis = canvas.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    for i, line in enumerate(lines):
        _line(axis, line, LINE_INCHES * i, columns)
    axis.set(xlim=(0, width), ylim=(height, 0))
    return canvas


def _line(axis: Axes, line: Line, top: float, columns: int) -> None:
    heading = look.short(line.heading, 12 * columns)
    axis.text(0.08, top + 0.2, heading, fontsize=10, fontweight="bold", va="center")
    below = top + 0.55 + SIDE_INCHES
    for i, (name, _) in enumerate(BELOW):
        axis.text(0.08, below + ROW_INCHES * i, name, fontsize=7.5, va="center", color="#444444")
    for j in range(line.pictures):
        shown = {key: values[j] for key, values in line.differing.items()}
        left = LEFT_INCHES + STEP_INCHES * j
        _picture(axis, shown["pixels"], left, top + 0.46)
        middle = left + SIDE_INCHES / 2
        axis.text(
            middle,
            top + 0.385,
            f"{shown['index']}",
            fontsize=7,
            ha="center",
            va="center",
            color="#444444",
        )
        for i, (_, key) in enumerate(BELOW):
            name, wrong = line.classes[int(shown[key])], shown[key] != shown["label"]
            shown_as = look.short(name, LONGEST_CLASS) + (" ×" if wrong else "")
            axis.text(
                middle,
                below + ROW_INCHES * i,
                shown_as,
                fontsize=7.5,
                ha="center",
                va="center",
                fontweight="bold" if wrong else "normal",
            )


def _thinned(pixels: numpy.ndarray) -> numpy.ndarray:
    """uint8 [K, C, H, W], as they are drawn; a copy, so that the large ones need not be kept."""
    every = -(-max(pixels.shape[2:]) // MOST_SIDE)
    return pixels[:, :, ::every, ::every].copy()


def _picture(axis: Axes, pixels: numpy.ndarray, left: float, top: float) -> None:
    """uint8 [C, H, W], its longer side as long as the place is."""
    height, width = pixels.shape[1:]
    shown = numpy.repeat(pixels.transpose(1, 2, 0), 3 // len(pixels), axis=2)
    inches = SIDE_INCHES / max(height, width)
    left += (SIDE_INCHES - inches * width) / 2
    extent = (left, left + inches * width, top + inches * height, top)
    axis.imshow(shown, interpolation="none", extent=extent, aspect="auto")


def _alt(lines: Sequence[Line]) -> str:
    sentences = []
    for line in lines:
        wrong, base = (
            int((line.differing[key] != line.differing["label"]).sum()) for key in ("own", "base")
        )
        sentences.append(
            f"{line.heading}: {line.pictures} images, of which the compressed network gets "
            f"{wrong} wrong and the base {base}."
        )
    return " ".join(sentences)
