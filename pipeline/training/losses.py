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


def labels_only(label_smoothing: float, mixup: float = 0.0) -> Objective:
    """Cross entropy with smoothed labels (Szegedy et al. 2016, section 7); with ``mixup``, of
    ``mixed`` images."""
    if mixup:
        return mixed(label_smoothing, mixup)

    def objective(
        network: nn.Module, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = network(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
        return loss, logits

    return objective


def mixed(label_smoothing: float, alpha: float) -> Objective:
    """Cross entropy on blends of two images, each with the one before it in the batch, in parts
    drawn from Beta(alpha, alpha), the image's own the larger one; labels count in the same parts
    (mixup: Zhang et al. 2018)."""

    def objective(
        network: nn.Module, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = torch._sample_dirichlet(torch.full((len(images), 2), alpha, device=images.device))
        part = drawn.max(1).values
        logits = network(_blend(images, images.roll(1, 0), part))
        return _in_parts(logits, labels, labels.roll(1, 0), part, label_smoothing), logits

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


def decoupled(
    teacher: nn.Module, temperature: float, target: float, others: float, label_smoothing: float
) -> Objective:
    """Cross entropy + ``temperature``^2 (``target`` TCKD + ``others`` NCKD), see ``parts``."""

    def objective(
        network: nn.Module, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = network(images)
        right, rest = parts(logits, _frozen(teacher, images), labels, temperature)
        hard = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
        soft = (target * right + others * rest).mean()
        return hard + temperature**2 * soft, logits

    return objective


def parts(
    logits: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(TCKD [N], NCKD [N]) of Zhao et al. 2022: KL divergences of the softened outputs, of the
    right class against all others together, and among the others. The divergence of the whole is
    TCKD + (1 - p) NCKD, p what the teacher gives the right class."""
    own, others = logits.float() / temperature, targets.float() / temperature
    right = labels[:, None] == torch.arange(own.shape[1], device=labels.device)
    both = torch.stack((own, others))
    whole = both.logsumexp(2, keepdim=True)
    without = both.masked_fill(right, -torch.inf).logsumexp(2, keepdim=True)
    chosen = both.masked_fill(~right, 0).sum(2, keepdim=True)
    binary = torch.cat((chosen - whole, without - whole), 2)
    among = (both - without).masked_fill(right, 0)
    tckd = (binary[1].exp() * (binary[1] - binary[0])).sum(1)
    nckd = (among[1].exp() * (among[1] - among[0])).sum(1)
    return tckd, nckd


def blended(
    teacher: nn.Module, temperature: float, weight: float, label_smoothing: float
) -> Objective:
    """``soft_targets`` on blends of two images: each with another one of the batch, in parts that
    are even over 0 to 1 for each (mixup: Zhang et al. 2018); labels count in the same parts."""

    def objective(
        network: nn.Module, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        part = torch.rand(len(images), device=images.device)
        other = torch.randperm(len(images), device=images.device)
        pixels = _blend(images, images[other], part)
        logits = network(pixels)
        soft = distance(logits, _frozen(teacher, pixels), temperature)
        if weight == 1:
            return soft, logits
        hard = _in_parts(logits, labels, labels[other], part, label_smoothing)
        return weight * soft + (1 - weight) * hard, logits

    return objective


def _blend(images: torch.Tensor, others: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """``part`` [N] of each image, the rest of the other one: float32 [N, C, H, W]."""
    mix = part.reshape(-1, 1, 1, 1)
    return images.float() * mix + others.float() * (1 - mix)


def _in_parts(
    logits: torch.Tensor,
    labels: torch.Tensor,
    others: torch.Tensor,
    part: torch.Tensor,
    label_smoothing: float,
) -> torch.Tensor:
    """[]: cross entropy of both labels of a blend, in the parts [N] of its images."""
    own, rest = (
        F.cross_entropy(logits.float(), each, reduction="none", label_smoothing=label_smoothing)
        for each in (labels, others)
    )
    return (part * own + (1 - part) * rest).mean()


def features(teacher: nn.Module, adapter: nn.Module, number: int) -> Objective:
    """Squared distance of ``adapter``'s output for the student's feature map ``number`` from the
    teacher's, as a part of the squares of the teacher's."""

    def objective(
        network: nn.Module, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits, maps = network(images, maps=True)
        _, expected = _frozen(teacher, images, maps=True)
        wanted = expected[number].float()
        gap = (adapter(maps[number]).float() - wanted).square().mean()
        return gap / wanted.square().mean().clamp_min(1e-12), logits

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
