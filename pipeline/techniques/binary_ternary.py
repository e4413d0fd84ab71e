"""Training with weights -1 and 1 in some layers, -1, 0 and 1 in others, as each layer learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from pipeline.techniques import coarse

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.models.network import ModelState
    from pipeline.techniques.context import Context
    from pipeline.training.loop import Training
    from pipeline.training.losses import Objective

VERSION = 1


class Settings(coarse.CoarseSettings):
    """Adaptive binary-ternary quantization (Razani et al. 2021, arXiv 1909.12205): the loss has a
    regularizer whose slope is learned in each layer and decides between the two. Unlike there,
    weights are taken in units of their filter's scale, and what moves the slope is a mean over a
    layer's weights, so that large layers do not choose faster. The history has
    ``ternary_layers``, the part of the layers that are ternary."""

    cites: ClassVar[tuple[str, ...]] = ("razani2021adaptive",)

    strength: float = Field(
        5e-4, ge=0, le=100, description="pulls weights to their levels, as weight decay to zero"
    )
    ternary: float = Field(
        10.0, gt=0, le=1e6, description="1 / gamma: larger, more layers are ternary"
    )


def apply(state: ModelState, settings: Settings, context: Context) -> ModelState:
    from pipeline.models.transforms.binary_ternary import BinaryTernary

    recipe = context.cell.recipe
    plain = settings.objective_of(recipe, context)
    transform = BinaryTernary(settings.eight_bits)
    done = context.train(
        lambda: coarse.coarsened(coarse.started(state, settings, context, NAME), transform),
        lambda state: _regularized(plain(state), state.network.module, settings),
        settings.epochs_of(recipe),
        settings.recipe_of(recipe),
        after_step=_bounded,
        after_epoch=_record,
    )
    return coarse.finished(done, NAME)


NAME = "binary-ternary"


def _regularized(objective: Objective, module: nn.Module, settings: Settings) -> Objective:
    from pipeline.models.transforms.binary_ternary import ChoosingQuantizer
    from pipeline.models.transforms.fakequant import layers

    def regularized(
        network: nn.Module, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        loss, logits = objective(network, images, labels)
        for layer in layers(module).values():
            quantizer = layer.weight_quantizer
            if isinstance(quantizer, ChoosingQuantizer):
                pulled, chosen = quantizer.penalty(layer.weight, settings.ternary)
                loss = loss + settings.strength * pulled + chosen
        return loss, logits

    return regularized


def _bounded(state: ModelState, step: int, steps: int) -> None:
    from pipeline.models.transforms.binary_ternary import LEAST, MOST, choosing

    coarse.bounded(state, step, steps)
    for quantizer in choosing(state.network.module).values():
        quantizer.angle.clamp_(LEAST, MOST)


def _record(training: Training) -> None:
    from pipeline.models.transforms.binary_ternary import BINARY, choosing

    quantizers = choosing(training.state.network.module).values()
    ternary = sum(float(each.angle.detach().tan()) < BINARY for each in quantizers)
    training.columns.setdefault("ternary_layers", []).append(ternary / max(1, len(quantizers)))
