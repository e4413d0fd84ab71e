"""How alike each layer of a compressed network and each layer of its base are: a table of colours
for a pair of networks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy

from pipeline.measure.spaced import spaced
from pipeline.report.answer import groups
from pipeline.report.figures import chosen, heat
from pipeline.report.figures.chosen import Read
from pipeline.report.figures.heat import Heat
from pipeline.report.figures.look import Drawn
from pipeline.report.row import Row
from pipeline.techniques import ANEW

MOST_SQUARES = 2000  # of a figure: each costs some hundred bytes
MOST_TRIED = 8  # techniques whose results are read to find one with its layers compared
BESIDE = 2  # pairs of data set and model up to which another base is shown beside
OF_DEFAULT = "Shown is the technique that loses most accuracy; --similarity CELL chooses another."


class _Pair(NamedTuple):
    row: Row
    layers: int
    values: numpy.ndarray  # [M, M]


def draw(rows: Sequence[Row], read: Read, cell_id: str | None = None) -> Drawn | None:
    """Of the cell with this id, else of what loses most on each data set and model; None where no
    layers were compared."""
    pairs = _pairs(rows, read, cell_id)
    if not pairs:
        return None
    side = math.isqrt(MOST_SQUARES // len(pairs))
    panels = [_heat(pair, side) for pair in pairs]
    canvas = heat.draw(
        panels,
        "cividis",
        (0.0, 1.0),
        "layer of the base",
        "linear CKA",
        lambda value: f"{value:g}",
        "layer of the network",
    )
    caption = _caption(pairs, side, cell_id is None)
    return Drawn(canvas, "Similarity of each layer to each of the base", caption, _alt(pairs))


def _pairs(rows: Sequence[Row], read: Read, cell_id: str | None) -> list[_Pair]:
    """Each followed by a base of other fresh weights, where there is one and few are shown."""
    if cell_id is not None:
        settings = [[row for row in rows if row.id == cell_id]]
        candidates = settings
    else:
        settings = list(chosen.panels(rows).values())
        candidates = [list(_losing(members)) for members in settings]
    first = [pair for each in candidates if (pair := next(_read(each, read), None))]
    pairs: list[_Pair] = []
    for pair in first:
        pairs.append(pair)
        if len(first) <= BESIDE and pair.row.family != ANEW:
            others = (r for r in rows if r.family == ANEW and r.setting == pair.row.setting)
            pairs += list(_read(list(others)[:1], read))
    return pairs


def _losing(rows: Iterable[Row]) -> Iterator[Row]:
    """The first seed of some techniques, those that lose most first."""
    known = [g for g in groups(rows) if not g.is_base and not g.is_control and g.drop == g.drop]
    for group in sorted(known, key=lambda group: -group.drop)[:MOST_TRIED]:
        yield group.rows[0]


def _read(rows: Iterable[Row], read: Read) -> Iterator[_Pair]:
    for row in rows:
        evidence = read(row.id)
        if evidence and evidence.similarity and evidence.similarity_pairs is not None:
            yield _Pair(row, len(evidence.similarity["cka"]), evidence.similarity_pairs)


def _heat(pair: _Pair, side: int) -> Heat:
    """`side`: the most lines that there is room for."""
    kept = spaced(len(pair.values), side)
    values = pair.values[numpy.ix_(kept, kept)]
    names = tuple(str(i + 1) for i in spaced(pair.layers, len(pair.values))[kept])
    known = numpy.isfinite(values)
    texts = tuple(
        tuple(f"{value:.2f}" if there else "" for value, there in zip(*line, strict=True))
        for line in zip(values, known, strict=True)
    )
    return Heat(_heading(pair.row), names, names, values, texts)


def _heading(row: Row) -> str:
    return f"{chosen.line_name(row, 20)}: {', '.join(row.setting)}"


# --- in words --------------------------------------------------------------------------------


def _caption(pairs: Sequence[_Pair], side: int, is_default: bool) -> str:
    shown = ", ".join(
        f"{pair.row.technique} on {', '.join(pair.row.setting)}, seed {pair.row.seed}"
        for pair in pairs
    )
    sentences = [
        "Linear CKA (unbiased estimate of HSIC) of each layer's output in a network, line by line, "
        "with each layer's output in its base, column by column, on held-out images; 1 is the "
        f"same up to a rotation. The last layer is the classes. Networks: {shown}.",
    ]
    if is_default:
        sentences.append(OF_DEFAULT)
    if any(pair.row.family == ANEW for pair in pairs):
        sentences.append(f"{ANEW} is the base trained from other fresh weights, for comparison.")
    if any(min(side, len(pair.values)) < pair.layers for pair in pairs):
        sentences.append("Of many layers, some are shown, evenly spaced.")
    return " ".join(sentences)


def _alt(pairs: Sequence[_Pair]) -> str:
    sentences = []
    for pair in pairs:
        own = pair.values.diagonal()
        others = pair.values[~numpy.eye(len(own), dtype=bool)]
        rest = f" and {_mean(others)} with others" if len(others) else ""
        where = ", ".join(pair.row.setting)
        sentences.append(
            f"On {where}, layers of {pair.row.technique} have a CKA of {_mean(own)} on average "
            f"with the same layer of the base{rest}."
        )
    return " ".join(sentences)


def _mean(values: numpy.ndarray) -> str:
    known = values[numpy.isfinite(values)]
    return f"{known.mean():.2f}" if len(known) else "unknown"
