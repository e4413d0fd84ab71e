"""Published results, to compare with: one data file (published.csv), a source in each line.

Bases differ from paper to paper, so a published model is compared by its drop against its own base.
Numbers that were read second-hand are marked so, there and wherever they are shown.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from pipeline.paths import published_results
from pipeline.report.document import Column, Section, Sentence, Table, Value, spread
from pipeline.report.row import Row
from pipeline.report.study import BASE, STUDY

SAME_IMAGES = {"cifar10-jpeg": "cifar10"}  # but for the compression of its files
STUDY_NAME = "the study"
SECOND_HAND = "second-hand"


@dataclass(frozen=True)
class Anchor:
    """One published model; None for what its source does not state. Accuracy in %, `drop` in
    points against its own base, `relative_...` as a part of its base's."""

    method: str
    network: str
    dataset: str
    bytes: float | None
    parameters: float | None
    macs: float | None
    relative_parameters: float | None
    relative_macs: float | None
    accuracy: float | None
    base_accuracy: float | None
    stated_drop: float | None
    source: str
    second_hand: bool
    note: str

    @property
    def drop(self) -> float | None:
        """As stated, else from the two accuracies."""
        if self.stated_drop is not None or self.accuracy is None or self.base_accuracy is None:
            return self.stated_drop
        return self.base_accuracy - self.accuracy

    @property
    def is_study(self) -> bool:
        return self.source == STUDY_NAME


@cache
def every() -> tuple[Anchor, ...]:
    """All lines of the data file, in its order."""
    with open(published_results(), encoding="utf-8", newline="") as file:
        return tuple(_anchor(line) for line in csv.DictReader(file))


def _anchor(line: dict[str, str]) -> Anchor:
    def number(key: str) -> float | None:
        return float(line[key]) if line[key] else None

    return Anchor(
        line["method"],
        line["network"],
        line["dataset"],
        number("bytes"),
        number("parameters"),
        number("macs"),
        number("relative_parameters"),
        number("relative_macs"),
        number("accuracy"),
        number("base_accuracy"),
        number("drop"),
        line["source"],
        {"": False, "yes": True}[line["second_hand"]],
        line["note"],
    )


def anchors(dataset: str) -> list[Anchor]:
    """The published results on a data set, those of the study first."""
    name = SAME_IMAGES.get(dataset, dataset)
    return [*_of_study(dataset), *(anchor for anchor in every() if anchor.dataset == name)]


def _of_study(dataset: str) -> Iterator[Anchor]:
    study = STUDY.get(dataset, {})
    for name, row in study.items():
        if name != BASE:
            yield Anchor(
                name,
                "VGG-16",
                dataset,
                row.stored_bytes,
                None,
                None,
                None,
                None,
                100 * row.accuracy,
                100 * study[BASE].accuracy,
                None,
                STUDY_NAME,
                False,
                "",
            )


# --- as tables -------------------------------------------------------------------------------

COLUMNS = (
    Column("method"),
    Column("network"),
    Column("accuracy, %", "accuracy"),
    Column("base, %", "base_accuracy"),
    Column("drop, points", "accuracy_drop"),
    Column("stored size, MB", "stored_bytes"),
    Column("parameters, M", "parameters"),
    Column("MACs, M", "macs"),
    Column("parameters, of its base, %", "share_of_base"),
    Column("MACs, of its base, %", "share_of_base"),
    Column("source"),
)
Lines = tuple[tuple[Value, ...], ...]
ABOUT: Sentence = (
    "Results of others on the same data, each with its own base and recipe; compare the drop, not "
    "the accuracy. Those with a stored size and a base are in the figure.",
)
NOTES: tuple[Sentence, ...] = (
    (
        "Empty: not stated in the source. Second-hand: read in another publication than the one "
        "that is named.",
    ),
)


def section(rows: Iterable[Row]) -> Section | None:
    """None where nothing is known of the data sets of these rows."""
    names = dict.fromkeys(row.dataset for row in rows)
    tables = tuple(
        Table(name, name, *_known(lines), dataset=name) for name in names if (lines := _lines(name))
    )
    return Section("published", "Published results", (ABOUT,), tables, NOTES) if tables else None


def _known(lines: Lines) -> tuple[tuple[Column, ...], Lines]:
    """The columns in which a line has something, and the lines with these alone."""
    kept = [i for i in range(len(COLUMNS)) if any(line[i].text for line in lines)]
    return tuple(COLUMNS[i] for i in kept), tuple(tuple(line[i] for i in kept) for line in lines)


def _lines(dataset: str) -> Lines:
    name = SAME_IMAGES.get(dataset, dataset)
    return tuple(map(_line, (anchor for anchor in every() if anchor.dataset == name)))


def _line(anchor: Anchor) -> tuple[Value, ...]:
    hints = [anchor.source, anchor.note, SECOND_HAND if anchor.second_hand else ""]
    return (
        Value(anchor.method),
        Value(anchor.network),
        spread([_share(anchor.accuracy)], "accuracy"),
        spread([_share(anchor.base_accuracy)], "base_accuracy"),
        spread([_share(anchor.drop)], "accuracy_drop"),
        spread([anchor.bytes], "stored_bytes"),
        spread([anchor.parameters], "parameters"),
        spread([anchor.macs], "macs"),
        spread([anchor.relative_parameters], "share_of_base"),
        spread([anchor.relative_macs], "share_of_base"),
        Value("; ".join(hint for hint in hints if hint)),
    )


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100
