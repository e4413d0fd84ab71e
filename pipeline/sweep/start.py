"""`weights_from` of an entry of `models`: what its bases start from in place of fresh weights.

A file is read here; a base of the sweep is looked up where the matrix is built, seed by seed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.strict_yaml import Document, Key, nearest, shown
from pipeline.sweep import own
from pipeline.sweep.cell import BASE, Cell
from pipeline.sweep.settings import Dataset, Frozen, Model, Start

FILES = (".safetensors", ".pt", ".pth", ".bin")
ID = re.compile("[0-9a-f]{4,16}")
SEED = re.compile("[0-9]{1,10}")
Point = tuple[str, str, int]  # data set, model's label, seed
EXPECTED = (
    "expected a base of this sweep, as DATASET/MODEL/base (of the same seed), "
    "DATASET/MODEL/base/SEED or, of one that starts from no other, its id; or a file of weights "
    "(.safetensors, .pt)"
)


class _Entry(Frozen):
    weights_from: str


def read(document: Document, at: Key, value: Mapping[str, Any], known: own.Read) -> Start:
    """What an entry specifies; of a base, which one is not known yet. UserError where a file is not
    there, or where the network brings weights of its own."""
    text = document.check(at, _Entry, {"weights_from": value["weights_from"]}).weights_from
    at = (*at, "weights_from")
    if value.get("weights") is not None:
        raise document.error(at, "stands beside `weights`, which are not trained on; keep one")
    if text.endswith(FILES):
        path, sha256 = own.weights_in(document, at, text, known)
        return Start(source=path, label=_word(path.rpartition("/")[2]), sha256=sha256)
    if "/" not in text and not ID.fullmatch(text):
        raise document.error(at, f"{shown(text)} is neither a cell nor a file; {EXPECTED}")
    return Start(source=text, label=_word(text.partition("/")[0]))


def _word(text: str) -> str:
    """A part of a label, such as `mnist`."""
    word = re.sub("[^A-Za-z0-9._-]+", "-", text.removesuffix(".safetensors"))[:24].strip("-.")
    return word if re.match("[A-Za-z0-9_]", word) else "file"


def _network(model: Model) -> tuple[str, Any]:
    """What has to be the same, whatever its weights are."""
    own = model.own and model.own.model_copy(update={"weights": None, "weights_sha256": None})
    return model.anew, own


@dataclass
class Bases:
    """The bases of a sweep, each made when it is first looked for.

    `points`: of each, what makes it from fresh weights; `excluded`: whether the sweep excludes it;
    `at`: label of a model -> its entry. `wanted`: those that are cells, each after the one that it
    starts from; `sources`: which one that is.
    """

    document: Document
    points: Mapping[Point, Cell]
    excluded: Callable[[Cell], bool]
    at: Mapping[str, Key]
    wanted: dict[Point, Cell] = field(default_factory=dict)
    made: dict[Point, Cell] = field(default_factory=dict)
    sources: dict[Point, Point] = field(default_factory=dict)
    begun: list[Point] = field(default_factory=list)

    def of(self, dataset: Dataset, model: Model, seed: int) -> Cell:
        """One that is a cell, and with it what it starts from; UserError where that cannot be
        had."""
        point = (dataset.name, model.label, seed)
        chain = [point]
        self._of(point)
        while chain[-1] in self.sources:
            chain.append(self.sources[chain[-1]])
        for each in reversed(chain):
            self.wanted.setdefault(each, self.made[each])
        return self.wanted[point]

    def _of(self, point: Point) -> Cell:
        if point not in self.made:
            cell = self.points[point]
            if cell.model.start is not None and cell.model.start.sha256 is None:
                self.begun.append(point)
                cell = self._started(point, cell, cell.model.start)
                self.begun.pop()
            self.made[point] = cell
        return self.made[point]

    def _started(self, point: Point, cell: Cell, begin: Start) -> Cell:
        at = (*self.at[cell.model.label], "weights_from")
        self.sources[point] = self._found(at, begin.source, cell.seed)
        other = self._of(self.sources[point])
        if _network(other.model) != _network(cell.model):
            raise self.document.error(
                at,
                f"{other.name} is a {other.model.anew}, whose weights do not fit; expected a base "
                f"of the same network, {cell.model.anew}",
            )
        if other.dataset == cell.dataset and other.seed != cell.seed:
            raise self.document.error(
                at,
                f"{other.name} was trained on images that seed {cell.seed} holds out; expected a "
                "base of the same seed, or of another data set",
            )
        if self.excluded(other):
            raise self.document.error(at, f"{other.name} is excluded from this sweep; keep it")
        begin = begin.model_copy(update={"cell": other.id})
        return replace(cell, model=cell.model.model_copy(update={"start": begin}))

    def _found(self, at: Key, text: str, seed: int) -> Point:
        """The base that is meant, which may start from another one."""
        matches = [*self._named(at, text, seed)] if "/" in text else []
        if "/" not in text:  # ids of others are known only when what these start from is
            free = [p for p, c in self.points.items() if not c.model.start or c.model.start.sha256]
            matches = [point for point in free if self._of(point).id.startswith(text)]
        if len(matches) != 1:
            names = [f"{d}/{m}/{BASE}" for d, m, _ in self.points]
            near = nearest(text, dict.fromkeys(names)) if "/" in text else EXPECTED
            what = "matches several bases" if matches else "is no base of this sweep"
            raise self.document.error(at, f"{shown(text)} {what}; {near}")
        if matches[0] in self.begun:
            raise self.document.error(
                at, f"{shown(text)} starts from itself; expected a base that does not"
            )
        return matches[0]

    def _named(self, at: Key, text: str, seed: int) -> Iterable[Point]:
        first, second, *rest = text.split("/")
        if rest[:1] != [BASE] or len(rest) > 2:
            raise self.document.error(at, f"{shown(text)} is no base; {EXPECTED}")
        if len(rest) == 2:
            if not SEED.fullmatch(rest[1]):
                raise self.document.error(at, f"{shown(rest[1])} is no seed; {EXPECTED}")
            seed = int(rest[1])
        pairs = ((first, second), (second, first))
        exact = [(d, m, seed) for d, m in pairs if (d, m, seed) in self.points]
        return exact or [
            point
            for point, cell in self.points.items()
            if (point[0], cell.model.name) in pairs and point[2] == seed
        ]
