"""Some of many, where all of them would be too many."""

from __future__ import annotations

import numpy as np


def spaced(count: int, most: int) -> np.ndarray:
    """int64: at most ``most`` of the numbers from 0 to ``count`` - 1, evenly spaced, the first and
    the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))
