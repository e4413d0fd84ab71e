"""Weights with few values: shared ones that are trained, and powers of two that are frozen."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import nn

from pipeline import artifact, hardware
from pipeline.errors import UserError
from pipeline.models import network
from pipeline.models.transforms import clustered, fakequant, masked, pairs, powers
from pipeline.models.transforms.clustered import Clustered, codebooks
from pipeline.models.transforms.powers import FREE, PowerQuantizer, PowersOfTwo
from pipeline.techniques import cluster, quantize_incremental
from tests import stages
from tests.test_techniques import split_of


def integers(state) -> dict[str, torch.Tensor]:
    """Name of layer -> its integers [K, ...]."""
    by_layer = {}
    for name, layer in fakequant.layers(state.network.module.eval()).items():
        scale = layer.weight_quantizer.scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
        by_layer[name] = (layer.quantized_weight() / scale).detach().round()
    return by_layer


def in_artifact(state, bench, folder) -> list[np.ndarray]:
    """The int8 weights of the ONNX model, layer by layer."""
    split = split_of(bench)
    artifact.write(state, folder, {}, split.train.pixels[:16].numpy(), split.classes)
    loaded = artifact.load(folder)
    assert loaded.quantized and loaded.manifest["needs"]["cpu"] == []
    model = onnx.load_model_from_string(loaded.model)
    every = [numpy_helper.to_array(t) for t in model.graph.initializer]
    return [a for a in every if a.dtype == np.int8 and a.ndim > 1]


# --- clusters ------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_clusters_are_those_of_lloyd_from_evenly_spread_centres(count, k, seed):
    generator = np.random.default_rng(seed)
    values, weights = generator.standard_normal(count), generator.random(count) + 0.1
    expected = np.linspace(values.min(), values.max(), k)
    for _ in range(cluster.LLOYD):
        owner = np.searchsorted((expected[1:] + expected[:-1]) / 2, values)
        for i in set(owner):
            expected[i] = np.average(values[owner == i], weights=weights[owner == i])
    centres = cluster.kmeans(torch.from_numpy(values), torch.from_numpy(weights), k)
    assert centres.numpy() == pytest.approx(expected, abs=1e-9)
    each = np.abs(values[:, None] - expected).argmin(1)
    near = cluster.nearest(torch.from_numpy(values), centres).numpy()
    assert np.abs(values - expected[each]) == pytest.approx(np.abs(values - expected[near]))


def test_clusters_of_gaussian_numbers_lose_as_little_as_theory_allows():
    """Lloyd-Max quantizers of a Gaussian have a distortion of 0.1175 with 4 values and 0.03454 with
    8 (Max 1960, table I)."""
    values = torch.randn(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for k, distortion in ((4, 0.1175), (8, 0.03454)):
        centres = cluster.kmeans(values, torch.ones_like(values), k)
        squared_error = (values - centres[cluster.nearest(values, centres)]).square().mean()
        assert float(squared_error) == pytest.approx(distortion, rel=0.02)


def test_quantiles_serve_many_small_weights_and_a_few_large_ones():
    """Two of a hundred are fifty times as large, as in layers that began as identities."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5000, dtype=torch.float64, generator=generator)
    values[:100] += 50
    errors = {}
    for begin in ("linear", "quantiles"):
        centres = cluster.kmeans(values, torch.ones_like(values), 16, begin)
        assert (centres.diff() >= 0).all()
        small = values[100:]
        distance = small - centres[cluster.nearest(small, centres)]
        errors[begin] = float(distance.square().mean())
    assert errors["quantiles"] < 0.02 < 0.05 < errors["linear"], errors


def test_quantiles_of_fewer_numbers_than_centres():
    values = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64)
    centres = cluster.kmeans(values, torch.ones_like(values), 8, "quantiles")
    assert {*centres.tolist()} == {1.0, 2.0} and (centres.diff() >= 0).all()


def test_how_clusters_begin_is_in_an_id_where_it_is_not_the_papers():
    assert "initialization" not in cluster.Settings().decides()
    assert cluster.Settings(initialization="quantiles").decides()["initialization"] == "quantiles"


@pytest.fixture(scope="module")
def shared(bench):
    """A sparse network in clusters of 4."""
    state = stages.run(bench, "sparsify", sparsity=0.8)
    k = {"k_convolution": 4, "k_linear": 8}
    return stages.run(bench, "cluster", state, learning_rate_factor=0.2, **k)


def test_a_layer_has_as_many_values_as_it_may_and_zero_where_it_is_masked(shared, bench, tmp_path):
    masks = {n: masked.mask(x) for n, x in masked.layers(shared.network.module).items()}
    moved = 0 if "avx512f" in hardware.cpu_flags() else 1  # by training, from where it began
    for name, weights in integers(shared).items():
        most = 8 if name == "head" else 4
        assert len(weights[masks[name]].unique()) <= most
        assert not weights[~masks[name]].any()
        assert clustered.LARGEST - moved <= weights.abs().max() <= clustered.LARGEST
        assert pairs.largest(weights).max() <= pairs.LIMIT
    values = [len(np.unique(weight)) for weight in in_artifact(shared, bench, tmp_path / "x")]
    assert len(values) == len(masks) and max(values) <= 9 and sorted(values)[-2] <= 5


