"""Networks from channel lists: their size, their shapes, and that smaller ones are the same."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.measure import complexity
from pipeline.models import MODELS, module_of, network, vgg
from pipeline.models.layers import Network
from pipeline.models.spec import SMALLEST_NORMAL, NetworkSpec
from pipeline.models.transforms.fakequant import FakeQuantized
from pipeline.models.transforms.folded import Folded

FULL = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)  # VGG-16's filters
SIDES = (32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2)  # and the side of what they give
VGGS = [name for name in MODELS if name.startswith("vgg")]  # others: test_resnet.py
DEPTHS = {"vgg11": 8, "vgg13": 10, "vgg16": 13, "vgg19": 16}


def spec(name="vgg11_bn", width=0.125, shape=(3, 32, 32), classes=10) -> NetworkSpec:
    return module_of(name).spec(name, width, shape, classes, 120, 1 / 64)


def lively(spec: NetworkSpec, seed: int = 0) -> network.ModelState:
    """Fresh weights, and normalization as if it had seen something: no scale is 1, no mean 0."""
    state, random = network.new(spec, seed), torch.Generator().manual_seed(seed)
    for module in state.network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 2.0, generator=random)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0.0, 0.3, generator=random)
    state.network.eval()
    return state


def images(shape, count=4, seed=0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), generator=random, dtype=torch.uint8)


# --- size and shape --------------------------------------------------------------------------


def test_vgg16_has_the_size_that_the_field_reports():
    parameters, macs = complexity.count(spec("vgg16_bn", width=1))
    assert parameters == 14_724_042
    assert macs == 313_201_664
    normalized = sum(c * s * s for c, s in zip(FULL, SIDES, strict=True))
    assert round((macs + 2 * normalized) / 1e6, 1) == 313.8  # "313.7 M": cut off, not rounded


@pytest.mark.parametrize("name", VGGS)
def test_every_model_has_its_depth_and_gives_logits(name):
    made = spec(name, classes=7)
    assert len(made.channels) == DEPTHS[name.removesuffix("_bn")]
    state = network.new(made, 0)
    assert network.normalized(state.network) == name.endswith("_bn")
    with torch.inference_mode():
        logits, maps = state.network.eval()(images(made.shape), maps=True)
    assert logits.shape == (4, 7) and len(maps) == 5
    assert [m.shape[1] for m in maps] == [8, 16, 32, 64, 64]


@pytest.mark.parametrize(
    "shape",
    [(1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 8, 8), (3, 33, 47), (1, 1, 1), (2, 224, 224)],
)
def test_images_of_any_size_are_taken_and_the_last_map_never_vanishes(shape):
    with torch.inference_mode():
        net = network.new(spec(shape=shape), 0).network.eval()
        logits, maps = net(images(shape, 2), maps=True)
    assert logits.shape == (2, 10) and torch.isfinite(logits).all()
    assert all(m.shape[2] >= 2 and m.shape[3] >= 2 for m in maps)


@pytest.mark.parametrize(("size", "before", "after"), [(28, 2, 2), (8, 12, 12), (27, 3, 3)])
def test_a_small_image_is_one_of_32_pixels_with_an_empty_border(size, before, after):
    made = spec(shape=(1, size, size))
    small, pixels = lively(made).network, images(made.shape)
    wide = size + before + after
    large = network.build(replace(made, shape=(1, wide, wide))).eval()
    large.load_state_dict(small.state_dict())
    bordered = F.pad(pixels, (before, after, before, after), value=made.zero_point)
    with torch.inference_mode():
        torch.testing.assert_close(small(pixels), large(bordered))


@given(st.floats(0.01, 4), st.sampled_from(sorted(VGGS)))
@settings(max_examples=50)
def test_width_scales_every_layer_to_a_multiple_of_eight(width, name):
    full, scaled = spec(name, 1).channels, spec(name, width).channels
    for wide, narrow in zip(full, scaled, strict=True):
        assert narrow % 8 == 0 and narrow >= 8
        assert abs(narrow - wide * width) <= 4 or narrow == 8


def test_uint8_and_float_images_are_the_same_to_a_network():
    net = lively(spec()).network
    pixels = images((3, 32, 32))
    with torch.inference_mode():
        assert torch.equal(net(pixels), net(pixels.float()))


def test_pixels_are_normalized_by_one_zero_point_and_one_scale():
    pixels = images((3, 4, 4))
    expected = (pixels.double() - 120) / 64
    normalized = Network(torch.nn.Identity(), 120, 1 / 64)(pixels)
    assert normalized.dtype == torch.float32 and torch.equal(normalized.double(), expected)


# --- feature maps ----------------------------------------------------------------------------


def test_feature_maps_are_what_the_blocks_end_with():
    net = lively(spec()).network
    pixels, seen = images((3, 32, 32)), []
    for i in (0, 1, 3, 5, 7):  # the last convolution of each block
        net.module.features[i].register_forward_hook(lambda m, x, y: seen.append(y))
    with torch.inference_mode():
        logits, maps = net(pixels, maps=True)
        assert torch.equal(net(pixels), logits)
    assert len(maps) == 5 and len(seen) == 10
    assert all(torch.equal(a, b) for a, b in zip(maps, seen[:5], strict=True))


def test_a_copy_of_a_network_keeps_maps_of_its_own():
    """A hook that was bound to the original would give the copy's maps to the original."""
    net = lively(spec()).network
    twin, pixels = copy.deepcopy(net), images((3, 32, 32))
    with torch.no_grad():
        twin.module.features[0].conv.weight.mul_(-1)
    with torch.inference_mode():
        own, others = net(pixels, maps=True)[1], twin(pixels, maps=True)[1]
        again = net(pixels, maps=True)[1]
    assert len(own) == len(others) == 5
    assert not any(torch.equal(a, b) for a, b in zip(own, others, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(own, again, strict=True))


def test_maps_of_one_call_stay_when_the_next_is_made():
    net, pixels = lively(spec()).network, images((3, 32, 32))
    with torch.inference_mode():
        first = net(pixels, maps=True)[1]
        kept = [m.clone() for m in first]
        net(255 - pixels, maps=True)
        net(255 - pixels)
    assert len(first) == 5 and all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_a_compiled_network_gives_the_same_maps():
    net, pixels = lively(spec(width=0.02)).network, images((3, 32, 32), 2)
    compiled = torch.compile(net)
    with torch.inference_mode():
        expected, own = net(pixels, maps=True)
        for _ in range(2):  # once more, from what was compiled
            logits, maps = compiled(pixels, maps=True)
            assert len(maps) == len(own) == 5
            for mine, theirs in zip((logits, *maps), (expected, *own), strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(compiled(pixels), expected, rtol=1e-4, atol=1e-5)


# --- specifications --------------------------------------------------------------------------

TRANSFORMS = st.builds(Folded) | st.builds(
    FakeQuantized, st.sampled_from([7, 8]), st.booleans(), st.booleans()
)


@given(
    st.sampled_from(sorted(MODELS)),
    st.floats(0.02, 2),
    st.tuples(st.integers(1, 4), st.integers(4, 64), st.integers(4, 64)),
    st.integers(2, 1000),
    st.floats(1e-4, 10),
    st.lists(TRANSFORMS, max_size=3).map(tuple),
)
def test_a_specification_survives_json(name, width, shape, classes, scale, transforms):
    made = module_of(name).spec(name, width, shape, classes, 33, scale)
    made = replace(made, transforms=transforms)
    assert NetworkSpec.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_counting_parameters_needs_no_weights_and_agrees_with_them():
    made = spec("vgg13")
    counted = sum(p.numel() for p in network.new(made, 0).network.parameters())
    assert network.parameter_count(made) == counted
    quantized = made.with_transform(FakeQuantized(learned=True))
    assert network.parameter_count(quantized) == counted  # ranges are no parameters of the model
    before = torch.get_rng_state()
    network.parameter_count(spec("vgg19", width=4))
    assert torch.equal(torch.get_rng_state(), before)


# --- weights ---------------------------------------------------------------------------------


def test_weights_are_decided_by_the_seed_alone_and_leave_the_global_generator():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = network.new(spec(), 5).network.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = network.new(spec(), 5).network.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = network.new(spec(), 6).network.state_dict()
    assert not torch.equal(first["module.head.weight"], other["module.head.weight"])


def test_fresh_weights_keep_the_signal_alive_through_all_layers():
    made = spec("vgg19", width=0.5)
    with torch.inference_mode():
        _, maps = network.new(made, 0).network(images(made.shape, 8), maps=True)
    assert all(0.01 < float(m.std()) < 20 for m in maps)


def test_restoring_takes_the_weights_and_leaves_the_global_generator():
    state, before = lively(spec()), torch.get_rng_state()
    again = network.restore(state.spec, state.network.state_dict())
    assert torch.equal(torch.get_rng_state(), before)
    pixels = images(state.spec.shape)
    with torch.inference_mode():
        assert torch.equal(again.network.eval()(pixels), state.network(pixels))


def test_weights_of_another_shape_are_refused():
    with pytest.raises(RuntimeError, match="size mismatch"):
        network.restore(spec(width=0.25), network.new(spec(), 0).network.state_dict())


# --- folding ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vgg11_bn", "vgg16_bn"])
def test_folding_keeps_the_outputs(name):
    state = lively(spec(name))
    state.network.module.features[2].norm.running_var[:4] = 1e-6  # as of a filter that hardly moves
    folded = network.fold(state)
    assert folded.spec.has("folded") and folded.spec.structure == folded.spec
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.network.modules())
    assert network.fold(folded) is folded
    pixels = images(state.spec.shape, 16)
    with torch.inference_mode():
        expected, outputs = state.network(pixels), folded.network(pixels)
    assert float((outputs - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_folding_what_has_no_normalization_changes_nothing():
    state = network.new(spec("vgg11"), 0)
    assert network.fold(state) is state


def test_folding_leaves_no_subnormal_numbers():
    """A filter whose scale has shrunk to nothing: folded as it is, it would be slow to compute."""
    state = lively(spec())
    norm = state.network.module.features[2].norm
    norm.weight.data[:5] = 1e-38
    norm.bias.data[:5] = 1e-41
    plain = state.network.module.features[2].conv.weight[:5] * 1e-38
    assert ((plain != 0) & (plain.abs() < SMALLEST_NORMAL)).any()
    folded = network.fold(state).network.state_dict()
    for tensor in folded.values():
        assert not ((tensor != 0) & (tensor.abs() < SMALLEST_NORMAL)).any()
    assert not folded["module.features.2.conv.weight"][:5].any()


# --- shrinking -------------------------------------------------------------------------------


@st.composite
def kept_filters(draw):
    counts = spec().channels
    return [
        torch.tensor(sorted(draw(st.sets(st.integers(0, count - 1), min_size=1))))
        for count in counts
    ]


@given(kept_filters())
@settings(max_examples=25)
def test_a_shrunk_network_computes_what_the_masked_one_does(kept):
    state = lively(spec())
    small = network.shrink(state, kept)
    assert small.spec.channels == tuple(len(k) for k in kept)
    assert small.network.module.features[3].conv.weight.shape[:2] == (len(kept[3]), len(kept[2]))
    assert network.parameter_count(small.spec) == sum(p.numel() for p in small.network.parameters())
    pixels = images(state.spec.shape, 3)
    masked = masked_copy(state, kept)
    with torch.inference_mode():
        expected, outputs = masked(pixels), small.network.eval()(pixels)
    assert torch.allclose(outputs, expected, atol=1e-5, rtol=1e-4)


def masked_copy(state: network.ModelState, kept) -> torch.nn.Module:
    """The network with the outputs of removed filters set to zero."""
    masked = network.restore(state.spec, state.network.state_dict()).network.eval()
    for layer, index in zip(masked.module.features, kept, strict=True):
        gone = torch.ones(len(layer.conv.weight), dtype=torch.bool)
        gone[index] = False
        for tensor in (layer.norm.weight.data, layer.norm.bias.data):
            tensor[gone] = 0
    return masked


def test_keeping_everything_is_the_same_network():
    state = lively(spec())
    same = network.shrink(state, [torch.arange(c) for c in state.spec.channels])
    assert same.spec == state.spec
    for name, tensor in state.network.state_dict().items():
        assert torch.equal(same.network.state_dict()[name], tensor), name


def test_every_group_names_layers_that_are_there_and_leaves_none_out():
    for name in VGGS:
        made = spec(name)
        modules = dict(network.build(made).module.named_modules())
        groups = network.graph_of(made).groups
        assert len(groups) == len(made.channels)
        for group in groups:
            [producer] = group.producers
            assert isinstance(modules[producer], torch.nn.Conv2d)
            assert len(group.norms) == name.endswith("_bn")
            for norm in group.norms:
                assert isinstance(modules[norm], torch.nn.BatchNorm2d)
            for consumer in group.consumers:
                inputs = modules[consumer].weight.shape[1]
                assert inputs == modules[producer].weight.shape[0]


@pytest.mark.parametrize(
    ("shape", "averaged"), [((3, 32, 32), False), ((3, 63, 40), False), ((3, 64, 32), True)]
)
def test_five_poolings_of_vgg_and_what_they_leave_is_averaged(shape, averaged):
    pool = vgg.build(spec("vgg16_bn", shape=shape)).pool
    assert isinstance(pool, torch.nn.AdaptiveAvgPool2d) is averaged
