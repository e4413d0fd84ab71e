"""Sums and their quantization points, groups with several producers: a residual network through
folding, pruning, fake quantization and the int8 artifact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from pipeline import artifact, hardware, runtimes
from pipeline.models import MODELS, network
from pipeline.models.network import ModelState
from pipeline.models.transforms import calibration, fakequant
from pipeline.models.transforms.fakequant import FakeQuantized
from pipeline.models.transforms.folded import Folded
from tests import residual
from tests.test_models import images, lively
from tests.test_training import SHAPE, some_images, trained

CLASSES = ("a", "b", "c", "d")


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(MODELS, residual.NAME, residual.ENTRY)


def spec(width: float = 1.0):
    return residual.spec(residual.NAME, width, SHAPE, len(CLASSES), 128, 1 / 74)


def corners(count: int, seed: int) -> torch.Tensor:
    return some_images(count, seed).pixels


def quantized(state: ModelState, **settings) -> ModelState:
    made = network.with_transform(network.fold(state), FakeQuantized(**settings))
    batches = [made.network.normalize(corners(64, 2))]
    image = made.spec.zero_point, made.spec.scale
    calibration.calibrate(made.network.module, batches, "mse", image)
    made.network.eval()
    return made


# --- folding and pruning ---------------------------------------------------------------------


def test_every_pair_of_the_graph_is_folded():
    state = lively(spec())
    folded = network.fold(state)
    assert folded.spec.transforms == (Folded(),)
    module = folded.network.eval().module
    for conv, norm in residual.graph(spec()).norms:
        assert module.get_submodule(conv).bias is not None
        assert isinstance(module.get_submodule(norm), torch.nn.Identity)
    pixels = images(SHAPE, 32)
    with torch.inference_mode():
        torch.testing.assert_close(
            folded.network(pixels), state.network(pixels), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("fold_first", [False, True])
def test_filters_that_are_summed_are_removed_together(fold_first):
    """The smaller network computes what the whole one does where the removed channels are zero."""
    state = lively(spec())
    if fold_first:
        state = network.fold(state)
        state.network.eval()
    kept = [torch.tensor([0, 3, 4, 9, 15]), torch.tensor([1, 2, 20])]
    small = network.shrink(state, kept)
    assert small.spec.channels == (5, 3) and small.spec.transforms == state.spec.transforms
    shapes = {n: tuple(t.shape) for n, t in small.network.module.named_parameters() if t.dim() > 1}
    assert shapes == {
        "stem.weight": (5, 1, 3, 3),
        "inner.weight": (3, 5, 3, 3),
        "outer.weight": (5, 3, 3, 3),
        "head.weight": (4, 5),
    }
    pixels = images(SHAPE, 8)
    with torch.inference_mode():
        expected = masked(state, kept).network(pixels)
        torch.testing.assert_close(small.network.eval()(pixels), expected, rtol=1e-4, atol=1e-5)


def masked(state: ModelState, kept) -> ModelState:
    """Removed channels give zero, whoever makes them."""
    copy = network.restore(state.spec, state.network.state_dict())
    module = copy.network.eval().module
    last = "" if state.spec.has("folded") else "_norm"
    for names, index in ((("stem", "outer"), kept[0]), (("inner",), kept[1])):
        for name in names:
            layer = module.get_submodule(f"{name}{last}")
            gone = torch.ones(len(layer.weight), dtype=torch.bool)
            gone[index] = False
            layer.weight.data[gone], layer.bias.data[gone] = 0, 0
    return copy


# --- quantization points ---------------------------------------------------------------------


@pytest.mark.parametrize("learned", [False, True])
def test_readers_of_one_tensor_share_its_quantizer_also_once_restored(learned):
    state = quantized(lively(spec()), learned=learned)
    again = network.restore(state.spec, state.network.state_dict())
    for made in (state, again):
        points = fakequant.points(made.network.module)
        assert set(points) == {"stem", "inner", "outer", "sum:0", "sum:1", "pool", "head"}
        first, second = (points[name] for name in residual.SHARED)
        assert first is second and first.scale is second.scale
        assert len({id(point) for point in points.values()}) == len(points) - 1
        assert [name for name, point in points.items() if point.exact] == ["stem"]
        assert points["sum:0"].scale != points["sum:1"].scale
    tensors = state.network.state_dict()
    assert all(torch.equal(t, tensors[n]) for n, t in again.network.state_dict().items())
    pixels = images(SHAPE, 16)
    with torch.inference_mode():
        assert torch.equal(again.network.eval()(pixels), state.network(pixels))


def test_a_shared_range_is_one_parameter_that_learns_from_both_readers():
    state = quantized(lively(spec()), learned=True)
    state.network.train()
    shared, rounded = fakequant.points(state.network.module)["sum:1"], []
    assert sum(p is shared.scale for p in state.network.parameters()) == 1
    shared.register_forward_hook(lambda module, inputs, output: rounded.append(output))
    loss = F.cross_entropy(state.network(corners(8, 5)), torch.arange(8) % 4)
    assert len(rounded) == 2
    keep = {"retain_graph": True}
    parts = [
        torch.autograd.grad(tensor, shared.scale, torch.autograd.grad(loss, tensor, **keep), **keep)
        for tensor in rounded
    ]
    loss.backward()
    alone = [part.item() for [part] in parts]
    assert 0 not in alone and shared.scale.grad.item() == pytest.approx(sum(alone), rel=1e-3)


def test_a_sum_adds_rounded_numbers():
    module = quantized(lively(spec())).network.module
    points = fakequant.points(module)
    a, b = torch.randn(2, 1, 16, 4, 4)
    with torch.inference_mode():
        output = module.sum(a, b)
    expected = sum(
        (torch.clamp(torch.round(x / p.scale) + p.zero_point, 0, 255) - p.zero_point) * p.scale
        for x, p in ((a, points["sum:0"]), (b, points["sum:1"]))
    )
    assert torch.allclose(output, expected, atol=1e-6)
    assert not torch.allclose(output, a + b, atol=1e-3)


# --- the int8 artifact -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught():
    """Trained on corners, as far as it takes for its answers not to hang on a bit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, residual.NAME, residual.ENTRY)
        state = trained(network.new(spec(), 0), 8).state
        yield ModelState(state.spec, state.network.eval())