def test_training_moves_the_values_and_no_code(bench):
    kept: list = []

    def watch(state):
        books = codebooks(state.network.module)
        kept.append({n: (b.codebook.detach().clone(), b.codes.clone()) for n, b in books.items()})

    stages.run(bench, "cluster", watch=watch, k_convolution=8, learning_rate_factor=0.2)
    for name, (values, codes) in kept[0].items():
        assert torch.equal(codes, kept[-1][name][1])
        assert not torch.equal(values, kept[-1][name][0])


def test_the_gradient_of_a_value_is_the_sum_of_its_members(shared):
    state = network.restore(shared.spec, shared.network.state_dict())
    layer = fakequant.layers(state.network.module)["features.4.conv"]
    book = layer.weight_quantizer
    scale = book.scale.reshape(-1, 1, 1, 1)
    given_ = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(1))
    (book(layer.weight) * given_).sum().backward()
    each = [(given_ * scale)[book.codes == i + 1].sum() / book.scale.mean() for i in range(4)]
    assert torch.allclose(book.codebook.grad, torch.stack(each), rtol=1e-4)
    assert layer.weight.grad is None
    before = book.codebook.grad.clone()
    state.before_step()
    counts = torch.stack([(book.codes == i + 1).sum() for i in range(4)])
    assert torch.allclose(book.codebook.grad, before / counts.sqrt())
    elsewhere = clustered._Shared.apply  # a GPU adds in another way, to the same sums
    codes = book.codes.to("meta")
    assert elsewhere(torch.zeros(4, device="meta"), codes).shape == codes.shape


def test_scales_and_clusters_lose_less_together_than_one_scale_a_layer(bench):
    """Of the folded base, whose filters differ in size."""
    state = stages.run(bench, "quantize")
    error = {}
    for rounds in (1, cluster.SCALES):
        lost = total = 0.0
        for layer in fakequant.layers(state.network.module).values():
            book, weight = clustered.Codebook(layer.weight, 8), layer.weight.detach()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(cluster, "SCALES", rounds)
                cluster._fit(book, weight)
            lost += float((book(weight).detach() - weight).square().sum())
            total += float(weight.square().sum())
        error[rounds] = lost / total
    assert error[cluster.SCALES] < error[1] < 0.05


def test_layers_of_zeros_have_clusters_too():
    layer = nn.Linear(6, 4)
    for weight in (torch.zeros(4, 6), torch.eye(4, 6)):
        book = clustered.Codebook(layer.weight, 4)
        cluster._fit(book, weight)
        assert torch.allclose(book(weight), weight) and (book.scale > 0).all()


# --- powers of two -------------------------------------------------------------------------------


@pytest.mark.parametrize("bits, least", [(5, 1), (3, 32)])
def test_levels_are_the_nearest_of_the_paper(bits, least):
    quantizer = PowerQuantizer(torch.zeros(1, 1), powers.MAGNITUDES[bits])
    quantizer.scale.fill_(0.25)
    levels = [0, *(2**i for i in range(int(math.log2(least)), 7))]
    for size in np.arange(0, 96, 0.125):
        [expected] = [  # equation 4, with (a, b) as neighbouring levels
            b
            for a, b in zip([0, *levels[:-1]], levels, strict=True)
            if ((a + b) / 2 <= size if b else True) and size < (1.5 * b if b else least / 2)
        ]
        for sign in (1, -1):
            nearest = quantizer.nearest(torch.tensor([[sign * size * 0.25]], dtype=torch.float32))
            assert int(nearest) == sign * expected, size


@pytest.mark.parametrize("largest", [1.0, 0.99, 0.76, 0.74, 0.375, 1e-3, 1e-38, 0.0])
def test_the_scale_is_a_power_of_two_and_the_largest_level_that_of_the_paper(largest):
    weight = torch.tensor([[largest, -largest / 3]])
    quantizer = PowerQuantizer(weight, 7)
    quantizer.fit(weight)
    assert math.frexp(float(quantizer.scale))[0] == 0.5
    if largest > 1e-30:
        top = 2.0 ** math.floor(math.log2(4 * largest / 3))
        assert float(quantizer.scale) * 64 == top
        assert int(quantizer.nearest(weight)[0, 0]) == 64


def test_a_filter_may_have_a_scale_of_its_own_and_one_of_zeros_has_the_layers():
    weight = torch.tensor([[1.0, 0.2], [0.1, 0.03], [0.0, 0.0]])
    quantizer = PowerQuantizer(weight, 2)
    quantizer.fit(weight, by_filter=True)
    assert (quantizer.scale * 64).tolist() == [1.0, 0.125, 1.0]
    quantizer.fit(weight)
    assert (quantizer.scale * 64).tolist() == [1.0, 1.0, 1.0]


