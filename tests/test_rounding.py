"""Rounding for the coder: what it may do to integers, what it saves, and what it costs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import artifact, data, runtimes
from pipeline.errors import UserError
from pipeline.models import network
from pipeline.models.transforms import fakequant, pairs
from pipeline.models.transforms.coarse import by_filter
from pipeline.techniques import encode
from pipeline.training import rounding
from tests import stages
from tests.test_techniques import deployed, made, split_of

LAYERS = st.tuples(
    st.integers(0, 2**31 - 1),
    st.sampled_from([(5, 4, 3, 3), (16, 64, 3, 3), (10, 32)]),
    st.sampled_from([1, 3, 40, 127]),
    st.sampled_from([(), (0,), (0, 32, 64)]),  # values that are left out
    st.floats(0, 100),
)


def drawn(seed: int, shape: tuple[int, ...], largest: int, without) -> tuple[torch.Tensor, ...]:
    """(integers, importance) of a layer."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(shape, generator=generator) * largest / 2
    integer = wide.round().clamp(-largest, largest)
    for value in without:
        integer[integer.abs() == value] = largest
    return integer, torch.rand(shape, generator=generator).square()


@given(LAYERS)
def test_rounding_never_costs_more_than_it_saves_and_makes_no_new_value(layer):
    seed, shape, largest, without, price = layer
    integer, importance = drawn(seed, shape, largest, without)
    rounded = rounding.rounded_anew(integer, importance, price)
    classes = rounding._classes(integer)
    saved = rounding.coded_bits(integer, classes) - rounding.coded_bits(rounded, classes)
    lost = float((importance.double() * (rounded - integer).double().square()).sum())
    assert saved >= 0 and lost <= price * saved + 1e-6
    assert {*rounded.unique().tolist()} <= {*integer.unique().tolist()}
    assert (rounded * integer >= 0).all() and (rounded.abs() <= integer.abs()).all()
    assert torch.equal(rounding.rounded_anew(integer, importance, 0.0), integer)
    assert torch.equal(rounding.rounded_anew(integer, importance + 1e12, 1.0), integer)


def test_rounding_finds_what_is_best_by_hand():
    """1,000 zeros and a single 1: that takes log2(1001) + log2(1001 / 1000) x 1000 = 11.4 bits, of
    which its own are 10 when one weight is looked at."""
    integer = torch.zeros(7, 143)
    integer[3, 3] = 1
    assert rounding.coded_bits(integer) == pytest.approx(11.41, abs=0.01)
    dear, cheap = (
        rounding.rounded_anew(integer, torch.full((7, 143), w), 1.0) for w in (10.1, 9.9)
    )
    assert torch.equal(dear, integer) and not cheap.any()


def logits_of(state: network.ModelState, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return state.network.eval()(pixels)


def test_importance_is_what_a_weight_does_to_the_logits(bench):
    """Against finite differences of single weights, over the same images; random signs blur it."""
    state = stages.run(bench, "quantize")
    pixels = data.sample(split_of(bench).train, 512, 0).pixels
    module, batches = state.network.module, pixels.split(4)
    importance = rounding.of_logits(state.network.eval(), module, batches, 3)
    assert {n: t.shape for n, t in importance.items()} == {
        n: layer.weight.shape for n, layer in fakequant.layers(module).items()
    }
    head = fakequant.layers(module)["head"]
    inputs = []
    handle = head.register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    logits = logits_of(state, pixels)
    handle.remove()
    # Of the last layer it is known: each logit moves by its own input.
    exact = head.input_quantizer(inputs[0]).detach().square().sum(0) / logits.square().sum()
    assert torch.allclose(importance["head"].mean(0), exact, rtol=0.3)
    assert float(importance["head"].mean() / exact.mean()) == pytest.approx(1, rel=0.05)


def uncoded(state: network.ModelState) -> network.ModelState:
    """A copy of it, without what `encode` left."""
    kept = tuple(t for t in state.spec.transforms if t.name != "encoded")
    return network.restore(
        dataclasses.replace(state.spec, transforms=kept), state.network.state_dict()
    )


@pytest.mark.parametrize("name", ["inq-5", "deep-compression", "qat-int4", "rate"])
def test_a_rounded_network_has_integers_nearer_to_zero_in_fewer_bits(bench, name):
    """Whatever made them: powers of two, a codebook, few bits. None can overflow that did not."""
    before = uncoded(made(bench, name).state)
    after = stages.run(bench, "encode", before, rounding=0.02)
    layers = (fakequant.layers(state.network.eval().module) for state in (before, after))
    saved = 0.0
    for was, layer in zip(*(each.values() for each in layers), strict=True):
        scale = by_filter(was.weight_quantizer.scale, was.weight)
        then, now = ((each.quantized_weight().detach() / scale).round() for each in (was, layer))
        assert {*now.unique().tolist()} <= {*then.unique().tolist()}
        assert (now * then >= 0).all() and (now.abs() <= then.abs()).all()
        assert pairs.largest(now).max() <= max(pairs.LIMIT, pairs.largest(then).max())
        classes = rounding._classes(then)
        saved += rounding.coded_bits(then, classes) - rounding.coded_bits(now, classes)
    assert saved > 100
    pixels = split_of(bench).test.pixels
    was, now = logits_of(before, pixels), logits_of(after, pixels)
    assert 0 < float((now - was).norm() / was.norm()) < 0.5


def test_what_is_deployed_is_what_was_rounded_and_the_file_is_smaller(bench, tmp_path):
    state = stages.run(bench, "encode", uncoded(made(bench, "rate").state), rounding=0.05)
    split = split_of(bench)
    sample = data.sample(split.train, 64, 0).pixels.numpy()
    artifact.write(state, tmp_path / "rounded", {}, sample, split.classes)
    loaded = artifact.load(tmp_path / "rounded")
    assert loaded.stored_bytes < 0.98 * deployed(bench, "rate").stored_bytes
    pixels = split.test.pixels[:200]
    scores = np.concatenate([*runtimes.logits(runtimes.session(loaded, 1), pixels.numpy())])
    agree = (scores.argmax(1) == logits_of(state, pixels).argmax(1).numpy()).mean()
    assert agree >= 0.99


def test_without_rounding_not_a_bit_changes_and_the_setting_is_in_no_id(bench):
    assert encode.Settings().model_dump() == {"codec": "npk"}
    assert encode.Settings(rounding=0.0).canonical == '{"codec":"npk"}'
    assert encode.Settings(rounding=0.5).canonical == '{"codec":"npk","rounding":0.5}'
    before = stages.run(bench, "quantize")
    after = stages.run(bench, "encode", before)
    for one, other in zip(
        before.network.state_dict().values(), after.network.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)


def test_floats_are_not_rounded(bench):
    with pytest.raises(
        UserError, match=r"encode\.rounding: .* are floats; expected a stage before"
    ):
        stages.run(bench, "encode", rounding=0.01)
