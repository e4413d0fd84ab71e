"""Filter pruning: filters that matter least are removed for real, and the network gets smaller.

Scores are one number a filter, one tensor [K] a layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.errors import UserError
from pipeline.sweep.settings import young
from pipeline.techniques import filters, refuse_settled

if TYPE_CHECKING:
    import torch

    from pipeline.models.network import ModelState
    from pipeline.models.spec import Graph
    from pipeline.sweep import Recipe
    from pipeline.techniques.context import Context

VERSION = 1
TAYLOR_BATCH = 32
OF_WEIGHTS = ("l1", "l2", "bn-scale", "fpgm")  # criteria that see no image
REFERENCES = {
    "l1": ("li2017pruning",),
    "l2": ("li2017pruning",),
    "bn-scale": ("liu2017slimming",),
    "taylor": ("molchanov2019importance",),
    "fpgm": ("he2019filter",),
}


class Settings(filters.Budget):
    granularity: Literal["filter"] = "filter"
    criterion: Literal["l1", "l2", "bn-scale", "random", "taylor", "fpgm"] = Field(
        "l1",
        description="l1, l2: Li et al. 2017; bn-scale: Liu et al. 2017; taylor: Molchanov et al. "
        "2019; fpgm: He et al. 2019; random: the control",
    )
    scope: Literal["global", "layer"] = Field(
        "global", description="one ranking over all layers, or the same part of each"
    )
    images: int = young(
        1024,
        ge=1,
        le=1_000_000,
        description="of the training set, on which taylor looks at gradients",
    )
    steps: int = Field(1, ge=1, le=50, description="more than one: prune, fine-tune, prune ...")
    epochs_between: int = Field(1, ge=1, le=10_000, description="of fine-tuning between steps")

    def references(self) -> tuple[str, ...]:
        return REFERENCES.get(self.criterion, ())

    def doubt(self, recipe: Recipe) -> str | None:
        """An identity hands its channel on from layer to layer, however small the weights are that
        it has learned beside it. Of a base by `fast`, l1, l2 and fpgm keep less accuracy than a
        random choice, and bn-scale hardly more (tests/benchmarks/RESULTS.md)."""
        if not recipe.dirac or self.criterion not in OF_WEIGHTS:
            return None
        return (
            f"prune.criterion {self.criterion} ranks filters by their weights, which says little "
            "where they were initialized as identities (training.dirac); expected taylor"
        )


def expand(settings: Settings) -> list[tuple[str, dict[str, Any]]]:
    """``steps: 3`` is prune, finetune, prune, finetune, prune: each step keeps the same part of
    what the one before it left, and each is a stage that a resumed cell need not repeat."""
    if settings.steps == 1:
        return [("prune", settings.model_dump())]
    chain: list[tuple[str, dict[str, Any]]] = []
    for step in range(1, settings.steps + 1):
        kept = settings.kept ** (step / settings.steps)
        if step < settings.steps:  # a power's last digits differ between machines, an id must not
            kept = float(f"{kept:.6g}")
        once = {**settings.model_dump(), settings.of: kept, "steps": 1}
        chain.append(("prune", once))
        if step < settings.steps:
            chain.append(("finetune", {"epochs": settings.epochs_between}))
    return chain


def apply(state: ModelState, settings: Settings, context: Context) -> ModelState:
    from pipeline.models import network

    refuse_settled(state, "prune")
    scores = scored(state, settings, context)
    base, by_layer = context.base().spec, settings.scope == "layer"
    kept = filters.kept("prune", state.spec, base, scores, settings, by_layer)
    return network.shrink(state, kept)


def scored(
    state: ModelState, settings: Settings, context: Context, stage: str = "prune"
) -> dict[int, torch.Tensor]:
    """Number of each group that may be cut -> importance of its filters, larger is better. Each
    group's mean is 1, so that a ranking over all does not fall for their different sizes; but
    Taylor's criterion is in the same unit, the loss, for all of them."""
    from pipeline.models import network

    graph = network.graph_of(state.spec)
    cut = filters.cut_groups(stage, graph, settings)
    if settings.criterion == "taylor":
        return _taylor(state, graph, cut, settings.images, context)
    scores = _of_weights(state, graph, cut, settings.criterion, context.seed, stage)
    return {i: score / score.mean().clamp_min(1e-12) for i, score in scores.items()}


