"""What stages that remove filters share: how much is to stay, which groups may be cut, and how many
filters of each group the budget leaves.

Scores are one number a filter, one tensor [K] a group; larger is better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pipeline import terminal
from pipeline.errors import UserError
from pipeline.sweep.settings import young
from pipeline.techniques.settings import StageSettings

if TYPE_CHECKING:
    import torch

    from pipeline.models.network import ModelState
    from pipeline.models.spec import Graph, NetworkSpec


class Size(StageSettings):
    """How much of the base stays, in parameters or in MACs."""

    parameters_kept: float = Field(0.25, gt=0, le=1, description="part of the base's parameters")
    macs_kept: float | None = young(
        None,
        gt=0,
        le=1,
        description="part of the base's MACs, in place of parameters_kept",
    )
    multiple: int = Field(
        8, ge=1, le=64, description="filters of a layer, of all its blocks, stay multiples of this"
    )

    @model_validator(mode="after")
    def _one(self) -> Size:
        if self.macs_kept is not None and "parameters_kept" in self.model_fields_set:
            raise ValueError("macs_kept stands in place of parameters_kept; expected one of them")
        return self

    @model_serializer(mode="wrap")
    def _dumped(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        unused = () if self.macs_kept is None else ("parameters_kept",)
        return {name: value for name, value in dump(self).items() if name not in unused}

    @property
    def of(self) -> str:
        """The setting that defines how much stays."""
        return "parameters_kept" if self.macs_kept is None else "macs_kept"

    @property
    def kept(self) -> float:
        """Part of the base, 0..1, in parameters or in MACs."""
        return self.parameters_kept if self.macs_kept is None else self.macs_kept

    def operating_point(self) -> dict[str, Any]:
        return {self.of: self.kept}

    def sizes(self, spec: NetworkSpec) -> Callable[[Sequence[int]], int]:
        """Channel counts -> the size of such a network, in what the budget counts."""
        from pipeline.measure import complexity

        count, index = complexity.by_channels(spec), int(self.macs_kept is not None)
        return lambda channels: count(channels)[index]

    def target(self, base: NetworkSpec) -> float:
        """Size that is left of this base."""
        return self.kept * self.sizes(base)(base.channels)


class Budget(Size):
    """And what may be cut for it."""

    groups: Literal["all", "inner"] = young(
        "all",
        description="inner: not the channels of residual sums (Li et al. 2017, section 3.3: the "
        "first layers of blocks); all: these too, in all layers that are summed at once",
    )


def cut_groups(stage: str, graph: Graph, budget: Budget) -> list[int]:
    """Numbers of the groups that may be cut; the attempt's log lists what stays whole."""
    for line in graph.left:
        terminal.tell(f"{stage}: left whole: {line}", begin="")
    cut = [i for i, group in enumerate(graph.groups) if not group.whole]
    if budget.groups == "inner":
        cut = [i for i in cut if not graph.groups[i].summed]
    if not cut:
        raise UserError(
            f"{stage}: no filters of this network can be removed"
            + (f" ({graph.left[0]})" if graph.left else f"; expected {stage}.groups: all")
        )
    return cut


@dataclass(frozen=True)
class Rows:
    """The tensors of layers, by group: a layer's filters can be of several, side by side."""

    graph: Graph
    channels: tuple[int, ...]
    tensors: dict[str, torch.Tensor]

    @classmethod
    def of_state(cls, graph: Graph, state: ModelState) -> Rows:
        return cls(graph, state.spec.channels, state.network.module.state_dict())

    def of(self, group: int, name: str, tensor: str = "weight") -> torch.Tensor:
        """float32 [filters of the group, ...] of the layer ``name``. Where it makes the group's
        channels several times: what all of its filters have, inputs beside inputs; of numbers, one
        a filter, the mean."""
        import torch

        blocks = self.all(group, name, tensor)
        if len(blocks) == 1:
            return blocks[0]
        return torch.cat(blocks, 1) if blocks[0].dim() > 1 else torch.stack(blocks).mean(0)

    def all(self, group: int, name: str, tensor: str = "weight") -> list[torch.Tensor]:
        """float32 [filters of the group, ...], once for each time that the layer makes them, as a
        grouped convolution does in each of its blocks."""
        layer_tensor = self.tensors[f"{name}.{tensor}"].float().cpu()
        return [layer_tensor[span] for span in self.spans(group, name)]

    def spans(self, group: int, name: str) -> Iterator[slice]:
        """Where the filters of the group lie among those of the layer ``name``."""
        start = 0
        for each in self.graph.filters[name]:
            if each == group:
                yield slice(start, start + self.channels[each])
            start += self.channels[each]