def written(state: ModelState, folder) -> artifact.Artifact:
    artifact.write(state, folder, {}, corners(64, 2).numpy(), CLASSES)
    return artifact.load(folder)


def noisy(count: int) -> torch.Tensor:
    return (corners(count, 9) // 2 + images(SHAPE, count, 9) // 2).to(torch.uint8)


SATURATES = pytest.mark.skipif(
    hardware.saturates(), reason="sums of 8-bit products saturate on this CPU"
)


@pytest.mark.parametrize("pairs", [pytest.param(False, marks=SATURATES), True])
def test_the_artifact_computes_what_the_simulation_does(taught, tmp_path, pairs):
    simulated, pixels = quantized(taught, pairs=pairs), noisy(500)
    loaded = written(simulated, tmp_path / "x")
    logits = np.concatenate(list(runtimes.logits(runtimes.session(loaded, 1), pixels.numpy())))
    with torch.inference_mode():
        expected = simulated.network(pixels).numpy()
    assert len(set(expected.argmax(1))) == len(CLASSES)
    assert np.mean(logits.argmax(1) == expected.argmax(1)) >= 0.998
    assert np.abs(logits - expected).max() < 0.05 * np.abs(expected - expected.mean()).max()


def test_the_artifact_adds_and_multiplies_integers(taught, tmp_path):
    loaded = written(quantized(taught, pairs=True), tmp_path / "x")
    ran = runtimes.kernels(loaded)
    assert ran.integer == ran.total == 4 and ran.integer_share == 1.0
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(loaded.model, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearAdd") == 1 and "Add" not in kinds


def test_every_point_has_its_scale_in_the_artifact(taught, tmp_path):
    simulated = quantized(taught, pairs=True)
    graph = onnx.load_model_from_string(written(simulated, tmp_path / "x").model).graph
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    makers = {o: n for n in graph.node for o in n.output}
    [add] = [node for node in graph.node if node.op_type == "Add"]
    points = fakequant.points(simulated.network.module)
    for operand, name in enumerate(("sum:0", "sum:1")):
        _, scale, zero_point = makers[add.input[operand]].input
        assert values[scale] == points[name].scale.item()
        assert values[zero_point] == points[name].zero_point.item()


def test_two_readers_that_round_one_tensor_otherwise_have_no_artifact(tmp_path, monkeypatch):
    apart = replace(residual.graph(spec()), shared=())
    monkeypatch.setattr(residual, "graph", lambda _: apart)
    state = quantized(lively(spec()))
    points = fakequant.points(state.network.module)
    first, second = (points[name] for name in residual.SHARED)
    assert first is not second and first.scale == second.scale  # they saw the same numbers
    second.scale.mul_(2)
    with pytest.raises(AssertionError, match=r"reads a tensor that another one rounds otherwise"):
        written(state, tmp_path / "x")
    assert not (tmp_path / "x").exists()
