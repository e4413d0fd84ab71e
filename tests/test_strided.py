"""1x1 convolutions with a stride and few inputs have right gradients on every CPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.models import strided
from pipeline.models.convolving import Call
from pipeline.models.layers import Network
from pipeline.training.recipe import Machine


def gradients(layer, images, dtype):
    """Of the layer's weights and of its images, behind a network's own wrapper."""
    layer = layer.to(dtype)
    layer.zero_grad()
    network = Network(layer, 0, 1.0)
    network.normalize = lambda images: images  # as float64, too
    images = images.detach().to(dtype).requires_grad_()
    outputs = network(images)
    outputs.square().sum().backward()
    return [layer.weight.grad.double(), images.grad.double(), outputs.detach().double()]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("inputs", [1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17])
def test_gradients_are_those_in_doubles(inputs, layout):
    """Where oneDNN writes past its buffer they differ by a tenth to all, or the process ends."""
    torch.manual_seed(inputs)
    for stride, size in ((2, 16), (2, 15), (3, 8), ((1, 2), 8)):
        layer = nn.Conv2d(inputs, 5, 1, stride).to(memory_format=layout)
        images = torch.randn(16, inputs, size, size).to(memory_format=layout)
        single = gradients(layer, images, torch.float32)
        for mine, exact in zip(single, gradients(layer, images, torch.float64), strict=True):
            assert (mine - exact).abs().max() < 1e-5 * exact.abs().max(), (stride, size)


@pytest.mark.parametrize("inputs", [1, 4, 7, 15, 16])
def test_gradients_in_bf16_are_close_to_those_in_doubles(inputs):
    torch.manual_seed(inputs)
    layer = nn.Conv2d(inputs, 5, 1, 2).to(memory_format=torch.channels_last)
    images = torch.randn(16, inputs, 16, 16).to(memory_format=torch.channels_last)
    with Machine(torch.device("cpu"), bf16=True, compiled=False).autocast():
        rounded = gradients(layer, images, torch.float32)
    for mine, exact in zip(rounded, gradients(layer, images, torch.float64), strict=True):
        assert (mine - exact).abs().max() < 0.03 * exact.abs().max()


@pytest.mark.parametrize(
    "how",
    [
        {"kernel_size": 1, "stride": 2, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 1, "stride": 2, "groups": 4},
        {"kernel_size": 1, "stride": 2, "padding": "valid", "bias": False},
        {"kernel_size": 1, "stride": (2, 1), "dilation": 2},
    ],
)
def test_every_convolution_is_the_one_that_was_called(how):
    layer, images = nn.Conv2d(4, 8, **how).double(), torch.randn(2, 4, 9, 9).double()
    expected = layer(images)
    with strided.Strided():
        assert torch.allclose(layer(images), expected, rtol=1e-12, atol=1e-12)


def test_it_is_active_where_a_gradient_is_taken_on_a_cpu():
    images = torch.zeros(1)
    assert isinstance(strided.corrected(images), strided.Strided)
    with torch.no_grad():
        assert not isinstance(strided.corrected(images), strided.Strided)
    assert not isinstance(strided.corrected(images.to("meta")), strided.Strided)


@pytest.mark.parametrize(("inputs", "expected"), [(4, ((4, 4), 1)), (strided.BLOCK, ((8, 8), 2))])
def test_strides_are_taken_before_the_convolution_and_only_with_few_inputs(
    monkeypatch, inputs, expected
):
    seen, convolve = [], F.conv2d

    def conv2d(input, weight, bias, stride, *rest):
        seen.append((tuple(input.shape[2:]), stride))
        return convolve(input, weight, bias, stride, *rest)

    monkeypatch.setattr(F, "conv2d", conv2d)
    call = Call(torch.ones(1, inputs, 8, 8), torch.ones(2, inputs, 1, 1), stride=2)
    assert strided.Strided().convolve(call).shape == (1, 2, 4, 4) and seen == [expected]
