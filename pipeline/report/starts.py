"""What starting from other weights does: each technique on a base of fresh weights, and on one that
goes on from those of another data set or of a file (Hubens et al. 2020, arXiv 2112.08227)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.report import significance
from pipeline.report.answer import Group, groups
from pipeline.report.controls import before
from pipeline.report.document import Column, Section, Sentence, Table, Value, spread, table_of
from pipeline.report.row import Row
from pipeline.sweep import Cell, Recipe, Sweep
from pipeline.techniques import about

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
    "paired with itself. Epochs of the training before count for neither. A student's own weights "
    "are fresh in both; its teacher is the base. Controls that ignore the base's weights are left "
    "out.",
)


@dataclass(frozen=True)
class Pair:
    """A technique on both kinds of base: rows of the same seeds in the same order."""

    fresh: Group
    other: Group

    @property
    def is_tuned(self) -> bool:
        """Whether held-out images chose other settings for each."""
        return self.fresh.technique != self.other.technique

    @property
    def name(self) -> str:
        from_fresh = f" (from fresh weights: {self.fresh.technique})" if self.is_tuned else ""
        return f"{self.other.technique}{from_fresh}"


def pairs(sweep: Sweep, rows: Iterable[Row]) -> dict[tuple[str, str], list[Pair]]:
    """(data set, model that starts from other weights) -> its techniques that both have."""
    every = [group for group in groups(rows) if uses_base(sweep.by_id[group.rows[0].id])]
    known: dict[tuple[tuple[str, str], str], list[Group]] = {}
    for group in every:
        known.setdefault((group.rows[0].setting, _point(sweep, group)), []).append(group)
    by_setting: dict[tuple[str, str], list[Pair]] = {}
    for other in every:
        first, point = other.rows[0], _point(sweep, other)
        if first.anew:
            alike = known.get(((first.dataset, first.anew), point), [])
            is_alone = len(known[first.setting, point]) == len(alike) == 1
            for fresh in alike:
                same = fresh.technique == other.technique or is_alone
                if same and (pair := _paired(fresh, other)):
                    by_setting.setdefault(first.setting, []).append(pair)
    return by_setting


def uses_base(cell: Cell) -> bool:
    """Whether it depends on the base's weights: goes on from them, or is taught by them."""
    learns = True
    for stage in cell.stages:
        taught = getattr(stage.settings, "teacher", None) is not None
        learns = taught or (learns and not about(stage.settings).starts_fresh())
    return learns


def left_out(sweep: Sweep, members: Iterable[Pair]) -> list[str]:
    """Settings of the recipe that are for fresh weights, which the other bases train without."""
    recipes = {sweep.by_id[row.id].recipe for pair in members for row in pair.other.rows}
    return [
        name
        for name in Recipe.model_fields
        if any(getattr(one, name) != getattr(one.continued(), name) for one in recipes)
    ]


def _point(sweep: Sweep, group: Group) -> str:
    """What it is a candidate of, or its own name."""
    return sweep.tuned.get(group.technique, group.technique)


def _paired(fresh: Group, other: Group) -> Pair | None:
    seeds = {row.seed: row for row in fresh.rows}
    mine = tuple(row for row in other.rows if row.seed in seeds)
    return Pair(Group(tuple(seeds[row.seed] for row in mine)), Group(mine)) if mine else None


def section(sweep: Sweep, rows: Sequence[Row]) -> Section | None:
    """None where no base of the sweep starts from other weights, or nothing to compare is there."""
    by_setting = pairs(sweep, rows)
    if not by_setting:
        return None
    tables = tuple(_table(*setting, members) for setting, members in by_setting.items())
    caveats = (text for each in by_setting.items() for text in _caveats(sweep, *each))
    texts = (ABOUT, *((text,) for text in caveats), *((text,) for text in _heads(rows)))
    return Section("starts", "Starting from other weights", texts, tables)


def _table(dataset: str, model: str, members: Sequence[Pair]) -> Table:
    return table_of(dataset, model, COLUMNS, map(_line, members))


def _line(pair: Pair) -> tuple[Value, ...]:
    n, differences = len(pair.other.rows), significance.differences(pair.other, pair.fresh)
    reach = significance.interval(differences)
    return (
        Value(pair.name),
        Value(str(n), n),
        spread([row.parameters for row in pair.other.rows], "parameters"),
        spread([row.accuracy for row in pair.fresh.rows], "accuracy"),
        spread([row.accuracy for row in pair.other.rows], "accuracy"),
        spread(differences, "difference"),
        Value("" if reach is None else reach.ends),
    )


def _caveats(sweep: Sweep, setting: tuple[str, str], members: Sequence[Pair]) -> Iterator[str]:
    """What else differs between the two kinds of base, and what intervals do not cover."""
    where = f"On {', '.join(setting)},"
    if names := left_out(sweep, members):
        yield (
            f"{where} what the recipe has for fresh weights alone ({', '.join(names)}) is not part "
            "of the training from other weights: the difference includes what it does."
        )
    if any(pair.is_tuned for pair in members):
        yield (
            f"{where} held-out images chose the settings for each kind of base: where they chose "
            "different ones, both names are shown, and the difference includes that of the "
            "settings."
        )
    if any(_share_start(sweep, pair.other) for pair in members):
        yield (
            f"{where} all seeds share one training before, whose own variation is not in the "
            "intervals."
        )


def _share_start(sweep: Sweep, group: Group) -> bool:
    """Whether several seeds go back to the same weights, of a base or of a file."""
    starts = []
    for row in group.rows:
        cell = sweep.by_id[row.id]
        models = [each.model for each in (cell, *before(sweep, cell))]
        starts.append({m.start.cell or m.start.sha256 for m in models if m.start is not None})
    return len(starts) > 1 and bool(set.intersection(*starts))


def _heads(rows: Iterable[Row]) -> Iterator[str]:
    """What became of the last layer, of each base that records it."""
    head_anew: dict[tuple[str, str], bool] = {}
    for row in rows:
        start = row.facts.get("weights_from")
        if row.is_base and isinstance(start, dict) and isinstance(start.get("head_anew"), bool):
            head_anew.setdefault(row.setting, start["head_anew"])
    for setting, anew in head_anew.items():
        what = (
            "began anew, since the number of classes is another one"
            if anew
            else "was kept, since the number of classes is the same"
        )
        yield f"On {', '.join(setting)}, the last layer {what}."
