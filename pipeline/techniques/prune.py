"""Filter pruning: filters that matter least are removed for real, and the network gets smaller.

Scores are one number a filter, one tensor [K] a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.errors import UserError
from pipeline.techniques import refuse_settled
from pipeline.techniques.settings import StageSettings

if TYPE_CHECKING:
    import torch

    from pipeline.models.network import ModelState
    from pipeline.models.spec import Group, NetworkSpec
    from pipeline.techniques.context import Context

VERSION = 1


class Settings(StageSettings):
    granularity: Literal["filter"] = "filter"
    criterion: Literal["l1", "l2", "bn-scale", "random"] = Field(
        "l1", description="l1, l2: Li et al. 2017; bn-scale: Liu et al. 2017; random: the control"
    )
    scope: Literal["global", "layer"] = Field(
        "global", description="one ranking over all layers, or the same part of each"
    )
    parameters_kept: float = Field(0.25, gt=0, le=1, description="part of the base's parameters")
    multiple: int = Field(8, ge=1, le=64, description="channel counts stay multiples of this")
    steps: int = Field(1, ge=1, le=50, description="more than one: prune, fine-tune, prune ...")
    epochs_between: int = Field(1, ge=1, le=10_000, description="of fine-tuning between steps")

    def operating_point(self) -> dict[str, Any]:
        return {"parameters_kept": self.parameters_kept}


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
    from pipeline.models import network

    refuse_settled(state, "prune")
    base_spec = context.base().spec
    target = settings.parameters_kept * network.parameter_count(base_spec)
    scores = _scores(state, settings, context.seed)
    counts = _counts(state.spec, scores, settings, target)
    kept = [s.topk(k).indices.sort().values for s, k in zip(scores, counts, strict=True)]
    return network.shrink(state, kept)


def _scores(state: ModelState, settings: Settings, seed: int) -> list[torch.Tensor]:
    """Importance of each filter, larger is better; each layer's mean is 1, so that a ranking over
    all layers does not fall for their different sizes."""
    import torch

    from pipeline.models import network

    tensors, generator = state.network.module.state_dict(), torch.Generator().manual_seed(seed)
    scores = []
    for group in network.graph_of(state.spec).groups:
        # Where outputs are summed, a filter is what all producers put into one channel.
        weights = [tensors[f"{name}.weight"].float().cpu().flatten(1) for name in group.producers]
        weight = torch.cat(weights, 1)
        if settings.criterion == "random":
            score = torch.rand(len(weight), generator=generator) + 0.5
        elif settings.criterion == "bn-scale":
            score = _bn_scale(tensors, group)
        else:
            score = weight.norm(p=1 if settings.criterion == "l1" else 2, dim=1)
        scores.append(score / score.mean().clamp_min(1e-12))
    return scores


def _bn_scale(tensors: dict[str, torch.Tensor], group: Group) -> torch.Tensor:
    import torch

    scales = [
        tensors[n].float().cpu() for n in map("{}.weight".format, group.norms) if n in tensors
    ]
    if not scales:
        raise UserError(
            "prune.criterion: bn-scale needs a model with batch normalization; expected l1 or l2"
        )
    return torch.stack(scales).abs().mean(0)


def _counts(
    spec: NetworkSpec, scores: list[torch.Tensor], settings: Settings, target: float
) -> list[int]:
    """Filters that each layer keeps: as many as fit into ``target`` parameters."""
    from pipeline.models import network

    def size(counts: list[int]) -> int:
        return network.parameter_count(replace(spec, channels=tuple(counts)))

    # One candidate a possible threshold, from the fewest filters to all of them; size grows along.
    candidates = _candidates(scores, settings)
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


def _candidates(scores: list[torch.Tensor], settings: Settings) -> Callable[[int], list[int]]:
    """step 0..1000 -> filter counts, none of which falls as the step grows."""
    import torch

    ranked = torch.cat(scores).sort(descending=True).values

    def counts(step: int) -> list[int]:
        if settings.scope == "layer":
            wanted = [len(s) * step / 1000 for s in scores]
        else:
            cut = ranked[min(len(ranked) - 1, len(ranked) * step // 1000)]
            wanted = [len(s) if step == 1000 else int((s > cut).sum()) for s in scores]
        return [_rounded(w, len(s), settings.multiple) for w, s in zip(wanted, scores, strict=True)]

    return counts


def _rounded(wanted: float, filters: int, multiple: int) -> int:
    """To the nearest multiple, at least one of it, at most what is there."""
    return min(filters, max(multiple, round(wanted / multiple) * multiple))
