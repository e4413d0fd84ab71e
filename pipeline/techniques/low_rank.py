"""Low rank: convolutions become products of smaller ones, for real.

weight W [K, C, h, w]; ranks R (of outputs) and S (of inputs).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from pipeline.errors import UserError
from pipeline.techniques import filters, refuse_settled

if TYPE_CHECKING:
    import torch

    from pipeline.models.network import ModelState
    from pipeline.models.spec import NetworkSpec
    from pipeline.models.transforms.factored import Factored
    from pipeline.techniques.context import Context

VERSION = 1
STEPS = 1000  # parts of the energy that are distinguished


class Settings(filters.Size):
    """``tucker``: Tucker-2 decomposition (Kim et al. 2016, arXiv 1511.06530), W[k, c] = sum over
    r, s of U[k, r] G[r, s] V[c, s] for each of the h x w positions: a 1x1 convolution (V) to S
    channels, h x w (G) to R, 1x1 (U) to K. U and V are the first singular vectors of W unfolded
    along its filters and its inputs. ``svd``: the singular value decomposition of W as a matrix
    [K, C h w]: h x w to R channels, then 1x1 to K. 1x1 convolutions are always ``svd``.

    The paper estimates ranks by variational Bayes; here a layer's are the fewest that keep a part
    of its squares, the same part for all layers, as large as the budget allows, in multiples of
    ``multiple``. A layer that would not get smaller stays whole, as do depthwise convolutions, the
    last layer, and those that read the image.
    """

    cites: ClassVar[tuple[str, ...]] = ("kim2016compression",)

    method: Literal["tucker", "svd"] = "tucker"


class Parts(NamedTuple):
    """A decomposed convolution: ``outputs`` U [K, K] and ``inputs`` V [C, C], columns in falling
    order of what they keep, and the parts of all squares that the first r columns keep [K], [C].
    Of an SVD there are no inputs, and U is that of the K x (C h w) matrix."""

    weight: torch.Tensor
    outputs: torch.Tensor
    kept_outputs: torch.Tensor
    inputs: torch.Tensor | None = None
    kept_inputs: torch.Tensor | None = None


def apply(state: ModelState, settings: Settings, context: Context) -> ModelState:
    from pipeline.models import network
    from pipeline.models.transforms.factored import Factored

    refuse_settled(state, "low-rank")
    if unfit := [t.name for t in state.spec.transforms if t.name != "folded"]:
        raise UserError(
            f"low-rank: the network is {unfit[0]} already; expected it before the stage that does "
            "this"
        )
    parts = _decomposed(state, settings.method)
    transform = _chosen(state.spec, context.base().spec, parts, settings)
    tensors = dict(state.network.state_dict())
    for name, inputs, outputs in zip(
        transform.layers, transform.inputs, transform.outputs, strict=True
    ):
        tensors |= _factors(f"module.{name}", parts[name], inputs, outputs)
        del tensors[f"module.{name}.weight"]
        if (bias := tensors.pop(f"module.{name}.bias", None)) is not None:
            tensors[f"module.{name}.{2 if inputs else 1}.bias"] = bias
    assert isinstance(transform, Factored)
    factored = network.restore(state.spec.with_transform(transform), tensors)
    factored.network.to(next(state.network.parameters()).device)
    return factored


def _decomposed(state: ModelState, method: str) -> dict[str, Parts]:
    """Name -> the parts of each convolution that may be factored."""
    from torch import nn

    from pipeline.models import network

    image = network.graph_of(state.spec).image
    layers = {
        name: layer
        for name, layer in state.network.module.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and name not in image
    }
    if not layers:
        raise UserError("low-rank: this network has no convolutions that can be factored")
    return {name: _parts(layer.weight.detach(), method) for name, layer in layers.items()}


def _parts(weight: torch.Tensor, method: str) -> Parts:
    double = weight.double().cpu()
    outputs = _vectors(double.flatten(1))
    if method == "svd" or double[0, 0].numel() == 1:
        return Parts(double, *outputs)
    return Parts(double, *outputs, *_vectors(double.transpose(0, 1).flatten(1)))


def _vectors(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[n, m] -> left singular vectors [n, n], and the part of all squares that the first of them
    keep [n]."""
    values, vectors = _eigen(rows @ rows.T)
    return vectors, values.cumsum(0) / values.sum().clamp_min(1e-30)


def _eigen(squares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues, falling, and vectors [n, n]; each vector's largest entry is positive."""
    import torch

    values, vectors = torch.linalg.eigh(squares)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return values, vectors * torch.where(largest < 0, -1.0, 1.0)


def _chosen(
    spec: NetworkSpec, base: NetworkSpec, parts: dict[str, Parts], settings: Settings
) -> Factored:
    """The ranks that keep as much of each layer as the budget allows."""
    target = settings.target(base)

    def size(step: int) -> int:
        candidate = spec.with_transform(_ranks(parts, step / STEPS, settings.multiple))
        return settings.sizes(candidate)(candidate.channels)

    if size(0) > target:
        least = size(0) / target * settings.kept
        raise UserError(
            f"low-rank.{settings.of}: {settings.kept:g} cannot be reached with ranks of "
            f"{settings.multiple}; expected at least {least:.2g}"
        )
    low, high = 0, STEPS
    while low < high:
        middle = (low + high + 1) // 2
        if size(middle) <= target:
            low = middle
        else:
            high = middle - 1
    return _ranks(parts, low / STEPS, settings.multiple)


def _ranks(parts: dict[str, Parts], part: float, multiple: int) -> Factored:
    """Of all layers that get smaller when they keep this part (0..1) of their squares."""
    from pipeline.models.transforms.factored import Factored

    rows = []
    for name, each in parts.items():
        outputs = _rank(each.kept_outputs, part, multiple)
        inputs = 0 if each.kept_inputs is None else _rank(each.kept_inputs, part, multiple)
        filters_, channels, *kernel = each.weight.shape
        area = kernel[0] * kernel[1]
        size = channels * inputs + (inputs or channels) * outputs * area + outputs * filters_
        if size < each.weight.numel():
            rows.append((name, inputs, outputs))
    names, inputs_, outputs_ = zip(*rows, strict=True) if rows else ((), (), ())
    return Factored(names, inputs_, outputs_)


def _rank(kept: torch.Tensor, part: float, multiple: int) -> int:
    wanted = int((kept < part - 1e-9).sum()) + 1
    return min(len(kept), max(multiple, -(-wanted // multiple) * multiple))


def _factors(name: str, parts: Parts, inputs: int, outputs: int) -> dict[str, torch.Tensor]:
    """The weights of the convolutions in place of the layer ``name``; each of an SVD's two has the
    root of the singular values, so that one learning rate fits both."""
    import torch

    u = parts.outputs[:, :outputs]
    if parts.inputs is None:
        core = torch.einsum("kr,kchw->rchw", u, parts.weight)
        root = core.flatten(1).norm(dim=1).clamp_min(1e-30).sqrt()
        chain = [core / root[:, None, None, None], (u * root)[:, :, None, None]]
    else:
        v = parts.inputs[:, :inputs]
        core = torch.einsum("kr,kchw,cs->rshw", u, parts.weight, v)
        chain = [v.T[:, :, None, None], core, u[:, :, None, None]]
    return {f"{name}.{i}.weight": weight.float().contiguous() for i, weight in enumerate(chain)}
