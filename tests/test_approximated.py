"""Networks that are put right without training: least squares after pruning, convolutions as
products of smaller ones."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline import artifact, data, runtimes
from pipeline.errors import UserError
from pipeline.measure import complexity
from pipeline.models import MODELS, module_of, network
from pipeline.models.transforms.factored import Factored
from pipeline.techniques import distill_few, low_rank
from pipeline.training.checkpoint import model_bytes, read_model
from tests import residual, stages
from tests.test_models import lively
from tests.test_techniques import split_of


@functools.cache
def of_base() -> int:
    """The parameters of a VGG-11 of this width."""
    spec = module_of("vgg11_bn").spec("vgg11_bn", 0.125, (1, 32, 32), 10, 0, 1)
    return network.parameter_count(spec)


@pytest.fixture
def summed(monkeypatch) -> network.ModelState:
    monkeypatch.setitem(MODELS, residual.NAME, residual.ENTRY)
    return lively(residual.spec(residual.NAME, 1.0, (1, 32, 32), 10, 0, 1 / 64))


def logits(state: network.ModelState, pixels: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return state.network.eval()(pixels)


# --- from few images -------------------------------------------------------------------------


def test_least_squares_are_those_of_numpy_and_are_absorbed(monkeypatch):
    monkeypatch.setattr(distill_few, "RIDGE", 1e-12)
    random = torch.Generator().manual_seed(0)
    x = torch.randn(5, 6, 7, 7, generator=random)
    y = torch.randn(5, 6, 7, 7, generator=random) + x.roll(1, 1)
    flat = [each.permute(0, 2, 3, 1).reshape(-1, 6).double().numpy() for each in (x, y)]
    for offset in (True, False):
        moments = distill_few._Moments()
        for part in range(5):
            both = (each[part : part + 1] for each in (x, y))
            own, wanted = (distill_few._by_pixel(torch.nn.Conv2d(6, 6, 1), b) for b in both)
            moments.add(own, wanted.double() - own)
        change, c = moments.solved(offset)
        q = torch.eye(6, dtype=torch.float64) + change.T
        ones = np.ones((len(flat[0]), 1))
        known = np.hstack([flat[0], ones]) if offset else flat[0]
        expected = np.linalg.lstsq(known, flat[1], rcond=None)[0]
        np.testing.assert_allclose(q.numpy(), expected[:6].T, atol=1e-6)
        np.testing.assert_allclose(c.numpy(), expected[6] if offset else 0, atol=1e-6)
    conv = torch.nn.Conv2d(3, 6, 3, padding=1)
    images = torch.randn(2, 3, 8, 8, generator=random)
    with torch.no_grad():
        wanted = torch.einsum("ij,njhw->nihw", q.float(), conv(images)) + c[:, None, None]
        distill_few._absorb(conv, change, c, "outputs")
        torch.testing.assert_close(conv(images), wanted.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "layer",
    [
        lambda bias: torch.nn.Conv2d(3, 4, 3, padding=1, bias=bias),
        lambda bias: torch.nn.Conv2d(
            3, 4, (2, 3), stride=2, dilation=(1, 2), padding=(0, 1), bias=bias
        ),
        lambda bias: torch.nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect", bias=bias),
        lambda bias: torch.nn.Linear(9, 4, bias=bias),
    ],
)
def test_weights_that_gave_an_output_come_back(monkeypatch, layer, bias):
    """Of a layer with other weights, from its inputs and what the right ones gave: exactly, since
    there is no noise; from a sample of the pixels as well, and in parts."""
    monkeypatch.setattr(distill_few, "RIDGE", 1e-12)
    monkeypatch.setattr(distill_few, "VALUES", 4_000)
    random = torch.Generator().manual_seed(0)
    right, wrong = layer(bias), layer(bias)
    linear = isinstance(right, torch.nn.Linear)
    inputs = torch.randn(*((80, 9) if linear else (40, 3, 12, 11)), generator=random)
    with torch.no_grad():
        gap = right(inputs).double() - wrong(inputs)
    moments = distill_few._Moments()
    for x, y in distill_few._of_weights(wrong, inputs, gap, len(inputs), random):
        moments.add(x, y)
    assert linear or moments.count < gap[:, 0].numel()
    distill_few._absorb(wrong, *moments.solved(bias), "weights")
    for mine, others in zip(wrong.parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(mine, others, rtol=1e-4, atol=1e-5)


def test_so_many_images_of_each_class_or_all_that_it_has():
    labels = torch.tensor([0] * 90 + [1] * 7 + [2] * 3)
    images = data.Images(torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1), labels)
    some = data.sample_of_each(images, 5, 0)
    assert some.labels.bincount().tolist() == [5, 5, 3]
    assert torch.equal(labels[some.pixels.flatten().long()], some.labels)
    assert torch.equal(some.pixels, data.sample_of_each(images, 5, 0).pixels)
    assert not torch.equal(some.pixels, data.sample_of_each(images, 5, 1).pixels)


def test_few_images_put_a_pruned_network_right(bench):
    """Better than pruning alone, the more images the better, all weights better than a 1x1 after
    each layer; what is kept is what pruning keeps."""
    base, split = stages.base_of(bench), split_of(bench)
    pixels, labels = split.test.pixels, split.test.labels

    def accuracy(state):
        return float((logits(state, pixels).argmax(1) == labels).float().mean())

    cut = stages.run(bench, "prune", parameters_kept=0.5)
    distilled = {
        (solve, n): stages.run(bench, "distill-few", parameters_kept=0.5, images=n, solve=solve)
        for solve in ("outputs", "weights")
        for n in (10, 100)
    }
    assert all(state.spec.channels == cut.spec.channels for state in distilled.values())
    right, pruned = accuracy(base), accuracy(cut)
    assert pruned < 0.2
    reached = {key: accuracy(state) for key, state in distilled.items()}
    assert min(reached["outputs", 10], reached["weights", 10]) > 0.7 * right
    assert min(reached["outputs", 100], reached["weights", 100]) > 0.9 * right
    assert all(reached["weights", n] >= reached["outputs", n] for n in (10, 100)), reached


def test_a_masked_network_is_refused_since_its_zeros_would_be_filled(bench):
    masked = stages.run(bench, "sparsify", epochs=1, sparsity=0.5)
    with pytest.raises(UserError, match="^distill-few: would fill the zeros of a masked network"):
        stages.run(bench, "distill-few", masked, parameters_kept=0.5, images=10)


def test_residual_networks_are_put_right(bench, summed):
    """Of a network that is cut nowhere, nothing changes; cut inside of the block, its sums are
    nearer to what they were; cut in the sums as well, shapes are those of pruning."""
    pixels = split_of(bench).test.pixels[:64]
    same = stages.run(bench, "distill-few", summed, parameters_kept=1.0, images=20)
    torch.testing.assert_close(logits(same, pixels), logits(summed, pixels), rtol=1e-3, atol=1e-4)

    def sums(state):
        with torch.inference_mode():
            return state.network.eval()(pixels, maps=True)[1][1]

    kept = [torch.arange(16), torch.arange(0, 24, 2)]
    whole = network.fold(summed)
    cut, right, better = (network.shrink(whole, kept) for _ in range(3))
    for state, solve in ((right, "outputs"), (better, "weights")):
        distill_few._align(
            whole, state, kept, lambda: iter(split_of(bench).train.pixels[:90].split(30)), solve
        )
    gap = [float((sums(each) - sums(whole)).square().mean()) for each in (better, right, cut)]
    assert gap[0] < gap[1] < 0.5 * gap[2]
    settings = {
        "parameters_kept": 0.6 * network.parameter_count(summed.spec) / of_base(),
        "multiple": 4,
    }
    cut = stages.run(bench, "prune", summed, **settings)
    right = stages.run(bench, "distill-few", summed, images=100, **settings)
    assert right.spec.channels == cut.spec.channels != summed.spec.channels


# --- low rank --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tucker", "svd"])
def test_factors_are_as_near_as_the_singular_values_say(method):
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 10, 3, 3, generator=random)
    parts = low_rank._parts(weight, method)
    inputs = 0 if method == "svd" else 10
    chain = [*low_rank._factors("x", parts, inputs, 5).values()]
    images = torch.randn(2, 10, 8, 8, generator=random)
    y = images
    for each in chain:
        y = torch.nn.functional.conv2d(y, each, padding=each.shape[-1] // 2)
    values = np.linalg.svd(weight.flatten(1).double().numpy(), compute_uv=False)
    near = weight.double().flatten(1).numpy()
    u = parts.outputs[:, :5].numpy()
    assert np.square(near - u @ (u.T @ near)).sum() == pytest.approx(np.square(values[5:]).sum())
    rebuilt = torch.from_numpy(u @ (u.T @ near)).reshape(weight.shape).float()
    expected = torch.nn.functional.conv2d(images, rebuilt, padding=1)
    torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["tucker", "svd"])
@pytest.mark.parametrize("folded", [False, True])
def test_a_network_of_low_rank_is_smaller_by_what_was_asked_and_is_cut_and_folded_on(
    bench, summed, method, folded, tmp_path
):
    pixels = split_of(bench).test.pixels[:16]
    for state in (stages.base_of(bench), summed):
        state = network.fold(state) if folded else state
        kept = 0.5 * network.parameter_count(state.spec) / of_base()
        settings = {"method": method, "multiple": 1}
        small = stages.run(bench, "low-rank", state, parameters_kept=kept, **settings)
        share = network.parameter_count(small.spec) / network.parameter_count(state.spec)
        assert 0.4 < share < 0.52
        (tmp_path / "m").write_bytes(model_bytes(small))
        again = read_model(tmp_path / "m")
        assert again.spec == small.spec and isinstance(again.spec.transforms[-1], Factored)
        assert torch.equal(logits(again, pixels), logits(small, pixels))
        torch.testing.assert_close(
            logits(network.fold(small), pixels), logits(small, pixels), rtol=1e-3, atol=1e-4
        )
        index = [torch.arange(0, channels, 2) for channels in small.spec.channels]
        assert logits(network.shrink(small, index), pixels).shape == (16, 10)
        fewer = replace(small.spec, channels=tuple(map(len, index)))
        assert complexity.by_channels(small.spec)(fewer.channels) == complexity.count(fewer)


def test_all_of_the_rank_is_the_same_network(bench):
    base = stages.base_of(bench)
    parts = low_rank._decomposed(base, "tucker")
    names = [*parts]
    shapes = [parts[name].weight.shape for name in names]
    whole = Factored(tuple(names), tuple(s[1] for s in shapes), tuple(s[0] for s in shapes))
    tensors = dict(base.network.state_dict())
    for name, shape in zip(names, shapes, strict=True):
        tensors |= low_rank._factors(f"module.{name}", parts[name], shape[1], shape[0])
        del tensors[f"module.{name}.weight"]
    restored = network.restore(base.spec.with_transform(whole), tensors)
    pixels = split_of(bench).test.pixels[:16]
    torch.testing.assert_close(logits(restored, pixels), logits(base, pixels), rtol=1e-3, atol=1e-4)


def test_low_rank_then_integers_is_an_artifact_that_says_the_same(bench, summed, tmp_path):
    split = split_of(bench)
    sample = data.sample(split.train, 64, 0).pixels.numpy()
    for i, state in enumerate((stages.base_of(bench), summed)):
        kept = 0.5 * network.parameter_count(state.spec) / of_base()
        small = stages.run(bench, "low-rank", state, parameters_kept=kept, multiple=1)
        small = stages.run(bench, "quantize", small)
        artifact.write(small, tmp_path / str(i), {}, sample, split.classes)
        made = artifact.load(tmp_path / str(i))
        pixels = split.test.pixels[:200]
        session = runtimes.session(made, 1)
        classes = np.concatenate([s for s in runtimes.logits(session, pixels.numpy())]).argmax(1)
        assert np.mean(classes == logits(small, pixels).argmax(1).numpy()) >= 0.995
        assert runtimes.kernels(made).integer_share == 1.0


def test_what_low_rank_cannot_do_is_a_sentence(bench):
    with pytest.raises(UserError, match=r"low-rank\.parameters_kept: 0\.01 cannot be reached"):
        stages.run(bench, "low-rank", parameters_kept=0.01)
    with pytest.raises(UserError, match="low-rank: the network is fake-quantized already"):
        stages.run(bench, "low-rank", stages.run(bench, "quantize"))
