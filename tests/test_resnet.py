"""Networks with residual connections and depthwise convolutions: their size, what is cut together,
and their integers; every technique on them is in test_networks.py."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from pipeline import artifact, runtimes
from pipeline.errors import UserError
from pipeline.measure import complexity
from pipeline.models import MODELS, mobilenet, module_of, network, resnet
from pipeline.models.transforms import calibration, fakequant
from pipeline.models.transforms.fakequant import FakeQuantized
from pipeline.techniques import distill, prune
from tests import networks
from tests.test_models import images, lively
from tests.test_techniques import Given

MINE = [n for n in MODELS if module_of(n) in (resnet, mobilenet)]
PUBLISHED = {  # model, width: millions of parameters, of MACs at 32x32
    # He et al. 2016, table 6; with 1x1 shortcuts chenyaofo/pytorch-cifar-models 0.27 M and 40.8 M
    # for resnet20, 0.86 M and 125.8 M for resnet56
    ("resnet20", 1): (0.27, 40.8),
    ("resnet20_a", 1): (0.27, None),
    ("resnet56", 1): (0.86, 125.7),
    ("resnet56_a", 1): (0.85, None),
    ("resnet110", 1): (1.73, None),
    ("resnet110_a", 1): (1.73, None),
    ("resnet18", 1): (11.17, 555.4),  # kuangliu/pytorch-cifar: 11.17 M, 0.56 G
    ("mobilenetv2", 1): (2.24, 88.0),  # chenyaofo/pytorch-cifar-models: 2.24 M, 87.98 M
    ("mobilenetv2", 0.5): (0.70, 28.0),  # 0.70 M, 27.97 M
}


@pytest.fixture
def short(monkeypatch):
    networks.shortened(monkeypatch)


def spec(name: str, width: float = 0.5, shape=(3, 32, 32)):
    return module_of(name).spec(name, width, shape, 10, 120, 1 / 64)


# --- size ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "width"), PUBLISHED)
def test_networks_have_the_size_that_the_field_reports(name, width):
    parameters, macs = complexity.count(spec(name, width))
    expected, expected_macs = PUBLISHED[name, width]
    assert round(parameters / 1e6, 2) == expected
    assert expected_macs is None or round(macs / 1e6, 1) == expected_macs
    relative = MODELS[name].macs if width == 1 else None
    assert relative is None or relative == pytest.approx(macs / 313_201_664, abs=0.006)


@pytest.mark.parametrize("name", ["resnet20", "resnet20_a", "resnet18", "mobilenetv2"])
def test_maps_are_those_before_the_images_get_smaller(name):
    state = network.new(spec(name, 0.125, (1, 28, 28)), 0)
    with torch.inference_mode():
        logits, maps = state.network.eval()(images((1, 28, 28)), maps=True)
    assert logits.shape == (4, 10) and torch.isfinite(logits).all()
    sides = (28, 14, 7) if name.startswith("resnet20") else (28, 14, 7, 4)
    assert tuple(m.shape[2] for m in maps) == sides
    assert all(0.01 < float(m.std()) < 20 for m in maps)


def test_attention_is_taught_between_networks_with_as_many_maps():
    sentence = "vgg11_bn has 5 feature maps to learn from the 3 of resnet20"
    with pytest.raises(UserError, match=rf"^distill\.attention: {sentence}"):
        distill.check_maps("distill.attention", spec("vgg11_bn"), spec("resnet20"))
    distill.check_maps("distill.attention", spec("resnet20"), spec("resnet56_a"))


# --- what is cut together ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet20", "resnet20_a", "mobilenetv2"])
def test_a_shrunk_network_computes_what_the_one_with_silent_channels_does(name, short):
    state = lively(spec(name))
    kept = [
        torch.arange(count)[torch.arange(count) % 3 != i % 3]
        for i, count in enumerate(state.spec.channels)
    ]
    small = network.shrink(state, kept)
    assert small.spec.channels == tuple(len(k) for k in kept)
    assert network.parameter_count(small.spec) == sum(p.numel() for p in small.network.parameters())
    pixels = images(state.spec.shape, 3)
    with torch.inference_mode():
        expected = silenced(state, kept)(pixels)
        actual = small.network.eval()(pixels)
    assert not torch.equal(expected, state.network(pixels))
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


def silenced(state: network.ModelState, kept) -> torch.nn.Module:
    """The network in which the channels that are to go are zero wherever they are made."""
    net, graph = copy.deepcopy(state.network).eval(), network.graph_of(state.spec)
    for name, groups in graph.filters.items():
        layer = net.module.get_submodule(name)
        if not isinstance(layer, torch.nn.BatchNorm2d):
            continue
        starts = np.cumsum([0, *(state.spec.channels[i] for i in groups)])
        stays = torch.cat([kept[i] + int(s) for i, s in zip(groups, starts, strict=False)])
        gone = torch.ones(len(layer.weight), dtype=torch.bool)
        gone[stays] = False
        layer.weight.data[gone], layer.bias.data[gone] = 0, 0
    return net


@pytest.mark.parametrize("name", MINE)
def test_every_layer_has_as_many_filters_and_inputs_as_its_groups(name):
    made = spec(name)
    modules = dict(network.build(made).module.named_modules())
    graph = network.graph_of(made)
    for layer, groups in graph.filters.items():
        assert len(modules[layer].weight) == sum(made.channels[i] for i in groups)
    for layer, groups in graph.readers.items():
        assert modules[layer].weight.shape[1] == sum(made.channels[i] for i in groups)
    convolutions = {n for n, m in modules.items() if isinstance(m, torch.nn.Conv2d)}
    assert convolutions == {conv for conv, _ in graph.norms} == convolutions & set(graph.filters)


@pytest.mark.parametrize("name", ["resnet20", "resnet20_a", "mobilenetv2"])
def test_pruning_cuts_the_first_layers_of_blocks_alone_or_the_sums_as_well(name, short):
    base = lively(spec(name, 1))
    graph, channels = network.graph_of(base.spec), base.spec.channels
    for groups in ("all", "inner"):
        settings = prune.Settings(parameters_kept=0.6, groups=groups)
        remaining = prune.apply(base, settings, Given(base, 1)).spec.channels
        cut = [i for i, count in enumerate(remaining) if count < channels[i]]
        summed = [i for i in cut if graph.groups[i].summed]
        assert cut and bool(summed) is (groups == "all")
        target = 0.6 * network.parameter_count(base.spec)
        small = base.spec.__class__(**{**vars(base.spec), "channels": remaining})
        assert 0.5 * target < network.parameter_count(small) <= target
    with pytest.raises(UserError, match=r"parameters_kept: 0\.01 cannot be reached"):
        prune.apply(base, prune.Settings(parameters_kept=0.01, groups="inner"), Given(base, 1))


def test_the_setting_leaves_the_ids_of_cells_that_are_older_than_it():
    assert "groups" not in prune.Settings().model_dump()
    assert prune.Settings(groups="inner").model_dump()["groups"] == "inner"
    assert prune.expand(prune.Settings(groups="inner", steps=2))[2][1]["groups"] == "inner"


# --- the int8 artifact -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet20_a", "mobilenetv2"])
def test_padded_shortcuts_and_depthwise_filters_are_deployed_as_simulated(name, short, tmp_path):
    state = lively(spec(name, 0.125))
    made = network.with_transform(network.fold(state), FakeQuantized(pairs=True))
    coarse = images((3, 4, 4), 200, 3)  # noise of single pixels is averaged out
    pixels = coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)
    image = made.spec.zero_point, made.spec.scale
    calibration.calibrate(made.network.module, [made.network.normalize(pixels)], "mse", image)
    made.network.eval()
    artifact.write(made, tmp_path / "x", {}, pixels[:16].numpy(), tuple("abcdefghij"))
    deployed = artifact.load(tmp_path / "x")
    logits = np.concatenate(list(runtimes.logits(runtimes.session(deployed, 1), pixels.numpy())))
    with torch.inference_mode():
        expected = made.network(pixels).numpy()
    # Logits differ between images by far more than deployment differs from simulation.
    assert np.abs(logits - expected).max() < 0.1 * np.ptp(expected, 0).max()
    ran = runtimes.kernels(deployed)
    assert ran.integer == ran.total == len(fakequant.layers(made.network.module))
    assert ran.integer_share == 1.0 and not deployed.needs_vnni
