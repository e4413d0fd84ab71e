"""Each technique beside its controls at the same operating point, seed by seed.

A control is compared with every technique that has its operating point: the part of the parameters
that pruning kept, or the width and the model of the student. One without an operating point (the
base, trained for longer) is compared with all that go on from the base's weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report import significance
from pipeline.report.answer import Group, groups, settings
from pipeline.report.document import Column, Section, Sentence, Table, Value, spread, table_of
from pipeline.report.row import Row
from pipeline.sweep import Cell, Sweep
from pipeline.techniques import PLAIN, about

COLUMNS = (
    Column("technique"),
    Column("control"),
    Column("n"),
    Column("technique", "accuracy", "accuracy, %"),
    Column("control", "accuracy", "accuracy, %"),
    Column("difference, points", "difference"),
    Column("technique", "parameters", "parameters, M"),
    Column("control", "parameters", "parameters, M"),
    Column("technique", "epochs", "epochs of training"),
    Column("control", "epochs", "epochs of training"),
)
ABOUT: Sentence = (
    "Each technique is compared with its controls at the same operating point. The difference is "
    "the technique's accuracy minus the control's: above 0, the technique is better.",
)
NOTES: tuple[Sentence, ...] = (
    (
        "The difference is the mean over the n seeds that both have, each with the same seed; "
        "intervals are Student's t, over these differences. "
        "Controls are not quantized.",
    ),
    (
        "Epochs of training include those of the base where the weights start from it, but not a "
        "teacher's. A control without an operating point (the base trained for longer) is compared "
        "with every technique that continues from the base's weights.",
    ),
)


@dataclass(frozen=True)
class Compared:
    """Two techniques of one data set and model: their rows, of the same seeds in the same order."""

    technique: Group
    control: Group

    @property
    def differences(self) -> list[float | None]:
        return significance.differences(self.technique, self.control)


def section(sweep: Sweep, rows: Sequence[Row]) -> Section | None:
    """None where no technique has a control."""
    pairs = {setting: list(compared(sweep, each)) for setting, each in settings(rows).items()}
    tables = tuple(_tables(sweep, pairs))
    if not tables:
        return None
    both = ((pair.technique, pair.control) for each in pairs.values() for pair in each)
    about = (ABOUT, *significance.sentences(both, refined(sweep, rows)))
    notes = (*NOTES, *((text,) for text in _starts(sweep, pairs)))
    return Section("controls", "Techniques and their controls", about, tables, notes)


def compared(sweep: Sweep, rows: Iterable[Row]) -> Iterator[Compared]:
    """The pairs among the rows of one data set and model, by technique, then by control."""
    every = groups(rows)
    cell = {group.technique: sweep.by_id[group.rows[0].id] for group in every}
    controls = [group for group in every if group.is_control]
    for group in every:
        if group.is_base or group.is_control:
            continue
        for control in controls:
            if belong(cell[group.technique], cell[control.technique]):
                yield from _paired(group, control)


def refined(sweep: Sweep, rows: Sequence[Row]) -> Iterator[significance.Refined]:
    """Refined techniques beside the plain one at the same operating point."""
    for members in settings(rows).values():
        every = groups(members)
        for mine, plain in itertools.product(every, every):
            if PLAIN.get(mine.family) != plain.family:
                continue
            cells = [sweep.by_id[group.rows[0].id] for group in (mine, plain)]
            if operating_point(cells[0]) == operating_point(cells[1]):
                for pair in _paired(mine, plain):
                    trained = [all_epochs(sweep, cell) for cell in cells]
                    yield significance.Refined(pair.technique, pair.control, *trained)


def belong(technique: Cell, control: Cell) -> bool:
    """Whether the control is one for this technique, at this operating point."""
    point = operating_point(control)
    if point:
        return point == operating_point(technique)
    return not starts_anew(technique) and epochs(technique) > technique.recipe.epochs


def operating_point(cell: Cell) -> dict[str, Any]:
    """What a technique is to leave of the network; the last stage that sets it decides."""
    point: dict[str, Any] = {}
    for stage in cell.stages:
        point |= about(stage.settings).operating_point()
    return point


def epochs(cell: Cell) -> int:
    """Of training that the weights at the end have gone through in the cell and in its base: since
    they were drawn, or since the base took them from elsewhere."""
    count = cell.recipe.epochs
    for stage in cell.stages:
        settings = about(stage.settings)
        count = (0 if settings.starts_fresh() else count) + settings.epochs_of(cell.recipe)
    return count


def all_epochs(sweep: Sweep, cell: Cell) -> int:
    """The same, with those of the bases `before`, where the weights go on from them."""
    earlier = () if starts_anew(cell) else before(sweep, cell)
    return epochs(cell) + sum(other.recipe.epochs for other in earlier)


def before(sweep: Sweep, cell: Cell) -> list[Cell]:
    """The base that a cell's base started from, the one before that, and so on, as far as they are
    cells of the sweep."""
    bases: list[Cell] = []
    while (start := (bases or [cell])[-1].model.start) and start.cell in sweep.by_id:
        bases.append(sweep.by_id[start.cell])
    return bases


def starts_anew(cell: Cell) -> bool:
    """Whether a stage begins with fresh weights, whatever the base's are."""
    return any(about(stage.settings).starts_fresh() for stage in cell.stages)


def _paired(technique: Group, control: Group) -> Iterator[Compared]:
    """Of the seeds that both have; nothing where there are none."""
    others = {row.seed: row for row in control.rows}
    mine = [row for row in technique.rows if row.seed in others]
    if mine:
        yield Compared(Group(tuple(mine)), Group(tuple(others[row.seed] for row in mine)))


def _starts(sweep: Sweep, pairs: Mapping[tuple[str, str], Sequence[Compared]]) -> Iterator[str]:
    """What epochs include, or lack, where bases start from other weights."""
    for setting, members in pairs.items():
        cell = sweep.by_id[members[0].technique.rows[0].id] if members else None
        if cell is None or cell.model.start is None:
            continue
        others = before(sweep, cell)
        known = [f"{other.recipe.epochs} epochs on {other.dataset.name}" for other in others]
        included = f"include {' and '.join(known)} before these" if known else ""
        is_all = bool(others) and others[-1].model.start is None
        lacking = "" if is_all else "lack those before their first weights, which are not known"
        yield (
            f"On {', '.join(setting)}, bases start from other weights. Epochs of training "
            f"{', but '.join(filter(None, (included, lacking)))}, where the weights go on from the "
            "base's; what begins with fresh weights has none of them, so its budget is smaller."
        )


def _tables(sweep: Sweep, pairs: Mapping[tuple[str, str], Sequence[Compared]]) -> Iterator[Table]:
    for setting, members in pairs.items():
        if members:
            yield table_of(*setting, COLUMNS, [_line(sweep, pair) for pair in members])


def _line(sweep: Sweep, pair: Compared) -> tuple[Value, ...]:
    both = (pair.technique, pair.control)
    n = len(pair.technique.rows)
    trained = [all_epochs(sweep, sweep.by_id[group.rows[0].id]) for group in both]
    return (
        Value(pair.technique.technique),
        Value(pair.control.technique),
        Value(str(n), n),
        *(spread([row.accuracy for row in group.rows], "accuracy") for group in both),
        spread(pair.differences, "difference"),
        *(spread([row.parameters for row in group.rows], "parameters") for group in both),
        *(spread([count], "epochs") for count in trained),
    )
