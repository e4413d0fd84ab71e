"""Figures: SVG for the page, PDF for papers, the same to the byte from the same results.

A figure that has nothing to show is left out. Evidence is read for the few cells that are shown,
once each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial

from pipeline.report.evidence import Evidence
from pipeline.report.figures import (
    channels,
    classes,
    curves,
    look,
    pictures,
    spread,
    tradeoff,
)
from pipeline.report.figures.look import Drawn, Figure
from pipeline.report.row import Row

__all__ = ["Drawn", "Figure", "draw", "drawn"]


def draw(rows: Sequence[Row], evidence: Callable[[str], Evidence | None]) -> dict[str, Figure]:
    """File stem -> figure, in reading order. `evidence`: what was recorded of the cell with an
    id."""
    with look.style():
        return {name: figure.figure() for name, figure in drawn(rows, evidence)}


def drawn(
    rows: Sequence[Row], evidence: Callable[[str], Evidence | None]
) -> Iterator[tuple[str, Drawn]]:
    """The same before they are bytes; inside of `look.style()`."""
    read = cache(evidence)
    figures = {
        "accuracy-bytes": partial(tradeoff.draw, cost=tradeoff.STORED),
        "accuracy-latency": partial(tradeoff.draw, cost=tradeoff.LATENCY),
        "training-curves": partial(curves.draw, read=read),
        "channels": partial(channels.draw, read=read),
        "latency": partial(spread.draw, read=read),
        "classes": partial(classes.draw, read=read),
        "pictures": partial(pictures.draw, read=read),
    }
    for name, make in figures.items():
        made = make(rows)
        if made is not None:
            yield name, made
