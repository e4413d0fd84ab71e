"""Unstructured sparsity: which weights go and when, and that what is zero stays zero."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as tensors_of

from pipeline.errors import Corrupt, UserError
from pipeline.models import network
from pipeline.models.transforms import fakequant, masked
from pipeline.sweep import Recipe
from pipeline.techniques import sparsify
from pipeline.training import bits, checkpoint
from pipeline.training.recipe import LARGEST_GRADIENT, optimizer
from tests import stages


def weights(state) -> dict[str, torch.Tensor]:
    return {
        n: layer.weight.detach().clone() for n, layer in masked.layers(state.network.module).items()
    }


def masks(state) -> dict[str, torch.Tensor]:
    return {n: masked.mask(x).clone() for n, x in masked.layers(state.network.module).items()}


def zeros(state) -> float:
    every = torch.cat([w.flatten() for w in weights(state).values()])
    return float((every == 0).double().mean())


@pytest.fixture(scope="module")
def sparse(bench):
    """All that its mask says, after each step and at the end."""
    seen = []
    state = stages.run(bench, "sparsify", watch=lambda now: seen.append(masks(now)), updates=3)
    return state, seen


# --- masks ---------------------------------------------------------------------------------------


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


def test_what_is_masked_is_zero_after_every_kind_of_stage(bench, sparse):
    state, _ = sparse
    kept, before = masks(state), weights(state)
    assert zeros(state) == pytest.approx(0.9, abs=1e-4)
    tuned = stages.run(bench, "finetune", state, epochs=1, learning_rate_factor=2.0)
    quantized = stages.run(bench, "quantize", tuned, aware=True, epochs=1)
    for trained in (tuned, quantized):  # SGD with momentum and weight decay went over both
        assert same(masks(trained), kept)
        for name, weight in weights(trained).items():
            assert not weight[~kept[name]].any() and not weight[~kept[name]].signbit().any()
    moved = [not torch.equal(weights(tuned)[n], before[n]) for n in before]
    assert all(moved)


def test_in_the_artifact_what_is_masked_is_the_integer_zero(bench, sparse):
    state, _ = sparse
    for how in ({}, {"reduce_range": "on"}, {"calibration": "minmax"}):
        quantized = stages.run(bench, "quantize", state, **how)
        described, plain = network.integers(quantized), network.plain(quantized)
        assert not any(name.endswith("mask") for name in plain.network.state_dict())
        for name, mask in masks(quantized).items():
            weight = plain.network.module.get_submodule(name).weight
            scale = torch.tensor(described.weights[name].scale)
            integers = (weight / scale.reshape(-1, *[1] * (weight.dim() - 1))).round()
            assert not integers[~mask].any() and integers[mask].any()


def test_filters_can_be_cut_out_of_a_masked_network(bench, sparse):
    state, _ = sparse
    cut = stages.run(bench, "prune", state, parameters_kept=0.5)
    assert cut.spec.channels < state.spec.channels and cut.spec.has("masked")
    for name, mask in masks(cut).items():
        assert mask.shape == weights(cut)[name].shape
        assert torch.equal(mask, weights(cut)[name] != 0)
    tuned = stages.run(bench, "finetune", cut, epochs=1)
    assert zeros(tuned) == zeros(cut) > 0.8


def test_filters_of_a_masked_network_are_not_merged(bench, sparse):
    state, _ = sparse
    with pytest.raises(UserError, match="merging would fill the zeros of a masked network"):
        stages.run(bench, "prune-clusters", state, parameters_kept=0.5)
    cut = stages.run(bench, "prune-clusters", state, parameters_kept=0.5, rest="drop")
    for layer in masked.layers(cut.network.module).values():
        assert not layer.weight[~masked.mask(layer)].any()


def test_the_gradient_of_what_is_masked_is_no_part_of_the_norm_that_is_clipped(bench, sparse):
    state = network.fold(sparse[0])
    module, last = state.network.module, [*masked.layers(state.network.module).values()][4]
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    mask = masked.mask(last)
    last.weight.grad = torch.where(mask, 0.5 / math.sqrt(int(mask.sum())), 1000.0)
    state.before_step()
    before = last.weight.detach().clone()
    recipe = Recipe(learning_rate=1.0, momentum=0.0, weight_decay=0.0)
    optimizer(state.network, recipe, clipped=True).step()
    assert LARGEST_GRADIENT > 0.5
    assert float((before - last.weight.detach()).norm()) == pytest.approx(0.5, rel=1e-4)


# --- truth values in files -----------------------------------------------------------------------


@settings(max_examples=25)
@given(st.lists(st.integers(0, 4), max_size=4), st.integers(0, 2**32 - 1))
def test_truth_values_come_back_from_an_eighth_of_the_bytes(shape, seed):
    mask = torch.from_numpy(np.asarray(np.random.default_rng(seed).random(shape) < 0.5))
    other = torch.arange(3)
    stored, shapes = bits.packed({"mask": mask, "other": other})
    assert stored["mask"].shape == (-(-mask.numel() // 8),) and stored["other"] is other
    unpacked = bits.unpacked(stored, shapes)
    assert torch.equal(unpacked["mask"], mask) and unpacked["mask"].dtype == torch.bool


@pytest.mark.parametrize("shape", [[9], [2, 9], [10**6, 10**6, 10**6], [-8], [-2, -4], [0], [7, 0]])
def test_a_shape_that_the_bits_do_not_fill_is_refused(shape):
    with pytest.raises(ValueError, match="do not fill"):
        bits.unpacked({"mask": torch.zeros(1, dtype=torch.uint8)}, {"mask": shape})


def test_a_model_with_masks_is_stored_with_a_bit_each(sparse, tmp_path):
    state, _ = sparse
    content = checkpoint.model_bytes(state)
    stored, mask = tensors_of(content), masks(state)["features.4.conv"]
    assert stored["module.features.4.conv.mask"].shape == (-(-mask.numel() // 8),)
    (tmp_path / "model.safetensors").write_bytes(content)
    loaded = checkpoint.read_model(tmp_path / "model.safetensors")
    assert same(masks(loaded), masks(state)) and same(weights(loaded), weights(state))
    assert checkpoint.model_bytes(loaded) == content
    other = content.replace(b'\\"bits\\":', b'\\"bots\\":')
    assert other != content
    (tmp_path / "model.safetensors").write_bytes(other)
    with pytest.raises(Corrupt):
        checkpoint.read_model(tmp_path / "model.safetensors")


# --- which weights go ----------------------------------------------------------------------------


def test_masks_grow_along_the_cubic_schedule_and_never_shrink(sparse):
    _, seen = sparse
    total = sum(mask.numel() for mask in seen[0].values())
    shares = [1 - sum(int(m.sum()) for m in each.values()) / total for each in seen]
    # 8 steps, of which 4 are the ramp, in 3 updates: after steps 2, 3 and 4.
    first, second = (0.9 * (1 - (1 - part) ** 3) for part in (1 / 3, 2 / 3))
    assert shares == pytest.approx([0, first, second, *[0.9] * 5], abs=1e-4)
    for before, after in itertools.pairwise(seen):
        assert all(bool((after[name] <= before[name]).all()) for name in after)


@pytest.mark.parametrize(
    "given_, steps",
    [({}, 1000), ({"ramp": 1.0}, 7), ({"updates": 1}, 10), ({"ramp": 0.01, "updates": 9}, 20)],
)
def test_the_ramp_ends_where_it_is_to_end_and_rises_all_along(given_, steps):
    settings_ = sparsify.Settings(**given_)
    reached = {step: sparsify._reached(settings_, step, steps) for step in range(1, steps + 1)}
    parts = {step: part for step, part in reached.items() if part is not None}
    ramp = max(1, round(settings_.ramp * steps))
    assert max(parts) == ramp and parts[ramp] == 1.0
    assert len(parts) == min(settings_.updates, ramp)
    assert list(parts.values()) == sorted(set(parts.values()))


def one_shot(bench, **settings):
    """Masked before any training: the mask of the base's own weights."""
    masks_by_step = []
    stages.run(
        bench,
        "sparsify",
        watch=lambda now: masks_by_step.append(masks(now)),
        schedule="one-shot",
        **settings,
    )
    assert all(same(masks_by_step[0], each) for each in masks_by_step)
    return masks_by_step[0]


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("ends", ["dense", "sparse"])
def test_the_largest_weights_stay(bench, scope, ends):
    layer_masks, base = one_shot(bench, scope=scope, ends=ends, sparsity=0.8), stages.base_of(bench)
    sizes = {name: weight.abs() for name, weight in weights(base).items()}
    total = sum(mask.numel() for mask in layer_masks.values())
    assert sum(int(m.sum()) for m in layer_masks.values()) == pytest.approx(0.2 * total, abs=5)
    names = list(layer_masks)
    dense = {names[0], names[-1]} if ends == "dense" else set()
    assert all(bool(layer_masks[name].all()) for name in dense)
    cut = [name for name in names if name not in dense]
    assert not any(bool(layer_masks[name].all()) for name in cut)
    shares = [float(layer_masks[name].float().mean()) for name in cut]
    groups = [[name] for name in cut] if scope == "layer" else [cut]
    for group in groups:
        kept = torch.cat([sizes[name][layer_masks[name]] for name in group])
        gone = torch.cat([sizes[name][~layer_masks[name]] for name in group])
        assert gone.max() <= kept.min()
    assert (max(shares) - min(shares) < 0.01) is (scope == "layer")