class Sizes(NamedTuple):
    """``size``: of channel counts of a network; ``base``: of its base; ``steps``: for each group
    what its count stays a multiple of."""

    size: Callable[[Sequence[int]], int]
    base: int
    steps: tuple[int, ...]

    @classmethod
    def of(cls, spec: NetworkSpec, base: NetworkSpec, budget: Size) -> Sizes:
        from pipeline.models import network

        graph = network.graph_of(spec)
        steps = tuple(graph.step(i, budget.multiple) for i in range(len(graph.groups)))
        return cls(budget.sizes(spec), budget.sizes(base)(base.channels), steps)


def counts(
    stage: str,
    channels: tuple[int, ...],
    sizes: Sizes,
    scores: dict[int, torch.Tensor],
    budget: Budget,
    by_layer: bool = False,
) -> list[int]:
    """Filters that each group keeps: as many as fit into the budget. One threshold for all scores,
    or ``by_layer`` the same part of each group. UserError where even the fewest are too many."""
    target, size = budget.kept * sizes.base, sizes.size
    # One candidate a possible threshold, from the fewest filters to all of them; size grows along.
    candidates = _candidates(scores, sizes.steps, channels, by_layer)
    if size(candidates(0)) > target:
        least = size(candidates(0)) / target * budget.kept
        raise UserError(
            f"{stage}.{budget.of}: {budget.kept:g} cannot be reached with "
            f"{budget.multiple} filters in each layer; expected at least {least:.2g}"
        )
    low, high = 0, 1000
    while low < high:
        middle = (low + high + 1) // 2
        if size(candidates(middle)) <= target:
            low = middle
        else:
            high = middle - 1
    return candidates(low)


def filled(
    sizes: Sizes,
    scores: dict[int, torch.Tensor],
    budget: Budget,
    initial_counts: list[int],
) -> list[int]:
    """``initial_counts`` (see ``counts``) and more filters, a step of a group at a time, the
    best ones first, as long as the budget has room for any: rounding leaves some of it."""
    target, size, steps = budget.kept * sizes.base, sizes.size, sizes.steps
    counts = list(initial_counts)
    ranked = {i: score.sort(descending=True).values for i, score in scores.items()}
    grows = True
    while grows:
        grows = False
        left = [i for i in scores if counts[i] + steps[i] <= len(scores[i])]
        for i in sorted(left, key=lambda i: float(ranked[i][counts[i]]), reverse=True):
            more = [*counts[:i], counts[i] + steps[i], *counts[i + 1 :]]
            if size(more) <= target:
                counts, grows = more, True
    return counts


def _candidates(
    scores: dict[int, torch.Tensor],
    steps: tuple[int, ...],
    channels: tuple[int, ...],
    by_layer: bool,
) -> Callable[[int], list[int]]:
    """step 0..1000 -> filter counts of all groups, none of which falls as the step grows."""
    import torch

    from pipeline.models.layers import multiple_of

    ranked = torch.cat([*scores.values()]).sort(descending=True).values

    def found(step: int) -> list[int]:
        cut = ranked[min(len(ranked) - 1, len(ranked) * step // 1000)]
        counts = list(channels)
        for i, score in scores.items():
            if by_layer:
                wanted = len(score) * step / 1000
            else:
                wanted = len(score) if step == 1000 else int((score > cut).sum())
            counts[i] = min(len(score), multiple_of(steps[i], wanted))
        return counts

    return found


def best(scores: dict[int, torch.Tensor], counts: list[int]) -> list[torch.Tensor]:
    """Indices (int64, ascending) of the filters that stay: of each group those with the best
    scores, all where it has none."""
    import torch

    kept = [torch.arange(filters) for filters in counts]
    for i, score in scores.items():
        kept[i] = score.topk(counts[i]).indices.sort().values
    return kept


def kept(
    stage: str,
    spec: NetworkSpec,
    base: NetworkSpec,
    scores: dict[int, torch.Tensor],
    budget: Budget,
    by_layer: bool = False,
) -> list[torch.Tensor]:
    """As `best`, of as many filters as `counts` finds room for."""
    sizes = Sizes.of(spec, base, budget)
    return best(scores, counts(stage, spec.channels, sizes, scores, budget, by_layer))
