"""How many bits the integer weights of a network take, estimated so that training can lower it.

Each layer has a probability model of two numbers, which follow its integers from step to step: how
often one is zero, and how fast larger ones get rare (the others are geometric in |q|, either sign
alike). It is the model of an adaptive coder that writes, for each weight, a flag for zero, a sign
and a unary magnitude.

weight [K, ...], scale [K]; q = round(weight / scale), integers -limit..limit.
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.models.transforms.coarse import by_filter
from pipeline.models.transforms.fakequant import layers
from pipeline.training.losses import Objective


def with_rate(objective: Objective, module: nn.Module, weight: float) -> Objective:
    """``objective`` + ``weight`` x the mean estimated bits of a weight of ``module``."""

    def rated(
        network: nn.Module, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        loss, logits = objective(network, images, labels)
        return loss + weight * bits_per_weight(module), logits

    return rated


def bits_per_weight(module: nn.Module) -> torch.Tensor:
    """[]: mean estimated bits over all weights of a fake-quantized network, differentiable."""
    quantized_layers = layers(module).values()
    bits = [
        estimated_bits(each.weight, each.weight_quantizer.scale, each.weight_quantizer.limit)
        for each in quantized_layers
    ]
    return torch.stack(bits).sum() / sum(each.weight.numel() for each in quantized_layers)


def estimated_bits(weight: torch.Tensor, scale: torch.Tensor, limit: int) -> torch.Tensor:
    """[]: bits of all integers of a layer under its own model.

    Its value is that of the integers; its gradient that of the code length interpolated between
    the two integers around weight / scale, which is its mean when rounding up or down is left to
    chance (cf. Oktay et al. 2020, arXiv 1906.06624, section 2.2, with noise instead). The gradient
    of a scale is damped like that of LSQ, so that both of its parts move it alike.
    """
    damping = (weight[0].numel() * limit) ** -0.5
    damped = scale.detach() + (scale - scale.detach()) * damping
    size = (weight / by_filter(damped, weight)).abs().clamp(max=limit)
    integer = size.detach().round()
    zero, first, step = code_lengths(integer)

    def beyond_zero(value: torch.Tensor) -> torch.Tensor:
        return ((first - zero) * value.clamp(max=1) + step * (value - 1).clamp(min=0)).sum()

    smooth, exact = beyond_zero(size), beyond_zero(integer)
    return zero * weight.numel() + smooth + (exact - smooth).detach()


@torch.no_grad()
def code_lengths(integer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """([], [], []): the bits of a zero, of 1 or -1, and of each step further, for |q| in
    ``integer``; each count is a half larger, so that nothing is impossible (Krichevsky and Trofimov
    1981)."""
    total, others, sums = integer.numel(), (integer > 0).sum(), integer.sum()
    zeros = total - others
    nonzero = (others + 0.5) / (total + 1)
    further = (sums - others + 0.5) / (sums + 1)
    zero = -torch.log2((zeros + 0.5) / (total + 1))
    first = 1 - torch.log2(nonzero) - torch.log2(1 - further)
    return zero, first, -torch.log2(further)