@pytest.fixture(scope="module")
def frozen(bench):
    """A network of 5 bits, with (levels, weights) after each of 24 steps."""
    seen = []

    def watch(state):
        layers = fakequant.layers(state.network.module)
        seen.append(
            {
                name: (each.levels.clone(), layers[name].weight.detach().clone())
                for name, each in powers.quantizers(state.network.module).items()
            }
        )

    given_ = {"epochs": 1, "learning_rate_factor": 0.2}
    return stages.run(bench, "quantize-incremental", watch=watch, **given_), seen


def test_frozen_weights_do_not_move_and_the_others_do(frozen):
    """SGD with momentum and weight decay takes the steps."""
    state, seen = frozen
    quantizers = powers.quantizers(state.network.module)
    for step, (before, after) in enumerate(zip(seen, seen[1:], strict=False)):
        for name, (levels, weight) in after.items():
            was, old = before[name]
            held = was != FREE
            assert torch.equal(levels[held], was[held])
            assert torch.equal(weight[held], old[held])
            assert torch.equal(weight[held], (levels * quantizers[name].scale[0])[held])
            free = levels == FREE
            assert step % 8 == 7 or not torch.equal(weight[free], old[free])


def test_the_largest_half_is_frozen_first_and_all_in_the_end(frozen, bench):
    state, seen = frozen
    for number, portion in enumerate(quantize_incremental.PORTIONS):
        for levels, weight in seen[8 * number].values():
            share = float((levels != FREE).float().mean())
            assert share == pytest.approx(portion, abs=1 / weight.numel())
    levels, _ = seen[0]["features.4.conv"]
    size = stages.run(bench, "quantize", calibration="minmax").network.module
    size = size.get_submodule("features.4.conv").weight.detach().abs()
    assert size[levels != FREE].min() >= size[levels == FREE].max()
    assert all(bool((q.levels != FREE).all()) for q in powers.quantizers(state.network).values())


def test_as_many_are_frozen_where_most_of_their_levels_are_zero(bench):
    state = stages.run(bench, "sparsify", schedule="one-shot", sparsity=0.5)
    seen = []

    def watch(state):
        layers = fakequant.layers(state.network.module)
        quantizers = powers.quantizers(state.network.module)
        kept = {name: int(masked.mask(layers[name]).sum()) for name in quantizers}
        free = {name: int((each.levels == FREE).sum()) for name, each in quantizers.items()}
        seen.append({name: 1 - free[name] / kept[name] for name in free})

    stages.run(bench, "quantize-incremental", state, watch=watch, bits=3, epochs=1)
    for number, portion in enumerate(quantize_incremental.PORTIONS):
        shares = list(seen[8 * number].values())
        assert min(shares) > portion - 0.02 and max(shares) < portion + 0.02


@pytest.mark.parametrize("bits", [5, 3])
def test_weights_are_powers_of_two_and_masked_ones_zero(bench, bits):
    state = stages.run(bench, "sparsify", schedule="one-shot", sparsity=0.5)
    state = stages.run(bench, "quantize-incremental", state, bits=bits, epochs=1)
    magnitudes = {0, *(2**i for i in range(7))} if bits == 5 else {0, 32, 64}
    for name, weights in integers(state).items():
        assert {*weights.abs().unique().tolist()} <= magnitudes
        assert not weights[~masked.mask(state.network.module.get_submodule(name))].any()
        scales = network.integers(state).weights[name].scale
        assert len({*scales}) == 1 and math.frexp(scales[0])[0] == 0.5
        assert pairs.largest(weights).max() <= pairs.LIMIT


# --- what comes after ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stage", ["prune", "sparsify", "cluster", "quantize-incremental", "quantize"]
)
def test_what_would_change_the_values_is_refused(bench, shared, frozen, stage):
    for state, name in ((shared, "clustered"), (frozen[0], "powers-of-two")):
        problem = "quantized already" if stage == "quantize" else f"are {name} already"
        with pytest.raises(UserError, match=f"{stage}: .* {problem}"):
            stages.run(bench, stage, state)


def test_finetuning_goes_on_with_what_may_move(bench, shared, frozen):
    for state in (shared, frozen[0]):
        finetuned = stages.run(bench, "finetune", state, epochs=1, learning_rate_factor=0.1)
        assert not torch.equal(finetuned.network.module.head.bias, state.network.module.head.bias)
        for name, each in integers(finetuned).items():
            assert len(each.unique()) <= len(integers(state)[name].unique())


@pytest.mark.parametrize("transform, said", [(Clustered, (0, 4)), (Clustered, (4, 200))])
def test_a_codebook_of_no_size_is_refused(transform, said):
    with pytest.raises(ValueError, match="expected 1 to 128 values"):
        transform(*said)
    with pytest.raises(ValueError, match="expected 3 or 5"):
        PowersOfTwo(4)


def test_settings_that_make_no_sense_are_refused_with_what_would(bench):
    for stage, written, problem in (
        ("cluster", {"k_convolution": 12}, "12 is no power of two; expected 2, 4"),
        ("quantize-incremental", {"bits": 4}, "expected 5 or 3"),
        ("sparsify", {"sparsity": 1.0}, "sparsity"),
    ):
        with pytest.raises(UserError, match=problem):
            bench.cells(["x"], define={"x": [{stage: written}]})
