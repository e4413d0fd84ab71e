"""Seeded runs give the figures that they gave when their versions were last raised."""

from __future__ import annotations

import copy
import json

import pytest

from pipeline import hardware
from tests import seeded

GOLDEN = json.loads(seeded.GOLDEN.read_text())

# Other CPUs add in another order: each sum differs by about 1e-7, and training multiplies that step
# after step. With the kernels of AVX2 and SSE in place of AVX-512's, losses differed by at most
# 1.9e-3 (relative), the sum of all weights by 2e-4, and the mean logarithm of a tensor's mean size
# by 3e-3 (calibration takes the next of its 32 candidates).
NEAR = (5e-3, 1e-3, 1e-2)
# On an AMD EPYC without AVX-512, where all that PyTorch computes is in another order and other
# filters and clusters are chosen: 8e-3, 6e-3 and 0.02.
FAR = (1.5e-2, 1e-2, 3e-2)
# Scales of normalization are nearly tied after two epochs, and other filters stay: 8e-4 and 9e-3.
TIED, WIDER = {"prune-bn-scale"}, 5
# A scale that is learned comes close to zero after so short a training; there it gets to zero,
# which ends the run.
AT_ZERO = {"quantize-learned", "binary-weights"}


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    return seeded.figures(tmp_path_factory.mktemp("seeded"))


def changes(figures: dict, golden: dict, exactly: bool, far: bool = False) -> dict[str, list[str]]:
    """Chain -> what is not as it was: one line a figure."""
    told: dict[str, list[str]] = {}
    losses, of_weights, logarithms = FAR if far else NEAR
    for chain, expected in golden.items():
        mine, lines = figures[chain], []
        if "diverged" in mine:
            if not far or chain not in AT_ZERO:
                told[chain] = [mine["diverged"]]
            continue
        for name in ("loss", "held_out_loss"):
            if mine[name] != pytest.approx(expected[name], rel=losses):
                lines.append(f"{name} {mine[name]}, was {expected[name]}")
        factor = WIDER if chain in TIED and not far else 1
        if mine["weights"] != pytest.approx(expected["weights"], rel=factor * of_weights):
            lines.append(f"weights {mine['weights']:.6g}, were {expected['weights']:.6g}")
        if abs(mine["logarithms"] - expected["logarithms"]) > factor * logarithms:
            lines.append(
                f"sizes of tensors {mine['logarithms']:.4f} in the mean of their logarithms, were "
                f"{expected['logarithms']:.4f}"
            )
        if exactly and not lines and mine["sha256"] != expected["sha256"]:
            lines.append("weights differ in their last bits")
        if lines:
            told[chain] = lines
    return told


def to_raise(chains) -> str:
    """Whose version: that of the stage that all changed chains have in common, else of the core."""
    stages = [{name for step in seeded.CHAINS.get(chain, []) for name in step} for chain in chains]
    common = sorted(set.intersection(*stages))
    return " or ".join(f"the stage {name}" for name in common) or "the training core"


def message(told: dict[str, list[str]]) -> str:
    lines = [f"{chain}: {line}" for chain, lines in told.items() for line in lines]
    return "\n".join(
        [
            f"seeded figures changed: raise the version of {to_raise(told)}, then write them anew "
            "with `env/run python -m tests.seeded --write`",
            *lines,
        ]
    )


def here() -> bool:
    """Whether this machine is that of the figures, where not a bit may differ."""
    return seeded.machine() == {name: GOLDEN[name] for name in ("cpu", "flags", "torch")}


def far() -> bool:
    """Whether this CPU lacks the vectors of the figures' one."""
    return "avx512f" in set(GOLDEN["flags"]) - set(hardware.cpu_flags())


def test_the_figures_of_every_chain_are_what_they_were(figures):
    assert set(figures) == set(GOLDEN["chains"]) == {"base", *seeded.CHAINS}
    told = changes(figures, GOLDEN["chains"], exactly=here(), far=far())
    assert not told, message(told)


def test_every_stage_has_a_chain_of_its_own():
    """Otherwise a message could not name it."""
    from pipeline.techniques import STAGES

    single = {name for chain in seeded.CHAINS.values() if len(chain) == 1 for name in chain[0]}
    assert single == set(STAGES)


@pytest.mark.parametrize(
    "chains, expected",
    [
        (["prune"], "raise the version of the stage prune,"),
        (["quantize", "quantize-7", "all"], "raise the version of the stage quantize,"),
        (["finetune", "all"], "raise the version of the stage finetune,"),
        (["all"], "raise the version of the stage finetune or the stage prune or the stage quant"),
        (["finetune", "distill"], "raise the version of the training core,"),
        (["base", *seeded.CHAINS], "raise the version of the training core,"),
        (["base"], "raise the version of the training core,"),
    ],
)
@pytest.mark.parametrize(
    "name, line",
    [
        ("loss", "loss ["),
        ("weights", "weights "),
        ("logarithms", "sizes of tensors "),
        ("sha256", "weights differ in their last bits"),
    ],
)
def test_a_figure_that_changed_is_named_with_the_version_to_raise(chains, expected, name, line):
    figures = copy.deepcopy(GOLDEN["chains"])
    for chain in chains:
        if name == "loss":
            figures[chain]["loss"] = [1.006 * value for value in figures[chain]["loss"]] or [1.0]
        elif name == "weights":
            figures[chain]["weights"] *= 1.006
        elif name == "logarithms":
            figures[chain]["logarithms"] += 0.051
        else:
            figures[chain]["sha256"] = "0" * 64
    told = changes(figures, GOLDEN["chains"], exactly=True)
    assert list(told) == [chain for chain in GOLDEN["chains"] if chain in chains]
    text = message(told)
    assert expected in text
    assert all(f"\n{chain}: {line}" in text for chain in chains)
    if name == "sha256":  # what another CPU may do
        assert changes(figures, GOLDEN["chains"], exactly=False) == {}


def test_small_differences_of_another_cpu_are_no_change():
    chains = copy.deepcopy(GOLDEN["chains"])
    for figures in chains.values():
        figures["sha256"] = ""
        figures["weights"] *= 1.0005
        figures["logarithms"] += 0.005
        figures["loss"] = [value * 0.999 for value in figures["loss"]]
    assert changes(chains, GOLDEN["chains"], exactly=False) == {}


def test_a_changed_computation_changes_the_figures(tmp_path, monkeypatch):
    """Not only what the comparison says, but that a run notices: another momentum."""
    monkeypatch.setattr(seeded, "CHAINS", {"finetune": seeded.CHAINS["finetune"]})
    figures = seeded.figures(tmp_path, momentum=0.85)
    golden = {name: GOLDEN["chains"][name] for name in ("base", "finetune")}
    told = changes(figures, golden, exactly=False)
    assert set(told) == {"base", "finetune"} and "the training core" in message(told)


def test_figures_tell_one_way_to_round_from_another():
    """The sum of all weights does not: scales are small beside what they round."""
    chains = {name: figures for name, figures in GOLDEN["chains"].items() if "quantize" in name}
    seven = {"quantize": chains["quantize-7"], "quantize-pairs": chains["quantize"]}
    golden = {name: chains[name] for name in seven}
    assert set(changes(seven, golden, exactly=False)) == set(seven)
