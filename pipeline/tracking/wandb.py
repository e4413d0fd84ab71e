"""Weights & Biases: as WANDB_PROJECT, WANDB_MODE, ... say; offline runs lie under WORK/tracking/.

The run's id is that of the cell, so that a cell that is resumed goes on in its own run.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

from pipeline.tracking import Run

PACKAGE = "wandb"


def start(run: Run) -> Wandb:
    return Wandb(run)


class Wandb:
    def __init__(self, run: Run):
        package: Any = importlib.import_module("wandb")
        run.folder.mkdir(parents=True, exist_ok=True)
        self.run: Any = package.init(
            project=os.environ.get("WANDB_PROJECT", "netpress"),
            group=run.sweep,
            name=run.name,
            id=run.id,
            resume="allow",
            dir=str(run.folder),
            config=dict(run.settings),
        )

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()
