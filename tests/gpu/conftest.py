"""GPU_PART=I/N takes every N-th of the tests, from the I-th: N processes share one GPU."""

from __future__ import annotations

import os


def pytest_collection_modifyitems(items):
    here = [item for item in items if "tests/gpu/" in item.nodeid]
    part, _, parts = os.environ.get("GPU_PART", "0/1").partition("/")
    left = set(here) - set(here[int(part) :: int(parts)])
    items[:] = [item for item in items if item not in left]
