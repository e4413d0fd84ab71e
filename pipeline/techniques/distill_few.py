"""Few-sample distillation: filters removed, and each layer put right by least squares.

Z [P, K]: a layer's output in the smaller network, of P = images x pixels; Y [P, K]: the same
filters' in the whole one. X [P, D]: what the correction is a linear function of, Z itself or the
layer's inputs (D = input channels x kernel); its coefficients [D, K], and an offset c [K].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from pipeline.errors import UserError
from pipeline.sweep.settings import young
from pipeline.techniques import filters, prune, refuse_settled

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.models.network import ModelState
    from pipeline.models.spec import Graph
    from pipeline.techniques.context import Context

    Call = tuple[torch.Tensor, torch.Tensor]  # what a layer read, and what it gave

VERSION = 2  # since 2 right behind activations in place, and of all calls of a layer
BATCH = 64
RIDGE = 1e-2  # of the mean square of X: what is not seen in so few images stays as it is
ROWS = 16  # equations for each unknown are enough: beyond them pixels are sampled
VALUES = 2**25  # of X at once
UNKNOWNS = 8192  # of a filter: with more, X'X alone would take more than half a GiB


class Settings(filters.Budget):
    """Each layer of a pruned network is fitted to what it gave in the whole one, in the order of
    the data, so that each sees what those before it were made to give. Batch normalization is
    folded first, as Y is what the next layer is to see. No labels, no gradients, no epochs.

    ``solve: outputs`` is FSKD (Li et al. 2020, arXiv 1812.01839; the number from memory): a 1x1
    convolution Q after each convolution, ``min |Z Q' + 1 c' - Y|^2``, absorbed as ``W <- Q W``,
    ``b <- Q b + c``. ``solve: weights`` is the reconstruction of He, Zhang and Sun (2017, arXiv
    1707.06168, section 3.1; from memory): all weights of a layer, ``min |X W' + 1 b' - Y|^2``, on
    pixels sampled from each image. Which filters go is ``criterion``'s choice here, not their
    lasso's.

    The offset c, the linear layers (with ``weights``), and the ridge, 1 % of the mean square of X,
    that pulls the solution towards the weights as they were, are this project's. A layer with more
    than 8,192 weights a filter gets the 1x1. The whole network is the one that this stage is
    given. Depthwise and grouped convolutions stay as they are. Labels serve to draw a stratified
    sample, and for nothing else.
    """

    cites: ClassVar[tuple[str, ...]] = ("li2020few",)

    criterion: Literal["l1", "l2", "bn-scale", "random", "fpgm"] = Field(
        "l1", description="which filters go, as in prune"
    )
    scope: Literal["global", "layer"] = Field("global", description="as in prune")
    images: int = Field(500, ge=1, le=1_000_000, description="unlabelled, of the training set")
    per_class: bool = Field(
        False, description="so many images of each class, or all that it has, not in all"
    )
    solve: Literal["outputs", "weights"] = young(
        "outputs",
        description="for a 1x1 convolution after each layer, or for all of its weights",
    )

    def references(self) -> tuple[str, ...]:
        return (*self.cites, "he2017channel") if self.solve == "weights" else self.cites


def apply(state: ModelState, settings: Settings, context: Context) -> ModelState:
    from pipeline.models import network

    refuse_settled(state, "distill-few")
    if state.spec.has("masked"):
        raise UserError(
            "distill-few: would fill the zeros of a masked network; expected it before sparsify"
        )
    scores = _scores(state, settings, context)
    base, by_layer = context.base().spec, settings.scope == "layer"
    kept = filters.kept("distill-few", state.spec, base, scores, settings, by_layer)
    device = context.machine.device
    whole = network.fold(state)
    whole.network.to(device).eval()
    small = network.shrink(whole, kept)
    small.network.eval()
    _align(whole, small, kept, _batches(settings, context), settings.solve, context.seed)
    return small


def _scores(state: ModelState, settings: Settings, context: Context) -> dict[int, torch.Tensor]:
    chosen = {name: getattr(settings, name) for name in ("criterion", "scope", "groups")}
    return prune.scored(state, prune.Settings(**chosen), context, "distill-few")


def _batches(settings: Settings, context: Context) -> Callable[[], Iterator[torch.Tensor]]:
    from pipeline import data

    drawn = data.sample_of_each if settings.per_class else data.sample
    sample = drawn(context.split.train, settings.images, context.seed).to(context.machine.device)
    return lambda: (pixels for pixels, _ in data.ordered(sample, BATCH))


def _align(
    whole: ModelState,
    small: ModelState,
    kept: list[torch.Tensor],
    batches: Callable[[], Iterator[torch.Tensor]],
    solve: str,
    seed: int = 0,
) -> None:
    """Each layer of ``small``, in the order of the data, as near to ``whole`` as least squares can
    bring it."""
    import torch

    from pipeline.models import network

    graph = network.graph_of(whole.spec)
    images = sum(map(len, batches()))
    random = torch.Generator().manual_seed(seed)
    for name in _layers(small, next(batches())[:1], solve):
        mine, others = (state.network.module.get_submodule(name) for state in (small, whole))
        rows = _rows(graph, whole, kept, name)
        many = mine.get_parameter("weight")[0].numel() > UNKNOWNS
        fit = "outputs" if many else solve
        moments = _Moments()
        with _calls(mine) as own, _calls(others) as wanted:
            for pixels in batches():
                small.network(pixels)
                whole.network(pixels)
                for calls in zip(own, wanted, strict=True):
                    moments.add_all(_equations(mine, fit, *calls, rows, images, random))
                own.clear()
                wanted.clear()
        _absorb(mine, *moments.solved(offset=mine.bias is not None), fit)


def _layers(state: ModelState, pixels: torch.Tensor, solve: str) -> list[str]:
    """Names, in the order in which they run, of those that mix channels and can be fitted."""
    import torch
    from torch import nn

    kinds = (nn.Conv2d, nn.Linear) if solve == "weights" else nn.Conv2d
    names: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: names.append(name))
        for name, module in state.network.module.named_modules()
        if isinstance(module, kinds) and getattr(module, "groups", 1) == 1
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


def _axis(layer: nn.Module) -> int:
    """Where the channels of its output are."""
    from torch import nn

    return -1 if isinstance(layer, nn.Linear) else 1


@contextmanager
def _calls(module: nn.Module) -> Iterator[list[Call]]:
    """Its input and output at each call."""
    import torch

    calls: list[Call] = []
    hook = module.register_forward_hook(  # copies: what comes after may work in place
        lambda _, inputs, output: calls.append((inputs[0].clone(), output.clone()))
    )
    try:
        with torch.no_grad():
            yield calls
    finally:
        hook.remove()


def _by_pixel(layer: nn.Module, maps: torch.Tensor) -> torch.Tensor:
    """[N, K, h, w] as [N h w, K]; of a linear layer [N, ..., K]."""
    return maps.movedim(_axis(layer), -1).flatten(0, -2)


def _equations(
    layer: nn.Module,
    solve: str,
    own: Call,
    wanted: Call,
    rows: torch.Tensor | None,
    images: int,
    random: torch.Generator,
) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """X [P, D] and Y - Z [P, K] of a call in both networks, in parts."""
    (inputs, output), (_, expected) = own, wanted
    if rows is not None:
        expected = expected.index_select(_axis(layer), rows)
    gap = expected.double() - output
    if solve == "outputs":
        return [(_by_pixel(layer, output), _by_pixel(layer, gap))]
    return _of_weights(layer, inputs, gap, images, random)


def _of_weights(
    layer: nn.Module,
    inputs: torch.Tensor,
    gap: torch.Tensor,
    images: int,
    random: torch.Generator,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """X [P, D], what the weights of a layer are multiplied with, and Y - Z [P, K], in parts. Of so
    many pixels of each of these images as make ``ROWS`` equations for each unknown of a filter."""
    import torch
    from torch import nn
    from torch.nn import functional

    if not isinstance(layer, nn.Conv2d):
        yield inputs.flatten(0, -2), _by_pixel(layer, gap)
        return
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = functional.pad(inputs, layer._reversed_padding_repeated_twice, mode)
    unknowns, pixels = layer.weight[0].numel(), gap[0, 0].numel()
    wanted = min(pixels, -(-ROWS * unknowns // images))
    some = torch.randperm(pixels, generator=random)[:wanted].to(gap.device)
    size = max(1, VALUES // (unknowns * pixels))
    for part, its_gap in zip(padded.split(size), gap.split(size), strict=True):
        known = functional.unfold(part, layer.kernel_size, layer.dilation, stride=layer.stride)
        yield known[..., some].mT.flatten(0, 1), its_gap.flatten(2)[..., some].mT.flatten(0, 1)


class _Moments:
    """Sums over P of what least squares need, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: list[torch.Tensor] = []

    def add(self, x: torch.Tensor, gap: torch.Tensor) -> None:
        """X [P, D] and Y - Z [P, K]."""
        x, gap = x.double(), gap.double()
        new = [x.sum(0), gap.sum(0), x.T @ x, x.T @ gap]
        self.sums = [a + b for a, b in zip(self.sums, new, strict=True)] if self.sums else new
        self.count += len(x)

    def add_all(self, parts: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        for x, gap in parts:
            self.add(x, gap)

    def solved(self, offset: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """(B [D, K], c [K]), float64, of ``Z + X B + 1 c'``: B = (X'X + ridge)^-1 X'(Y - Z), of
        what varies about the means; of X and Y as they are without an ``offset``, c is 0."""
        import torch

        x, gap = (each / self.count * offset for each in self.sums[:2])
        squares = self.sums[2] - self.count * torch.outer(x, x)
        products = self.sums[3] - self.count * torch.outer(x, gap)
        eye = torch.eye(len(x), dtype=x.dtype, device=x.device)
        ridge = RIDGE * squares.diagonal().mean().clamp_min(1e-12)
        change = torch.linalg.solve(squares + ridge * eye, products)
        return change, gap - change.T @ x


def _absorb(layer: nn.Module, change: torch.Tensor, c: torch.Tensor, solve: str) -> None:
    """``outputs``: Q = 1 + B' after the layer; ``weights``: B' added to them."""
    import torch

    weight = layer.get_parameter("weight")
    bias = None if layer.bias is None else layer.get_parameter("bias")
    with torch.no_grad():
        if solve == "weights":
            weight.add_(change.T.reshape(weight.shape))
            if bias is not None:
                bias.add_(c)
            return
        q = torch.eye(len(change), dtype=change.dtype, device=change.device) + change.T
        weight.copy_(torch.tensordot(q, weight.double(), 1))
        if bias is not None:
            bias.copy_(q @ bias.double() + c)
