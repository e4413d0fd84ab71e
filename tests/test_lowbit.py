"""Weights of few integers or few bits: how they are rounded, learned, folded and counted."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from pipeline.errors import Corrupt, UserError
from pipeline.models import network, transforms, vgg
from pipeline.models.transforms import calibration, fakequant
from pipeline.models.transforms.binary import Binary, BinaryQuantizer
from pipeline.models.transforms.binary_ternary import BinaryTernary, ChoosingQuantizer, choosing
from pipeline.models.transforms.coarse import Coarse
from pipeline.models.transforms.fakequant import FakeQuantized
from pipeline.models.transforms.lowbits import LowBits, StepQuantizer
from pipeline.models.transforms.ternary import Ternary, TernaryQuantizer
from pipeline.sweep import Recipe
from pipeline.techniques import coarse, lowbits, rate
from pipeline.training import checkpoint
from pipeline.training.loop import Diverged
from pipeline.training.rate import bits_per_weight, estimated_bits
from tests import stages
from tests.test_models import images, lively
from tests.test_techniques import beside, deployed, made, staged

SPEC = vgg.spec("vgg11_bn", 0.125, (3, 32, 32), 10, 120, 1 / 64)


def integers(layer) -> torch.Tensor:
    scale = layer.weight_quantizer.scale.detach()
    levels = layer.quantized_weight().detach() / scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
    assert float((levels - levels.round()).abs().max()) < 1e-3
    return levels.round()


def aware(transform: Coarse | None = None) -> network.ModelState:
    """A network with normalization, fake-quantized, calibrated, with the transform on it."""
    state = network.with_transform(lively(SPEC), FakeQuantized(learned=True, pairs=True))
    net = state.network
    batches, image = [net.normalize(images(SPEC.shape, 32))], (SPEC.zero_point, SPEC.scale)
    calibration.calibrate(net.module, batches, "mse", image)
    return state if transform is None else coarse.coarsened(state, transform)


# --- rounding --------------------------------------------------------------------------------

WEIGHT = torch.tensor([[1.0, -0.5, 0.1, -0.2, 0.6, 0.0], [-2.0, 2.0, 2.0, -2.0, -2.0, 2.0]])


def test_ternary_weights_are_those_of_the_paper():
    """Li et al. (2016), equations 3 to 6, by hand: the means are 0.4 and 2, so the thresholds are
    0.28 and 1.4; above the first are 1, 0.5 and 0.6, whose mean is 0.7."""
    quantizer, weight = TernaryQuantizer(2), WEIGHT.clone().requires_grad_()
    left = quantizer.train()(weight)
    assert quantizer.scale.tolist() == pytest.approx([0.7, 2.0])
    assert left[0].tolist() == pytest.approx([0.7, -0.7, 0, 0, 0.7, 0])
    assert torch.equal(left[1].detach(), WEIGHT[1])
    assert torch.equal(quantizer.eval()(left.detach()), left.detach())  # rounded, they stay
    (left * torch.arange(12.0).reshape(2, 6)).sum().backward()
    assert weight.grad.flatten().tolist() == list(range(12))  # straight through


def test_a_higher_threshold_leaves_more_zeros_and_rounded_weights_stay():
    """By hand: at 1.3 the limits are 0.52 and 2.6, but a filter keeps its largest. Of Gaussian
    weights 42 % are zero at the paper's threshold, 70 % at 1.3 (the normal distribution up to 0.7
    and 1.3 times its mean |w|, the square root of 2 / pi)."""
    quantizer = TernaryQuantizer(2, 1.3).train()
    assert quantizer(WEIGHT)[0].tolist() == pytest.approx([0.8, 0, 0, 0, 0.8, 0])
    assert torch.equal(quantizer(WEIGHT)[1], WEIGHT[1])
    weight = torch.randn(8, 10_000, generator=torch.Generator().manual_seed(0))
    for threshold, zeros in ((0.7, 0.424), (1.3, 0.700)):
        quantizer = TernaryQuantizer(8, threshold).train()
        left = quantizer(weight)
        assert (left == 0).double().mean().item() == pytest.approx(zeros, abs=0.005)
        assert torch.equal(quantizer.eval()(left), left)


def test_a_threshold_is_described_where_it_is_not_the_papers():
    """Those that were made before there was a choice stay as they are, byte for byte."""
    older = {"name": "ternary", "eight_bits": "first-and-last"}
    assert transforms.to_json(Ternary()) == older and transforms.from_json(older) == Ternary()
    sparser = Ternary(threshold=1.25)
    assert transforms.to_json(sparser) == {**older, "threshold": 1.25}
    assert transforms.from_json(transforms.to_json(sparser)) == sparser
    with pytest.raises(ValueError, match="threshold: from 0 to 10"):
        Ternary(threshold=float("nan"))


def test_binary_weights_are_those_of_the_paper():
    """Rastegari et al. (2016), equations 4 to 6; what is zero stays zero."""
    quantizer, weight = BinaryQuantizer(2, 1), WEIGHT.clone().requires_grad_()
    left = quantizer.train()(weight)
    assert quantizer.scale.tolist() == pytest.approx([2.4 / 5, 2.0])
    assert left[0].tolist() == pytest.approx([0.48, -0.48, 0.48, -0.48, 0.48, 0])
    left.sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(WEIGHT))


def test_the_angle_goes_from_ternary_weights_to_binary_ones():
    """At pi/4 those of Li et al., near pi/2 those of Rastegari et al.; between, ever fewer zeros.
    The penalty by hand: weights at 0, 1/4 and -1 of a scale cost 0, 1/4 and 0 at pi/4."""
    weight = torch.randn(8, 500, generator=torch.Generator().manual_seed(0))
    zeros = []
    for angle in (math.pi / 4, 1.1, 1.3, 1.54):
        quantizer = ChoosingQuantizer(8)
        quantizer.angle.data.fill_(angle)
        left = quantizer.train()(weight)
        zeros.append(int((left == 0).sum()))
        assert torch.equal(quantizer.eval()(left.detach()), left.detach())  # rounded, they stay
        twin = {math.pi / 4: TernaryQuantizer(8), 1.54: BinaryQuantizer(8, 1)}.get(angle)
        assert twin is None or torch.allclose(twin.train()(weight), left, atol=1e-6)
    assert zeros == sorted(zeros, reverse=True) and zeros[0] > zeros[2] > zeros[3] == 0
    quantizer, weight = ChoosingQuantizer(1), torch.tensor([[0.0, 0.5, -2.0]], requires_grad=True)
    quantizer.scale.fill_(2.0)
    pulled, chosen = quantizer.penalty(weight, ternary=10.0)
    assert pulled.item() == pytest.approx(4 * 0.25) and chosen.item() == pytest.approx(
        0.25 / 3 + 0.1
    )
    chosen.backward()  # d/db of tan b / 12 + 0.1 / tan b, at pi/4, where d tan b / db is 2
    assert float(quantizer.angle.grad) == pytest.approx(2 * (1 / 12 - 0.1)) and weight.grad is None


def test_each_layer_learns_whether_it_is_binary(bench):
    """A strong wish for either gives it, in all layers that may choose; both train."""
    for ternary, part in ((1e5, 1.0), (0.01, 0.0)):
        angles = []
        state = stages.run(
            bench,
            "binary-ternary",
            watch=lambda now, kept=angles: kept.append(
                [float(q.angle.detach()) for q in choosing(now.network.module).values()]
            ),
            ternary=ternary,
            epochs=3,
        )
        quantizers = choosing(state.network.module)
        layers = fakequant.layers(state.network.eval().module)
        assert len(quantizers) == len(layers) - 2
        levels = {len(integers(layers[name]).unique()) for name in quantizers}
        assert levels == ({3} if part else {2})
        assert all(math.pi / 4 <= angle <= 1.5501 for step in angles for angle in step)


@pytest.mark.parametrize("bits, low, high", [(4, -8, 7), (2, -2, 1)])
def test_low_bits_have_the_levels_and_the_first_scale_of_lsq(bits, low, high):
    quantizer = StepQuantizer(2, bits)
    assert quantizer.widest(WEIGHT).tolist() == pytest.approx([0.8 / high**0.5, 4 / high**0.5])
    with torch.no_grad():
        quantizer.scale.fill_(0.1)
    wide = torch.linspace(-3, 3, 60).reshape(1, 60).repeat(2, 1)
    quantizer.mirror[1] = -1
    levels = (quantizer(wide).detach() / 0.1).round()
    assert (levels[0].min(), levels[0].max()) == (low, high)
    assert (levels[1].min(), levels[1].max()) == (-high, -low)
    narrow = torch.full((2, 3), 0.04, requires_grad=True)
    quantizer(narrow).sum().backward()
    assert torch.equal(narrow.grad, torch.ones(2, 3)) and quantizer.scale.grad.abs().min() > 0


@pytest.mark.parametrize("kind", [TernaryQuantizer, BinaryQuantizer])
def test_a_filter_of_zeros_stays_zero_and_has_a_scale_all_the_same(kind):
    weight = torch.cat((torch.zeros(1, 6), WEIGHT[1:]))
    quantizer = kind(2, 1).train()
    assert torch.equal(quantizer(weight), weight) and quantizer.scale.tolist() == [2, 2]


@pytest.mark.parametrize(
    "eight_bits, kept",
    [
        ("first-and-last", {"features.0.conv", "head"}),
        ("first", {"features.0.conv"}),
        ("last", {"head"}),
        ("none", set()),
    ],
)
def test_which_layers_keep_their_eight_bits(eight_bits, kept):
    layers = fakequant.layers(aware(Ternary(eight_bits)).network.module)
    levels = {name: len(integers(layer).unique()) for name, layer in layers.items()}
    assert {name for name, count in levels.items() if count > 3} == kept


# --- folding ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "transform", [LowBits(bits=4), LowBits(bits=2), Ternary(), Binary(), BinaryTernary(), None]
)
def test_folding_keeps_integers_and_moves_factors_into_their_scales(transform):
    """Also where the normalization turns a filter around, or off."""
    state = aware(transform)
    module, pixels = state.network.module, images(SPEC.shape, 8)
    with torch.no_grad():
        for layer in module.features:
            layer.norm.weight[0] *= -1
            layer.norm.weight[1] = 0
    state.network.eval()
    folded = network.fold(state)
    assert not network.normalized(folded.network) and network.normalized(state.network)
    for name, layer in fakequant.layers(module).items():
        before, after = integers(layer), integers(fakequant.layers(folded.network.module)[name])
        if name != "head":
            before[0], before[1] = -before[0], 0
        assert float((before != after).float().mean()) < 1e-3  # halves may go either way
    with torch.inference_mode():
        first, second = state.network(pixels), folded.network.eval()(pixels)
    # Biases are rounded once they are there, and so is one step of an activation in a hundred.
    assert float((first - second).abs().mean()) < 0.05 * float(first.std())


def test_a_spec_with_them_is_read_back_and_one_that_is_none_is_refused(tmp_path):
    state = network.fold(aware(LowBits("last", 2)))
    path = tmp_path / "model.safetensors"
    path.write_bytes(checkpoint.model_bytes(state))
    read = checkpoint.read_model(path)
    assert read.spec == state.spec and read.spec.transforms[1] == LowBits("last", 2)
    data = json.dumps(transforms.to_json(LowBits("last", 2)))
    for damaged in (data.replace("2", "3"), data.replace("last", "some")):
        with pytest.raises(ValueError, match="expected"):
            transforms.from_json(json.loads(damaged))
    path.write_bytes(path.read_bytes().replace(b'"bits\\": 2', b'"bits\\": 9'))
    with pytest.raises(Corrupt, match="expected 2 or 4, got 9"):
        checkpoint.read_model(path)


# --- training --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, bits, epochs",
    [
        ({"bits": 4}, (8, 4), (15, 15)),
        ({"bits": 2, "share": 0.5}, (8, 4, 2), (10, 10, 10)),
        ({"bits": 2, "epochs": 8}, (8, 4, 2), (2, 2, 4)),
        ({"bits": 2, "epochs": 1}, (8, 4, 2), (1, 1, 1)),
        ({"bits": 2, "epochs": 5, "progressive": False}, (2,), (5,)),
    ],
)
def test_bits_are_reached_step_by_step(settings, bits, epochs):
    settings = lowbits.Settings(**settings)
    assert settings.steps() == bits and settings.epochs_of_steps(Recipe()) == epochs
    assert settings.epochs_of(Recipe()) == sum(epochs)
    decay = [settings.recipe_at(b, Recipe()).weight_decay for b in bits]
    assert decay == [Recipe().weight_decay * (0.25 if b == 2 else 1) for b in bits]


def test_a_scale_that_learned_too_much_stays_in_reach_of_its_weights():
    state = aware(LowBits(bits=4))
    layers = fakequant.layers(state.network.module)
    with torch.no_grad():
        for layer in layers.values():
            layer.weight_quantizer.scale.copy_(layer.weight_quantizer.widest(layer.weight))
            layer.weight_quantizer.scale[0] = -1.0
        coarse.bounded(state, 1, 1)
    for layer in layers.values():
        quantizer = layer.weight_quantizer
        widest, scale = quantizer.widest(layer.weight), quantizer.scale.detach()
        assert float(scale[0]) == pytest.approx(0.25 * float(widest[0])) and torch.equal(
            scale[1:], widest[1:]
        )


@pytest.mark.parametrize(
    "name, levels",
    [
        ("qat-int4", set(range(-8, 9))),
        ("qat-int2", {-2, -1, 0, 1, 2}),  # a filter has four of them
        ("ternary", {-1, 0, 1}),
        ("binary", {-1, 1}),
        ("binary-ternary", {-1, 0, 1}),
    ],
)
def test_what_is_deployed_has_the_levels_that_the_technique_says(bench, name, levels):
    artifact = deployed(bench, name)
    tensors = onnx.load_model_from_string(artifact.model).graph.initializer
    weights = [
        set(np.unique(numpy_helper.to_array(tensor)).tolist())
        for tensor in tensors
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
    ]
    coarse = [values for values in weights if values <= levels]
    assert len(weights) == 9 and len(coarse) == 7 and set.union(*coarse) >= levels - {-8, -2, 2, 8}
    assert artifact.stored_bytes < 0.6 * artifact.runnable_bytes


@pytest.mark.parametrize("stage", ["lowbits", "ternary", "binary", "binary-ternary", "rate"])
def test_a_network_that_is_quantized_already_is_refused(bench, stage):
    cell = bench.cells(["x"], define={"x": [{"quantize": {}}, {stage: {"epochs": 1}}]})["x"]
    with pytest.raises(UserError, match=f"{stage}: the network is quantized already"):
        staged(cell, beside(bench, "senseless"))


# --- the rate --------------------------------------------------------------------------------


def entropy(q: np.ndarray) -> float:
    """Bits of all values at the order-0 entropy."""
    counts = np.unique(q, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum())


@pytest.mark.parametrize("spread", [0.15, 0.3, 0.6, 1.5, 4.0])
@pytest.mark.parametrize("law", ["laplace", "normal"])
def test_the_estimate_is_near_the_entropy_of_the_integers(law, spread):
    draw = getattr(np.random.default_rng(0), law)
    weight = torch.from_numpy(draw(0, spread, (64, 40, 3, 3)).astype(np.float32))
    estimate = float(estimated_bits(weight, torch.ones(64), 127))
    exact = entropy(weight.round().numpy())
    assert 0.99 * exact < estimate < 1.07 * exact + 20


def test_the_estimate_pulls_to_zero_by_the_bits_between_two_integers():
    weight = torch.tensor([[0.2, -0.4, 0.0, 1.2, -3.4, 0.3, 0.1, 0.0]], requires_grad=True)
    scale = torch.ones(1, requires_grad=True)
    estimated_bits(weight, scale, 127).backward()
    slopes = weight.grad[0].tolist()
    assert slopes[2] == slopes[7] == 0
    assert slopes[0] == slopes[5] == slopes[6] == -slopes[1] > 0  # from zero to one
    assert slopes[3] == -slopes[4] > 0  # each step further
    assert float(scale.grad) < 0  # wider steps take fewer bits
    alone = float(torch.tensor([0.2, -0.4, 0, 1.2, -3.4, 0.3, 0.1, 0]) @ weight.grad[0])
    assert float(scale.grad) == pytest.approx(-alone / np.sqrt(8 * 127), rel=1e-4)


def test_the_history_has_the_bits_of_the_integers_that_are_stored(bench):
    compressed = made(bench, "rate")
    weights = [
        integers(layer) for layer in fakequant.layers(compressed.state.network.module).values()
    ]
    exact = sum(entropy(q.numpy()) for q in weights) / sum(q.numel() for q in weights)
    column = compressed.history[-1].columns["bits_per_weight"]
    assert len(column) == len(compressed.history[-1].columns["loss"])
    assert column[-1] == pytest.approx(exact, rel=0.05)


def test_a_larger_rate_takes_fewer_bits(bench):
    chains = {f"rate-{r}": [{"rate": {"rate": r, "epochs": 1}}] for r in (0.0, 30.0)}
    planned = bench.cells(chains, define=chains)
    runs = [staged(planned[name], beside(bench, "rates")) for name in chains]
    free, rated = (float(bits_per_weight(r.state.network.module).detach()) for r in runs)
    assert rated < 0.8 * free
    assert rate.Settings(rate=30.0).recipe_of(Recipe()) == rate.Settings().recipe_of(Recipe())


def test_a_training_that_leaves_a_range_that_is_none_ends_with_its_epoch(bench):
    """Whichever stage it is of: fine-tuning after two bits, at a rate that is far too high."""
    low = stages.run(bench, "lowbits", bits=2)
    epochs = []
    with pytest.raises(Diverged, match=r"a learned range of .* in epoch \d; try a smaller"):
        stages.run(bench, "finetune", low, epochs.append, learning_rate_factor=20.0, epochs=5)
    assert len(epochs) < 5 * 8
