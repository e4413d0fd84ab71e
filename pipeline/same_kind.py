"""What is reused of an earlier measurement of an artifact on the same kind of CPU.

Predictions are decided by the artifact, its base's, the images, the runtime's version, and the
instructions that the CPU has; times are of each machine. So whatever is not a time is taken from
the earliest measurement in which all of these were the same, and the new one records which. What
runs on a GPU is measured each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import runtimes, store
from pipeline.errors import Corrupt
from pipeline.measure.series import KINDS
from pipeline.paths import CellPaths

if TYPE_CHECKING:
    from pipeline.store import MeasurementEntry

# In facts: the name of the measurement that predictions are from, where it is an earlier one.
ACCURACY_OF = "accuracy_of"
# Facts that decide predictions, beside those of the machine.
BASE_ARTIFACT, IMAGES = "base_artifact", "dataset_fingerprint"


@dataclass(frozen=True)
class Known:
    """`values` of the measurement `name`, by their names in result.h5; no times among them."""

    name: str
    values: dict[str, Any]


def known(
    cell: CellPaths,
    entries: Iterable[MeasurementEntry],
    facts: Mapping[str, Any],
    wanted: Mapping[str, Any],
) -> Known | None:
    """`entries`: whole measurements of the artifact that is there, oldest first. `facts`: what the
    new measurement will record of the machine; `wanted`: as `done.record`."""
    for entry in entries:
        if not _has_all(wanted, entry.made_with):
            continue
        try:
            earlier = store.read_result(entry.path, entry.sha256, with_history=False)
        except (Corrupt, FileNotFoundError):
            continue
        whole = earlier.id == cell.id and "predictions" in earlier.measured
        if whole and _decides(earlier.facts, wanted) == _decides(facts, wanted):
            cpu_runtimes = runtimes.on_cpu(wanted["measure"]["runtimes"])
            taken = {n: v for n, v in earlier.measured.items() if _is_taken(n, cpu_runtimes)}
            return Known(entry.name, taken)
    return None


def _has_all(wanted: Mapping[str, Any], made: Mapping[str, Any]) -> bool:
    """Whether what was measured has all that is requested now, apart from times."""
    requested, had = wanted["measure"], made.get("measure")
    if not isinstance(had, dict):  # of a machine without netpress
        return False
    keys = ("measurement", "test_images")
    same = all(made.get(key) == wanted[key] for key in keys)
    same = same and had.get("simulated_seconds") == requested.get("simulated_seconds")
    return same and {*runtimes.on_cpu(requested["runtimes"])} <= {*had.get("runtimes", ())}


def _decides(facts: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[Any, ...]:
    """What of the machine, the software and the inputs decides predictions; equal to nothing where
    a part of it is not known."""
    described, versions = facts.get("hardware") or {}, facts.get("versions") or {}
    named = (*runtimes.on_cpu(wanted["measure"]["runtimes"]), runtimes.REFERENCE)
    parts = (
        facts.get(BASE_ARTIFACT),
        facts.get(IMAGES),
        described.get("machine"),
        *(versions.get(runtimes.get(name).PACKAGE) for name in named),
    )
    flags = described.get("flags")
    return (object(),) if None in parts or flags is None else (*parts, *sorted(flags))


def _is_taken(name: str, cpu_runtimes: Sequence[str]) -> bool:
    """Of a measured value: whether it is no time."""
    kind, _, rest = name.partition("/")
    if kind in KINDS or name.endswith("test_set_seconds"):
        return False
    return kind != "runtimes" or rest.partition("/")[0] in cpu_runtimes
