"""8-bit weights whose products overflow no 16-bit sum: what is moved, how far, and no farther."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.models.spec import Graph
from pipeline.models.transforms import calibration, fakequant, pairs
from pipeline.models.transforms.fakequant import FakeQuantized

INTEGERS = st.integers(-127, 127)
EVEN = st.sampled_from([(2, 2), (3, 4), (2, 6, 3, 3), (1, 2, 1, 1)])
ODD = st.sampled_from([(3, 1), (2, 3), (2, 5, 3, 3), (4, 1, 3, 3)])
FLOATS = st.floats(-1, 1, width=32)


def filled(draw, shape, values) -> torch.Tensor:
    count = int(np.prod(shape))
    listed = draw.draw(st.lists(values, min_size=count, max_size=count))
    return torch.tensor(listed, dtype=torch.float32).reshape(shape)


def sums(weight: torch.Tensor) -> torch.Tensor:
    """w1 + w2 of the channels 2i and 2i + 1 at each tap, one by one."""
    flat = weight.reshape(*weight.shape[:2], -1)
    pair_sums = [
        flat[k, 2 * i, tap] + flat[k, 2 * i + 1, tap]
        for k, i, tap in itertools.product(
            range(flat.shape[0]), range(flat.shape[1] // 2), range(flat.shape[2])
        )
    ]
    return torch.stack(pair_sums)


@given(st.data(), EVEN)
def test_projected_integers_are_safe_in_pairs_of_channels_at_a_tap(draw, shape):
    weight = filled(draw, shape, INTEGERS)
    projected = pairs.projected(weight)
    assert projected.shape == weight.shape and torch.equal(projected, projected.round())
    assert projected.abs().max() <= 127 and sums(projected).abs().max() <= 128
    assert pairs.largest(projected).max() <= 128
    safe = sums(weight).abs() <= 128
    assert torch.equal(sums(projected)[safe], sums(weight)[safe])


@given(st.data(), ODD)
def test_where_channels_are_odd_every_integer_is_safe_with_every_other(draw, shape):
    weight = filled(draw, shape, INTEGERS)
    projected = pairs.projected(weight)
    assert projected.abs().max() <= 64
    assert torch.equal(projected, weight.clamp(-64, 64))
    assert torch.equal(pairs.largest(weight), 2 * weight.abs().flatten(1).amax(1))


@given(st.data(), EVEN | ODD)
def test_projecting_keeps_signs_and_leaves_what_is_safe(draw, shape):
    weight = filled(draw, shape, INTEGERS)
    projected = pairs.projected(weight)
    assert (projected * weight >= 0).all() and (projected.abs() <= weight.abs()).all()
    assert torch.equal(pairs.projected(projected), projected)


@given(INTEGERS, INTEGERS)
def test_no_safe_pair_is_nearer(first, second):
    a, b = pairs.projected(torch.tensor([[float(first), float(second)]]))[0].tolist()
    every = np.arange(-127, 128)
    x, y = every[:, None], every[None]
    distance = np.where(np.abs(x + y) <= 128, (x - first) ** 2 + (y - second) ** 2, 10**9)
    assert (a - first) ** 2 + (b - second) ** 2 == distance.min()


@given(INTEGERS, INTEGERS, st.integers(0, 255), st.integers(0, 255))
def test_no_image_overflows_the_sum_of_a_safe_pair(first, second, p, q):
    """What vpmaddubsw adds: two products of an unsigned and a signed byte, into 16 bits."""
    a, b = pairs.projected(torch.tensor([[float(first), float(second)]]))[0].tolist()
    assert -(2**15) <= p * a + q * b < 2**15
    one = pairs.projected(torch.tensor([[float(first)], [float(second)]])).flatten().tolist()
    assert -(2**15) <= p * one[0] + q * one[1] < 2**15


def test_without_the_projection_an_image_does_overflow():
    assert 255 * 127 + 255 * 127 >= 2**15 > 255 * 128
    projected = pairs.projected(torch.tensor([[127.0, 127.0], [127.0, -127.0], [-127.0, -2.0]]))
    assert projected.tolist() == [[64, 64], [127, -127], [-126, -2]]


# --- and scales --------------------------------------------------------------------------------


def quantizer(weight: torch.Tensor, learned: bool = False) -> fakequant.WeightQuantizer:
    return fakequant.WeightQuantizer(len(weight), FakeQuantized(learned=learned, pairs=True))


def integers(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.round(weight / scale.reshape(-1, *[1] * (weight.dim() - 1)))


@given(st.data(), EVEN | ODD)
def test_at_the_widest_scale_rounding_alone_exceeds_the_limit_by_one_at_most(draw, shape):
    """The exact pair fits: |w1 + w2| <= 128 scales. Rounding moves each of the two by a half at
    most, so the sum of the integers is 129 at most, and the projection moves one by one."""
    weight = filled(draw, shape, FLOATS)
    assume(weight.abs().flatten(1).amax(1).min() > 1e-3)
    widest = quantizer(weight)
    scale = widest.widest(weight)
    exact = pairs.largest(weight) / scale
    assert exact.max() <= 128 * (1 + 1e-6)
    rounded = integers(widest.rounded(weight, scale), scale)
    assert rounded.abs().max() <= 127
    most = 129 if shape[1] % 2 == 0 else 128  # |w| <= 64 rounds to 64 at most
    assert pairs.largest(rounded).max() <= most
    left = integers(widest.deployed(weight, scale), scale)
    assert pairs.largest(left).max() <= 128 and (left - rounded).abs().max() <= 1


@given(st.data(), EVEN | ODD)
def test_the_widest_scale_is_no_wider_than_it_has_to_be(draw, shape):
    weight = filled(draw, shape, FLOATS)
    assume(weight.abs().flatten(1).amax(1).min() > 1e-3)
    scale = quantizer(weight).widest(weight)
    largest = weight.abs().flatten(1).amax(1) / scale
    full = torch.maximum(largest / 127, pairs.largest(weight) / scale / 128)
    torch.testing.assert_close(full, torch.ones_like(full))


@pytest.mark.parametrize("learned", [False, True])
@given(seed=st.integers(0, 1000), part=st.floats(0.25, 1))
@settings(max_examples=25)
def test_deployed_weights_are_safe_at_any_scale_and_in_training_too(learned, seed, part):
    weight = torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(seed))
    made = quantizer(weight, learned)
    with torch.no_grad():
        made.scale.copy_(made.widest(weight) * part)
    for mode in (True, False):
        left = made.train(mode)(weight).detach()
        scale = made.scale.detach()
        integers = left / scale.reshape(-1, 1, 1, 1)
        assert (integers - integers.round()).abs().max() < 1e-3
        assert pairs.largest(integers.round()).max() <= 128


def test_gradients_go_straight_through_the_projection():
    weight = torch.full((1, 2, 1, 1), 0.5, requires_grad=True)
    made = quantizer(weight).eval()
    made.scale.fill_(0.5 / 127)
    left = made(weight)
    assert torch.allclose(left.detach().flatten() / made.scale, torch.tensor(64.0))
    left.sum().backward()
    assert weight.grad.flatten().tolist() == [1, 1]


def test_a_network_of_odd_and_even_channels_is_safe_as_a_whole():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(16, 5))
    FakeQuantized(pairs=True).insert(module, Graph((), (), ("0",)))
    calibration.calibrate(module, [torch.randn(8, 3, 6, 6)], "mse", (0, 1.0))
    for layer in fakequant.layers(module).values():
        left = integers(layer.quantized_weight(), layer.weight_quantizer.scale)
        assert pairs.largest(left).max() <= 128
        assert left.abs().max() <= (64 if layer.weight.shape[1] % 2 else 127)
