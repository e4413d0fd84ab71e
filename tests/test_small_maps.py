"""Products in place of convolutions over small maps: the same numbers, nowhere else; and the
steps of SGD on kernels seen as they lie in memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.models import module_of, network
from pipeline.sweep import Recipe
from pipeline.training import small_maps
from pipeline.training.recipe import Machine, optimizer
from pipeline.training.small_maps import SmallMaps

CPU_BF16 = Machine(torch.device("cpu"), bf16=True, compiled=False)


def _numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _gradients(images, weight, bias, how):
    """(output, gradient of each input) of a convolution within ``how``, in float32."""
    images, weight = (x.clone().requires_grad_() for x in (images, weight))
    images_last = images.contiguous(memory_format=torch.channels_last)
    leaves = [images, weight]
    if bias is not None:
        bias = bias.clone().requires_grad_()
        leaves.append(bias)
    with how:
        output = F.conv2d(images_last, weight, bias, padding=weight.shape[-1] // 2)
    output.float().backward(_numbers(*output.shape, seed=9))
    return [output.detach().float(), *(x.grad for x in leaves)]


@pytest.mark.parametrize("weight_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("size", "kernel"),
    [((4, 4), 3), ((2, 2), 3), ((1, 1), 3), ((3, 4), 3), ((4, 4), 1), ((2, 4), 5)],
)
def test_the_product_is_the_convolution_with_all_its_gradients(size, kernel, biased, weight_format):
    images = _numbers(5, 24, *size)
    weight = (_numbers(40, 24, kernel, kernel, seed=1) / 8).contiguous(memory_format=weight_format)
    bias = _numbers(40, seed=2) if biased else None
    exact = _gradients(images, weight, bias, torch.autocast("cpu", enabled=False))
    product = _gradients(images, weight, bias, CPU_BF16.autocast())
    for actual, wanted in zip(product, exact, strict=True):
        assert actual.shape == wanted.shape
        assert (actual - wanted).abs().max() < 0.02 * wanted.abs().max()  # bf16: 8 bits


def test_what_bf16_loses_is_what_the_convolution_loses_too():
    images, weight = _numbers(64, 64, 4, 4), _numbers(64, 64, 3, 3, seed=1) / 24
    exact = _gradients(images, weight, None, torch.autocast("cpu", enabled=False))
    product = _gradients(images, weight, None, CPU_BF16.autocast())
    usual = _gradients(images, weight, None, torch.autocast("cpu", torch.bfloat16))
    for ours, theirs, wanted in zip(product, usual, exact, strict=True):
        assert (ours - wanted).square().mean() < 1.2 * (theirs - wanted).square().mean()


@pytest.fixture
def no_product(monkeypatch):
    def refuse(*_):
        raise AssertionError("the product was taken")

    monkeypatch.setattr(small_maps._Product, "apply", refuse)


@pytest.mark.parametrize(
    "how",
    [
        {"stride": 2, "padding": 1},
        {"dilation": 2, "padding": 1},
        {"groups": 2, "padding": 1},
        {"padding": 0},
        {"padding": (1, 0)},
        {"padding": "same"},
    ],
)
def test_every_other_convolution_stays_one(how, no_product):
    images, weight = _numbers(2, 8, 4, 4), _numbers(8, 8 // how.get("groups", 1), 3, 3, seed=1)
    with CPU_BF16.autocast():
        output = F.conv2d(images, weight, **how)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(output, F.conv2d(images, weight, **how))


@pytest.mark.parametrize("weight", [(8, 8, 2, 2), (8, 8, 3, 1)])
def test_even_and_oblong_kernels_stay_convolutions(weight, no_product):
    with CPU_BF16.autocast():
        assert F.conv2d(_numbers(2, 8, 4, 4), _numbers(*weight), padding=1).shape[:2] == (2, 8)


def test_larger_maps_and_single_images_stay_convolutions(no_product):
    weight = _numbers(8, 8, 3, 3)
    with CPU_BF16.autocast():
        assert F.conv2d(_numbers(2, 8, 5, 4), weight, padding=1).shape == (2, 8, 5, 4)
        assert F.conv2d(_numbers(8, 4, 4), weight, padding=1).shape == (8, 4, 4)


@pytest.mark.parametrize(
    "how",
    [Machine(torch.device("cpu"), bf16=False, compiled=False).autocast(), SmallMaps()],
)
def test_float32_stays_float32(how, no_product):
    with how:
        assert (
            F.conv2d(_numbers(2, 8, 4, 4), _numbers(8, 8, 3, 3), padding=1).dtype is torch.float32
        )


def test_float32_within_bf16_stays_float32(no_product):
    with CPU_BF16.autocast(), torch.autocast("cpu", enabled=False):
        assert (
            F.conv2d(_numbers(2, 8, 4, 4), _numbers(8, 8, 3, 3), padding=1).dtype is torch.float32
        )


def test_vgg_takes_it_in_its_last_blocks(monkeypatch):
    taken, apply = [], small_maps._Product.apply

    def count(images, taps):
        taken.append(tuple(images.shape[2:]))
        return apply(images, taps)

    monkeypatch.setattr(small_maps._Product, "apply", count)
    net = network.new(
        module_of("vgg16_bn").spec("vgg16_bn", 0.125, (3, 32, 32), 10, 128, 1 / 74), 0
    )
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    with CPU_BF16.autocast():
        net.network.eval()(images)
    assert taken == [(4, 4)] * 3 + [(2, 2)] * 3


def test_steps_are_those_of_sgd_whatever_the_memory_layout():
    def trained(memory_format, make):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(64, 3))
        net.to(memory_format=memory_format)
        optim = make(net)
        for step in range(4):
            optim.zero_grad(set_to_none=True)
            net(_numbers(6, 8, 4, 4, seed=step)).square().sum().backward()
            optim.step()
        assert all(
            kept["momentum_buffer"].shape == p.shape == p.grad.shape
            and kept["momentum_buffer"].stride() == p.stride()
            for p, kept in optim.state.items()
        )
        return [p.detach() for p in net.parameters()]

    recipe = Recipe(learning_rate=0.001, weight_decay=0.1)
    ours = trained(torch.channels_last, lambda net: optimizer(net, recipe))

    def plain(net):
        groups = [
            {"params": [p for p in net.parameters() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in net.parameters() if p.dim() <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.SGD(groups, lr=0.001, momentum=0.9, nesterov=True, foreach=False)

    for parameter, wanted in zip(ours, trained(torch.contiguous_format, plain), strict=True):
        assert torch.allclose(parameter, wanted, rtol=1e-4, atol=1e-6)


def test_a_kernel_without_a_gradient_keeps_its_shape_and_its_values():
    frozen, moved = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    net = nn.Sequential(frozen, moved).to(memory_format=torch.channels_last)
    optim = optimizer(net, Recipe(learning_rate=0.01))
    before = [p.detach().clone() for p in frozen.parameters()]
    moved(_numbers(1, 4, 3, 3)).sum().backward()
    optim.step()
    assert all(torch.equal(a, b) for a, b in zip(frozen.parameters(), before, strict=True))
    assert moved.weight.shape == (4, 4, 3, 3)
