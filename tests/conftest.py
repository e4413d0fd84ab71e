"""What all tests share: no settings of the person who runs them, one thread, no clocks on
properties, and one small trained base."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# About the tests: .ci/run's word that neither is to be missing.
KEPT = ("NETPRESS_REQUIRE_SLURM", "NETPRESS_REQUIRE_BROWSER")

for name in [name for name in os.environ if name.startswith("NETPRESS_") and name not in KEPT]:
    del os.environ[name]  # before anything is collected: no test may touch the user's work root

# Before torch is imported, here and in processes that tests start: on a busy machine two threads
# that wait for each other take ten times as long as one. What wants more asks for it.
os.environ["OMP_NUM_THREADS"] = "1"

settings.register_profile("netpress", deadline=None)  # a busy machine is no failure
settings.load_profile("netpress")


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    """A work root with a base that was trained on the digits; see tests/cells.py."""
    from tests import cells

    return cells.Bench.trained(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """The sweep `smoke`, finished through the command line; see tests/lab.py."""
    from tests import lab

    return lab.Smoke.ran_in(tmp_path_factory.mktemp("smoke"))
