"""Filter pruning by clusters: of filters that do nearly the same, one stays.

v_j: filter j of a group, all its weights and its bias in one row, as they are once batch
normalization is folded into them; u_j = v_j / |v_j|.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from pydantic import Field

from pipeline.errors import UserError
from pipeline.techniques import filters, refuse_settled

if TYPE_CHECKING:
    import torch

    from pipeline.models.network import ModelState
    from pipeline.models.spec import Graph
    from pipeline.techniques.context import Context

VERSION = 2  # since then, channels behind depthwise convolutions are compared with their biases
LLOYD = 50  # rounds of k-means


class Settings(filters.Budget):
    """k-means over the normalized filters of each layer; of each cluster the filter nearest to its
    centre stays. What the others did is lost (``rest: drop``), or the one that stays does it as
    well as it can (``merge``).

    That clusters of filters are pruned this way is known here from an abstract alone (filter
    clustering, ICA3PP 2020: VGG-16 at -44 % of its inference cost); the following is this
    project's own. Filters are compared by direction, with the normalization's scale and shift in
    them: v_j = r v_i with r > 0 means that channel j is r times channel i, whatever the images,
    through a ReLU as well. So merging adds r times the next layer's weights for j to those for i,
    r = |v_j| / |v_i|, and loses nothing where directions are equal. A depthwise convolution with
    weights d_j and bias b_j multiplies what the layer before it did: behind v_j its row is
    [d_j, b_j / |v_j|], and the ratio of the channels is the product of both layers'.

    How many clusters a layer has follows from one threshold for all of them: the distance at which
    Ward's method (1963), which merges the two clusters whose union adds least to the sum of
    squares, would stop. Its clusters are where k-means begins.
    """

    cites: ClassVar[tuple[str, ...]] = ("ward1963hierarchical", "lloyd1982least")

    rest: Literal["drop", "merge"] = Field(
        "merge", description="what the next layer does with the filters that go"
    )


class Clusters(NamedTuple):
    """Of the filters of one group: which one stands for each [K], and how many times as large as
    that one each is [K]."""

    kept: torch.Tensor
    ratio: torch.Tensor


def apply(state: ModelState, settings: Settings, context: Context) -> ModelState:
    import torch

    from pipeline.models import network

    refuse_settled(state, "prune-clusters")
    if settings.rest == "merge" and state.spec.has("masked"):
        raise UserError(
            "prune-clusters: merging would fill the zeros of a masked network; expected it before "
            "sparsify, or `rest: drop`"
        )
    graph = network.graph_of(state.spec)
    cut = filters.cut_groups("prune-clusters", graph, settings)
    rows = _folded(state)
    filters_of = {i: _filters(rows, i) for i in cut}
    trees = {i: _merges(each.vectors) for i, each in filters_of.items()}
    sizes = filters.Sizes.of(state.spec, context.base().spec, settings)
    scores = {i: _scores(tree) for i, tree in trees.items()}
    counts = filters.counts("prune-clusters", state.spec.channels, sizes, scores, settings)
    clusters = {i: _clusters(each, _cut_at(trees[i], counts[i])) for i, each in filters_of.items()}
    if settings.rest == "merge":
        _merge(state, graph, clusters)
    kept = [
        clusters[i].kept.unique() if i in clusters else torch.arange(channels)
        for i, channels in enumerate(state.spec.channels)
    ]
    return network.shrink(state, kept)


def _folded(state: ModelState) -> filters.Rows:
    """The tensors with batch normalization folded into them, where there is any."""
    from pipeline.models import network

    folded = network.fold(state)
    return filters.Rows.of_state(network.graph_of(folded.spec), folded)


class _Filters(NamedTuple):
    """Of a group, float64: ``vectors`` u [K, D], all its producers in one row, of length 1 (a
    filter of zeros is one); ``size`` [K], how large its channels are by them."""

    vectors: torch.Tensor
    size: torch.Tensor


def _filters(rows: filters.Rows, group: int) -> _Filters:
    import torch

    producers = rows.graph.groups[group].producers
    depthwise = [name for name in producers if _is_depthwise(rows, name)]
    summed = [_row(rows, group, name) for name in producers if name not in depthwise]
    parts = [torch.cat(summed, 1)] if summed else []
    size = torch.ones(rows.channels[group], dtype=torch.float64)
    for part in parts:
        size = part.norm(dim=1)
    for name in depthwise:
        parts.append(_row(rows, group, name, torch.where(size > 0, size, 1.0)))
        size = size * parts[-1].norm(dim=1)
    return _Filters(torch.nn.functional.normalize(torch.cat(parts, 1), dim=1), size)


def _row(
    rows: filters.Rows, group: int, name: str, size: torch.Tensor | float = 1.0
) -> torch.Tensor:
    """float64 [K, D]: what the layer puts into the channels of the group, its bias for inputs of
    this ``size`` [K]."""
    import torch

    parts = [rows.of(group, name).flatten(1).double()]
    if f"{name}.bias" in rows.tensors:
        parts.append((rows.of(group, name, "bias").double() / size)[:, None])
    return torch.cat(parts, 1)


class _Tree(NamedTuple):
    """Ward's merges, first to last: ``pairs`` of clusters (each K + n is what merge n made), and
    the ``heights``, ascending, at which they join."""

    pairs: list[tuple[int, int]]
    heights: list[float]


def _merges(vectors: torch.Tensor) -> _Tree:
    from sklearn.cluster import ward_tree

    if len(vectors) == 1:
        return _Tree([], [])
    pairs, *_, heights = ward_tree(vectors.numpy(), return_distance=True)
    return _Tree([(int(a), int(b)) for a, b in pairs], [float(height) for height in heights])


def _scores(tree: _Tree) -> torch.Tensor:
    """[K]: as many are above a threshold as there are clusters when merging stops at it."""
    import torch

    return torch.tensor([float("inf"), *tree.heights])


def _cut_at(tree: _Tree, count: int) -> list[list[int]]:
    """The filters of each of ``count`` clusters."""
    size = len(tree.pairs) + 1
    members = {i: [i] for i in range(size)}
    for n, (a, b) in enumerate(itertools.islice(tree.pairs, size - count)):
        members[size + n] = members.pop(a) + members.pop(b)
    return [*members.values()]


def _clusters(of: _Filters, members: list[list[int]]) -> Clusters:
    import torch

    vectors, size = of
    centres = torch.stack([vectors[each].mean(0) for each in members])
    labels = kmeans(vectors, centres)
    kept = torch.empty(len(vectors), dtype=torch.int64)
    for label in labels.unique():
        inside = (labels == label).nonzero().flatten()
        distance = torch.cdist(vectors[inside], vectors[inside].mean(0, keepdim=True))
        kept[inside] = inside[distance.argmin()]
    ratio = torch.where(size[kept] > 0, size / size[kept].clamp_min(1e-30), 0.0)
    return Clusters(kept, ratio)


def kmeans(vectors: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Number of the cluster of each vector (int64 [K]), by Lloyd's rounds from ``centres`` [k, D];
    float64. No cluster is ever empty: what would be one keeps the vector nearest to its centre."""
    import torch

    labels = torch.zeros(len(vectors), dtype=torch.int64)
    for _ in range(LLOYD):
        distance = torch.cdist(vectors, centres)
        assigned = distance.argmin(1)
        for label in range(len(centres)):
            if not (assigned == label).any():
                alone = assigned.bincount(minlength=len(centres))[assigned] == 1
                assigned[distance[:, label].masked_fill(alone, torch.inf).argmin()] = label
        if torch.equal(assigned, labels):
            break
        labels = assigned
        sums = torch.zeros_like(centres).index_add_(0, labels, vectors)
        centres = sums / labels.bincount(minlength=len(centres))[:, None]
    return labels


