"""Simulated quantization: integers in floats, how it learns, how ranges are found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.models import network, vgg
from pipeline.models.spec import Graph
from pipeline.models.transforms import calibration, fakequant
from pipeline.models.transforms.fakequant import FakeQuantized
from pipeline.models.transforms.lsq import learned_step
from tests.test_models import images, lively

SPEC = vgg.spec("vgg11_bn", 0.125, (3, 32, 32), 10, 120, 1 / 64)


def conv(bits=8, learned=False, seed=0) -> fakequant.FakeQuantConv2d:
    """One fake-quantized convolution of 3 channels to 4 filters, scales set."""
    torch.manual_seed(seed)
    layer = nn.Conv2d(3, 4, 3, padding=1)
    layer.__class__ = fakequant.FakeQuantConv2d
    layer.prepare(FakeQuantized(bits, learned))
    with torch.no_grad():
        layer.weight_quantizer.scale.copy_(layer.weight_quantizer.widest(layer.weight))
        layer.input_quantizer.scale.fill_(0.05)
        layer.input_quantizer.zero_point.fill_(30)
    return layer.eval()


def quantized(state: network.ModelState, method="minmax", **settings):
    """The network of `state`, folded, fake-quantized and calibrated."""
    made = network.with_transform(network.fold(state), FakeQuantized(**settings))
    batches = [made.network.normalize(images(SPEC.shape, 32))]
    image = SPEC.zero_point, SPEC.scale
    calibration.calibrate(made.network.module, batches, method, image)
    return made.network


# --- against integers ------------------------------------------------------------------------


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("bits", [8, 7])
@given(seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_a_convolution_is_what_integers_give(bits, learned, seed):
    layer = conv(bits, learned, seed)
    x = torch.randn(2, 3, 8, 8) * 3
    scale, zero = layer.input_quantizer.scale.item(), layer.input_quantizer.zero_point.item()
    q = np.clip(np.round(x.numpy() / np.float32(scale)) + zero, 0, 255).astype(np.int64) - zero
    scales = layer.weight_quantizer.scale.detach().numpy()[:, None, None, None]
    w = np.round(layer.weight.detach().numpy() / scales).astype(np.int64)
    assert np.abs(w).max() == 2 ** (bits - 1) - 1
    sums = F.conv2d(torch.from_numpy(q).double(), torch.from_numpy(w).double(), padding=1).numpy()
    factors = scales.reshape(1, -1, 1, 1).astype(np.float64) * scale
    bias = np.round(layer.bias.detach().numpy().reshape(1, -1, 1, 1) / factors) * factors
    with torch.no_grad():
        output = layer(x).numpy()
    # A value halfway between two integers may go either way: one step of one weight, at most few.
    assert np.mean(np.abs(output - (sums * factors + bias)) > 1e-4) < 0.01


@pytest.mark.parametrize("learned", [False, True])
def test_a_linear_layer_is_what_integers_give(learned):
    torch.manual_seed(0)
    layer = nn.Linear(16, 5)
    layer.__class__ = fakequant.FakeQuantLinear
    layer.prepare(FakeQuantized(8, learned))
    with torch.no_grad():
        layer.weight_quantizer.scale.copy_(fakequant.widest(layer.weight, 127))
        layer.input_quantizer.scale.fill_(0.02)
    x = torch.rand(7, 16) * 5
    q = torch.clamp(torch.round(x / layer.input_quantizer.scale), 0, 255)
    w = torch.round(layer.weight / layer.weight_quantizer.scale[:, None])
    sums = q @ w.T + torch.round(
        layer.bias / (layer.input_quantizer.scale * layer.weight_quantizer.scale)
    )
    expected = sums * layer.input_quantizer.scale * layer.weight_quantizer.scale
    assert torch.allclose(layer.eval()(x), expected, atol=1e-5)


def test_values_out_of_range_are_cut_off_at_both_ends():
    layer = conv()
    values = layer.input_quantizer(torch.tensor([-1e9, 1e9, 0.0]))
    assert values.tolist() == pytest.approx([-30 * 0.05, 225 * 0.05, 0.0])
    layer.weight.data[0] *= 1000
    values = (layer.quantized_weight()[0] / layer.weight_quantizer.scale[0]).detach()
    assert float(values.abs().max()) == pytest.approx(127)


@pytest.mark.parametrize("learned", [False, True])
def test_training_and_evaluation_round_alike(learned):
    """With observed ranges the weight's scale is the widest in training; with learned ones kept."""
    layer, x = conv(learned=learned), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        evaluated, trained = layer(x), layer.train()(x)
    step = (
        (layer.input_quantizer.scale * layer.weight_quantizer.scale).max().item()
    )  # the bias is rounded in one
    assert float((evaluated - trained).abs().max()) <= 0.51 * step


