"""How many channels techniques leave in each layer of the base."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy

from pipeline.report.figures import chosen, heat
from pipeline.report.figures.chosen import Read
from pipeline.report.figures.heat import Heat
from pipeline.report.figures.look import Drawn
from pipeline.report.row import Row

CAPTION = (
    "Output channels in each layer, in the order of the network, mean over seeds ({n}); colour is "
    "the share of the base's. Only techniques with fewer parameters and the same layers are shown."
)


def draw(rows: Sequence[Row], read: Read) -> Drawn | None:
    """None where no technique has fewer channels than its base."""
    smaller = _smaller(rows)
    names = chosen.techniques(smaller, chosen.room(rows, *heat.MOST_LINES))
    panels: list[Heat] = []
    counts: list[int] = []
    drawn: set[str] = set()
    for setting, members in chosen.panels(rows).items():
        base = _channels(chosen.bases(members), read)
        lines = (seeds for name in names if (seeds := chosen.seeds(members, name)))
        left = {chosen.line(seeds[0]): _channels(seeds, read) for seeds in lines}
        left = {name: channels for name, channels in left.items() if _fewer(channels, base)}
        if left:
            panels.append(_heat(", ".join(setting), base, left))
            counts += map(len, left.values())
            drawn |= {name for name, _ in left}
    if not panels:
        return None
    canvas = heat.draw(
        panels, "cividis", (0.0, 1.0), "layer", "left, %", lambda share: f"{100 * share:g}"
    )
    caption = CAPTION.format(n=chosen.several(counts))
    left_out = chosen.left_out(
        [r for r in rows if r.is_base] + smaller, [n for n in names if n in drawn]
    )
    return Drawn(
        canvas, "Channels left in each layer", f"{caption} {left_out}".strip(), _alt(panels)
    )


def _smaller(rows: Iterable[Row]) -> list[Row]:
    """Those with fewer parameters than a base: which channels they have need not be read of
    others."""
    rows = list(rows)
    most: dict[tuple[str, str], int] = {}
    for row in rows:
        if row.is_base and row.parameters is not None:
            most[row.setting] = row.parameters
    return [
        row
        for row in rows
        if not row.is_base
        and row.parameters is not None
        and row.parameters < most.get(row.setting, 0)
    ]


def _channels(rows: Iterable[Row], read: Read) -> list[numpy.ndarray]:
    """[seeds] of channels [layers]; of seeds with as many layers as the first."""
    every = [e.channels for row in rows if (e := read(row.id)) and e.channels is not None]
    return [channels for channels in every if len(channels) == len(every[0])]


def _fewer(left: Sequence[numpy.ndarray], base: Sequence[numpy.ndarray]) -> bool:
    if not left or not base or len(left[0]) != len(base[0]):
        return False
    return bool((numpy.mean(left, axis=0) < numpy.mean(base, axis=0)).any())


def _heat(
    heading: str, base: list[numpy.ndarray], left: dict[chosen.Line, list[numpy.ndarray]]
) -> Heat:
    means = {("base", "base"): numpy.mean(base, axis=0)}
    means |= {name: numpy.mean(channels, axis=0) for name, channels in left.items()}
    values = numpy.array(list(means.values()))
    return Heat(
        heading,
        tuple(shown for _, shown in means),
        tuple(str(i + 1) for i in range(values.shape[1])),
        values / numpy.maximum(values[0], 1),
        tuple(tuple(f"{count:.0f}" for count in line) for line in values),
    )


def _alt(panels: Iterable[Heat]) -> str:
    """How much is left in the layer that loses most, of each technique."""
    sentences = [
        f"On {panel.heading}: "
        + ", ".join(
            f"{name} {100 * values.min():.0f} %"
            for name, values in zip(panel.lines[1:], panel.values[1:], strict=True)
        )
        for panel in panels
    ]
    return f"Least share of the base's channels that is left in a layer. {'. '.join(sentences)}."
