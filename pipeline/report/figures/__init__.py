"""Figures: SVG for the page, PDF for papers, the same to the byte from the same results.

A figure that has nothing to show is left out. Evidence is read for the few cells that are shown,
once each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from pipeline.errors import Corrupt
from pipeline.report.evidence import Evidence
from pipeline.report.figures import (
    channels,
    classes,
    curves,
    layer_pairs,
    look,
    pictures,
    similarity,
    spread,
    started,
    tradeoff,
)
from pipeline.report.figures.look import Drawn, Figure
from pipeline.report.row import Row
from pipeline.sweep import Sweep

__all__ = ["Drawn", "Figure", "draw", "drawn"]

KEPT_BYTES = 1 << 28


@dataclass
class Kept:
    """Evidence is read once for all figures, as long as all of it fits into KEPT_BYTES; what was
    read first is then read again. Raises Corrupt where the histories, which curves keep, do not."""

    evidence: Callable[[str], Evidence | None]
    known: dict[str, Evidence | None] = field(default_factory=dict)
    histories: dict[str, int] = field(default_factory=dict)  # bytes

    def read(self, cell_id: str) -> Evidence | None:
        if cell_id not in self.known:
            new = self.evidence(cell_id)
            self.histories[cell_id] = new.history_bytes if new else 0
            if sum(self.histories.values()) > KEPT_BYTES:
                raise Corrupt(f"cell {cell_id}: too many epochs to be drawn with the others")
            size = _bytes(new)
            while self.known and size + sum(map(_bytes, self.known.values())) > KEPT_BYTES:
                del self.known[next(iter(self.known))]
            self.known[cell_id] = new
        return self.known[cell_id]


def _bytes(evidence: Evidence | None) -> int:
    return evidence.n_bytes if evidence else 0


def draw(
    rows: Sequence[Row],
    evidence: Callable[[str], Evidence | None],
    similarity_of: str | None = None,
    sweep: Sweep | None = None,
) -> dict[str, Figure]:
    """File stem -> figure, in reading order. `evidence`: what was recorded of the cell with an
    id; `similarity_of`: the id of the cell whose layers are compared with each of its base's;
    `sweep`: with the cells of the rows; None: without the figure that needs it."""
    with look.style():
        return {name: one.figure() for name, one in drawn(rows, evidence, similarity_of, sweep)}


def drawn(
    rows: Sequence[Row],
    evidence: Callable[[str], Evidence | None],
    similarity_of: str | None = None,
    sweep: Sweep | None = None,
) -> Iterator[tuple[str, Drawn]]:
    """The same before they are bytes; inside of `look.style()`."""
    read = Kept(evidence).read
    figures: dict[str, Callable[[Sequence[Row]], Drawn | None]] = {
        "accuracy-bytes": partial(tradeoff.draw, cost=tradeoff.STORED),
        "accuracy-latency": partial(tradeoff.draw, cost=tradeoff.LATENCY),
        "pre-training": partial(started.draw, sweep=sweep),
        "training-curves": partial(curves.draw, read=read),
        "channels": partial(channels.draw, read=read),
        "similarity": partial(similarity.draw, read=read),
        "layer-pairs": partial(layer_pairs.draw, read=read, cell_id=similarity_of),
        "latency": partial(spread.draw, read=read),
        "classes": partial(classes.draw, read=read),
        "pictures": partial(pictures.draw, read=read),
    }
    for name, make in figures.items():
        made = make(rows)
        if made is not None:
            yield name, made
