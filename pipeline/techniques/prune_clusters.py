"""Filter pruning by clusters: of filters that do nearly the same, one stays.

v_j: filter j of a group, all its weights and its bias in one row, as they are once batch
normalization is folded into them; u_j = v_j / |v_j|.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from pydantic import Field

from pipeline.techniques import filters, refuse_settled

if TYPE_CHECKING:
    import torch

    from pipeline.models.network import ModelState
    from pipeline.models.spec import Graph
    from pipeline.techniques.context import Context

VERSION = 1
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
    r = |v_j| / |v_i|, and loses nothing where directions are equal.

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
    graph = network.graph_of(state.spec)
    cut = filters.cut_groups("prune-clusters", graph, settings)
    rows = _folded(state)
    filters_of = {i: _vectors(rows, i) for i in cut}
    trees = {i: _merges(vectors) for i, vectors in filters_of.items()}
    sizes = filters.Sizes.of(state.spec, context.base().spec, settings)
    scores = {i: _scores(tree) for i, tree in trees.items()}
    counts = filters.counts("prune-clusters", state.spec.channels, sizes, scores, settings)
    clusters = {
        i: _clusters(rows, i, vectors, _cut_at(trees[i], counts[i]))
        for i, vectors in filters_of.items()
    }
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


def _parts(rows: filters.Rows, group: int) -> dict[str, torch.Tensor]:
    """Layer -> float64 [K, D]: what it puts into the channels of the group."""
    import torch

    parts = {}
    for name in rows.graph.groups[group].producers:
        tensors = [n for n in ("weight", "bias") if f"{name}.{n}" in rows.tensors]
        flat = [
            rows.of(group, name, tensor).flatten(1)
            if tensor == "weight"
            else rows.of(group, name, tensor)[:, None]
            for tensor in tensors
        ]
        parts[name] = torch.cat(flat, 1).double()
    return parts


def _vectors(rows: filters.Rows, group: int) -> torch.Tensor:
    """u [K, D], all producers of the group in one row; a filter of zeros is one."""
    import torch

    return torch.nn.functional.normalize(torch.cat([*_parts(rows, group).values()], 1), dim=1)


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


def _clusters(
    rows: filters.Rows, group: int, vectors: torch.Tensor, members: list[list[int]]
) -> Clusters:
    import torch

    centres = torch.stack([vectors[each].mean(0) for each in members])
    labels = kmeans(vectors, centres)
    kept = torch.empty(len(vectors), dtype=torch.int64)
    for label in labels.unique():
        inside = (labels == label).nonzero().flatten()
        distance = torch.cdist(vectors[inside], vectors[inside].mean(0, keepdim=True))
        kept[inside] = inside[distance.argmin()]
    return Clusters(kept, _ratio(rows, group, kept))


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


def _ratio(rows: filters.Rows, group: int, kept: torch.Tensor) -> torch.Tensor:
    """[K]: |v_j| / |v_i| of each filter j and the one that stands for it. A depthwise convolution
    multiplies what the layer before it did, where others are summed."""
    import torch

    parts, ratio = _parts(rows, group), torch.ones(len(kept), dtype=torch.float64)
    depthwise = [n for n in parts if n in rows.graph.filters and _is_depthwise(rows, n)]
    summed = [part for name, part in parts.items() if name not in depthwise]
    for part in (*([torch.cat(summed, 1)] if summed else []), *(parts[n] for n in depthwise)):
        norm = part.norm(dim=1)
        ratio *= torch.where(norm[kept] > 0, norm / norm[kept].clamp_min(1e-30), 0.0)
    return ratio


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