def test_scores_of_lamp_are_a_weights_part_of_what_is_not_smaller():
    weight = torch.tensor([[1.0, -3.0], [2.0, 0.0]])
    score = sparsify._lamp(weight)
    assert torch.equal(score, torch.tensor([[1 / 14, 1.0], [4 / 13, 0.0]], dtype=torch.float64))
    assert torch.equal(sparsify._lamp(1e6 * weight), score)  # of layers, whatever their scale
    assert not sparsify._lamp(torch.zeros(3)).any()
    assert sparsify._lamp(torch.ones(4)).tolist() == [1, 1 / 2, 1 / 3, 1 / 4]


def test_lamp_keeps_the_largest_of_each_layer(bench, monkeypatch):
    monkeypatch.setattr(sparsify, "FLOOR", 0.0)  # one ranking and nothing else
    by_lamp, by_size = (
        one_shot(bench, criterion=name, sparsity=0.98, ends="sparse")
        for name in ("lamp", "magnitude")
    )
    base = weights(stages.base_of(bench))
    assert sum(int(mask.sum()) for mask in by_lamp.values()) == sum(
        int(mask.sum()) for mask in by_size.values()
    )
    for name, mask in by_lamp.items():  # within a layer, the order is that of magnitudes
        size = base[name].abs()
        assert size[~mask].max() <= size[mask].min()
    scores = {name: sparsify._lamp(base[name]) for name in by_lamp}
    kept = torch.cat([scores[name][mask] for name, mask in by_lamp.items()])
    gone = torch.cat([scores[name][~mask] for name, mask in by_lamp.items()])
    assert gone.max() <= kept.min() and not same(by_lamp, by_size)