def test_the_image_itself_is_not_rounded_again():
    net = quantized(lively(SPEC))
    pixels = images(SPEC.shape)
    first = next(iter(fakequant.layers(net.module).values()))
    normalized = net.normalize(pixels)
    assert first.input_quantizer.exact
    assert torch.equal(first.input_quantizer(normalized), normalized)
    q = torch.round(normalized / first.input_quantizer.scale) + first.input_quantizer.zero_point
    assert torch.equal(q.to(torch.uint8), pixels)
    assert [layer.input_quantizer.exact for layer in fakequant.layers(net.module).values()].count(
        True
    ) == 1


def test_weights_move_between_the_float_network_and_its_quantized_self():
    folded = network.fold(lively(SPEC))
    spec = folded.spec.with_transform(FakeQuantized())
    plain = folded.network.state_dict()
    assert set(plain) < set(network.build(spec).state_dict())


# --- learning --------------------------------------------------------------------------------


def lsq(values, scale, low, high, bound):
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    s = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    learned_step(x, s, low, high, bound, len(values)).sum().backward()
    return x.grad, s.grad


def test_gradients_are_those_of_the_paper():
    """Esser et al. (2020), equations 1 to 3 and section 2.2, by hand."""
    values, scale, low, high = [-9.0, -1.3, -0.2, 0.0, 0.26, 1.1, 9.0], 0.5, -4, 3
    gx, gs = lsq(values, scale, low, high, high)
    assert gx.tolist() == [0, 1, 1, 1, 1, 1, 0]
    expected = 0.0
    for value in values:
        v = value / scale
        expected += low if v <= low else high if v >= high else round(v) - v
    assert gs.item() == pytest.approx(expected / np.sqrt(len(values) * high))


def test_the_scale_of_an_image_learns_from_each_image_alike():
    """Section 2.2 counts the values of one image: the mean over a batch has the same gradient."""
    layer = nn.Conv2d(2, 3, 3)
    layer.__class__ = fakequant.FakeQuantConv2d
    layer.prepare(FakeQuantized(8, True))
    x = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 300

    def gradient(batch):
        layer.input_quantizer.scale.grad = None
        layer.train().input_quantizer(batch).sum(dim=(1, 2, 3)).mean().backward()
        return layer.input_quantizer.scale.grad.item()

    assert gradient(x.repeat(5, 1, 1, 1)) == pytest.approx(gradient(x), rel=1e-5)


@given(
    st.lists(st.floats(-20, 20), min_size=1, max_size=20),
    st.floats(0.1, 4),
    st.sampled_from([(-127, 127), (0, 255), (-30, 225), (-4, 3)]),
)
def test_the_gradient_of_the_scale_is_the_slope_where_nothing_rounds_differently(x, scale, ends):
    """Inside, moving the scale moves x by (round(v) - v): with the rounding held, it is the exact
    derivative of the expression that is computed; so finite differences find it."""
    low, high = ends
    v = np.clip(np.array(x) / scale, low, high)
    rest = np.round(v) - v  # what the straight-through estimator holds fixed

    def held(s: float) -> float:
        return float(np.sum((np.clip(np.array(x) / s, low, high) + rest) * s))

    step = 1e-6
    inside = np.abs(np.abs(np.array(x) / scale - (low + high) / 2) - (high - low) / 2) > 1e-3
    if not inside.all():  # at an end, the slope is another on either side
        return
    slope = (held(scale + step) - held(scale - step)) / (2 * step)
    _, gradient = lsq(x, scale, low, high, 255)
    assert gradient.item() == pytest.approx(slope / np.sqrt(len(x) * 255), abs=1e-5, rel=1e-4)


