"""Filter pruning by gates that are trained with the weights, until the budget is reached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline import terminal
from pipeline.errors import UserError
from pipeline.techniques import filters, refuse_settled
from pipeline.techniques.settings import Factor, Trained

if TYPE_CHECKING:
    import torch

    from pipeline.models.network import ModelState
    from pipeline.models.spec import Graph
    from pipeline.techniques.context import Context

VERSION = 1
CLOSING = 2 / 3  # of all steps, after which no gate moves any more
UPDATES = 50  # times until then at which gates open and close
PRIOR = 0.01  # of a filter's relative norm: who comes first while nothing is learned yet


class Settings(Trained, filters.Budget):
    """A gate z = 0 or 1 behind each filter, with a score s that is trained with the weights: z is
    1 for the filters with the best scores, ``dE/ds = dE/dz`` (straight through), also where z is
    0. So s grows by what the loss would lose without the filter, step after step, and a closed
    filter that would help opens again. How many are open follows a budget that falls from all to
    the requested one over two thirds of the training, by the third power (Zhu and Gupta 2017, whose
    schedule is one of sparsity); one threshold for all layers, ``multiple`` filters of each stay.
    Behind layers whose outputs are summed there is one gate for all of them. Then gates rest, the
    others are trained on, and the closed filters are removed: the network computes the same. What
    an activation behind them makes of zero has to be zero for that; filters before a sigmoid, which
    makes it a half, all stay.

    That filters are chosen by something learned under a budget is after Li, Zhu and Sun (2019),
    whose paper could not be had; scores that are trained straight through are those of movement
    pruning (Sanh et al. 2020, arXiv 2005.07683) for single weights. The rest is this project's.
    """

    cites: ClassVar[tuple[str, ...]] = ("sanh2020movement", "zhu2017prune")

    learning_rate_factor: Factor = 0.5


def apply(state: ModelState, settings: Settings, context: Context) -> ModelState:
    refuse_settled(state, "prune-learned")
    recipe = context.cell.recipe
    sizes = filters.Sizes.of(state.spec, context.base().spec, settings)

    def close(now: ModelState, step: int, steps: int) -> None:
        last = max(1, round(CLOSING * steps))
        if step <= last and (step == last or step % max(1, last // UPDATES) == 0):
            _close(now, sizes, at_part(settings, step / last), step == last)

    trained = context.train(
        lambda: _gated(state, sizes, settings),
        settings.objective_of(recipe, context),
        settings.epochs_of(recipe),
        settings.recipe_of(recipe),
        after_step=close,
    )
    return _cut(trained)


def at_part(settings: Settings, part: float) -> Settings:
    """The budget when this part (0..1) of the time for closing is over."""
    kept = settings.kept + (1 - settings.kept) * (1 - part) ** 3
    changed: dict[str, Any] = {settings.of: kept}
    return settings.model_copy(update=changed)


def _gated(state: ModelState, sizes: filters.Sizes, settings: Settings) -> ModelState:
    """With all gates open; UserError where the budget cannot be reached."""
    import torch

    from pipeline.models import network
    from pipeline.models.transforms import gated

    graph = network.graph_of(state.spec)
    cut = filters.cut_groups("prune-learned", graph, settings)
    rows = filters.Rows.of_state(graph, state)
    gated_state = network.with_transform(state, gated.Gated(state.spec.channels, tuple(cut)))
    if constant := _constant(gated_state):
        cut = _without(constant, cut, graph)
        gated_state = network.with_transform(state, gated.Gated(state.spec.channels, tuple(cut)))
    with torch.no_grad():
        for i, gate in gated.gates(gated_state.network.module).items():
            parts = [rows.of(i, name).flatten(1) for name in graph.groups[i].producers]
            norm = torch.cat(parts, 1).norm(dim=1)
            gate.score.copy_(PRIOR * norm / norm.mean().clamp_min(1e-12))
    _counts(gated_state, sizes, settings)
    return gated_state


def _constant(state: ModelState) -> set[int]:
    """Groups whose channels are read as something else than zero when all gates are closed."""
    import torch

    from pipeline.models import network
    from pipeline.models.transforms import gated

    module, channels = state.network.module.eval(), state.spec.channels
    gates = gated.gates(module)
    constant: set[int] = set()

    def watched(groups: tuple[int, ...]) -> Callable[..., None]:
        def look(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            along = -1 if isinstance(layer, torch.nn.Linear) else 1
            wide = inputs[0].shape[along] // sum(channels[i] for i in groups)
            parts = inputs[0].split([channels[i] * wide for i in groups], along)
            constant.update(i for i, part in zip(groups, parts, strict=True) if part.any())

        return look

    hooks = [
        module.get_submodule(name).register_forward_pre_hook(watched(groups))
        for name, groups in network.graph_of(state.spec).readers.items()
    ]
    blank = torch.zeros(1, *state.spec.shape, dtype=torch.uint8)
    with torch.inference_mode():
        for gate in gates.values():
            gate.open.fill_(False)
        state.network.eval()(blank.to(next(module.parameters()).device))
        for gate in gates.values():
            gate.open.fill_(True)
    for hook in hooks:
        hook.remove()
    return constant & set(gates)


def _without(constant: set[int], cut: Sequence[int], graph: Graph) -> list[int]:
    """The groups that can be cut all the same; the attempt's log lists the others."""
    for i in sorted(constant):
        why = "what is behind it makes something else of zero"
        terminal.tell(f"prune-learned: left whole: {graph.groups[i].producers[0]}: {why}", begin="")
    if constant >= set(cut):
        raise UserError(
            "prune-learned: no filters of this network can be removed: behind all of them is an "
            "activation that is not zero at zero; expected prune, which has no gates"
        )
    return [i for i in cut if i not in constant]


def _scores(state: ModelState) -> dict[int, torch.Tensor]:
    from pipeline.models.transforms import gated

    gates = gated.gates(state.network.module)
    return {i: gate.score.detach().cpu() for i, gate in gates.items()}


def _counts(state: ModelState, sizes: filters.Sizes, settings: Settings) -> list[int]:
    return filters.counts("prune-learned", state.spec.channels, sizes, _scores(state), settings)


def _close(state: ModelState, sizes: filters.Sizes, settings: Settings, last: bool) -> None:
    """Opens the gates with the best scores, as many as the budget allows, and closes the others."""
    import torch

    from pipeline.models.transforms import gated

    scores = _scores(state)
    counts = _counts(state, sizes, settings)
    if last:
        counts = filters.filled(sizes, scores, settings, counts)
    kept = filters.best(scores, counts)
    for i, gate in gated.gates(state.network.module).items():
        gate.open.copy_(torch.zeros(len(gate.open)).index_fill_(0, kept[i], 1.0))


def _cut(state: ModelState) -> ModelState:
    """Without gates, and without the filters behind which one is closed."""
    import torch

    from pipeline.models import network
    from pipeline.models.transforms import gated

    kept = [torch.arange(channels) for channels in state.spec.channels]
    for i, gate in gated.gates(state.network.module).items():
        kept[i] = gate.open.cpu().nonzero().flatten()
    return network.shrink(network.without(state, gated.Gated.name, gated.GATES), kept)
