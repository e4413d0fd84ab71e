"""How alike compressed networks and their bases are, layer by layer, beside two bases of different
fresh weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pipeline.report.figures import chosen, look
from pipeline.report.figures.chosen import Read
from pipeline.report.figures.look import Drawn
from pipeline.report.row import Row
from pipeline.techniques import ANEW

LABEL = {"cka": "linear CKA", "svcca": "mean SVCCA (99 % of variance)"}
MOST_TECHNIQUES = 8
PANEL_INCHES = (4.9, 3.3)
BAND: dict[str, Any] = {"color": "#BBBBBB", "alpha": 0.6, "linewidth": 0, "zorder": 1}
Setting = tuple[str, str]


@dataclass(frozen=True)
class Alike:
    """Of a technique, by measure: [seeds, layers]."""

    technique: str
    family: str
    values: dict[str, numpy.ndarray]


def draw(rows: Sequence[Row], read: Read) -> Drawn | None:
    """None where nothing was compared with its base."""
    names = chosen.techniques([r for r in rows if r.technique != ANEW], MOST_TECHNIQUES)
    by_setting: dict[Setting, list[Alike]] = {}
    for setting, members in chosen.panels(rows).items():
        similarities = list(_alike(members, [*names, ANEW], read))
        if any(each.technique != ANEW for each in similarities):
            by_setting[setting] = similarities
    if not by_setting:
        return None
    marks = _marks(rows, [each for members in by_setting.values() for each in members])
    width = PANEL_INCHES[0] * len(LABEL)
    canvas, axes = look.grid(
        len(by_setting) * len(LABEL),
        len(LABEL),
        PANEL_INCHES,
        look.legend_rows(list(marks), width),
        width,
    )
    panels = [(setting, key) for setting in by_setting for key in LABEL]
    for axis, (setting, key) in zip(axes, panels, strict=True):
        look.heading(axis, ", ".join(setting))
        _panel(axis, by_setting[setting], key, marks)
    look.legend(canvas, marks)
    left_out = chosen.left_out([r for r in rows if r.technique != ANEW], names)
    caption = f"{_caption(by_setting)} {left_out}".strip()
    return Drawn(canvas, "Similarity to the base, by layer", caption, _alt(by_setting))


def _alike(rows: Sequence[Row], names: Iterable[str], read: Read) -> Iterator[Alike]:
    for name in names:
        seeds = chosen.seeds(rows, name)
        similarities = [e.similarity for row in seeds if (e := read(row.id)) and e.similarity]
        same = [each for each in similarities if len(each["cka"]) == len(similarities[0]["cka"])]
        if same:
            values = {key: numpy.array([each[key] for each in same]) for key in LABEL}
            yield Alike(name, seeds[0].family, values)


def _marks(rows: Sequence[Row], every: Sequence[Alike]) -> dict[str, dict]:
    """Of each technique, as in other figures; where a family has several operating points here,
    one of their own. The band comes last."""
    families = {each.technique: each.family for each in every if each.technique != ANEW}
    own = len({*families.values()}) < len(families)
    looks = look.looks_of(families, rows) if own else look.looks(rows)
    marks = {
        name: {
            **looks[name if own else family],
            "markersize": 0.6 * looks[name if own else family]["markersize"],
            "linewidth": 1.2,
            "linestyle": look.dashes(family),
        }
        for name, family in families.items()
    }
    band = {ANEW: {"color": BAND["color"], "linewidth": 6, "linestyle": "solid"}}
    return marks | (band if any(each.technique == ANEW for each in every) else {})


def _panel(axis: Axes, members: Sequence[Alike], key: str, marks: dict) -> None:
    for each in members:
        values = each.values[key]
        x = numpy.arange(1, values.shape[1] + 1)
        if each.technique == ANEW:
            low, high = (f(values, axis=0) for f in (numpy.nanmin, numpy.nanmax))
            axis.fill_between(x, low - 0.01, high + 0.01, **BAND)
        else:
            axis.plot(x, numpy.mean(values, axis=0), **marks[each.technique])
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axis.set_xlabel("layer")
    axis.set_ylabel(LABEL[key])


# --- in words --------------------------------------------------------------------------------


def _caption(by_setting: dict[Setting, list[Alike]]) -> str:
    every = [each for members in by_setting.values() for each in members]
    seeds = [len(each.values["cka"]) for each in every]
    sentences = [
        "Each layer's output in the compressed network and in its base, on held-out images: linear "
        "CKA with the unbiased estimate of HSIC, and the mean canonical correlation of the "
        "directions with 99 % of the variance; 1 is the same, up to a rotation (CKA) or a linear "
        f"map (SVCCA). Mean over seeds ({chosen.several(seeds)}); the last layer is the classes."
    ]
    if any(each.technique == ANEW for each in every):
        sentences.append(
            f"The grey band ({ANEW}, from the least to the most similar seed) is what two bases "
            "that were trained from other fresh weights have in common: above it, a network is "
            "nearer to its base than chance makes another one."
        )
    return " ".join(sentences)


def _alt(by_setting: dict[Setting, list[Alike]]) -> str:
    sentences = []
    for setting, members in by_setting.items():
        least = ", ".join(
            f"{each.technique} {numpy.nanmean(each.values['cka'], axis=0).min():.2f}"
            for each in members
        )
        sentences.append(f"Least CKA of a layer on {', '.join(setting)}: {least}.")
    return " ".join(["Similarity of each layer to that of the base.", *sentences])
