"""A sweep file becomes a tuple of validated, frozen cells: the only configuration that travels.

Everything is checked here, once: `load` returns a Sweep in which every name exists, every default
is filled in and every cell has its id, or raises one UserError (`FILE:LINE: key: what is wrong;
what would be right`). What a file may name is handed in as a Catalog: nothing here imports the
registries, whose stages build their settings from Frozen and Recipe.
"""

from pipeline.sweep.cell import BASE, FORMAT, Cell, Core, Stage, plugins_of
from pipeline.sweep.file import MAX_CELLS
from pipeline.sweep.loading import Sweep, load
from pipeline.sweep.settings import (
    Dataset,
    Frozen,
    Measure,
    Model,
    Pack,
    Plugin,
    Recipe,
    canonical_json,
)

__all__ = [
    "BASE",
    "FORMAT",
    "MAX_CELLS",
    "Cell",
    "Core",
    "Dataset",
    "Frozen",
    "Measure",
    "Model",
    "Pack",
    "Plugin",
    "Recipe",
    "Stage",
    "Sweep",
    "canonical_json",
    "load",
    "plugins_of",
]
