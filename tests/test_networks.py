"""Every technique on every kind of network: plain, residual with few and many filters, depthwise,
and a user's own. Of the whole matrix the suite runs a fixed part, each technique on one network:

    env/run pytest -n 0 -s -q tests/test_networks.py --networks all
"""

from __future__ import annotations

import pytest

from pipeline import registry
from pipeline.techniques import TECHNIQUES
from tests import networks
from tests.networks import AS_LARGE, NETWORKS, Bench


def pytest_generate_tests(metafunc):
    if "network" in metafunc.fixturenames:
        whole = metafunc.config.getoption("--networks") == "all"
        metafunc.parametrize(("network", "technique"), pairs(whole))


def pairs(whole: bool) -> list[tuple[str, str]]:
    """A network's own stand together, since its base is trained once."""
    found = [
        (network, technique)
        for i, network in enumerate(NETWORKS)
        for j, technique in enumerate(TECHNIQUES)
        if whole or j % len(NETWORKS) == i
    ]
    assert {t for _, t in found} == set(TECHNIQUES) and {n for n, _ in found} == set(NETWORKS)
    return found


@pytest.fixture(scope="module")
def benches(tmp_path_factory):
    made: dict[str, Bench] = {}

    def of(network: str) -> Bench:
        if network not in made:
            made[network] = Bench.trained(tmp_path_factory.mktemp(network), network)
        return made[network]

    yield of
    registry.fill({})


def test_it_is_smaller_or_faster_says_what_was_simulated_and_resumes(benches, network, technique):
    row = benches(network).row(technique)
    print(f"| {technique} | {network} | {row} |", flush=True)
    assert row.resumed
    assert row.agreement >= networks.AGREEMENT
    assert row.integer is None or row.integer >= 0.99
    assert technique in AS_LARGE or min(row.stored, row.macs) < 0.75
    assert row.stored < 1.05
