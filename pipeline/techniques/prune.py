"""Filter pruning: filters that matter least are removed for real, and the network gets smaller.

Scores are one number a filter, one tensor [K] a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline import terminal
from pipeline.errors import UserError
from pipeline.techniques import refuse_settled
from pipeline.techniques.settings import StageSettings

if TYPE_CHECKING:
    import torch

    from pipeline.models.network import ModelState
    from pipeline.models.spec import Graph, NetworkSpec
    from pipeline.techniques.context import Context

VERSION = 1
REFERENCES = {
    "l1": ("li2017pruning",),
    "l2": ("li2017pruning",),
    "bn-scale": ("liu2017slimming",),
}


class Settings(StageSettings):
    granularity: Literal["filter"] = "filter"
    criterion: Literal["l1", "l2", "bn-scale", "random"] = Field(
        "l1", description="l1, l2: Li et al. 2017; bn-scale: Liu et al. 2017; random: the control"
    )
    scope: Literal["global", "layer"] = Field(
        "global", description="one ranking over all layers, or the same part of each"
    )
    # Left out where it is the default: cells are older than the setting, and keep their ids.
    groups: Literal["all", "inner"] = Field(
        "all",
        exclude_if=lambda value: value == "all",
        description="inner: not the channels of residual sums (Li et al. 2017, section 3.3: the "
        "first layers of blocks); all: these too, in all layers that are summed at once",
    )
    parameters_kept: float = Field(0.25, gt=0, le=1, description="part of the base's parameters")
    multiple: int = Field(8, ge=1, le=64, description="channel counts stay multiples of this")
    steps: int = Field(1, ge=1, le=50, description="more than one: prune, fine-tune, prune ...")
    epochs_between: int = Field(1, ge=1, le=10_000, description="of fine-tuning between steps")

    def operating_point(self) -> dict[str, Any]:
        return {"parameters_kept": self.parameters_kept}

    def references(self) -> tuple[str, ...]:
        return REFERENCES.get(self.criterion, ())


def expand(settings: Settings) -> list[tuple[str, dict[str, Any]]]:
    """``steps: 3`` is prune, finetune, prune, finetune, prune: each step keeps the same part of
    what the one before it left, and each is a stage that a resumed cell need not repeat."""
    if settings.steps == 1:
        return [("prune", settings.model_dump())]
    chain: list[tuple[str, dict[str, Any]]] = []
    for step in range(1, settings.steps + 1):
        kept = settings.parameters_kept ** (step / settings.steps)
        if step < settings.steps:  # a power's last digits differ between machines, an id must not
            kept = float(f"{kept:.6g}")
        once = {**settings.model_dump(), "parameters_kept": kept, "steps": 1}
        chain.append(("prune", once))
        if step < settings.steps:
            chain.append(("finetune", {"epochs": settings.epochs_between}))
    return chain


def apply(state: ModelState, settings: Settings, context: Context) -> ModelState:
    import torch

    from pipeline.models import network

    refuse_settled(state, "prune")
    base_spec = context.base().spec
    target = settings.parameters_kept * network.parameter_count(base_spec)
    graph = network.graph_of(state.spec)
    cut = _cut(graph, settings)
    scores = _scores(state, graph, cut, settings, context.seed)
    counts = _counts(state.spec, scores, settings, target)
    kept = [torch.arange(filters) for filters in state.spec.channels]
    for i, score in scores.items():
        kept[i] = score.topk(counts[i]).indices.sort().values
    return network.shrink(state, kept)


def _cut(graph: Graph, settings: Settings) -> list[int]:
    """Numbers of the groups that may be cut; what stays whole is told in the attempt's log."""
    for line in graph.left:
        terminal.tell(f"prune: left whole: {line}", begin="")
    cut = [i for i, group in enumerate(graph.groups) if not group.whole]
    if settings.groups == "inner":
        cut = [i for i in cut if not graph.groups[i].summed]
    if not cut:
        raise UserError(
            "prune: no filters of this network can be removed"
            + (f" ({graph.left[0]})" if graph.left else "; expected prune.groups: all")
        )
    return cut


