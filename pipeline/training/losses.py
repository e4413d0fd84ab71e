"""What training minimizes: functions of (network, images [N, C, H, W], labels [N]).

Each gives (loss [], logits [N, classes]). A teacher is frozen and sees the same augmented images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Objective = Callable[[nn.Module, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def labels_only(label_smoothing: float) -> Objective:
    """Cross entropy with smoothed labels (Szegedy et al. 2016, section 7)."""

    def objective(
        network: nn.Module, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = network(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
        return loss, logits

    return objective


def soft_targets(
    teacher: nn.Module, temperature: float, weight: float, label_smoothing: float
) -> Objective:
    """``weight`` of the distance to the teacher's softened output, the rest to the labels
    (Hinton et al. 2015, section 2; T^2 keeps the gradients' size)."""

    def objective(
        network: nn.Module, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = network(images)
        soft = distance(logits, _frozen(teacher, images), temperature)
        hard = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
        return weight * soft + (1 - weight) * hard, logits

    return objective


def attention(
    teacher: nn.Module,
    beta: float,
    temperature: float,
    weight: float,
    label_smoothing: float,
) -> Objective:
    """Attention maps at the ends of the blocks (Zagoruyko and Komodakis 2017, eq. 2), ``beta``
    times their mean squared distance, beside the labels and, where ``weight`` > 0, the soft
    targets."""

    def objective(
        network: nn.Module, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits, maps = network(images, maps=True)
        soft_logits, soft_maps = _frozen(teacher, images, maps=True)
        hard = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
        soft = distance(logits, soft_logits, temperature) if weight else 0.0
        gaps = [
            (attention_map(a) - attention_map(b)).square().mean()
            for a, b in zip(maps, soft_maps, strict=True)
        ]
        return weight * soft + (1 - weight) * hard + beta * sum(gaps), logits

    return objective


def distance(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL(softmax(targets / T) || softmax(logits / T)), mean over N."""
    return temperature**2 * F.kl_div(
        F.log_softmax(logits.float() / temperature, 1),
        F.log_softmax(targets.float() / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )


def attention_map(features: torch.Tensor) -> torch.Tensor:
    """[N, K, H, W] -> [N, H W]: mean of squares over the channels, each map of length one."""
    return F.normalize(features.float().square().mean(1).flatten(1), dim=1)


@torch.no_grad()
def _frozen(teacher: nn.Module, images: torch.Tensor, **how: bool) -> Any:
    """What the teacher gives for the images: logits, or (logits, maps) with ``maps=True``."""
    return teacher(images, **how)
