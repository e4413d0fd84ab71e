"""Running averages of a network's weights and of its normalization's statistics.

All of it happens between two optimizer steps, every few of them: no step that was captured, or
compiled, knows of it, and nothing makes the host wait for a GPU.
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.sweep import Recipe

EVERY = 5  # steps
SPAN = 0.02  # of all steps: what an exponential average reaches back
LARGEST = 0.95**EVERY  # part of itself that lookahead's average keeps, at the end

Tensors = dict[str, torch.Tensor]


class Averages:
    """``ema``: an exponential average over the last steps, which the network becomes at the end
    (Polyak and Juditsky 1992; Tarvainen and Valpola 2017, section 2). ``lookahead``: the network
    goes back to the average every few steps (Zhang et al. 2019, algorithm 1); the average takes all
    of the network at first, and less and less later (Jordan 2024, arXiv 2404.00498, section 3.4).

    ``kept``: the averages of a training that is resumed.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, kept: Tensors):
        self.kind = recipe.averaging
        self._names: list[str] = []
        self._live: list[torch.Tensor] = []
        if self.kind != "none":
            found = network.state_dict(keep_vars=True).items()
            named = {n: t for n, t in found if t.is_floating_point()}
            self._names, self._live = [*named], [*named.values()]
        self._slow = [t.detach().clone() for t in self._live]
        for name, slow in zip(self._names, self._slow, strict=True):
            if name in kept:
                slow.copy_(kept[name])

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        """``step`` of all ``steps`` are done."""
        if not self._slow or step % EVERY:
            return
        if self.kind == "ema":
            torch._foreach_lerp_(self._slow, self._live, min(1.0, EVERY / (SPAN * steps)))
        else:
            torch._foreach_lerp_(self._slow, self._live, 1 - LARGEST * (step / steps) ** 3)
            torch._foreach_copy_(self._live, self._slow)

    @torch.no_grad()
    def finish(self) -> None:
        """The network becomes the average."""
        if self._slow:
            torch._foreach_copy_(self._live, self._slow)

    def kept(self) -> Tensors:
        """What a checkpoint has to keep."""
        return dict(zip(self._names, self._slow, strict=True))
