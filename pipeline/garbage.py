"""When Python looks for reference cycles.

Importing torch, its exporter or a plotting library makes hundreds of thousands of objects that all
stay. With Python's defaults, looking through them again and again takes a tenth of the time of a
short cell or a report, and more than a second when a cell's process ends.
"""

from __future__ import annotations

import gc


def seldom() -> None:
    """From now on a cycle may wait for 100,000 new objects instead of 700."""
    gc.set_threshold(100_000, 20, 100)


def no_more() -> None:
    """This process ends: what is still there goes with it."""
    gc.freeze()