def test_every_filter_learns_a_scale_of_its_own():
    layer = conv(learned=True).train()
    layer(torch.randn(2, 3, 8, 8)).square().sum().backward()
    assert (
        layer.weight_quantizer.scale.grad.shape == (4,)
        and layer.weight_quantizer.scale.grad.abs().min() > 0
    )
    assert (
        layer.input_quantizer.scale.grad.shape == () and layer.input_quantizer.scale.grad.abs() > 0
    )
    assert layer.weight.grad.abs().sum() > 0


def test_a_range_that_lies_below_zero_can_learn_too():
    layer = conv(learned=True).train()
    layer.input_quantizer.zero_point.fill_(255)
    layer(-torch.rand(2, 3, 8, 8)).sum().backward()
    assert torch.isfinite(layer.input_quantizer.scale.grad)


def test_observed_scales_follow_the_weights_in_training_and_rest_otherwise():
    layer, x = conv(), torch.randn(1, 3, 8, 8)
    before = layer.weight_quantizer.scale.clone()
    layer.weight.data *= 3
    layer.eval()(x)
    assert torch.equal(layer.weight_quantizer.scale, before)
    layer.train()(x)
    assert torch.allclose(layer.weight_quantizer.scale, before * 3)
    assert not any(p is layer.weight_quantizer.scale for p in layer.parameters())


def test_gradients_pass_straight_through_to_weights_and_inputs():
    """As if the rounded numbers were the numbers; none to an input that was cut off."""
    layer = conv().train()
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    layer(x).square().sum().backward()
    q = layer.input_quantizer(x).detach().requires_grad_()
    w = layer.quantized_weight().detach().requires_grad_()
    F.conv2d(q, w, layer.bias, padding=1).square().sum().backward()
    steps = torch.round(x.detach() / 0.05) + 30
    cut = (steps < 0) | (steps > 255)
    assert cut.any() and torch.allclose(layer.weight.grad, w.grad)
    assert torch.allclose(x.grad, torch.where(cut, torch.zeros(()), q.grad))


# --- ranges ----------------------------------------------------------------------------------


def test_the_widest_scale_is_that_of_the_largest_weight_of_each_filter():
    weight = torch.tensor([[1.0, -2.54], [0.127, 0.0], [-5.08, 1.0]])
    assert fakequant.widest(weight, 127).tolist() == pytest.approx([0.02, 0.001, 0.04])
    assert fakequant.widest(weight, 63).tolist() == pytest.approx(
        [2.54 / 63, 0.127 / 63, 5.08 / 63]
    )


def test_a_dead_filter_takes_a_scale_that_its_bias_can_use():
    """Deployed, a bias is a multiple of (input scale x weight scale): with a scale of 1 a filter of
    zeros, which gives nothing but its bias, would lose it."""
    weight = torch.tensor([[0.0, 0.0], [0.127, 0.0], [1e-42, -1e-41], [0.0254, 0.01]])
    scales = fakequant.widest(weight, 127)
    assert scales.tolist() == pytest.approx([0.001, 0.001, 0.001, 0.0002])
    assert torch.isfinite(1 / scales).all()
    assert fakequant.widest(torch.zeros(2, 3), 127).tolist() == [1, 1]


