"""Learned step size quantization (LSQ, Esser et al. 2020): rounding that teaches its scale.

x: a tensor of any shape; scale: one that broadcasts to it.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch.autograd.function import FunctionCtx, once_differentiable

# The least or the largest multiple of a scale: for activations a tensor, since a zero point is one.
Bound = TypeVar("Bound", int, torch.Tensor)


def learned_step(
    x: torch.Tensor, scale: torch.Tensor, low: Bound, high: Bound, bound: int, values: int
) -> torch.Tensor:
    """Rounds to multiples of ``scale``, from ``low`` to ``high`` of them, with the gradients of
    Esser et al. (2020). ``bound`` is the largest integer that the scale is multiplied with,
    ``values`` how many values have one scale (of an image: more of them in a batch teach the same
    scale). Their root damps the scale's gradient, so that it moves as fast as the weights do
    (section 2.2)."""
    return _LearnedStep.apply(x, scale, low, high, (values * bound) ** -0.5)


class _StepContext(FunctionCtx):
    """What PyTorch hands to both passes, with what the first leaves in it for the second."""

    saved_tensors: tuple[torch.Tensor, ...]
    low: int | torch.Tensor
    high: int | torch.Tensor
    damping: float


class _LearnedStep(torch.autograd.Function):
    """Equations 1 to 3: straight through inside the range, and for the scale ``round(v) - v``
    inside, the bound outside, v being x / scale. Written as one function, since a chain of them
    would go through the activations, which bound the time, twenty times instead of twelve."""

    @staticmethod
    def forward(
        ctx: _StepContext,
        x: torch.Tensor,
        scale: torch.Tensor,
        low: Bound,
        high: Bound,
        damping: float,
    ) -> torch.Tensor:
        rounded = (x / scale).clamp_(low, high).round_().mul_(scale)
        ctx.save_for_backward(x, scale, rounded)
        ctx.low, ctx.high, ctx.damping = low, high, damping
        return rounded

    @staticmethod
    @once_differentiable
    def backward(
        ctx: _StepContext, gradient: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, None, None, None]:
        x, scale, rounded = ctx.saved_tensors
        inside = (x >= ctx.low * scale).logical_and_(x <= ctx.high * scale)
        steps = torch.where(inside, x, 0).neg_().add_(rounded).mul_(gradient)
        to_scale = steps.sum_to_size(scale.shape) * (ctx.damping / scale)
        return torch.where(inside, gradient, 0), to_scale, None, None, None