def _scores(
    state: ModelState, graph: Graph, cut: list[int], settings: Settings, seed: int
) -> dict[int, torch.Tensor]:
    """Number of each group in ``cut`` -> importance of its filters, larger is better; each group's
    mean is 1, so that a ranking over all does not fall for their different sizes."""
    import torch

    tensors, generator = state.network.module.state_dict(), torch.Generator().manual_seed(seed)
    rows = _Rows(graph, state.spec.channels, tensors)
    scores = {}
    for i in cut:
        # Where outputs are summed, a filter is what all producers put into one channel.
        weights = [rows.of(i, name).flatten(1) for name in graph.groups[i].producers]
        weight = torch.cat(weights, 1)
        if settings.criterion == "random":
            score = torch.rand(len(weight), generator=generator) + 0.5
        elif settings.criterion == "bn-scale":
            score = _bn_scale(rows, i)
        else:
            score = weight.norm(p=1 if settings.criterion == "l1" else 2, dim=1)
        scores[i] = score / score.mean().clamp_min(1e-12)
    return scores


@dataclass(frozen=True)
class _Rows:
    """The weights of layers, by group: a layer's filters can be of several, side by side."""

    graph: Graph
    channels: tuple[int, ...]
    tensors: dict[str, torch.Tensor]

    def of(self, group: int, name: str) -> torch.Tensor:
        """float32 [filters of the group, ...] of the layer ``name``."""
        groups = self.graph.filters[name]
        start = sum(self.channels[i] for i in groups[: groups.index(group)])
        weight = self.tensors[f"{name}.weight"].float().cpu()
        return weight[start : start + self.channels[group]]


def _bn_scale(rows: _Rows, group: int) -> torch.Tensor:
    import torch

    norms = rows.graph.groups[group].norms
    scales = [rows.of(group, name) for name in norms if f"{name}.weight" in rows.tensors]
    if not scales:
        raise UserError(
            "prune.criterion: bn-scale needs a model with batch normalization; expected l1 or l2"
        )
    return torch.stack(scales).abs().mean(0)


def _counts(
    spec: NetworkSpec, scores: dict[int, torch.Tensor], settings: Settings, target: float
) -> list[int]:
    """Filters that each group keeps: as many as fit into ``target`` parameters."""
    from pipeline.models import network

    def size(counts: list[int]) -> int:
        return network.parameter_count(replace(spec, channels=tuple(counts)))

    # One candidate a possible threshold, from the fewest filters to all of them; size grows along.
    candidates = _candidates(scores, settings, spec.channels)
    if size(candidates(0)) > target:
        least = size(candidates(0)) / target * settings.parameters_kept
        raise UserError(
            f"prune.parameters_kept: {settings.parameters_kept:g} cannot be reached with "
            f"{settings.multiple} filters in each layer; expected at least {least:.2g}"
        )
    low, high = 0, 1000
    while low < high:
        middle = (low + high + 1) // 2
        if size(candidates(middle)) <= target:
            low = middle
        else:
            high = middle - 1
    return candidates(low)


def _candidates(
    scores: dict[int, torch.Tensor], settings: Settings, channels: tuple[int, ...]
) -> Callable[[int], list[int]]:
    """step 0..1000 -> filter counts of all groups, none of which falls as the step grows."""
    import torch

    ranked = torch.cat([*scores.values()]).sort(descending=True).values

    def counts(step: int) -> list[int]:
        cut = ranked[min(len(ranked) - 1, len(ranked) * step // 1000)]
        found = list(channels)
        for i, score in scores.items():
            if settings.scope == "layer":
                wanted = len(score) * step / 1000
            else:
                wanted = len(score) if step == 1000 else int((score > cut).sum())
            found[i] = _rounded(wanted, len(score), settings.multiple)
        return found

    return counts


def _rounded(wanted: float, filters: int, multiple: int) -> int:
    """To the nearest multiple, at least one of it, at most what is there."""
    return min(filters, max(multiple, round(wanted / multiple) * multiple))
