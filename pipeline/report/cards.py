"""The answer: which model to take, with its numbers beside those of its base."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby

from pipeline import runtimes
from pipeline.measure.series import Series
from pipeline.report import content
from pipeline.report.answer import (
    ONE_POINT,
    Group,
    deviation,
    fastest,
    groups,
    mean,
    nearest,
    settings,
    smallest,
)
from pipeline.report.document import Code, Sentence
from pipeline.report.metrics import METRIC, SPEEDUP, Metric, latency_key, of_size, speedup_key
from pipeline.report.row import Row
from pipeline.sweep import Sweep

WORSE = ("larger", "slower", "lower")
LATENCY = METRIC[latency_key(Series(runtimes.DEFAULT, "artifact", "all", 1), 50)]
SPEED = METRIC[speedup_key(SPEEDUP, "all", 1)]


@dataclass(frozen=True)
class Fact:
    """A number of a model, and how it differs from its base's; "" where that is not known."""

    label: str
    mean: str
    unit: str
    change: str = ""
    deviation: str = ""

    @property
    def value(self) -> str:
        """`98.67 ± 0.44 %`"""
        spread = f" ± {self.deviation}" if self.deviation else ""
        return f"{self.mean}{spread} {self.unit}"

    @property
    def is_worse(self) -> bool:
        return self.change.endswith(WORSE)


@dataclass(frozen=True)
class Card:
    """One question and its answer: in a sentence, and, where a compressed model is the answer, as
    facts. `command` exports it; `seed`: which of several seeds that is, else ""."""

    question: str
    sentence: Sentence
    group: Group | None = None
    facts: tuple[Fact, ...] = ()
    command: str = ""
    seed: str = ""

    @property
    def id(self) -> str:
        """Of the cell that the command exports."""
        return self.command.rpartition(" ")[2]


@dataclass(frozen=True)
class Merged:
    """Cards that are all about one model: their numbers and questions."""

    cards: tuple[tuple[int, Card], ...]

    @property
    def first(self) -> Card:
        return self.cards[0][1]


@dataclass(frozen=True)
class Answer:
    """About one data set and model. `base`: its numbers, without a change."""

    dataset: str
    model: str
    base: tuple[Fact, ...]
    cards: tuple[Card, ...]

    @property
    def merged(self) -> list[Merged]:
        """Neighbours that would say the same are one."""
        numbered = groupby(enumerate(self.cards, 1), lambda one: replace(one[1], question=""))
        return [Merged(tuple(same)) for _, same in numbered]

    @property
    def gist(self) -> str:
        """How much smaller and faster at which loss: `10,700× smaller at −0.69 points; ...`; ""
        where no compressed model is within one percentage point."""
        groups = [card.group for card in self.cards[1:]]
        parts = [
            f"{change} at {_loss(group)}"
            for group, of in zip(groups, (_ratio, _faster), strict=False)
            if group is not None and not group.is_base and (change := of(group))
        ]
        return "; ".join(parts)


def answers(sweep: Sweep, rows: Iterable[Row]) -> list[Answer]:
    """One a (data set, model); none without results."""
    return [_answer(sweep, *setting, members) for setting, members in settings(rows).items()]


def _answer(sweep: Sweep, dataset: str, model: str, rows: list[Row]) -> Answer:
    questions = (
        ("Smallest without accuracy loss", smallest(rows, 0.0), 0.0, "smaller"),
        ("Smallest within one percentage point", smallest(rows), ONE_POINT, "smaller"),
        ("Fastest within one percentage point", fastest(rows), ONE_POINT, "faster"),
    )
    near = nearest(rows)
    base = base_of(rows)
    return Answer(
        dataset,
        model,
        tuple(facts(base, base)) if base else (),
        tuple(_card(sweep, *question, near, base) for question in questions),
    )


def base_of(rows: Iterable[Row]) -> Group | None:
    """Of one data set and model."""
    return next((group for group in groups(rows) if group.is_base), None)


def _card(
    sweep: Sweep,
    question: str,
    group: Group | None,
    limit: float,
    better: str,
    near: Group | None,
    base: Group | None,
) -> Card:
    if group is None:
        return Card(question, ("no measured model qualifies", *_nearest(near)))
    if group.is_base:
        return Card(question, _of_base(group, limit, better, near))
    cell = group.cell(limit)
    seed = f" (seed {cell.seed})" if len(group.rows) > 1 else ""
    command = content.export(sweep, cell.id)
    sentence = (
        Code(group.technique),
        f", {_numbers(group)}, {_gains(group)}. To export it: ",
        Code(command),
        f"{seed}.",
    )
    return Card(question, sentence, group, tuple(facts(group, base)), command, seed.strip(" ()"))


