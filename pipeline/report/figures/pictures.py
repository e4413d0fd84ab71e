"""The images of the test set on which a compressed network and its base differ most."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy
from matplotlib.axes import Axes

from pipeline.report.answer import Row
from pipeline.report.figures import chosen, look
from pipeline.report.figures.chosen import Read
from pipeline.report.figures.look import Canvas, Drawn

MOST_LINES = 8
MOST_TECHNIQUES = 4
MOST_PICTURES = 8
MOST_SIDE = 96  # pixels: of larger pictures every second, third, ... is drawn
PICTURE_INCHES = (0.95, 1.5)
NAME_INCHES = 0.3
CAPTION = (
    "Of each technique the images of the test set whose outputs differ most between it and its "
    "base, the most different first; of seed {seeds}. Above each its number in the test set, below "
    "it its label, and what the base and the compressed network say; a cross marks what is wrong. "
    "Classes are named by their numbers."
)


@dataclass(frozen=True)
class Line:
    """The pictures of one cell. As in Evidence.differing, the first of them."""

    heading: str
    seed: int
    differing: dict[str, numpy.ndarray]

    @property
    def pictures(self) -> int:
        return len(self.differing["pixels"])


def draw(rows: Sequence[Row], read: Read) -> Drawn | None:
    """None where no cell has such images."""
    panels = chosen.panels(rows)
    most = min(MOST_TECHNIQUES, MOST_LINES // max(1, len(panels)))
    names = chosen.representatives(rows, most)
    lines = [line for setting, members in panels.items()
             for line in _lines(setting, members, names, read)]  # fmt: skip
    if not lines:
        return None
    seeds = ", ".join(map(str, sorted({line.seed for line in lines})))
    said = f"{CAPTION.format(seeds=seeds)} {chosen.left_out(rows, names)}".strip()
    return Drawn(_draw(lines), "Images on which base and compressed network differ most", said,
                 _alt(lines))  # fmt: skip


def _lines(
    setting: tuple[str, str], rows: Sequence[Row], names: Iterable[str], read: Read
) -> Iterator[Line]:
    """Of each technique, the first seed."""
    for name in names:
        for row in chosen.seeds(rows, name)[:1]:
            evidence = read(row["id"])
            found = evidence.differing if evidence else None
            if found and len(found["pixels"]):
                first = {key: values[:MOST_PICTURES] for key, values in found.items()}
                heading = f"{', '.join(setting)}: {chosen.line_name(row)}"
                yield Line(heading, row["seed"], first)


def _draw(lines: Sequence[Line]) -> Canvas:
    columns = max(max(line.pictures for line in lines), 4)
    width, height = PICTURE_INCHES[0] * columns, (PICTURE_INCHES[1] + NAME_INCHES) * len(lines)
    canvas = Canvas(figsize=(width, height))
    for i, line in enumerate(lines):
        top = height - (PICTURE_INCHES[1] + NAME_INCHES) * i
        canvas.text(0.08 / width, (top - 0.2) / height, look.short(line.heading, 13 * columns),
                    fontsize=10, fontweight="bold", va="center")  # fmt: skip
        for j in range(line.pictures):
            side = PICTURE_INCHES[0] - 0.15
            place = (j * PICTURE_INCHES[0] + 0.075, top - NAME_INCHES - 0.2 - side, side, side)
            scaled = numpy.array(place) / (width, height, width, height)
            _picture(canvas.add_axes(scaled.tolist()), {key: values[j] for key, values in line.differing.items()})
    return canvas


def _picture(axis: Axes, shown: dict[str, numpy.ndarray]) -> None:
    pixels = shown["pixels"].transpose(1, 2, 0)
    every = -(-max(pixels.shape[:2]) // MOST_SIDE)
    pixels = numpy.repeat(pixels[::every, ::every], 3 // pixels.shape[2], axis=2)
    axis.imshow(pixels, interpolation="none")
    axis.set_axis_off()
    axis.set_title(f"no. {shown['index']}", fontsize=7, pad=2, color="#444444")
    label = shown["label"]
    said = (("label", label), ("base", shown["base"]), ("compressed", shown["own"]))
    for i, (name, value) in enumerate(said):
        wrong = "" if value == label else " ×"
        axis.text(0.02, -0.06 - 0.145 * i, f"{name} {value}{wrong}", transform=axis.transAxes,
                  fontsize=7, va="top", fontweight="bold" if wrong else "normal")  # fmt: skip


def _alt(lines: Sequence[Line]) -> str:
    said = []
    for line in lines:
        found = line.differing
        wrong = int((found["own"] != found["label"]).sum())
        base = int((found["base"] != found["label"]).sum())
        said.append(f"{line.heading}: {line.pictures} images, of which the compressed network gets "
                    f"{wrong} wrong and the base {base}.")  # fmt: skip
    return " ".join(said)
