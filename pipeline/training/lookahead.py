"""A running average of a network's weights and of its normalization's statistics.

All of it happens between two optimizer steps, every few of them: no step that was captured, or
compiled, knows of it, and nothing makes the host wait for a GPU.
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.sweep import Recipe

EVERY = 5  # steps
LARGEST = 0.95**EVERY  # part of itself that the average keeps, at the end

Tensors = dict[str, torch.Tensor]


class Lookahead:
    """The network goes back to the average every few steps, and ends as the average (Zhang et al.
    2019, algorithm 1). The average takes all of the network at first, and less and less of it later
    (as in the code of Jordan 2024, arXiv 2404.00498).

    Does nothing where the recipe goes without. ``kept``: the average of a training that is resumed.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, kept: Tensors):
        entries = network.state_dict(keep_vars=True).items() if recipe.lookahead else ()
        named = {n: t for n, t in entries if t.is_floating_point()}
        self._names, self._live = [*named], [*named.values()]
        self._slow = [t.detach().clone() for t in self._live]
        for name, slow in zip(self._names, self._slow, strict=True):
            if name in kept:
                slow.copy_(kept[name])

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        """``step`` of all ``steps`` are done."""
        if self._slow and step % EVERY == 0:
            torch._foreach_lerp_(self._slow, self._live, 1 - LARGEST * (step / steps) ** 3)
            torch._foreach_copy_(self._live, self._slow)

    @torch.no_grad()
    def finish(self, steps: int) -> None:
        """After all ``steps``. Where they were too few for an average, the network stays."""
        if self._slow and steps >= EVERY:
            torch._foreach_copy_(self._live, self._slow)

    def kept(self) -> Tensors:
        """What a checkpoint has to keep."""
        return dict(zip(self._names, self._slow, strict=True))
