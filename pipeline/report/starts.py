"""What starting from other weights does: each technique on a base of fresh weights, and on one that
goes on from those of another data set or of a file (Hubens et al. 2020, arXiv 2112.08227)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.report import significance
from pipeline.report.answer import Group, groups
from pipeline.report.document import Column, Section, Sentence, Table, Value, spread, table_of
from pipeline.report.row import Row

COLUMNS = (
    Column("technique"),
    Column("n"),
    Column("parameters, M", "parameters"),
    Column("fresh weights", "accuracy", "accuracy, %"),
    Column("other weights", "accuracy", "accuracy, %"),
    Column("difference, points", "difference"),
    Column("95 % interval, points"),
)
ABOUT: Sentence = (
    "Bases that start from the weights of another base, or of a file, are trained for as many "
    "epochs as those from fresh weights, and compressed in the same way. The difference is the "
    "accuracy from other weights minus that from fresh ones, over the n seeds that both have, each "
    "paired with itself. Epochs of the training before count for neither.",
)


@dataclass(frozen=True)
class Pair:
    """A technique on both kinds of base: rows of the same seeds in the same order."""

    fresh: Group
    other: Group


def pairs(rows: Iterable[Row]) -> dict[tuple[str, str], list[Pair]]:
    """(data set, model that starts from other weights) -> its techniques that both have."""
    every = groups(rows)
    known = {(group.rows[0].setting, group.technique): group for group in every}
    found: dict[tuple[str, str], list[Pair]] = {}
    for other in every:
        first = other.rows[0]
        fresh = known.get(((first.dataset, first.anew), other.technique))
        if first.anew and fresh and (pair := _paired(fresh, other)):
            found.setdefault(first.setting, []).append(pair)
    return found


def _paired(fresh: Group, other: Group) -> Pair | None:
    seeds = {row.seed: row for row in fresh.rows}
    mine = tuple(row for row in other.rows if row.seed in seeds)
    return Pair(Group(tuple(seeds[row.seed] for row in mine)), Group(mine)) if mine else None


def section(rows: Sequence[Row]) -> Section | None:
    """None where no base of the sweep starts from other weights, or nothing to compare is there."""
    found = pairs(rows)
    if not found:
        return None
    tables = tuple(_table(*setting, members) for setting, members in found.items())
    about = (ABOUT, *((text,) for text in _heads(rows)))
    return Section("starts", "Starting from other weights", about, tables)


def _table(dataset: str, model: str, members: Sequence[Pair]) -> Table:
    return table_of(dataset, model, COLUMNS, map(_line, members))


def _line(pair: Pair) -> tuple[Value, ...]:
    n, differences = len(pair.other.rows), significance.differences(pair.other, pair.fresh)
    reach = significance.interval(differences)
    return (
        Value(pair.other.technique),
        Value(str(n), n),
        spread([row.parameters for row in pair.other.rows], "parameters"),
        spread([row.accuracy for row in pair.fresh.rows], "accuracy"),
        spread([row.accuracy for row in pair.other.rows], "accuracy"),
        spread(differences, "difference"),
        Value("" if reach is None else reach.ends),
    )


def _heads(rows: Iterable[Row]) -> Iterator[str]:
    """What became of the last layer, of each base that says so."""
    said: dict[tuple[str, str], bool] = {}
    for row in rows:
        start = row.facts.get("weights_from")
        if row.is_base and isinstance(start, dict) and isinstance(start.get("head_anew"), bool):
            said.setdefault(row.setting, start["head_anew"])
    for setting, anew in said.items():
        what = (
            "began anew, since the number of classes is another one"
            if anew
            else "was kept, since the number of classes is the same"
        )
        yield f"On {', '.join(setting)}, the last layer {what}."
