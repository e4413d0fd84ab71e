"""The criteria of pruning against their definitions; budgets in MACs; what a residual sum
makes of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline import data
from pipeline.errors import UserError
from pipeline.measure import complexity
from pipeline.models import MODELS, module_of, network
from pipeline.models.transforms.folded import Folded
from pipeline.techniques import filters, prune, stage_module
from tests import residual, stages
from tests.test_models import lively
from tests.test_techniques import split_of

WIDE = {"parameters_kept": 0.4, "multiple": 4}


@pytest.fixture
def summed(monkeypatch) -> network.ModelState:
    """A residual network for the digits, whose stem and last convolution are one group."""
    monkeypatch.setitem(MODELS, residual.NAME, residual.ENTRY)
    return lively(residual.spec(residual.NAME, 1.0, (1, 32, 32), 10, 0, 1 / 64))


def scores_of(bench, state, **settings) -> dict[int, torch.Tensor]:
    """What pruning that keeps everything thought of each filter."""
    scores = {}

    def watched(state, settings, context):
        scores.update(prune.scored(state, settings, context))
        return state

    module = stage_module("prune")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "apply", watched)
        stages.run(bench, "prune", state, **settings)
    return scores


def gated(state: network.ModelState, group: int, pixels, labels) -> torch.Tensor:
    """[K]: the gradient of a gate of one behind each filter, by autograd."""
    graph, module = network.graph_of(state.spec), state.network.eval().module
    gate = torch.ones(state.spec.channels[group], requires_grad=True)
    hooks = [
        module.get_submodule(name).register_forward_hook(lambda m, i, y: y * gate[:, None, None])
        for name in graph.ends(group)
    ]
    loss = torch.nn.functional.cross_entropy(state.network(pixels), labels)
    [gradient] = torch.autograd.grad(loss, [gate])
    for hook in hooks:
        hook.remove()
    return gradient


@pytest.mark.parametrize("folded", [False, True])
def test_taylors_criterion_is_the_squared_gradient_of_a_gate(bench, summed, folded):
    for state in (stages.base_of(bench), summed):
        state = network.fold(state) if folded else state
        scores = scores_of(bench, state, criterion="taylor", images=64)
        few = data.sample(split_of(bench).train, 128, 0)
        batches = [*data.ordered(data.sample(few, 64, 1), prune.TAYLOR_BATCH)]
        assert len(batches) == 2
        for group, score in scores.items():
            expected = sum(gated(state, group, *batch).square() for batch in batches)
            torch.testing.assert_close(score, expected, rtol=1e-3, atol=1e-9)


def test_filters_near_the_geometric_median_go_first(bench):
    state = stages.base_of(bench)
    scores = scores_of(bench, state, criterion="fpgm")
    weight = state.network.module.features[3].conv.weight.detach().flatten(1).numpy()
    expected = np.array([sum(np.linalg.norm(a - b) for b in weight) for a in weight])
    np.testing.assert_allclose(scores[3].numpy(), expected / expected.mean(), rtol=1e-5)


@pytest.mark.parametrize("criterion", ["taylor", "fpgm", "l1"])
def test_channels_that_are_summed_are_cut_in_all_layers(bench, summed, criterion):
    few = prune.Settings(criterion=criterion, macs_kept=0.3, multiple=4)
    assert few.operating_point() == {"macs_kept": 0.3}
    assert "parameters_kept" not in few.model_dump()
    sizes = filters.Sizes.of(summed.spec, summed.spec, few)
    scores = scores_of(bench, summed, criterion=criterion)
    counts = filters.counts("prune", summed.spec.channels, sizes, scores, few)
    kept = filters.best({0: torch.rand(16), 1: torch.rand(24)}, counts)
    small = network.shrink(summed, kept)
    before, after = (complexity.count(each.spec)[1] for each in (summed, small))
    assert 0.2 * before < after <= 0.3 * before
    assert all(channels % 4 == 0 for channels in small.spec.channels)


def test_a_budget_is_in_parameters_or_in_macs(bench):
    chain = [{"prune": {"parameters_kept": 0.5, "macs_kept": 0.5}}]
    with pytest.raises(UserError, match="macs_kept stands in place of parameters_kept"):
        bench.cells(["x"], define={"x": chain})
    base = stages.base_of(bench)
    pruned = stages.run(bench, "prune", macs_kept=0.5)
    share = complexity.count(pruned.spec)[1] / complexity.count(base.spec)[1]
    assert 0.4 < share <= 0.5
    with pytest.raises(UserError, match=r"prune\.macs_kept: 0\.001 cannot be reached"):
        stages.run(bench, "prune", macs_kept=0.001)
    steps = prune.expand(prune.Settings(macs_kept=0.25, steps=2))
    assert [settings.get("macs_kept") for _, settings in steps] == [0.5, None, 0.25]


# --- clusters --------------------------------------------------------------------------------


def doubled(state: network.ModelState) -> network.ModelState:
    """The same with each filter twice, the second time 0.5 to 2 times as large: as wide again."""
    graph, random = network.graph_of(state.spec), torch.Generator().manual_seed(3)
    index = [torch.arange(channels).repeat(2) for channels in state.spec.channels]
    wide = network.shrink(state, index)
    with torch.no_grad():
        for i, channels in enumerate(state.spec.channels):
            factor = torch.rand(channels, generator=random) * 1.5 + 0.5
            factor = torch.cat((torch.ones(channels), factor))
            for name in graph.ends(i):  # normalization, scale and shift
                norm = wide.network.module.get_submodule(name)
                norm.weight *= factor
                norm.bias *= factor
            for name in graph.groups[i].consumers:
                reader = wide.network.module.get_submodule(name)
                reader.weight /= 2 * factor.reshape(1, -1, *[1] * (reader.weight.dim() - 2))
    return wide


@pytest.mark.parametrize("folded", [False, True])
def test_merging_filters_of_one_direction_loses_nothing(bench, summed, folded):
    """What was put in twice is found and taken out again, through sums and ReLUs."""
    for state in (stages.base_of(bench), summed):
        wide = doubled(state)
        wide = network.fold(wide) if folded else wide
        pixels = split_of(bench).test.pixels[:16]
        with torch.inference_mode():
            before = wide.network.eval()(pixels)
            torch.testing.assert_close(before, state.network.eval()(pixels), rtol=1e-3, atol=1e-4)
        as_before = replace(wide.spec, channels=state.spec.channels)
        base = stages.base_of(bench).spec
        share = network.parameter_count(as_before) / network.parameter_count(base)
        settings = {"parameters_kept": min(1.0, share + 1e-9), "multiple": 1}
        merged, dropped = (
            stages.run(bench, "prune-clusters", wide, rest=rest, **settings)
            for rest in ("merge", "drop")
        )
        assert merged.spec.channels == dropped.spec.channels == state.spec.channels
        with torch.inference_mode():
            after, lost = (each.network.eval()(pixels) for each in (merged, dropped))
        torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)
        assert float((lost - before).abs().max()) > 0.1


def test_a_cluster_has_at_least_one_filter_and_the_nearest_stays():
    from pipeline.techniques import prune_clusters

    vectors = torch.tensor([[0.0, 0.0], [0.1, 0.0], [1.0, 0.0], [1.0, 0.2]]).double()
    centres = torch.tensor([[0.0, 0.0], [1.0, 0.0], [50.0, 0.0]]).double()
    labels = prune_clusters.kmeans(vectors, centres)
    assert sorted(labels.tolist()) == [0, 0, 1, 2]


# --- gates -----------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["parameters_kept", "macs_kept"])
def test_learned_gates_reach_the_budget_and_closed_filters_are_as_good_as_gone(bench, summed, of):
    """The budget within 2 %, in each layer a floor; at the end nothing is lost by the removal."""
    from pipeline.models.transforms import gated

    base = stages.base_of(bench)
    for state in (base, summed):
        count = complexity.count(base.spec)["pm".index(of[0])]
        target = 0.3 * complexity.count(state.spec)["pm".index(of[0])] / count
        seen = {}

        def watch(now, seen=seen):
            seen["gates"] = gated.gates(now.network.module)
            seen["open"] = [int(gate.open.sum()) for gate in seen["gates"].values()]
            seen["state"] = now

        pruned = stages.run(
            bench, "prune-learned", state, watch, epochs=2, multiple=1, **{of: target}
        )
        reached = complexity.count(pruned.spec)["pm".index(of[0])] / count
        # A filter of the small network, of which there are 40, is several per cent of it.
        assert (0.98 if state is base else 0.8) * target < reached <= target
        assert seen["open"] == list(pruned.spec.channels) and min(seen["open"]) >= 1
        assert not pruned.spec.transforms
        assert any(gate.score.grad.abs().sum() > 0 for gate in seen["gates"].values())
        pixels = split_of(bench).test.pixels[:16]
        with torch.inference_mode():
            closed = seen["state"].network.eval()(pixels)
            torch.testing.assert_close(pruned.network.eval()(pixels), closed, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["vgg16", "resnet20", "resnet20_a", "mobilenetv2"])
@pytest.mark.parametrize("folded", [False, True])
def test_what_other_channel_counts_would_cost_is_what_they_cost(name, folded):
    spec = module_of(name).spec(name, 0.5, (3, 40, 40), 10, 128, 1 / 64)
    spec = spec.with_transform(Folded()) if folded else spec
    random = torch.Generator().manual_seed(0)
    fewer = [int(torch.randint(1, c + 1, (), generator=random)) for c in spec.channels]
    count = complexity.by_channels(spec)
    for channels in (spec.channels, tuple(fewer)):
        assert count(channels) == complexity.count(replace(spec, channels=channels))
