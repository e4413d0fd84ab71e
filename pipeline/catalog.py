"""What there is: the models, data sets, stages and techniques that a sweep file may name.

Nothing here imports torch: `netpress plan` builds the catalog.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any

from pydantic import BaseModel

from pipeline.data import DATASETS, FOLDERS
from pipeline.models import MODELS
from pipeline.techniques import STAGES, TECHNIQUES

Chain = Sequence[Mapping[str, Mapping[str, Any]]]  # ({"prune": {...}}, {"finetune": {...}})
Expander = Callable[[Any], Sequence[tuple[str, Any]]]


@dataclass(frozen=True)
class Catalog:
    """What a sweep file may name. `models` and `datasets`: name -> a line about it; `stages`:
    name -> its settings; `techniques`: name -> its chain; `expanders`: stage -> a function of
    its settings to the (stage, settings) pairs that it stands for (such as pruning in steps);
    `folders`: those of `datasets` that may lie elsewhere, given with `folder:`; `versions`: stage
    -> its version, 1 where it says none."""

    models: Mapping[str, str]
    datasets: Mapping[str, str]
    stages: Mapping[str, type[BaseModel]]
    techniques: Mapping[str, Chain]
    expanders: Mapping[str, Expander] = field(default_factory=dict)
    folders: frozenset[str] = frozenset()
    versions: Mapping[str, int] = field(default_factory=dict)


@cache
def built_in() -> Catalog:
    """What comes with netpress, from the three registries."""
    modules = {name: import_module(path) for name, path in STAGES.items()}
    return Catalog(
        models={name: description for name, (_, description) in MODELS.items()},
        datasets={name: entry.description for name, entry in DATASETS.items()},
        stages={name: module.Settings for name, module in modules.items()},
        techniques={name: chain for name, (_, chain) in TECHNIQUES.items()},
        expanders={n: module.expand for n, module in modules.items() if hasattr(module, "expand")},
        folders=FOLDERS,
        versions={name: getattr(module, "VERSION", 1) for name, module in modules.items()},
    )
