"""Staged distillation: the teacher's feature maps one after the other, then the head."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from pipeline.errors import UserError
from pipeline.sweep import Recipe
from pipeline.techniques import distill
from pipeline.techniques.train import student_spec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.models.network import ModelState
    from pipeline.models.spec import NetworkSpec
    from pipeline.techniques.context import Context
    from pipeline.training.losses import Objective

VERSION = 1


class Settings(distill.Student):
    """After Gao et al. 2018 (arXiv 1812.01819; known here from its abstract and second-hand): the
    student's backbone learns to give the teacher's features, one stage after the other, then its
    head alone learns from the labels.

    Stage i minimizes ``|A(F_s) - F_t|^2 / |F_t|^2`` over the maps at the end of a block, A a 1x1
    convolution to the teacher's channels that is dropped afterwards; what earlier stages trained is
    frozen (normalization goes on to count its means). That A is there, that stages are frozen, and
    to divide by the teacher's size, so that one learning rate fits all stages, is from memory or
    this project's own.
    """

    cites: ClassVar[tuple[str, ...]] = ("gao2018embarrassingly",)

    stages: int = Field(3, ge=1, le=20, description="feature maps to learn, evenly over the blocks")
    epochs: int | None = Field(
        None, ge=1, le=100_000, description="of each stage, and of the head; default: share"
    )
    share: float = Field(
        1.0, gt=0, le=100, description="part of training.epochs, for all stages and the head"
    )
    soft: float = Field(0.0, ge=0, le=1, description="of the head's loss: the base's soft logits")

    def epochs_of(self, recipe: Recipe) -> int:
        return (self.stages + 1) * self.epochs_each(recipe)

    def epochs_each(self, recipe: Recipe) -> int:
        return self.epochs or max(1, round(self.share * recipe.epochs / (self.stages + 1)))


def apply(state: ModelState, settings: Settings, context: Context) -> ModelState:
    from pipeline.models import network
    from pipeline.models.transforms import adapted

    spec = student_spec(context, settings.student, settings.width)
    maps = _maps(spec, context.base().spec, settings.stages)
    for number in range(settings.stages + 1):
        state = _trained(state, spec, maps, number, settings, context)
    return network.without(state, adapted.Adapted.name, adapted.ADAPTERS)


def _trained(
    state: ModelState,
    spec: NetworkSpec,
    maps: list[int],
    number: int,
    settings: Settings,
    context: Context,
) -> ModelState:
    """After stage ``number``; after the last of them, that of the head."""
    recipe = context.cell.recipe
    recipe = recipe.continued() if number else recipe
    return context.train(
        lambda: state if number else _fresh(spec, maps, context),
        lambda now: _objective(now, maps, number, settings, context),
        settings.epochs_each(recipe),
        settings.recipe_of(recipe),
    )


def _maps(student: NetworkSpec, teacher: NetworkSpec, stages: int) -> list[int]:
    """Numbers of the feature maps that are learned, the last among them."""
    from pipeline.models import network

    distill.check_maps("distill-staged", student, teacher)
    there = len(network.graph_of(student).maps)
    if stages > there:
        raise UserError(
            f"distill-staged.stages: {stages}, but {student.model} has {there} feature maps; "
            "expected at most as many"
        )
    return [round((i + 1) * there / stages) - 1 for i in range(stages)]


def _fresh(spec: NetworkSpec, maps: list[int], context: Context) -> ModelState:
    """The student with a 1x1 convolution for each map that it learns."""
    from pipeline.models import network
    from pipeline.models.transforms import adapted

    state = context.fresh(spec)
    own, others = (_channels(each, maps) for each in (state, context.base()))
    student = network.with_transform(state, adapted.Adapted(own, others))
    adapted.draw(student.network.module, context.seed)
    return student


def _channels(state: ModelState, maps: list[int]) -> tuple[int, ...]:
    import torch

    device = next(state.network.parameters()).device
    with torch.no_grad():
        _, ends = state.network.eval()(torch.zeros(1, *state.spec.shape, device=device), maps=True)
    return tuple(ends[i].shape[1] for i in maps)


def _objective(
    state: ModelState, maps: list[int], number: int, settings: Settings, context: Context
) -> Objective:
    """Of this stage; what it does not train is frozen."""
    from pipeline.models.transforms import adapted
    from pipeline.training import losses

    _freeze(state, maps, number)
    if number == len(maps):
        recipe = context.cell.recipe
        if not settings.soft:
            return losses.labels_only(recipe.label_smoothing)
        return settings.objective_of(recipe, context)(state)
    adapter = adapted.adapters(state.network.module)[number]
    return losses.features(context.base().network, adapter, maps[number])


def _freeze(state: ModelState, maps: list[int], number: int) -> None:
    """All but the layers between the map before and that of this stage; after the last of them, all
    but the head."""
    from pipeline.models.transforms import adapted

    module, ends = state.network.module, _reach(state, maps)
    ends.append({name for name, _ in module.named_parameters()})
    adapters = f"{adapted.ADAPTERS}."
    here = ends[number] - (ends[number - 1] if number else set())
    for name, parameter in module.named_parameters():
        mine = f"{adapters}{number}." if name.startswith(adapters) else ""
        parameter.requires_grad_(name.startswith(mine) if mine else name in here)


def _reach(state: ModelState, maps: list[int]) -> list[set[str]]:
    """For each of the maps, the parameters that it depends on."""
    import torch

    parameters: dict[str, nn.Parameter] = dict(state.network.module.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    images = torch.zeros(1, *state.spec.shape, device=next(iter(parameters.values())).device)
    with torch.enable_grad():
        _, ends = state.network.eval()(images, maps=True)
        return [_used(ends[i], parameters) for i in maps]


def _used(output: torch.Tensor, parameters: dict[str, nn.Parameter]) -> set[str]:
    import torch

    gradients = torch.autograd.grad(
        output.sum(), [*parameters.values()], allow_unused=True, retain_graph=True
    )
    named_gradients = zip(parameters, gradients, strict=True)
    return {name for name, gradient in named_gradients if gradient is not None}
