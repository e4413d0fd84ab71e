"""What compression does to the accuracy on each class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy

from pipeline.report.evidence import Evidence
from pipeline.report.figures import chosen, heat
from pipeline.report.figures.chosen import Read
from pipeline.report.figures.heat import Heat
from pipeline.report.figures.look import Drawn
from pipeline.report.row import Row

MOST_CLASSES = 20
LEAST_RANGE = 1.0  # points, so that a change of a few images is no strong colour


def draw(rows: Sequence[Row], read: Read) -> Drawn | None:
    """None where no cell has its own and its base's predictions, and the labels."""
    names = chosen.techniques(rows, chosen.room(rows, *heat.MOST_LINES))
    panels: list[Heat] = []
    counts: list[int] = []
    most = 0
    for setting, members in chosen.panels(rows).items():
        lines = (seeds for name in names if (seeds := chosen.seeds(members, name)))
        every = {chosen.line(seeds[0]): _changes(seeds, read) for seeds in lines}
        changed = {name: changes for name, changes in every.items() if changes}
        if changed:
            means = _means(changed)
            columns = chosen.class_names(setting[0], means.shape[1])
            shown = [name for _, name in changed]
            panels.append(_heat(", ".join(setting), shown, columns, means))
            counts += map(len, changed.values())
            most = max(most, means.shape[1])
    if not panels:
        return None
    limit = max(LEAST_RANGE, *(float(numpy.nanmax(abs(panel.values))) for panel in panels))
    canvas = heat.draw(
        panels,
        "PuOr",
        (-limit, limit),
        "class",
        "change, points",
        lambda value: f"{value:+.3g}" if value else "0",
    )
    return Drawn(
        canvas, "Change of accuracy by class", _caption(rows, names, counts, most), _alt(panels)
    )


def change(evidence: Evidence | None) -> numpy.ndarray | None:
    """[classes], points: the cell's accuracy on the images of a class less its base's; NaN for a
    class without images. None where something for it is missing."""
    if evidence is None:
        return None
    own, base, labels = evidence.predictions, evidence.base_predictions, evidence.labels
    if own is None or base is None or labels is None:
        return None
    gain = numpy.equal(own, labels).astype(float) - numpy.equal(base, labels)
    images = numpy.bincount(labels)
    gained = numpy.bincount(labels, gain, len(images))
    return 100 * gained / numpy.where(images > 0, images, numpy.nan)


def _changes(rows: Iterable[Row], read: Read) -> list[numpy.ndarray]:
    """Of each seed; of seeds with as many classes as the first."""
    every = [c for row in rows if (c := change(read(row.id))) is not None]
    return [changes for changes in every if len(changes) == len(every[0])]


def _means(changed: dict[chosen.Line, list[numpy.ndarray]]) -> numpy.ndarray:
    """[techniques, classes]; NaN in classes that a technique did not have."""
    classes = max(len(changes[0]) for changes in changed.values())
    means = numpy.full((len(changed), classes), numpy.nan)
    for line, changes in zip(means, changed.values(), strict=True):
        line[: len(changes[0])] = numpy.mean(changes, axis=0)
    return means


def _heat(heading: str, names: Sequence[str], classes: Sequence[str], means: numpy.ndarray) -> Heat:
    """The classes that change most, in their order."""
    largest = numpy.abs(numpy.nan_to_num(means)).max(axis=0)
    kept = numpy.sort(numpy.argsort(-largest, kind="stable")[:MOST_CLASSES])
    values = means[:, kept]
    texts = tuple(tuple(_text(value) for value in line) for line in values)
    return Heat(heading, tuple(names), tuple(classes[i] for i in kept), values, texts)


def _text(points: float) -> str:
    if points != points:
        return ""
    if abs(points) < 0.005:
        return "0"
    return f"{points:+.2f}" if abs(points) < 10 else f"{points:+.1f}"


def _caption(rows: Sequence[Row], names: Sequence[str], counts: list[int], most: int) -> str:
    sentences = [
        f"Accuracy on the test images of each class: the technique's less its base's of the "
        f"same seed, in points, mean over seeds ({chosen.several(counts)}). Below 0 the "
        f"compressed network is worse. {chosen.CLASSES}"
    ]
    if most > MOST_CLASSES:
        sentences.append(f"Shown are the {MOST_CLASSES} of {most:,} classes that change most.")
    sentences.append(chosen.left_out(rows, names))
    return " ".join(sentences).strip()


def _alt(panels: Iterable[Heat]) -> str:
    sentences = []
    for panel in panels:
        i, j = numpy.unravel_index(numpy.nanargmin(panel.values), panel.values.shape)
        sentences.append(
            f"On {panel.heading} the largest loss is that of {panel.lines[i]} on class "
            f"{panel.columns[j]}: {panel.values[i, j]:+.2f} points."
        )
    return " ".join(["Change of accuracy by class and technique.", *sentences])
