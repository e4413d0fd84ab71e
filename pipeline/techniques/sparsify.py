"""Unstructured pruning: single weights become zero and stay zero, while the others are trained.

Nothing gets smaller or faster by that alone: zeros are what `encode` then stores in little.
Scores are one number a weight, one tensor a layer, of the weight's shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.errors import UserError
from pipeline.techniques import refuse_settled
from pipeline.techniques.settings import Factor, Trained

if TYPE_CHECKING:
    import torch

    from pipeline.models.network import ModelState
    from pipeline.techniques.context import Context

VERSION = 2  # since 2, no layer loses all of its weights
REFERENCES = {"lamp": ("lee2021layer",)}
FLOOR = 0.1  # of the part that is kept of all weights: as much of each layer is kept in any case


class Settings(Trained):
    """The smallest weights go (Han et al. 2015, arXiv 1506.02626), a few at a time: after part x of
    the ramp ``sparsity (1 - (1 - x)^3)`` of them are gone (Zhu and Gupta 2017, arXiv 1710.01878,
    eq. 1, from a dense network)."""

    cites: ClassVar[tuple[str, ...]] = ("han2015learning", "zhu2017prune")

    sparsity: float = Field(0.9, gt=0, lt=1, description="part of all weights that become zero")
    scope: Literal["global", "layer"] = Field(
        "global", description="one ranking over all layers, or the same part of each"
    )
    criterion: Literal["magnitude", "lamp", "random"] = Field(
        "magnitude",
        description="the smallest weights go; lamp: Lee et al. 2021, for scope global; random: the "
        "control",
    )
    schedule: Literal["cubic", "one-shot"] = Field(
        "cubic", description="step by step in training, or all before it"
    )
    ramp: float = Field(0.5, gt=0, le=1, description="cubic: part of the training that it takes")
    updates: int = Field(50, ge=1, le=10_000, description="cubic: times that weights are taken")
    ends: Literal["dense", "sparse"] = Field(
        "dense", description="the layers that read the image, and the last one"
    )
    learning_rate_factor: Factor = 0.5

    @model_validator(mode="after")
    def _compared_between_layers(self) -> Settings:
        if self.criterion == "lamp" and self.scope == "layer":
            raise ValueError(
                "criterion lamp compares layers, and within one it is magnitude; expected scope: "
                "global"
            )
        return self

    def operating_point(self) -> dict[str, Any]:
        return {"sparsity": self.sparsity}

    def references(self) -> tuple[str, ...]:
        return (*super().references(), *REFERENCES.get(self.criterion, ()))


def apply(state: ModelState, settings: Settings, context: Context) -> ModelState:
    from pipeline.models import network
    from pipeline.models.transforms.masked import Masked

    recipe = context.cell.recipe

    def masked() -> ModelState:
        refuse_settled(state, "sparsify")
        has = state.spec.has(Masked.name)
        placed = state if has else network.with_transform(state, Masked())
        _check_reachable(placed, settings)
        if settings.schedule == "one-shot":
            _mask(placed, settings, context.seed, settings.sparsity)
        return placed

    def after_step(now: ModelState, step: int, steps: int) -> None:
        if settings.schedule == "cubic":
            part = _reached(settings, step, steps)
            if part is not None:
                _mask(now, settings, context.seed, settings.sparsity * (1 - (1 - part) ** 3))

    return context.train(
        masked,
        settings.objective_of(recipe, context),
        settings.epochs_of(recipe),
        settings.recipe_of(recipe),
        after_step=after_step,
    )


def _reached(settings: Settings, step: int, steps: int) -> float | None:
    """The part of the ramp (0..1) that is done after ``step`` (from 1) of ``steps``, where weights
    are to be taken after it; None where not."""
    ramp = max(1, round(settings.ramp * steps))
    updates = min(settings.updates, ramp)
    if step > ramp or step * updates // ramp == (step - 1) * updates // ramp:
        return None
    return (step * updates // ramp) / updates


def _mask(state: ModelState, settings: Settings, seed: int, sparsity: float) -> None:
    """Masks more weights, until this part of all is zero; what is masked stays so."""
    from pipeline.models.transforms import masked

    module = state.network.module
    layers = masked.layers(module)
    cut = _cut(state, settings)
    total = sum(layer.weight.numel() for layer in layers.values())
    dense = sum(layer.weight.numel() for name, layer in layers.items() if name not in cut)
    scores = _scores([layers[name] for name in cut], settings.criterion, seed)
    kept = max(0, round((1 - sparsity) * total) - dense)
    choose = _kept_of_all if settings.scope == "global" else _kept_of_each
    for name, chosen in zip(cut, choose(scores, kept), strict=True):
        mask = masked.mask(layers[name])
        mask.logical_and_(chosen)
    masked.project(module)


def _cut(state: ModelState, settings: Settings) -> list[str]:
    """Names of the layers that lose weights."""
    from pipeline.models import network
    from pipeline.models.transforms import masked

    names = list(masked.layers(state.network.module))
    if settings.ends == "sparse":
        return names
    first, last = network.graph_of(state.spec).first_and_last(names)
    return [name for name in names if name not in first and name != last]


def _scores(layers: Sequence[Any], criterion: str, seed: int) -> list[torch.Tensor]:
    """Larger is better; -1 where a weight is masked already."""
    import torch

    from pipeline.models.transforms import masked

    generator = torch.Generator().manual_seed(seed)  # the same chance each time: masks only grow
    scores = []
    for layer in layers:
        weight = layer.weight.detach()
        score = weight.abs()
        if criterion == "random":
            score = torch.rand(weight.shape, generator=generator).to(weight.device)
        elif criterion == "lamp":
            score = _lamp(weight)
        scores.append(torch.where(masked.mask(layer), score, -1))
    return scores


def _lamp(weight: torch.Tensor) -> torch.Tensor:
    """The LAMP score (Lee et al. 2021, arXiv 2010.07611): a weight's square over the sum of the
    squares of all of its layer that are not smaller; in [0, 1], of the weight's shape, float64.
    The order within a layer is that of magnitudes, and a layer's largest weight has 1."""
    import torch

    squares = weight.flatten().double().square()
    order = squares.argsort(descending=True, stable=True)
    remaining = squares[order].cumsum(0).clamp(min=torch.finfo(torch.float64).tiny)
    scores = torch.empty_like(squares)
    scores[order] = squares[order] / remaining
    return scores.reshape(weight.shape)