@pytest.mark.parametrize("bits", [8, 7])
def test_the_squared_error_of_mse_is_never_above_that_of_minmax(bits):
    state = lively(SPEC, 3)
    networks = {m: quantized(state, m, weight_bits=bits) for m in ("minmax", "mse")}
    plain = network.fold(state).network.module.state_dict()
    for name, layer in fakequant.layers(networks["minmax"].module).items():
        weight = plain[f"{name}.weight"]
        losses = {
            method: (fakequant.layers(net.module)[name].quantized_weight() - weight)
            .square()
            .flatten(1)
            for method, net in networks.items()
        }
        assert (losses["mse"].mean(1) <= losses["minmax"].mean(1) * (1 + 1e-6)).all()
        if not layer.input_quantizer.exact:
            wide = layer.input_quantizer.scale
            tight = fakequant.layers(networks["mse"].module)[name].input_quantizer.scale
            assert 0.24 * wide <= tight <= wide


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=200),
    st.sampled_from(["mse", "minmax"]),
)
def test_a_range_holds_zero_exactly_and_loses_no_more_than_the_widest(values, method):
    values = torch.tensor(values)
    scale, zero = calibration._range(values, method)
    assert scale > 0 and 0 <= zero <= 255
    full = calibration._range(values, "minmax")
    assert calibration._loss(values, scale, zero) <= calibration._loss(values, *full)
    assert calibration._loss(torch.zeros(1), scale, zero) == 0


@pytest.mark.parametrize("values", [[0.0], [1e-42, 0.0], [-1e-40, 1e-40], [3e-39]])
def test_inputs_that_are_as_good_as_zero_have_a_range_all_the_same(values):
    scale, zero = calibration._range(torch.tensor(values), "mse")
    assert (scale, zero) == (1.0, 0)


def test_after_a_rectifier_the_zero_point_is_zero():
    """So that the integers of a convolution end at zero where its ReLU would cut it."""
    net = quantized(lively(SPEC), "mse")
    inner = [
        layer for layer in fakequant.layers(net.module).values() if not layer.input_quantizer.exact
    ]
    assert len(inner) == len(SPEC.channels)
    assert all(
        layer.input_quantizer.zero_point == 0 and layer.input_quantizer.scale > 0 for layer in inner
    )


def test_calibration_sees_all_of_an_image_and_not_its_left_edge_alone():
    """A value in 2^k, at an even distance, would come from one column of every map."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1))
    FakeQuantized().insert(net, Graph((), (), ("0",)))
    batch = torch.zeros(64, 1, 32, 32)
    batch[:] = torch.arange(32)  # each column has a value of its own
    net[0].weight.data.fill_(1.0)
    net[0].bias.data.zero_()
    seen = calibration._observe(net, [batch])["1"]
    assert len(seen) >= calibration.SAMPLE / 2
    counts = torch.bincount(seen.long(), minlength=32)
    assert counts.min() > 0.5 * counts.max()


def test_calibration_leaves_the_layers_quantized_and_the_weights_alone():
    state = lively(SPEC)
    before = {n: t.clone() for n, t in network.fold(state).network.state_dict().items()}
    net = quantized(state, "mse")
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())
    assert len(fakequant.layers(net.module)) == len(SPEC.channels) + 1
    assert not net.module.training


def test_calibration_that_fails_leaves_the_layers_quantized():
    net = quantized(lively(SPEC))
    with pytest.raises(RuntimeError):
        calibration.calibrate(net.module, [torch.zeros(1, 7, 32, 32)], "mse", (0, 1.0))
    assert len(fakequant.layers(net.module)) == len(SPEC.channels) + 1
    assert not any(layer._forward_pre_hooks for layer in fakequant.layers(net.module).values())


@pytest.mark.parametrize("learned", [False, True])
def test_a_quantized_network_is_near_the_float_one(learned):
    state, pixels = lively(SPEC), images(SPEC.shape, 32)
    with torch.inference_mode():
        exact = network.fold(state).network(pixels)
        rough = {b: quantized(state, weight_bits=b, learned=learned)(pixels) for b in (8, 7)}
    error = {b: float((r - exact).norm() / exact.norm()) for b, r in rough.items()}
    assert 0 < error[8] < 0.05 and error[8] < error[7] < 0.1
