"""How alike two networks are, layer by layer, by what they make of the same images.

x [n, p] and y [n, q]: activations of two layers on n images, in rows. Maps [N, K, h, w] become rows
in two ways, see ``of_networks``. What a linear layer gives for each pixel or token, [N, ..., K], is
looked at as [N, K, ...].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.data import Images, ordered, sample
from pipeline.measure.spaced import spaced
from pipeline.models.network import ModelState, graph_of
from pipeline.models.transforms.factored import Factored

IMAGES = 2000
BATCH = 250
SIDE = 2  # pixels a side of the maps that CKA compares
VARIANCE = 0.99  # that SVCCA keeps of each
LEAST = 4  # images: the unbiased estimate divides by n - 3
CKA, SVCCA = "similarity/cka", "similarity/svcca"
CKA_PAIRS = "similarity/cka_pairs"
MOST_LAYERS = 64  # of which each is compared with each in a result: 16 kB
BLOCK_BYTES = 1 << 27  # of kernels in memory, on each side


def of_networks(
    mine: ModelState, base: ModelState, images: Images, device: torch.device
) -> dict[str, np.ndarray]:
    """{CKA: float32 [L], SVCCA: float32 [L], CKA_PAIRS: float32 [M, M]} for the L layers that both
    have, in the order of the data: outputs of convolutions (of their normalization, where one
    follows) and of the last layer. Empty where they have none in common, or fewer than LEAST images
    are given. Pairs are each layer of ``mine`` (lines) with each of the base (columns), of
    ``spaced(L, MOST_LAYERS)`` layers.

    On at most IMAGES of ``images``, which neither was trained on. CKA compares images: maps are
    averaged to SIDE x SIDE and flattened. SVCCA compares all pixels of all images, each a row of
    its own (Raghu et al. 2017 do so for convolutions of the same map).
    """
    names = _common(mine, base)
    few = sample(images, IMAGES, 0) if len(images.labels) > IMAGES else images
    if not names or len(few.labels) < LEAST:
        return {}
    networks = [state.network.to(device).eval() for state in (mine, base)]
    pooled: dict[str, list[list[torch.Tensor]]] = {name: [[], []] for name in names}
    moments = {name: _Moments() for name in names}
    with (
        torch.no_grad(),
        _outputs(networks[0], names) as own,
        _outputs(networks[1], names) as other,
    ):
        for pixels, _ in ordered(few.to(device), BATCH):
            for network in networks:
                network(pixels)
            for name in names:
                pair = own[name], other[name]
                moments[name].add(*map(_pixels, pair))
                for kept, output in zip(pooled[name], pair, strict=True):
                    kept.append(_pooled(output))
    sides = ([torch.cat(pooled[name][side]) for name in names] for side in range(2))
    pairs = cka_of_pairs(*sides).cpu().numpy().astype(np.float32)
    shown = spaced(len(names), MOST_LAYERS)
    return {
        CKA: pairs.diagonal().copy(),
        SVCCA: np.array([moments[name].svcca() for name in names], np.float32),
        CKA_PAIRS: pairs[np.ix_(shown, shown)],
    }


def _common(mine: ModelState, base: ModelState) -> list[str]:
    """Modules whose outputs are compared: those of the base that the other has, too, with maps of
    the same size. Filters may be fewer."""
    sizes = [_sizes(state) for state in (mine, base)]
    return [name for name, size in sizes[1].items() if sizes[0].get(name) == size]


def _sizes(state: ModelState) -> dict[str, tuple[int, ...]]:
    """Module -> height and width of its output (or as many sizes as it has beside its channels), in
    the order in which they run."""
    graph, sizes = graph_of(state.spec), {}
    normalized = dict(graph.norms)
    # A layer that became several is looked at under its own name.
    parts = [p for t in state.spec.transforms if isinstance(t, Factored) for p in t.layers]

    def whole(name: str) -> str:
        return next((part for part in parts if name.startswith(f"{part}.")), name)

    names = {
        normalized.get(name, whole(name))
        for name, module in state.network.module.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }
    with torch.no_grad(), _outputs(state.network.eval(), [*names]) as outputs:
        device = next(state.network.parameters()).device
        state.network(torch.zeros(1, *state.spec.shape, device=device))
        sizes = {name: tuple(output.shape[2:]) for name, output in outputs.items()}
    return sizes


@contextmanager
def _outputs(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """What each of these modules gave last, in the order in which they ran first."""
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        last = isinstance(module, nn.Linear)
        return module.register_forward_hook(
            lambda _, inputs, output: outputs.update(
                {name: output.movedim(-1, 1) if last and output.dim() > 2 else output}
            )
        )

    inner = network.get_submodule("module")
    hooks = [keep(name, inner.get_submodule(name)) for name in names]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _pooled(output: torch.Tensor) -> torch.Tensor:
    """[N, K, ...] -> float32 [N, K s s]; of one size beside the channels [N, K s]."""
    if output.dim() == 2 or max(output.shape[2:]) <= SIDE:
        return output.flatten(1).float()
    if output.dim() == 4:
        return F.adaptive_avg_pool2d(output.float(), SIDE).flatten(1)
    return F.adaptive_avg_pool1d(output.float().flatten(2), SIDE).flatten(1)


def _pixels(output: torch.Tensor) -> torch.Tensor:
    """[N, K, ...] -> float64 [N x what there is of each channel, K]."""
    return output.movedim(1, -1).flatten(0, -2).double()


# --- CKA -------------------------------------------------------------------------------------


def linear_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Linear centred kernel alignment with unbiased HSIC: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))
    for K = x x', L = y y' (Kornblith et al. 2019; the estimate is that of Song et al. 2012, as
    Nguyen et al. 2021 use it). About 0 for what has nothing to do with each other, however many
    features there are, and a little below where chance will have it; 1 for rotations and multiples
    of each other. nan where one layer's output is the same for all images."""
    return float(cka_of_pairs([x], [y]))


