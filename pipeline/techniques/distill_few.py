"""Few-sample distillation: filters removed, and each layer's output put right by least squares.

X [P, K]: a layer's output in the smaller network, of P = images x pixels; Y [P, K]: the same
filters' in the whole one. Q [K, K], c [K].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from pipeline.techniques import filters, prune, refuse_settled

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.models.network import ModelState
    from pipeline.models.spec import Graph
    from pipeline.techniques.context import Context

VERSION = 1
BATCH = 64
RIDGE = 1e-2  # of the mean square of X: what is not seen in so few images stays as it is


class Settings(filters.Budget):
    """FSKD (Li et al. 2020, arXiv 1812.01839; the number from memory): after each convolution of a
    pruned network a 1x1 convolution Q is fitted, ``min |X Q' + 1 c' - Y|^2``, layer after layer in
    the order of the data, so that each sees what those before it were made to give; Q and c are
    then absorbed into the convolution, ``W <- Q W``, ``b <- Q b + c``. Batch normalization is
    folded first, as Y is what the next layer is to see. No labels, no gradients, no epochs.

    The offset c, and the ridge that pulls Q towards the identity where there are fewer pixels than
    unknowns, are this project's. The whole network is the one that this stage is given. Depthwise
    convolutions, and the last layer, stay as they are.
    """

    cites: ClassVar[tuple[str, ...]] = ("li2020few",)

    criterion: Literal["l1", "l2", "bn-scale", "random", "fpgm"] = Field(
        "l1", description="which filters go, as in prune"
    )
    scope: Literal["global", "layer"] = Field("global", description="as in prune")
    images: int = Field(500, ge=1, le=1_000_000, description="unlabelled, of the training set")
    per_class: bool = Field(False, description="so many images of each class, not in all")


def apply(state: ModelState, settings: Settings, context: Context) -> ModelState:
    from pipeline.models import network

    refuse_settled(state, "distill-few")
    scores = _scores(state, settings, context)
    base, by_layer = context.base().spec, settings.scope == "layer"
    kept = filters.kept("distill-few", state.spec, base, scores, settings, by_layer)
    device = context.machine.device
    whole = network.fold(state)
    whole.network.to(device).eval()
    small = network.shrink(whole, kept)
    small.network.eval()
    _align(whole, small, kept, _batches(settings, context))
    return small


def _scores(state: ModelState, settings: Settings, context: Context) -> dict[int, torch.Tensor]:
    chosen = {name: getattr(settings, name) for name in ("criterion", "scope", "groups")}
    return prune.scored(state, prune.Settings(**chosen), context)


def _batches(settings: Settings, context: Context) -> Callable[[], Iterator[torch.Tensor]]:
    from pipeline import data

    images = settings.images * (len(context.split.classes) if settings.per_class else 1)
    sample = data.sample(context.split.train, images, context.seed).to(context.machine.device)
    return lambda: (pixels for pixels, _ in data.ordered(sample, BATCH))


def _align(
    whole: ModelState,
    small: ModelState,
    kept: list[torch.Tensor],
    batches: Callable[[], Iterator[torch.Tensor]],
) -> None:
    """Each convolution of ``small``, in the order of the data, as near to ``whole`` as a 1x1 after
    it can bring it."""
    from pipeline.models import network

    graph = network.graph_of(whole.spec)
    for name in _convolutions(small, next(batches())[:1]):
        mine, others = (state.network.module.get_submodule(name) for state in (small, whole))
        rows = _rows(graph, whole, kept, name)
        moments = _Moments()
        with _outputs(mine) as own, _outputs(others) as wanted:
            for pixels in batches():
                small.network(pixels)
                whole.network(pixels)
                expected = wanted.pop()
                moments.add(own.pop(), expected if rows is None else expected[:, rows])
        _absorb(mine, *moments.solved(offset=mine.bias is not None))


def _convolutions(state: ModelState, pixels: torch.Tensor) -> list[str]:
    """Names, in the order in which they run; those that mix channels."""
    import torch
    from torch import nn

    names: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: names.append(name))
        for name, module in state.network.module.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups == 1
    ]
    with torch.no_grad():
        state.network(pixels)
    for hook in hooks:
        hook.remove()
    return list(dict.fromkeys(names))


def _rows(
    graph: Graph, whole: ModelState, kept: list[torch.Tensor], name: str
) -> torch.Tensor | None:
    """Which filters of a layer are left; None: all of them."""
    from pipeline.models import network

    if name not in graph.filters:
        return None
    rows = network.of_axis(graph.filters[name], whole.spec.channels, kept)
    return rows.to(next(whole.network.parameters()).device)


@contextmanager
def _outputs(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    import torch

    outputs: list[torch.Tensor] = []
    hook = module.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    try:
        with torch.no_grad():
            yield outputs
    finally:
        hook.remove()


class _Moments:
    """Sums over P of what least squares need, in float64."""

    def __init__(self) -> None:
        self.count = 0.0
        self.sums: list[torch.Tensor] = []

    def add(self, own: torch.Tensor, wanted: torch.Tensor) -> None:
        """Both [N, K, h, w]."""
        x, y = (each.permute(0, 2, 3, 1).flatten(0, 2).double() for each in (own, wanted))
        gap = y - x
        new = [x.sum(0), gap.sum(0), x.T @ x, x.T @ gap]
        self.sums = [a + b for a, b in zip(self.sums, new, strict=True)] if self.sums else new
        self.count += len(x)

    def solved(self, offset: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """(Q, c), float64: Q' = 1 + (X'X + ridge)^-1 X'(Y - X), of what varies about the means; of
        X and Y as they are without an ``offset``, c is 0."""
        import torch

        x, gap = (each / self.count * offset for each in self.sums[:2])
        squares = self.sums[2] - self.count * torch.outer(x, x)
        products = self.sums[3] - self.count * torch.outer(x, gap)
        eye = torch.eye(len(x), dtype=x.dtype, device=x.device)
        ridge = RIDGE * squares.diagonal().mean().clamp_min(1e-12)
        change = torch.linalg.solve(squares + ridge * eye, products)
        return eye + change.T, gap - change.T @ x


def _absorb(layer: nn.Module, q: torch.Tensor, c: torch.Tensor) -> None:
    import torch

    weight = layer.get_parameter("weight")
    with torch.no_grad():
        weight.copy_(torch.einsum("ij,jabc->iabc", q, weight.double()))
        if layer.bias is not None:
            bias = layer.get_parameter("bias")
            bias.copy_(q @ bias.double() + c)
