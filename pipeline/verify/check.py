"""One thing that was looked at in a report, and how it turned out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.terminal import sentence

OK, DIFFERS, UNCHECKED, NOTE = "ok", "differs", "unchecked", "note"
SAME = 1e-9  # of numbers that are computed again from the same numbers


@dataclass(frozen=True)
class Check:
    """What was looked at, its `outcome` (OK, DIFFERS, UNCHECKED or NOTE), and why."""

    what: str
    outcome: str
    why: str = ""

    @property
    def line(self) -> str:
        text = f"{self.outcome:9} {self.what}{': ' if self.why else ''}{self.why}"
        return sentence(text)  # strangers wrote some of it

    def to_json(self) -> dict[str, str]:
        return {"what": self.what, "found": self.outcome, "why": self.why}


def same(recorded: Any, value: float) -> bool:
    """Whether the recorded value is this number, up to the rounding of its computation."""
    return isinstance(recorded, (int, float)) and abs(recorded - value) <= SAME


def without(folder: Path, error: Exception) -> str:
    """The message with paths as they are called in the report."""
    return str(error).replace(f"{folder}/", "")