def _of_weights(
    state: ModelState, graph: Graph, cut: list[int], criterion: str, seed: int, stage: str
) -> dict[int, torch.Tensor]:
    """From the weights alone."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    rows = filters.Rows.of_state(graph, state)
    scores = {}
    for i in cut:
        # Where outputs are summed, a filter is what all producers put into one channel.
        weights = [rows.of(i, name).flatten(1) for name in graph.groups[i].producers]
        weight = torch.cat(weights, 1)
        if criterion == "random":
            scores[i] = torch.rand(len(weight), generator=generator) + 0.5
        elif criterion == "bn-scale":
            scores[i] = _bn_scale(rows, i, stage)
        elif criterion == "fpgm":
            scores[i] = _distances(weight)
        else:
            scores[i] = weight.norm(p=1 if criterion == "l1" else 2, dim=1)
    return scores


def _bn_scale(rows: filters.Rows, group: int, stage: str) -> torch.Tensor:
    import torch

    norms = rows.graph.groups[group].norms
    scales = [rows.of(group, name) for name in norms if f"{name}.weight" in rows.tensors]
    if not scales:
        raise UserError(
            f"{stage}.criterion: bn-scale needs a model with batch normalization; expected l1 or l2"
        )
    return torch.stack(scales).abs().mean(0)


def _distances(weight: torch.Tensor) -> torch.Tensor:
    """Of each filter to all others, summed: ``sum_j ||F_i - F_j||``. He et al. 2019 (arXiv
    1811.00250): the geometric median is the point where this is least, and a filter near it can be
    put together from the others, so it goes first, whatever its norm."""
    import torch

    return torch.cdist(weight.double(), weight.double()).sum(1).float()


def _taylor(
    state: ModelState, graph: Graph, cut: list[int], images: int, context: Context
) -> dict[int, torch.Tensor]:
    """Importance by a first-order Taylor expansion (Molchanov et al. 2019, arXiv 1906.10771): the
    squared change of the loss when a gate behind the filter closes, ``(g_z z)^2`` at z = 1, a mean
    over minibatches. The gate's gradient is ``gamma dE/dgamma + beta dE/dbeta`` of the batch
    normalization behind the filter, or ``sum w dE/dw`` without one; of channels that are summed,
    the sum over all layers that make them.

    The paper adds it up while it fine-tunes and removes a few filters at a time; here it is taken
    of a network that stands still, before each cut (``steps`` makes several).
    """
    import torch

    from pipeline import data

    device = context.machine.device
    network = state.network.to(device).eval()
    # Learned ranges of a quantized network have no filters.
    parameters = {n: p for n, p in network.module.named_parameters() if p.dim()}
    channels = state.spec.channels
    scores = {i: torch.zeros(channels[i]) for i in cut}
    sample = data.sample(context.split.train, images, context.seed).to(device)
    for pixels, labels in data.ordered(sample, TAYLOR_BATCH):
        loss = torch.nn.functional.cross_entropy(network(pixels), labels)
        gradients = torch.autograd.grad(loss, [*parameters.values()], allow_unused=True)
        moved = {
            name: (p.detach() * gradient).reshape(len(p), -1).sum(1)
            for (name, p), gradient in zip(parameters.items(), gradients, strict=True)
            if gradient is not None
        }
        rows = filters.Rows(graph, channels, moved)
        for i in cut:
            scores[i] += _gate(rows, i).square()
    return scores


def _gate(rows: filters.Rows, group: int) -> torch.Tensor:
    """[K]: the gradient of a gate behind each filter of the group."""
    import torch

    normalized = dict(rows.graph.norms)
    total = torch.zeros(rows.channels[group])
    for producer in rows.graph.groups[group].producers:
        norm = normalized.get(producer, producer)
        name = norm if f"{norm}.weight" in rows.tensors else producer
        for tensor in ("weight", "bias"):
            if f"{name}.{tensor}" in rows.tensors:
                total += sum(rows.all(group, name, tensor))
    return total
