"""A cell as each machine measured it: its training and one measurement, as one result.

A machine that measured a cell several times has the newest that was made as the sweep asks, else
the newest. Before measurements had files of their own, a cell had one, in its result.h5.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pipeline import done, hardware, same_kind, store
from pipeline.measure.series import KINDS
from pipeline.store import MeasurementEntry

REQUIRED = ("accuracy", "stored_bytes")
IN_RESULT = ""  # the name of the measurement in result.h5
TIMES = (*(f"{kind}/" for kind in KINDS), "test_set_seconds", "base_test_set_seconds")
# What else the CPU decides, and nobody else's stands for; predictions are lent, their source named.
OF_CPU = ("integer_kernels", "integer_share", "runtimes/")
# Facts that are of the machine that measured, in the place of those of the one that trained.
OF_MACHINE = (
    "machine",
    "hardware",
    "versions",
    "threads",
    "runtimes",
    "measured_at",
    "accuracy_of",
    same_kind.BASE_ARTIFACT,
)
TRAINED_ON = "training_hardware"
CLASSIFIED_ON = "classified_on"  # where accuracy is of another machine than latency


AnyMeasurement = TypeVar("AnyMeasurement", "Measurement", MeasurementEntry)


@dataclass(frozen=True)
class Measurement:
    """`name`: of its file, IN_RESULT for the one in result.h5."""

    name: str
    facts: Mapping[str, Any]
    measured: Mapping[str, Any]

    @property
    def machine(self) -> str:
        return hardware.name_of(self.facts)

    @property
    def made_with(self) -> Mapping[str, Any]:
        """As in `pipeline.done`; nothing of what bench.py gave, and of earlier versions."""
        made = self.facts.get(done.MADE_WITH)
        return made if isinstance(made, dict) else {}


def in_result(result: store.Result) -> Measurement | None:
    """The measurement in result.h5, where there is one."""
    if "accuracy" not in result.measured:
        return None
    return Measurement(IN_RESULT, result.facts, result.measured)


def chosen(
    entries: Iterable[MeasurementEntry], wanted: Mapping[str, Any]
) -> list[MeasurementEntry]:
    """The measurement that is shown of each machine, and before it, where that one has times alone,
    the last of the same machine that has accuracy as well; `entries` are oldest first."""
    entries = list(entries)
    best = _of_machines(entries, wanted)
    whole = {e.machine: e for e in entries if done.is_whole(e.made_with)}
    times_alone = [m for m, entry in best.items() if not done.is_whole(entry.made_with)]
    lent = [whole[machine] for machine in times_alone if machine in whole]
    return [*lent, *best.values()]


def combined(
    result: store.Result, measurements: Sequence[Measurement], wanted: Mapping[str, Any]
) -> Iterator[tuple[Measurement, store.Result]]:
    """The result as each machine measured it, that of result.h5 first; of several of one machine,
    oldest first, as in `chosen`. What it could not measure, since it had no images, is of another
    one of the same machine, or else of the first machine that could."""
    own = in_result(result)
    if own and not measurements:
        yield own, result
        return
    every = [*([own] if own else []), *measurements]
    complete = _in_order(_of_machines((m for m in every if "accuracy" in m.measured), wanted))
    for one in _in_order(_of_machines(every, wanted)).values():
        if "accuracy" in one.measured:
            yield one, _with(result, one)
        elif complete:
            same = complete.get(one.machine)
            yield one, _with(result, one, same or next(iter(complete.values())))


def _of_machines(
    each: Iterable[AnyMeasurement], wanted: Mapping[str, Any]
) -> dict[str, AnyMeasurement]:
    """By machine, the newest that was made as wanted, else the newest; `each` oldest first."""
    best: dict[str, AnyMeasurement] = {}
    fits: set[str] = set()
    for one in each:
        fit = done.outdated(one.made_with, wanted) is None
        if fit or one.machine not in fits:
            best[one.machine] = one
        if fit:
            fits.add(one.machine)
    return best


def _in_order(best: Mapping[str, Measurement]) -> dict[str, Measurement]:
    """That of result.h5 first, then by name: the same from a work root and from a report."""
    return dict(sorted(best.items(), key=lambda item: (item[1].name != IN_RESULT, item[0])))


def _with(
    result: store.Result, one: Measurement, classified: Measurement | None = None
) -> store.Result:
    if one.name == IN_RESULT:
        return result
    lent = {} if classified is None else _lent(classified, one.machine)
    static = {} if in_result(result) else result.measured
    facts = {**result.facts, TRAINED_ON: result.facts.get("hardware")}
    facts |= {name: one.facts[name] for name in OF_MACHINE if name in one.facts}
    facts["seconds"] = _sum(result.facts.get("seconds"), one.facts.get("seconds"))
    facts["phases"] = {**(one.facts.get("phases") or {}), **(result.facts.get("phases") or {})}
    other = _borrowed_of(one) if classified is None else classified.machine
    if other not in ("", one.machine):
        facts[CLASSIFIED_ON] = other
    return replace(result, facts=facts, measured={**static, **lent, **one.measured})


def _borrowed_of(one: Measurement) -> str:
    """The machine that its predictions are of, "" for itself. They are reused between CPUs of the
    same flags alone, so a name of an earlier version means what it means here."""
    name = str(one.facts.get(same_kind.ACCURACY_OF, "")).rpartition("-")[0]
    return hardware.name_of({**one.facts, "machine": name}) if name else ""


def _lent(classified: Measurement, to: str) -> dict[str, Any]:
    own = TIMES if classified.machine == to else (*TIMES, *OF_CPU)
    return {n: value for n, value in classified.measured.items() if not n.startswith(own)}


def _sum(*seconds: float | None) -> float | None:
    known = [value for value in seconds if value is not None]
    return sum(known) if known else None
