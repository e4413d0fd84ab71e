"""Recipes with a name: `training: {recipe: fast}` stands for these settings, and what is written
beside it counts for more. A name is no part of a cell: its settings are."""

from __future__ import annotations

from typing import Any

from pipeline.strict_yaml import nearest, shown

NAMED: dict[str, dict[str, Any]] = {
    "standard": {  # the defaults of all that another recipe sets, so that it can be taken back
        "epochs": 60,
        "batch_size": 128,
        "learning_rate": 0.1,
        "label_smoothing": 0.0,
        "flips": "random",
        "whitening": 0.0,
        "dirac": False,
        "bias_rate": 1.0,
    },
    "fast": {
        "epochs": 8,
        "batch_size": 512,
        "learning_rate": 0.2,
        "label_smoothing": 0.1,
        "flips": "alternating",
        "whitening": 1.0,
        "dirac": True,
        "bias_rate": 16.0,
    },
}


def expanded(settings: Any) -> Any:
    """The settings with those that `recipe` stands for; ValueError for a name that none has."""
    if not isinstance(settings, dict) or "recipe" not in settings:
        return settings
    name = settings["recipe"]
    if not isinstance(name, str) or name not in NAMED:
        raise ValueError(f"unknown recipe {shown(name)}; {nearest(name, NAMED)}")
    return {**NAMED[name], **{key: value for key, value in settings.items() if key != "recipe"}}
