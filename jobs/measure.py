"""Measures trained cells on this machine: the same under SLURM and for `netpress measure`.

    python -m jobs.measure --work ROOT --data ROOT ID [ID ...]

As jobs.compress, of which it has the events, the attempts and the exit codes, but nothing is
trained: each cell gets one more measurement, and keeps those that it has.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import compress
from pipeline import garbage

if TYPE_CHECKING:
    from pipeline.paths import Work
    from pipeline.sweep import Cell


def main(arguments: list[str] | None = None) -> int:
    return compress.main(arguments, _measure, "measure", __doc__)


def _measure(
    cell: Cell,
    work: Work,
    data_root: Path,
    device: str,
    threads: int | None,
    progress: Callable[[dict[str, Any]], None],
) -> None:
    from pipeline import measuring

    measuring.measure_again(cell, work, data_root, device, threads, progress)


if __name__ == "__main__":
    code = main()
    garbage.no_more()
    sys.exit(code)