def _is_depthwise(rows: filters.Rows, name: str) -> bool:
    """It filters each channel by itself: the group's channels are what it reads, too."""
    reads = name in rows.graph.readers or name in rows.graph.image
    return not reads and rows.tensors[f"{name}.weight"].shape[1] == 1


def _merge(state: ModelState, graph: Graph, clusters: dict[int, Clusters]) -> None:
    """The weights that read a filter which goes are added, ``ratio`` times, to those that read the
    one that stands for it."""
    import torch

    with torch.no_grad():
        for name, groups in graph.readers.items():
            weight = state.network.module.get_submodule(name).weight
            assert isinstance(weight, torch.Tensor)
            start = 0
            for group in groups:
                channels = state.spec.channels[group]
                wide = weight.shape[1] // sum(state.spec.channels[g] for g in groups)
                if group in clusters:
                    span = slice(start * wide, (start + channels) * wide)
                    weight[:, span] = _merged(weight[:, span], clusters[group], wide)
                start += channels


def _merged(weight: torch.Tensor, clusters: Clusters, wide: int) -> torch.Tensor:
    """weight [N, K wide, ...] -> the same, where each kept filter has what reads its cluster."""
    import torch

    by_filter = weight.unflatten(1, (-1, wide))
    ratio = clusters.ratio.to(weight).reshape(1, -1, *[1] * (by_filter.dim() - 2))
    into = clusters.kept.to(weight.device)
    return torch.zeros_like(by_filter).index_add_(1, into, by_filter * ratio).flatten(1, 2)