# --- in numbers ------------------------------------------------------------------------------


def facts(group: Group, base: Group | None = None) -> Iterator[Fact]:
    """Size, speed and accuracy; what was not measured is left out."""
    stored = group.stored_bytes
    yield _fact("size", of_size(stored), stored, _ratio(group))
    yield from _speed(group, base)
    accuracies = [row.accuracy for row in group.rows]
    change = "" if group.is_base else _points(group)
    yield _fact("accuracy", METRIC["accuracy"], mean(accuracies), change, deviation(accuracies))


def _fact(
    label: str, metric: Metric, value: float, change: str, spread: float | None = None
) -> Fact:
    shown, deviation = metric.show(value), metric.show_deviation(value, spread)
    return Fact(label, shown, metric.unit, change, deviation)


def _loss(group: Group) -> str:
    """`−0.69 points`, with the sign of the change."""
    shown = METRIC["accuracy_drop"].show(-group.drop)
    if float(shown) == 0:
        return "the same accuracy"
    sign = "\u2212" if group.drop > 0 else "+"
    return f"{sign}{shown.lstrip('-')} points"


def _ratio(group: Group) -> str:
    ratio = mean(row.stored_ratio for row in group.rows)
    return "" if group.is_base else times(ratio, "smaller", "larger")


def _speed(group: Group, base: Group | None) -> Iterator[Fact]:
    """As models are ranked: by their speedup, for which each was timed in turns with the base. A
    latency beside it is the base's divided by that, since the times of two runs, and so their
    order, are another matter; there is none where other machines timed the base."""
    change = _faster(group)
    took = _latency(base) / group.speedup if base and _same_machines(group, base) else math.nan
    if took == took:
        yield _fact("latency, batch 1", LATENCY, took, change)
    elif change:
        yield _fact("speedup, batch 1", SPEED, group.speedup, change)


def _faster(group: Group) -> str:
    return "" if group.is_base else times(group.speedup, "faster", "slower")


def _latency(group: Group) -> float:
    return mean(LATENCY.of(row) for row in group.rows)


def _same_machines(group: Group, other: Group) -> bool:
    return {row.machine for row in group.rows} == {row.machine for row in other.rows}


def times(ratio: float, better: str, worse: str) -> str:
    """`4.01× smaller`; "" for NaN."""
    if ratio != ratio or ratio <= 0:
        return ""
    shown = METRIC["stored_ratio"].show(max(ratio, 1 / ratio))
    return f"{shown}× {better if ratio >= 1 else worse}"


def _points(group: Group) -> str:
    if group.drop != group.drop:
        return ""
    drop = METRIC["accuracy_drop"].show(abs(group.drop))
    if float(drop) == 0:
        return "as the base"
    return f"{drop} points {'lower' if group.drop > 0 else 'higher'}"


# --- in words --------------------------------------------------------------------------------


def _of_base(base: Group, limit: float, better: str, near: Group | None) -> Sentence:
    lead = f"the base itself, {_numbers(base)}; no compressed model "
    if near is not None and near.within(limit):
        return (f"{lead}that qualifies is {better}.",)
    return (f"{lead}qualifies", *_nearest(near))


def _nearest(near: Group | None) -> Sentence:
    """How far the best of the others is from qualifying."""
    if near is None:
        return (".",)
    return ("; the nearest, ", Code(near.technique), f", is {_change(near)} its base.")


def _numbers(group: Group) -> str:
    accuracies = [row.accuracy for row in group.rows]
    accuracy = METRIC["accuracy"].show(mean(accuracies), deviation(accuracies))
    stored = of_size(group.stored_bytes).say(group.stored_bytes)
    seeds = f" (n = {len(accuracies)})" if len(accuracies) > 1 else ""
    return f"{accuracy} %{seeds} in {stored}"


def _change(group: Group) -> str:
    drop = METRIC["accuracy_drop"].show(abs(group.drop))
    side = "below" if group.drop > 0 else "above"
    return "as accurate as" if float(drop) == 0 else f"{drop} percentage points {side}"


def _gains(group: Group) -> str:
    ratio = METRIC["stored_ratio"].show(mean(row.stored_ratio for row in group.rows))
    speed = METRIC["speedup_all_batch1"].show(group.speedup)
    faster = f", speedup {speed} at batch 1" if speed else ""
    smaller = f", compression ratio {ratio}" if ratio else ""
    return f"{_change(group)} its base{smaller}{faster}"
