"""Cells of one data set that were made of different images stand apart.

A folder's images are not in a cell's id, so its results can be of several generations of them. The
newest keep the data set's name; earlier ones get a name of their own, NAME-FINGERPRINT, as if they
were another data set: no mean, no comparison and no base is shared, and no number is lost.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

APART = "other_images_of"  # a column: the data set's name, None for a row under its own name


def apart(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with APART, and with the data set's name changed where it is not None."""
    made_of = [_made_of(row) for row in rows]
    newest: dict[str, tuple[str, str]] = {}
    for row, (started, fingerprint) in zip(rows, made_of, strict=True):
        if fingerprint:
            before = newest.get(row["dataset"], ("", ""))
            newest[row["dataset"]] = max(before, (started, fingerprint))
    return [
        _named(row, fingerprint, newest.get(row["dataset"], ("", ""))[1])
        for row, (_, fingerprint) in zip(rows, made_of, strict=True)
    ]


def _made_of(row: dict[str, Any]) -> tuple[str, str]:
    """When it was started, and the fingerprint of its images; empty where it does not say."""
    facts = json.loads(row["facts"])
    return str(facts.get("started") or ""), str(facts.get("dataset_fingerprint") or "")


def _named(row: dict[str, Any], fingerprint: str, newest: str) -> dict[str, Any]:
    if not fingerprint or fingerprint == newest:
        return {**row, APART: None}
    name = row["dataset"]
    return {**row, "dataset": f"{name}-{fingerprint[:8]}", APART: name}


def sentences(rows: Iterable[dict[str, Any]]) -> list[str]:
    """One a data set that has cells of several images; rows as of the frame, or of `--json`."""
    others: dict[str, Counter[str]] = {}
    for row in rows:
        if row[APART]:
            others.setdefault(row[APART], Counter())[row["dataset"]] += 1
    return [
        f"{name}: its images changed between cells; those made of other images than the newest "
        f"stand apart and are in no mean with them, as {_counted(names)}."
        for name, names in others.items()
    ]


def _counted(names: Counter[str]) -> str:
    return ", ".join(f"{n} ({c} {'cell' if c == 1 else 'cells'})" for n, c in names.items())
