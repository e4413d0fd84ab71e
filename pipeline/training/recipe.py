"""Optimizer, schedule and arithmetic, as a recipe asks for them and the hardware allows.

Nesterov SGD; the learning rate rises for a part of all steps and then falls to zero, by step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from pipeline import hardware
from pipeline.errors import UserError
from pipeline.sweep import Recipe


@dataclass(frozen=True)
class Machine:
    """Where and how the arithmetic of a cell runs; resolved once, recorded with the result."""

    device: torch.device
    bf16: bool
    compiled: bool

    @property
    def precision(self) -> str:
        return "bf16" if self.bf16 else "fp32"

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


def machine(recipe: Recipe, device: str = "auto") -> Machine:
    """UserError for a device that is not there."""
    chosen = _device(device)
    cuda = chosen.type == "cuda"
    native = torch.cuda.is_bf16_supported() if cuda else hardware.has_bf16()
    bf16 = native if recipe.precision == "auto" else recipe.precision == "bf16"
    compiled = cuda if recipe.compile == "auto" else recipe.compile == "on"
    if cuda:  # the same seed gives the same weights: no algorithm chosen by a race, or that adds in
        torch.backends.cudnn.deterministic = True  # the order in which threads arrive
        torch.backends.cudnn.benchmark = False
    return Machine(chosen, bf16, compiled)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device: cannot use {name!r} here ({str(error).splitlines()[0]}); "
            "expected auto, cpu or cuda"
        ) from error
    return device


def optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD (Sutskever et al. 2013). Weight decay acts on matrices and kernels alone: biases,
    normalization and learned scales have no direction that it could rightly shrink."""
    decayed = [p for p in network.parameters() if p.dim() > 1]
    others = [p for p in network.parameters() if p.dim() <= 1]
    return torch.optim.SGD(
        [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        fused=True,  # one pass over the weights instead of four: the step is bound by memory
    )


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """At ``step`` (from 0) of ``steps``: up in a line over the first ``warmup`` of them, then down
    to zero, in a line or along half a cosine (Loshchilov and Hutter 2017, eq. 5)."""
    rising = max(1.0, recipe.warmup * steps)
    if step < rising:
        return recipe.learning_rate * (step + 1) / (rising + 1)
    done = (step - rising) / max(1.0, steps - rising)
    factor = 1 - done if recipe.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return recipe.learning_rate * max(0.0, factor)
