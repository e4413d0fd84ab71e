"""The techniques of a sweep: built-in chains, `define`, and the operating points of `grid`."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from pipeline.strict_yaml import Key, nearest, shown
from pipeline.sweep.cell import Stage
from pipeline.sweep.file import MAX_CELLS, Source, refuse_twins
from pipeline.sweep.settings import strictly

if TYPE_CHECKING:
    from pipeline.catalog import Chain


ALL = "all"  # in `tune`: each technique that goes on training what it is given
RATE = "learning_rate_factor"


@dataclass(frozen=True)
class _Step:
    """A stage as it is written, before its settings are checked and expanded."""

    stage: str
    written: dict[str, Any]
    at: Key


@dataclass(frozen=True)
class Technique:
    label: str
    family: str
    stages: tuple[Stage, ...]
    at: Key  # where the sweep file requests it
    tuned: str | None = None  # the operating point, of which this is one candidate


def resolve_techniques(source: Source) -> list[Technique]:
    """Every technique and operating point of the sweep, resolved once."""
    config, built_in = source.config, source.catalog.techniques
    chains = {name: _defined(source, name) for name in config.define}
    for key, axes in (("grid", config.grid), ("tune", config.tune)):
        for family in axes:
            if family not in config.techniques and (key, family) != ("tune", ALL):
                raise source.error(
                    (key, family),
                    f"{shown(family)} is not in `techniques`; {nearest(family, config.techniques)}",
                )
    techniques: list[Technique] = []
    for i, name in enumerate(config.techniques):
        at = ("techniques", i)
        source.known(at, "technique", name, {*built_in, *chains}, "techniques")
        chain = chains[name] if name in chains else _built_in(built_in[name], at)
        techniques += _points(source, name, chain, at)
    if ALL in {*config.tune} - {*config.techniques} and not any(t.tuned for t in techniques):
        raise source.error(("tune", ALL), "no technique here goes on training what it is given")
    _refuse_same(source, techniques)
    return techniques


def _built_in(chain: Chain, at: Key) -> list[_Step]:
    return [_Step(name, dict(written), at) for step in chain for name, written in step.items()]


def _defined(source: Source, name: str) -> list[_Step]:
    """The chain under `define: NAME`, a list of `- stage: {settings}`, checked to its end."""
    at, chain = ("define", name), source.config.define[name]
    source.check_label(at, name)
    if name in source.catalog.techniques:
        raise source.error(at, "is a technique that netpress has; define it under another name")
    if not isinstance(chain, list) or not chain:
        raise source.error(at, "expected a list of stages, such as `- finetune: {epochs: 5}`")
    steps = [_step(source, (*at, i), step) for i, step in enumerate(chain)]
    _resolve(source, steps)  # also where no cell uses it
    return steps


def _step(source: Source, at: Key, step: Any) -> _Step:
    if isinstance(step, str):
        step = {step: {}}
    if not isinstance(step, dict) or len(step) != 1:
        raise source.error(
            at, "expected one stage and its settings, such as `- finetune: {epochs: 5}`"
        )
    [(stage, written)] = step.items()
    if stage not in source.catalog.stages:
        raise source.error(
            (*at, stage), f"unknown stage {shown(stage)}; {nearest(stage, source.catalog.stages)}"
        )
    return _Step(stage, {} if written is None else written, (*at, stage))


def _resolve(source: Source, steps: Sequence[_Step]) -> tuple[Stage, ...]:
    """Settings checked and filled in; a stage that stands for several becomes them."""
    stages: list[Stage] = []
    for step in steps:
        settings = source.document.check(step.at, source.catalog.stages[step.stage], step.written)
        if stages and source.catalog.discards(settings):
            raise source.error(
                step.at,
                f"{step.stage} starts from another network, so the stages before it would have no "
                "effect; expected it first",
            )
        expand = source.catalog.expanders.get(step.stage)
        for name, expanded in expand(settings) if expand else [(step.stage, settings)]:
            if not isinstance(expanded, BaseModel):
                expanded = strictly(source.catalog.stages[name], expanded)
            version = source.catalog.versions.get(name, 1)
            plugins = source.catalog.of_stage(name, expanded)
            stages.append(Stage(name, expanded, version, plugins=plugins))
    return tuple(stages)


def _points(source: Source, family: str, chain: list[_Step], at: Key) -> Iterator[Technique]:
    """The technique, or one for each operating point requested by `grid`, and of each of them one
    for each candidate requested by `tune`."""
    axes = {key: _axes(source, key, family, chain) for key in ("grid", "tune")}
    for key in set(axes["grid"]) & set(axes["tune"]):
        raise source.error(("tune", family, key), "is in `grid`, too; expected it in one of them")
    if math.prod(len(values) for each in axes.values() for values in each.values()) > MAX_CELLS:
        raise source.error(("grid", family), f"has more than {MAX_CELLS:,} points; leave some out")
    for point in _products(axes["grid"]):
        for candidate in _products(axes["tune"]):
            label = "-".join([family, *map(_spelled, (*point.values(), *candidate.values()))])
            stages = _at_point(source, family, chain, {**point, **candidate})
            tuned = "-".join([family, *map(_spelled, point.values())]) if candidate else None
            yield Technique(label, family, stages, at, tuned)


def _products(axes: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """One empty point where there are no axes."""
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _axes(source: Source, key: str, family: str, chain: list[_Step]) -> dict[str, list[Any]]:
    """`grid: FAMILY:` or `tune: FAMILY:` checked: {"prune.parameters_kept": [0.5, 0.25]}; empty
    where the file has none."""
    by_family: dict[str, Any] = getattr(source.config, key)
    if family not in by_family:
        return _rates_of_all(source, family, chain) if key == "tune" and ALL in by_family else {}
    axes, at = by_family[family], (key, family)
    if not isinstance(axes, dict) or not axes:
        raise source.error(at, "expected `stage.setting: [values]`")
    settings = source.catalog.stages
    valid = {f"{step.stage}.{name}" for step in chain for name in settings[step.stage].model_fields}
    for name, values in axes.items():
        if name not in valid:
            raise source.error(
                (*at, name), f"no stage of {family!r} has it; {nearest(name, valid)}"
            )
        if not isinstance(values, list) or not values:
            raise source.error((*at, name), "expected a list of values, at least one")
        refuse_twins(source.document, (*at, name), values)
        _check_axis(source, (*at, name), chain, values)
    return axes


def _rates_of_all(source: Source, family: str, chain: list[_Step]) -> dict[str, list[Any]]:
    """`tune: {all: {learning_rate_factor: [...]}}` for one technique: of the stage that fine-tunes,
    the first where several do. Empty where none does, where `grid` sets it, and where the file
    specifies what to try for this technique."""
    axes, at = source.config.tune[ALL], ("tune", ALL)
    if ALL in source.config.techniques:  # it is the name of a technique
        return {}
    if not isinstance(axes, dict) or list(axes) != [RATE] or not isinstance(axes[RATE], list):
        raise source.error(at, f"expected `{RATE}: [values]`, and no other setting")
    if not axes[RATE]:
        raise source.error((*at, RATE), "expected a list of values, at least one")
    refuse_twins(source.document, (*at, RATE), axes[RATE])
    catalog = source.catalog
    for step in chain:
        settings = source.document.check(step.at, catalog.stages[step.stage], step.written)
        if catalog.finetunes(settings, source.config.training):
            _check_axis(source, (*at, RATE), [step], axes[RATE], RATE)
            name = f"{step.stage}.{RATE}"
            return {} if name in source.config.grid.get(family, {}) else {name: axes[RATE]}
    return {}


def _check_axis(
    source: Source, at: Key, chain: list[_Step], values: list[Any], name: str = ""
) -> None:
    """Each value tried alone, so that the sentence about a bad one names its place in the grid.
    `name`: of the setting, in each stage of the chain; else the key has it, with its stage."""
    stage, _, setting = at[-1].rpartition(".")
    for step in chain:
        for i, value in enumerate(values):
            if name or step.stage == stage:
                changed = {**step.written, name or setting: value}
                settings = source.catalog.stages[step.stage]
                source.document.check((*at, i), settings, changed, name_keys=False)


def _at_point(
    source: Source, family: str, chain: list[_Step], point: dict[str, Any]
) -> tuple[Stage, ...]:
    """The chain with the settings of one point; every stage of a name takes them."""
    if not point:
        return _resolve(source, chain)
    config = source.config
    at = ("tune", family if family in config.tune else ALL)
    at = ("grid", family) if family in config.grid else at
    source.check_label(at, "-".join([family, *map(_spelled, point.values())]))
    steps = []
    for step in chain:
        mine = {name: value for name, value in point.items() if name.split(".", 1)[0] == step.stage}
        written = {**step.written, **{name.split(".", 1)[1]: mine[name] for name in mine}}
        steps.append(_Step(step.stage, written, at if mine else step.at))
    return _resolve(source, steps)


def _spelled(value: Any) -> str:
    """A grid value in a label: 0.25, true, l1."""
    return value if isinstance(value, str) else json.dumps(value)


def _refuse_same(source: Source, techniques: list[Technique]) -> None:
    """No two techniques of one name, and no two names for one cell."""
    labels: set[str] = set()
    chains: dict[tuple[str, ...], Technique] = {}
    for technique in techniques:
        label = technique.label
        if label in labels:
            raise source.error(
                technique.at, f"two techniques would be called {label!r}; rename one"
            )
        labels.add(label)
        twin = chains.setdefault(tuple(stage.canonical for stage in technique.stages), technique)
        if twin is not technique:
            raise source.error(
                technique.at, f"{label!r} does the same as {twin.label!r}, stage by stage; keep one"
            )