def cka_of_pairs(xs: Sequence[torch.Tensor], ys: Sequence[torch.Tensor]) -> torch.Tensor:
    """``linear_cka`` of each x [n, p] with each y [n, q]: float64 [len(xs), len(ys)]. Each kernel
    is computed once, some of its lines at a time, so that none of the tensors that this makes is
    larger than BLOCK_BYTES, or than the activations, in double precision, of one layer."""
    n, sides = len(xs[0]), (xs, ys)
    new = partial(torch.zeros, dtype=torch.float64, device=xs[0].device)
    products = new(len(xs), len(ys))
    sums, squares = [new(len(side), n) for side in sides], [new(len(side)) for side in sides]
    step = max(1, BLOCK_BYTES // (8 * n * max(len(xs), len(ys))))
    for first in range(0, n, step):
        rows = range(first, min(first + step, n))
        blocks = [_kernels(side, rows) for side in sides]
        for i, block in enumerate(blocks):
            sums[i][:, first : rows.stop] = block.sum(2)
            squares[i] += block.square().sum((1, 2))
        products += torch.einsum("aij,bij->ab", *blocks)
    totals = [side.sum(1) for side in sums]
    both = _hsic(n, products, torch.outer(*totals), sums[0] @ sums[1].T)
    own, others = (
        _hsic(n, squares[i], totals[i].square(), sums[i].square().sum(1)) for i in range(2)
    )
    scale = own.clamp_min(0)[:, None] * others.clamp_min(0)[None]
    return torch.where(scale > 0, both / scale.sqrt(), torch.nan)


def _kernels(features: Sequence[torch.Tensor], rows: range) -> torch.Tensor:
    """float64 [layers, rows, n]: these lines of each kernel, without the diagonal. Features are
    centred first, which changes no HSIC, but loses fewer digits."""
    kernels = []
    for x in features:
        centred = x.double() - x.double().mean(0)
        kernels.append(centred[rows.start : rows.stop] @ centred.T)
        kernels[-1].diagonal(rows.start).zero_()
    return torch.stack(kernels)


def _hsic(n: int, whole: torch.Tensor, totals: torch.Tensor, lines: torch.Tensor) -> torch.Tensor:
    """n times n - 3 as large, of pairs of kernels [n, n] without their diagonals: ``whole`` is the
    sum of their elements' products, ``totals`` the product of the sums of all elements, ``lines``
    the sum of the products of the sums of their lines."""
    return whole + totals / ((n - 1) * (n - 2)) - 2 * lines / (n - 2)


# --- SVCCA -----------------------------------------------------------------------------------


class _Moments:
    """Sums over rows of what SVCCA needs of two layers."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: list[torch.Tensor] = []

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        new = [x.sum(0), y.sum(0), x.T @ x, y.T @ y, x.T @ y]
        self.sums = [a + b for a, b in zip(self.sums, new, strict=True)] if self.sums else new
        self.count += len(x)

    def svcca(self) -> float:
        """The mean of the canonical correlations of the directions that keep VARIANCE of each
        (Raghu et al. 2017): as many as the smaller of the two has. nan as for ``linear_cka``."""
        x, y = (each / self.count for each in self.sums[:2])
        covariances = [
            square / self.count - torch.outer(a, b)
            for square, a, b in zip(self.sums[2:], (x, y, x), (x, y, y), strict=True)
        ]
        first, second = (_whitening(each) for each in covariances[:2])
        if first is None or second is None:
            return float("nan")
        values = torch.linalg.svdvals(first.T @ covariances[2] @ second)
        return float(values.clamp(max=1).mean())


def _whitening(covariance: torch.Tensor) -> torch.Tensor | None:
    """[K, r]: the directions that keep VARIANCE, each over the root of its own variance; None
    where nothing varies."""
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    total = values.sum()
    if not total > 0:
        return None
    kept = int((values.cumsum(0) < VARIANCE * total).sum()) + 1
    return vectors[:, :kept] / values[:kept].sqrt()