def test_lamp_needs_one_ranking_of_all_layers():
    with pytest.raises(ValueError, match="lamp compares layers"):
        sparsify.Settings(criterion="lamp", scope="layer")
    assert "lee2021layer" in sparsify.Settings(criterion="lamp").references()


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=30), st.integers(1, 30))
def test_as_many_stay_as_were_requested_also_where_weights_are_equal(scores, count):
    score = torch.tensor(scores, dtype=torch.float32)
    kept = sparsify._kept(score, count)
    assert int(kept.sum()) == min(count, len(scores))
    assert kept.all() or score[kept].min() >= score[~kept].max()


def test_no_layer_dies_where_all_are_ranked_together():
    scores = [torch.linspace(1, 2, 1000), torch.linspace(0, 0.5, 1000)]
    kept = [int(mask.sum()) for mask in sparsify._kept_of_all(scores, 100)]
    assert kept == [95, 5]  # a tenth of its share of 50


def test_of_many_small_layers_each_keeps_a_weight():
    scores = [torch.rand(10, 10, generator=torch.Generator().manual_seed(i)) for i in range(10)]
    assert [int(mask.sum()) for mask in sparsify._kept_of_all(scores, 5)] == [1] * 10


def test_random_masks_are_of_the_same_size_and_differ_by_seed(bench):
    first, again, other = (one_shot(bench, criterion="random", seed=s) for s in (1, 1, 2))
    assert same(first, again) and not same(first, other)
    total = sum(mask.numel() for mask in first.values())
    assert sum(int(m.sum()) for m in first.values()) == pytest.approx(0.1 * total, abs=5)
    sizes = weights(stages.base_of(bench))["features.4.conv"].abs()
    mask = first["features.4.conv"]
    assert float(sizes[mask].mean()) == pytest.approx(float(sizes.mean()), rel=0.1)


# --- what it refuses -----------------------------------------------------------------------------


def test_what_cannot_be_reached_is_a_sentence_that_says_what_can(bench):
    with pytest.raises(
        UserError, match=r"sparsify\.sparsity: 0\.999 of all weights cannot"
    ) as told:
        stages.run(bench, "sparsify", sparsity=0.999)
    most = float(str(told.value).split("at most ")[1].split(",")[0])
    assert one_shot(bench, sparsity=most) and one_shot(bench, sparsity=0.999, ends="sparse")


def test_sparser_can_be_done_in_a_second_stage_and_less_sparse_cannot(bench, sparse):
    state, _ = sparse
    more = stages.run(bench, "sparsify", state, sparsity=0.95, schedule="one-shot")
    assert zeros(more) == pytest.approx(0.95, abs=1e-4)
    assert [t.name for t in more.spec.transforms] == ["masked"]
    with pytest.raises(UserError, match=r"sparsify\.sparsity: 0\.95 of all weights are zero"):
        stages.run(bench, "sparsify", more, sparsity=0.5)


def test_a_quantized_network_can_be_made_sparse(bench):
    state = stages.run(bench, "quantize")
    sparse_state = stages.run(bench, "sparsify", state, learning_rate_factor=0.02)
    for layer in fakequant.layers(sparse_state.network.module.eval()).values():
        assert not layer.quantized_weight()[~masked.mask(layer)].any()
