"""How alike two layers are, beside formulas written down another way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.measure import similarity
from pipeline.models import network
from tests import stages
from tests.test_techniques import split_of

CPU = torch.device("cpu")


def some(n: int, p: int, seed: int) -> torch.Tensor:
    return torch.randn(n, p, generator=torch.Generator().manual_seed(seed))


def unbiased(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. 2012, equation 5, in numpy and in matrices."""
    n, one = len(x), np.ones(len(x))

    def hsic(a, b):
        k, m = a @ a.T, b @ b.T
        np.fill_diagonal(k, 0)
        np.fill_diagonal(m, 0)
        middle = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ m) + middle - 2 / (n - 2) * one @ k @ m @ one) / (n * (n - 3))

    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))


def svcca(x: np.ndarray, y: np.ndarray) -> float:
    """By singular values of the two, and of the product of their bases."""
    bases = []
    for each in (x, y):
        u, s, _ = np.linalg.svd(each - each.mean(0), full_matrices=False)
        kept = np.searchsorted(np.cumsum(s**2) / np.sum(s**2), 0.99) + 1
        bases.append(u[:, :kept])
    return float(np.linalg.svd(bases[0].T @ bases[1], compute_uv=False).mean())


def test_cka_is_that_of_the_formula_and_unbiased():
    x = some(60, 20, 0)
    y = x[:, :8] * 2 + some(60, 8, 1)
    expected = unbiased(x.double().numpy(), y.double().numpy())
    assert similarity.linear_cka(x, y) == pytest.approx(expected, abs=1e-9)
    rotation, _ = torch.linalg.qr(some(20, 20, 2))
    assert similarity.linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1, abs=1e-5)
    # More features than samples: the biased one gives 0.8 for noise.
    noise = [similarity.linear_cka(some(50, 400, i), some(50, 400, 100 + i)) for i in range(20)]
    assert abs(np.mean(noise)) < 0.02
    assert np.isnan(similarity.linear_cka(torch.ones(9, 3), some(9, 3, 0)))


def test_each_layer_is_compared_with_each_in_parts_that_fit_into_memory(monkeypatch):
    mine, others = [some(30, p, p) for p in (3, 9)], [some(30, p, 50 + p) for p in (5, 2, 7)]
    others[1] = 2 * mine[1][:, :2]
    monkeypatch.setattr(similarity, "BLOCK_BYTES", 8 * 30 * 3 * 7)  # seven lines at a time
    matrix = similarity.cka_of_pairs(mine, others)
    expected = [[unbiased(x.double().numpy(), y.double().numpy()) for y in others] for x in mine]
    assert matrix.numpy() == pytest.approx(np.array(expected), abs=1e-9) and matrix[1, 1] > 0.3


class Largest(TorchDispatchMode):
    """How many bytes the largest tensor takes that anything makes."""

    n_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        if isinstance(made, torch.Tensor):
            self.n_bytes = max(self.n_bytes, made.nelement() * made.element_size())
        return made


def test_memory_does_not_grow_with_pairs_of_layers_times_images(monkeypatch):
    layers = [some(48, 3, i) for i in range(40)]
    monkeypatch.setattr(similarity, "BLOCK_BYTES", 8 * 48 * 40 * 4)  # four lines at a time
    with Largest() as largest:
        matrix = similarity.cka_of_pairs(layers, layers)
    assert largest.n_bytes == similarity.BLOCK_BYTES
    few = similarity.cka_of_pairs(layers[:2], layers[:2])  # all lines at once
    centred = [(x.double() - x.double().mean(0)).numpy() for x in layers[:2]]
    expected = [[unbiased(x, y) for y in centred] for x in centred]
    for part in (matrix[:2, :2], few):
        assert part.numpy() == pytest.approx(np.array(expected), abs=1e-12)


# pytorch-cka 1.1.3, with x and y of the test below:
#   xy, xx, yy = cka.hsic((x @ x.T)[None], (y @ y.T)[None]); xy / (xx * yy).sqrt()
PUBLISHED = 0.17540013588335918


def test_cka_is_that_of_a_published_implementation():
    x = grid(50, 12, 1.0)
    y = grid(50, 7, 0.37) + 0.5 * x[:, :7]
    assert similarity.linear_cka(x, y) == pytest.approx(PUBLISHED, abs=1e-9)


def grid(n: int, p: int, step: float) -> torch.Tensor:
    """Numbers that need no generator."""
    return torch.sin(step * torch.arange(n * p).reshape(n, p).double() % 11)


def test_svcca_is_that_of_singular_values():
    x = some(300, 12, 0) * torch.logspace(0, -2, 12)
    y = torch.cat((x[:, :3] + 0.3 * some(300, 3, 1), some(300, 6, 2)), 1)
    moments = similarity._Moments()
    for part in (slice(0, 100), slice(100, 300)):
        moments.add(x[part].double(), y[part].double())
    expected = svcca(x.double().numpy(), y.double().numpy())
    assert moments.svcca() == pytest.approx(expected, abs=1e-6)
    same = similarity._Moments()
    same.add(x.double(), (2 * x + 1).double())
    assert same.svcca() == pytest.approx(1, abs=1e-6)


def test_layers_of_compressed_networks_are_compared_with_those_of_their_base(bench):
    """The base is like itself; what pruning took away is missed in all of its layers; what only
    folding, factors or integers changed is nearly the same; another family has nothing in
    common."""
    base, images = stages.base_of(bench), split_of(bench).test
    layers = len(base.spec.channels) + 1

    def like(state):
        return similarity.of_networks(state, base, images, CPU)

    same, folded = like(stages.base_of(bench)), like(network.fold(stages.base_of(bench)))
    for values in (same, folded):
        assert set(values) == {"similarity/cka", "similarity/svcca", "similarity/cka_pairs"}
        assert values["similarity/cka_pairs"].shape == (layers, layers)
        for name in ("similarity/cka", "similarity/svcca"):
            assert values[name].shape == (layers,) and np.allclose(values[name], 1, atol=1e-3)
    eight = like(stages.run(bench, "quantize"))
    assert (eight["similarity/cka"] > 0.98).all()
    ranks = like(stages.run(bench, "low-rank", parameters_kept=0.6))
    cut = like(stages.run(bench, "prune", parameters_kept=0.3, criterion="random"))
    assert len(ranks["similarity/cka"]) == len(cut["similarity/cka"]) == layers
    assert cut["similarity/cka"][0] > cut["similarity/cka"][-1] < 0.8
    anew = like(network.new(base.spec, 5))
    assert anew["similarity/cka"][-1] < 0.5 and (anew["similarity/svcca"] < 1).all()
    pairs = cut["similarity/cka_pairs"]  # a line is a layer of the network that was cut
    assert (pairs.diagonal() == cut["similarity/cka"]).all()
    assert not np.allclose(pairs, pairs.T, atol=0.02) and pairs[0, -1] < pairs[0, 0]
    few = images.__class__(images.pixels[:3], images.labels[:3])
    assert similarity.of_networks(base, base, few, CPU) == {}
