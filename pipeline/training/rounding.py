"""Rate-distortion-optimized rounding: integers of a trained network moved towards zero where that
saves more bits than it costs in the logits, before they are coded.

The idea is that of DeepCABAC (Wiedemann et al. 2020, arXiv 1907.11900, section III): of the
integers that a weight may become, the one with the least ``importance x (change)^2 + lambda x
bits``. There the importance is 1 or an inverse variance; here it is what a weight does to the
logits. Bits are those of an order-0 coder in classes of what is expected of a weight by its filter
and its channel, in place of the arithmetic coder's own state.

integer, importance [K, C, ...]: K filters, C channels; integers are held as floats.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline.models.transforms.coarse import by_filter
from pipeline.models.transforms.fakequant import layers

if TYPE_CHECKING:
    from collections.abc import Iterator

CLASSES = 8
LEAST = 4096  # weights of a layer that is coded in classes
PASSES = 50  # it settles in about ten


def optimize(
    module: nn.Module, importance: dict[str, torch.Tensor], price: float
) -> tuple[int, int]:
    """Rounds the weights of a fake-quantized network anew, in place: the least distortion + price x
    bits a weight. ``importance``: of each layer, see ``of_logits``. (weights moved, weights)."""
    quantized_layers = layers(module)
    total, moved = sum(layer.weight.numel() for layer in quantized_layers.values()), 0
    for name in importance:
        layer = quantized_layers[name]
        scale = layer.weight_quantizer.scale.detach()
        with torch.no_grad():
            integer = (layer.quantized_weight() / by_filter(scale, layer.weight)).round()
            per_step = importance[name] * by_filter(scale, layer.weight).square()
            rounded = rounded_anew(integer, per_step, price / total)
            if not torch.equal(rounded, integer):
                layer.weight_quantizer.place(layer.weight, rounded)
        moved += int((rounded != integer).sum())
    return moved, total


def rounded_anew(integer: torch.Tensor, importance: torch.Tensor, price: float) -> torch.Tensor:
    """The integers with the least ``sum importance x (change)^2 + price x bits`` that are reached
    by turns: each weight for the code lengths there are, then these for the weights.

    A weight stays, or goes towards zero by one of the layer's own values or to zero itself, so that
    no bound on sums is broken and no level is new. Neither step raises the cost, so it ends.
    """
    if price <= 0 or not integer.numel():
        return integer
    classes = _classes(integer)
    values, index = integer.flatten().unique(return_inverse=True)
    start = integer.flatten().double()
    weight = importance.flatten().double()
    smaller = _towards_zero(values)
    zero = smaller.new_tensor(int(values.abs().argmin()))
    for _ in range(PASSES):
        bits = price * _code_lengths(index, classes, len(values))
        best, lowest = index, bits[classes, index] + weight * (values[index] - start).square()
        for other in (smaller[index], zero.expand_as(index)):
            inside = (values[other] * start >= 0) & (values[other].abs() <= start.abs())
            cost = bits[classes, other] + weight * (values[other] - start).square()
            better = inside & (cost < lowest)
            best, lowest = torch.where(better, other, best), torch.where(better, cost, lowest)
        if torch.equal(best, index):
            break
        index = best
    return values[index].reshape(integer.shape)


def coded_bits(integer: torch.Tensor, classes: torch.Tensor | None = None) -> float:
    """What all integers of a layer take, in classes (their own, where none are given)."""
    classes = _classes(integer) if classes is None else classes
    values, index = integer.flatten().unique(return_inverse=True)
    return float(_code_lengths(index, classes, len(values))[classes, index].sum())


def _towards_zero(values: torch.Tensor) -> torch.Tensor:
    """Index of the next of the ascending values in the direction of zero; that of the smallest
    magnitude has its own."""
    place = torch.arange(len(values), device=values.device)
    return (place - values.sign().long()).clamp(0, len(values) - 1)


def _code_lengths(index: torch.Tensor, classes: torch.Tensor, symbols: int) -> torch.Tensor:
    """float64 [CLASSES, symbols]: ideal code lengths; infinite where a class lacks the symbol."""
    counts = torch.bincount(classes * symbols + index, minlength=CLASSES * symbols)
    counts = counts.reshape(CLASSES, symbols).double()
    return torch.log2(counts.sum(1, keepdim=True)) - torch.log2(counts)


def _classes(integer: torch.Tensor) -> torch.Tensor:
    """int64 [weights]: equally many weights in each, by the mean magnitude of a weight's filter
    times that of its channel; a small layer has one class."""
    size = integer.abs().double()
    if integer.numel() < LEAST:
        return torch.zeros(integer.numel(), dtype=torch.int64, device=integer.device)
    flat = size.reshape(*size.shape[:2], -1)
    expected = (flat.mean((1, 2))[:, None] * flat.mean((0, 2))[None, :]).float()
    ranks = expected.flatten().sort(stable=True).values
    bounds = ranks[[len(ranks) * i // CLASSES for i in range(1, CLASSES)]]
    classes = torch.bucketize(expected, bounds, right=True)
    return classes[:, :, None].expand(flat.shape).flatten()


def of_logits(
    network: nn.Module, module: nn.Module, batches: Iterable[torch.Tensor], seed: int
) -> dict[str, torch.Tensor]:
    """Name of layer -> [K, ...]: the squared change of the logits for a small squared change of
    each deployed weight, as a part of the logits' own square; a mean over images.

    The diagonal of the Gauss-Newton matrix of the logits. Random signs of all logits of a batch
    give it without bias from one gradient (Hutchinson 1989); unlike gradients of the loss it does
    not vanish where training has learned its images by heart.
    """
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, torch.Tensor] = {}
    power = 0.0
    with _deployed(module) as seen:
        for images in batches:
            seen.clear()
            logits = network(images).float()
            signs = torch.randint(0, 2, logits.shape, generator=generator) * 2 - 1
            signed = (logits * signs.to(logits)).sum()
            gradients = torch.autograd.grad(signed, [*seen.values()], materialize_grads=True)
            for name, gradient in zip(seen, gradients, strict=True):
                sums[name] = sums.get(name, torch.zeros_like(gradient)) + gradient.square()
            power += float(logits.detach().double().square().sum())
    return {name: total / max(power, 1e-30) for name, total in sums.items()}


@contextmanager
def _deployed(module: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """While it lasts, the rounded weights of each layer are leaves whose gradients can be had."""
    seen: dict[str, torch.Tensor] = {}

    def leaf(name: str) -> Any:
        def hook(_: nn.Module, __: Any, rounded: torch.Tensor) -> torch.Tensor:
            if name not in seen:  # a layer that is applied twice has one weight
                seen[name] = rounded.detach().requires_grad_()
            return seen[name]

        return hook

    handles = [
        layer.weight_quantizer.register_forward_hook(leaf(name))
        for name, layer in layers(module).items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
