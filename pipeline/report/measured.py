"""A cell as each machine measured it: its training and one measurement, as one result.

A machine that measured a cell several times has the newest that was made as the sweep asks, else
the newest. Before measurements had files of their own, a cell had one, in its result.h5.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline import done, hardware, store
from pipeline.measure.series import KINDS
from pipeline.store import MeasurementEntry

REQUIRED = ("accuracy", "stored_bytes")
IN_RESULT = ""  # the name of the measurement in result.h5
TIMES = (*(f"{kind}/" for kind in KINDS), "test_set_seconds", "base_test_set_seconds")
# Facts that are of the machine that measured, in the place of those of the one that trained.
OF_MACHINE = (
    "machine",
    "hardware",
    "versions",
    "threads",
    "runtimes",
    "measured_at",
    "accuracy_of",
)
TRAINED_ON = "training_hardware"
CLASSIFIED_ON = "classified_on"  # where accuracy is of another machine than latency


@dataclass(frozen=True)
class Measurement:
    """`name`: of its file, IN_RESULT for the one in result.h5."""

    name: str
    facts: Mapping[str, Any]
    measured: Mapping[str, Any]

    @property
    def machine(self) -> str:
        return machine(self.facts)


def machine(facts: Mapping[str, Any]) -> str:
    """What the machine is called that measured."""
    described = facts.get("hardware") or {}
    return facts.get("machine") or hardware.machine_name(
        described.get("cpu"), described.get("cores")
    )


def in_result(result: store.Result) -> Measurement | None:
    """The measurement in result.h5, where there is one."""
    if "accuracy" not in result.measured:
        return None
    return Measurement(IN_RESULT, result.facts, result.measured)


def chosen(
    entries: Iterable[MeasurementEntry], wanted: Mapping[str, Any]
) -> dict[str, MeasurementEntry]:
    """Machine -> the measurement that is shown of it; `entries` are oldest first."""
    best: dict[str, MeasurementEntry] = {}
    fits: set[str] = set()
    for entry in entries:
        fit = done.outdated(entry.made_with, wanted) is None
        if fit or entry.machine not in fits:
            best[entry.machine] = entry
        if fit:
            fits.add(entry.machine)
    return best


def combined(
    result: store.Result, measurements: Sequence[Measurement]
) -> Iterator[tuple[Measurement, store.Result]]:
    """The result as each machine measured it, that of result.h5 first. What a machine could not
    measure, which had no images, is of the first one that could."""
    own = in_result(result)
    if own and not measurements:
        yield own, result
        return
    every = {m.machine: m for m in ([own] if own else [])}
    every |= {m.machine: m for m in measurements}
    # The same from a work root and from a report.
    ordered = sorted(every.values(), key=lambda m: (m.name != IN_RESULT, m.machine))
    complete = [m for m in ordered if "accuracy" in m.measured]
    for one in ordered:
        if "accuracy" in one.measured:
            yield one, _with(result, one)
        elif complete:
            yield one, _with(result, one, complete[0])


def _with(
    result: store.Result, one: Measurement, classified: Measurement | None = None
) -> store.Result:
    if one.name == IN_RESULT:
        return result
    lent = {} if classified is None else _without_times(classified.measured)
    static = {} if in_result(result) else result.measured
    facts = {**result.facts, TRAINED_ON: result.facts.get("hardware")}
    facts |= {name: one.facts[name] for name in OF_MACHINE if name in one.facts}
    facts["seconds"] = _sum(result.facts.get("seconds"), one.facts.get("seconds"))
    facts["phases"] = {**(one.facts.get("phases") or {}), **(result.facts.get("phases") or {})}
    if classified is not None:
        facts[CLASSIFIED_ON] = classified.machine
    elif (other := str(one.facts.get("accuracy_of", "")).rpartition("-")[0]) not in (
        "",
        one.machine,
    ):
        facts[CLASSIFIED_ON] = other
    return replace(result, facts=facts, measured={**static, **lent, **one.measured})


def _without_times(measured: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in measured.items() if not name.startswith(TIMES)}


def _sum(*seconds: float | None) -> float | None:
    known = [value for value in seconds if value is not None]
    return sum(known) if known else None
