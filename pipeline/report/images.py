"""Cells of one data set that were made of different images stand apart.

A folder's images are not in a cell's id, so its results can be of several generations of them. The
newest keep the data set's name; earlier ones get a name of their own, NAME-FINGERPRINT, as if they
were another data set: no mean, no comparison and no base is shared, and no number is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from pipeline.report.row import Row


def apart(rows: list[Row]) -> list[Row]:
    """The rows, those of other images than the newest with a data set's name of their own."""
    made_of = [_made_of(row) for row in rows]
    newest: dict[str, tuple[str, str]] = {}
    for row, (started, fingerprint) in zip(rows, made_of, strict=True):
        if fingerprint:
            before = newest.get(row.dataset, ("", ""))
            newest[row.dataset] = max(before, (started, fingerprint))
    return [
        _named(row, fingerprint, newest.get(row.dataset, ("", ""))[1])
        for row, (_, fingerprint) in zip(rows, made_of, strict=True)
    ]


def _made_of(row: Row) -> tuple[str, str]:
    """When it was started, and the fingerprint of its images; empty where it does not say."""
    started, fingerprint = (row.facts.get(name) for name in ("started", "dataset_fingerprint"))
    return str(started or ""), str(fingerprint or "")


def _named(row: Row, fingerprint: str, newest: str) -> Row:
    if not fingerprint or fingerprint == newest:
        return row
    name = row.dataset
    return replace(row, dataset=f"{name}-{fingerprint[:8]}", other_images_of=name)


def sentences(rows: Iterable[Row]) -> list[str]:
    """One a data set that has cells of several images."""
    others: dict[str, Counter[str]] = {}
    for row in rows:
        if row.other_images_of:
            others.setdefault(row.other_images_of, Counter())[row.dataset] += 1
    return [
        f"{name}: its images changed between cells; cells made from other images than the "
        f"newest are listed separately and enter no common mean, as {_counted(names)}."
        for name, names in others.items()
    ]


def _counted(names: Counter[str]) -> str:
    return ", ".join(f"{n} ({c} {'cell' if c == 1 else 'cells'})" for n, c in names.items())
