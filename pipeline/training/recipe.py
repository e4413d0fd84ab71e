"""Optimizer, schedule and arithmetic, as a recipe asks for them and the hardware allows.

Nesterov SGD; the learning rate rises for a part of all steps and then falls to zero, by step.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline import hardware
from pipeline.errors import NoGpu, UserError
from pipeline.sweep import Recipe
from pipeline.training.small_maps import SmallMaps

LARGEST_GRADIENT = 1.0  # norm of a clipped step's gradients, all together


@dataclass(frozen=True)
class Machine:
    """Where and how the arithmetic of a cell runs; resolved once.
    ``graphed``: a step of training is one CUDA graph."""

    device: torch.device
    bf16: bool
    compiled: bool
    graphed: bool = False

    @property
    def precision(self) -> str:
        return "bf16" if self.bf16 else "fp32"

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Where the forward passes of training and evaluation run."""
        on_cpu = self.bf16 and self.device.type == "cpu" and not self.compiled
        with (
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16),
            SmallMaps() if on_cpu else nullcontext(),
        ):
            yield


def machine(recipe: Recipe, device: str = "auto") -> Machine:
    """UserError for a device that is not there, NoGpu for a GPU."""
    chosen = _device(device)
    cuda = chosen.type == "cuda"
    native = _gpu_has_bf16() if cuda else hardware.has_bf16()
    bf16 = native if recipe.precision == "auto" else recipe.precision == "bf16"
    compiled = cuda if recipe.compile == "auto" else recipe.compile == "on"
    if cuda:  # the same seed gives the same weights: no algorithm chosen by a race, or that adds in
        torch.backends.cudnn.deterministic = True  # the order in which threads arrive
        torch.backends.cudnn.benchmark = False
    return Machine(chosen, bf16, compiled, graphed=cuda and recipe.compile != "off")


def _gpu_has_bf16() -> bool:
    """As `hardware.has_bf16`: GPUs before Ampere emulate it."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        kind = NoGpu if name.partition(":")[0] == "cuda" else UserError
        raise kind(
            f"device: cannot use {name!r} here ({str(error).splitlines()[0]}); "
            "expected auto, cpu or cuda (cpu trains without a GPU)"
        ) from error
    return device


def optimizer(
    network: nn.Module, recipe: Recipe, clipped: bool = False, image: Collection[torch.Tensor] = ()
) -> torch.optim.Optimizer:
    """SGD (Sutskever et al. 2013). Weight decay acts on matrices and kernels alone: biases,
    normalization and learned scales have no direction that it could rightly shrink.

    ``clipped``: gradients whose norm is larger than LARGEST_GRADIENT are scaled down to it (Pascanu
    et al. 2013, algorithm 1). For networks without normalization, which quantization's are too:
    nothing else keeps one bad step from making the next one worse, until all that was learned is
    lost while the loss still is a number. ``image``: the weights that read the image.
    """
    decayed = [p for p in network.parameters() if p.dim() > 1]
    optim = torch.optim.SGD(
        _groups(network, recipe, image),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        fused=True,  # one pass over the weights instead of four: the step is bound by memory
    )
    if clipped:
        optim.register_step_pre_hook(lambda *_: _clip(network))
    kernels = [p for p in decayed if p.device.type == "cpu" and p.dim() == 4]
    optim.register_step_pre_hook(lambda *_: _permute(optim, kernels, (0, 2, 3, 1)))
    optim.register_step_post_hook(lambda *_: _permute(optim, kernels, (0, 3, 1, 2)))
    return optim


def _groups(
    network: nn.Module, recipe: Recipe, image: Collection[torch.Tensor]
) -> list[dict[str, Any]]:
    """Each with what ``group_rate`` knows of it: ``frozen``, a fraction of all steps, and
    ``factor``."""
    frozen = [*image] if recipe.whitening else []
    faster = [*_norm_biases(network)] if recipe.bias_rate != 1 else []
    apart = {*frozen, *faster}
    left = [p for p in network.parameters() if p not in apart]
    decay = recipe.weight_decay
    groups = [
        {"params": [p for p in left if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in left if p.dim() <= 1], "weight_decay": 0.0},
        {"params": frozen, "weight_decay": decay, "frozen": recipe.whitening},
        {"params": faster, "weight_decay": 0.0, "factor": recipe.bias_rate},
    ]
    return [*groups[:2], *(group for group in groups[2:] if group["params"])]


def _norm_biases(network: nn.Module) -> Iterator[nn.Parameter]:
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            yield module.bias


def _clip(network: nn.Module) -> None:
    """As a hook may: what one returns takes the place of the step's arguments."""
    nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT)


def _permute(optim: torch.optim.Optimizer, kernels: list[nn.Parameter], order: tuple) -> None:
    """Kernels in channels_last, seen as they lie in memory and back: PyTorch's step on a CPU first
    makes a copy of every gradient that is not contiguous (and then does not even read it), which
    takes longer than the step."""
    for p in kernels:
        if p.grad is not None:
            gradient, p.grad = p.grad, None  # its shape has to fit at all times
            p.data = p.data.permute(order)
            p.grad = gradient.permute(order)
            for name, kept in optim.state[p].items():
                optim.state[p][name] = kept.permute(order) if torch.is_tensor(kept) else kept


def group_rate(group: Mapping[str, Any], recipe: Recipe, step: int, steps: int) -> float:
    """The learning rate of one of the optimizer's groups of parameters, as ``learning_rate``."""
    if step < group.get("frozen", 0.0) * steps:
        return 0.0
    return learning_rate(recipe, step, steps) * group.get("factor", 1.0)


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """At ``step`` (from 0) of ``steps``: up in a line over the first ``warmup`` of them, then down
    to zero, in a line or along half a cosine (Loshchilov and Hutter 2017, eq. 5)."""
    rising = max(1.0, recipe.warmup * steps)
    if step < rising:
        return recipe.learning_rate * (step + 1) / (rising + 1)
    done = (step - rising) / max(1.0, steps - rising)
    factor = 1 - done if recipe.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return recipe.learning_rate * max(0.0, factor)