def _kept_of_all(scores: Sequence[torch.Tensor], kept: int) -> list[torch.Tensor]:
    """Those that are kept, ``kept`` of all; of no layer fewer than FLOOR of its share, nor none."""
    import torch

    share = FLOOR * kept / sum(score.numel() for score in scores)
    floors = [_kept(score, max(1, round(share * score.numel()))) for score in scores]
    raised = [
        torch.where(floor & (score >= 0), torch.inf, score)
        for score, floor in zip(scores, floors, strict=True)
    ]
    least = sum(int(torch.isinf(score).sum()) for score in raised)
    all_kept = _kept(torch.cat([score.flatten() for score in raised]), max(kept, least))
    parts = all_kept.split([score.numel() for score in scores])
    return [part.reshape(score.shape) for part, score in zip(parts, scores, strict=True)]


def _kept_of_each(scores: Sequence[torch.Tensor], kept: int) -> list[torch.Tensor]:
    share = kept / sum(score.numel() for score in scores)
    return [_kept(score, max(1, round(share * score.numel()))) for score in scores]


def _kept(score: torch.Tensor, count: int) -> torch.Tensor:
    """True at the ``count`` largest; of equal ones at the first."""
    import torch

    if count >= score.numel():
        return torch.ones_like(score, dtype=torch.bool)
    flat = score.flatten()
    least = flat.kthvalue(score.numel() - count + 1).values
    kept = flat > least
    ties = (flat == least).nonzero().flatten()
    kept[ties[: count - int(kept.sum())]] = True
    return kept.reshape(score.shape)


def _check_reachable(state: ModelState, settings: Settings) -> None:
    from pipeline.models.transforms import masked

    layers = masked.layers(state.network.module)
    total = sum(layer.weight.numel() for layer in layers.values())
    cut = sum(layers[name].weight.numel() for name in _cut(state, settings))
    if settings.sparsity * total > cut:
        raise UserError(
            f"sparsify.sparsity: {settings.sparsity:g} of all weights cannot become zero while "
            f"sparsify.ends is dense; expected at most {0.99 * cut / total:.2g}, or ends: sparse"
        )
    there = 1 - masked.kept(state.network.module) / total
    if settings.sparsity <= there:
        raise UserError(
            f"sparsify.sparsity: {there:.3g} of all weights are zero already; expected more"
        )
