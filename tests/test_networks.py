"""Every technique on every kind of network: plain, residual with few and many filters, depthwise,
and a user's own. The suite runs each technique on one of them, and takes a few to their artifacts;
the whole matrix, each to its artifact and killed at each epoch and stage, is

    env/run pytest -n 0 -s -q tests/test_networks.py --networks all
"""

from __future__ import annotations

import pytest
import torch

from pipeline import registry
from pipeline.models import network as networks_of
from pipeline.models import resnet
from pipeline.techniques import TECHNIQUES
from tests import networks
from tests.networks import AS_LARGE, AS_WELL, FEWER_BITS, NETWORKS, Bench

# In the suite: one on each network whose artifact is of integers, and one that is of other layers.
DEPLOYED = {
    ("vgg16_bn", "binary-ternary"),
    ("resnet20", "qat-int8"),
    ("resnet18", "rate"),
    ("mobilenetv2", "ptq-int8"),
    ("own", "small-and-int8"),
    ("resnet20", "low-rank"),
}


def pytest_generate_tests(metafunc):
    if "network" in metafunc.fixturenames:
        whole = metafunc.config.getoption("--networks") == "all"
        deployed = metafunc.function is test_it_is_deployed_as_simulated_and_resumes
        chosen = pairs(whole) if whole or not deployed else sorted(DEPLOYED)
        metafunc.parametrize(("network", "technique"), [] if whole and not deployed else chosen)


def pairs(whole: bool) -> list[tuple[str, str]]:
    """A network's own stand together, since its base is trained once."""
    chosen = [
        (network, technique)
        for i, network in enumerate(NETWORKS)
        for j, technique in enumerate(TECHNIQUES)
        if whole or j % len(NETWORKS) == i
    ]
    assert {t for _, t in chosen} == set(TECHNIQUES) and {n for n, _ in chosen} == set(NETWORKS)
    return chosen


@pytest.fixture(scope="module")
def benches(request, tmp_path_factory):
    made: dict[str, Bench] = {}
    whole = request.config.getoption("--networks") == "all"

    def of(network: str) -> Bench:
        if network not in made:
            folder = tmp_path_factory.mktemp(network)
            training = networks.TRAINING if whole else networks.SHORT
            made[network] = Bench.trained(folder, network, training)
        return made[network]

    with pytest.MonkeyPatch.context() as patch:
        if not whole:
            patch.setitem(resnet.STAGES, "resnet20", (resnet.SMALL, 1))
        yield of
    registry.fill({})


def test_it_makes_the_network_smaller_or_its_weights_fewer_bits(benches, network, technique):
    bench = benches(network)
    bench.enter()
    made = bench.staged(technique, "whole")
    with torch.inference_mode():
        logits = made.state.network.eval()(bench.split.test.pixels[:8])
    assert logits.shape == (8, 10) and torch.isfinite(logits).all()
    as_large = technique in AS_LARGE or technique in FEWER_BITS
    if as_large:  # in filters; parameters of a normalization may be folded
        assert made.state.spec.channels == bench.base_spec.channels
    else:
        assert networks_of.parameter_count(made.state.spec) < 0.75 * bench.base_parameters
    named = FEWER_BITS.get(technique) or AS_WELL.get(technique, set())
    assert named <= {transform.name for transform in made.state.spec.transforms}


def test_it_is_deployed_as_simulated_and_resumes(request, benches, network, technique):
    row = benches(network).row(technique)
    print(f"| {technique} | {network} | {row} |", flush=True)
    assert row.resumed
    whole = request.config.getoption("--networks") == "all"
    assert row.agreement >= (0.998 if whole else 0.97)  # trained for long enough to be sure, or not
    assert row.apart < 0.1
    assert row.integer is None or row.integer >= 0.99
    assert technique in AS_LARGE or min(row.stored, row.macs) < 0.75
    assert row.stored < 1.05
