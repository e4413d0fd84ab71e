"""GPU_PART=I/N takes every N-th of the tests, from the I-th: N processes share one GPU.

A run whose time is over (TERM) still tells what it found. What needs a package that is not
installed where there is a GPU is skipped.
"""

from __future__ import annotations

import os
import signal

import pytest

OPTIONAL = "constriction"  # which only coded artifacts need


def pytest_sessionstart():
    """TERM is as Control-C: pytest then prints the failures so far."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    here = [item for item in items if "tests/gpu/" in item.nodeid]
    part, _, parts = os.environ.get("GPU_PART", "0/1").partition("/")
    left = set(here) - set(here[int(part) :: int(parts)])
    items[:] = [item for item in items if item not in left]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    try:
        return (yield)
    except ModuleNotFoundError as error:
        if error.name != OPTIONAL:
            raise
        pytest.skip(f"needs {OPTIONAL}, which is not installed")
