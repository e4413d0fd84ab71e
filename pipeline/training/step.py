"""One step of training: what the host launches each time, and what a CUDA graph replays.

B images [B, C, H, W] uint8, labels [B] int64.
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.models.network import ModelState
from pipeline.training.losses import Objective
from pipeline.training.recipe import Machine


class Step:
    """Forward, backward, the optimizer's step and what transforms do around it.

    ``total`` [2]: sum of losses and number of images classified right since ``begin``. Nothing in
    it makes the host wait for the device, or depends on what the step computes.
    """

    def __init__(
        self,
        state: ModelState,
        network: nn.Module,
        objective: Objective,
        machine: Machine,
        optim: torch.optim.Optimizer,
    ):
        """``network``: that of the state, or what compiles it."""
        self.state, self.network, self.objective = state, network, objective
        self.machine, self.optim = machine, optim
        self.total = torch.zeros(2, device=machine.device)

    def begin(self) -> None:
        self.network.train()
        self.total.zero_()

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        with self.machine.autocast():
            loss, logits = self.objective(self.network, images, labels)
        self.optim.zero_grad(set_to_none=True)
        loss.backward()
        with torch.no_grad():
            self.state.before_step()
        self.optim.step()
        with torch.no_grad():
            self.state.after_step()
            correct = (logits.argmax(1) == labels).sum().float()
            self.total += torch.stack((loss.detach().float() * len(labels), correct))
