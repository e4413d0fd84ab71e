"""A plug-in as a method's author writes it: a stage with its transform, a technique, a network and
a data set, in one file that lies anywhere. `plugins: [my_plugin.py]` in a sweep file names it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from pipeline.models.layers import Sum
from pipeline.models.spec import Graph, Group, NetworkSpec
from pipeline.models.transforms import Transform
from pipeline.techniques.settings import Trained

# --- a transform: the smallest weights stay zero -----------------------------------------------


@dataclass(frozen=True)
class Zeroed(Transform):
    name: ClassVar[str] = "zeroed"

    def insert(self, module, graph) -> None:
        for layer in _layers(module):
            layer.register_buffer("mask", torch.ones_like(layer.weight))

    def after_step(self, module) -> None:
        with torch.no_grad():
            for layer in _layers(module):
                layer.weight.mul_(layer.mask)

    def plain(self, module, tensors):
        return {name: tensor for name, tensor in tensors.items() if not name.endswith(".mask")}


def _layers(module) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


# --- a stage -----------------------------------------------------------------------------------


class Zeros:
    """Zeroes the smallest weights of every convolution, and trains the others."""

    class Settings(Trained):
        part: float = Field(0.5, gt=0, lt=1, description="of the weights that become zero")

        def operating_point(self) -> dict[str, Any]:
            return {"part": self.part}

    @staticmethod
    def apply(state, settings, context):
        from pipeline.models import network

        def start():
            masked = network.with_transform(state, Zeroed())
            for layer in _layers(masked.network.module):
                size = layer.weight.detach().abs()
                layer.mask.copy_(size > size.flatten().quantile(settings.part))
            masked.after_step()
            return masked

        recipe = context.cell.recipe
        return context.train(
            start,
            settings.objective_of(recipe, context),
            settings.epochs_of(recipe),
            settings.recipe_of(recipe),
        )


# --- a network -----------------------------------------------------------------------------------


class Residual(nn.Module):
    """One residual block; [N, C, H, W] -> [N, classes]."""

    def __init__(self, spec: NetworkSpec):
        super().__init__()
        summed, between = spec.channels
        self.stem, self.stem_norm = _conv(spec.shape[0], summed), nn.BatchNorm2d(summed)
        self.inner, self.inner_norm = _conv(summed, between), nn.BatchNorm2d(between)
        self.outer, self.outer_norm = _conv(between, summed), nn.BatchNorm2d(summed)
        self.sum, self.pool = Sum(), nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(summed, spec.classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        y = F.relu(self.inner_norm(self.inner(x)))
        x = F.relu(self.sum(self.outer_norm(self.outer(y)), x))
        return self.head(torch.flatten(self.pool(x), 1))


def _conv(inputs: int, filters: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, filters, 3, padding=1, bias=False)


class Residuals:
    """How it is specified and built, and what of it is pruned together."""

    @staticmethod
    def spec(name, width, shape, classes, zero_point, scale) -> NetworkSpec:
        channels = round(16 * width), round(24 * width)
        return NetworkSpec(name, channels, tuple(shape), classes, zero_point, scale)

    build = Residual

    @staticmethod
    def graph(spec: NetworkSpec) -> Graph:
        return Graph(
            groups=(
                Group(("stem", "outer"), ("stem_norm", "outer_norm"), ("inner", "head")),
                Group(("inner",), ("inner_norm",), ("outer",)),
            ),
            norms=tuple((name, f"{name}_norm") for name in ("stem", "inner", "outer")),
            image=("stem",),
            maps=("stem_norm", "sum"),
            shared=(("inner", "sum:1"),),
        )


# --- a data set ----------------------------------------------------------------------------------


class Stripes:
    """Noisy stripes, lying or standing: 96 images to train on, 48 to test with."""

    FLIP = True
    CLASSES = ("lying", "standing")
    SIZE = 8

    @classmethod
    def facts(cls, dataset, root):
        return cls.CLASSES, (1, cls.SIZE, cls.SIZE)

    @staticmethod
    def key(dataset, root) -> str:
        return "stripes-1"

    @staticmethod
    def verify(dataset, root) -> bool:
        return True

    @staticmethod
    def fetch(dataset, root, say) -> None:
        say("stripes: nothing to download")

    @classmethod
    def decode(cls, dataset, root):
        import numpy as np

        from pipeline.data.cache import Decoded

        def images(count: int, seed: int):
            labels = np.arange(count, dtype=np.int64) % 2
            lines = (np.arange(cls.SIZE) % 2 * 160)[None, :, None]
            lying = np.broadcast_to(lines, (count, cls.SIZE, cls.SIZE))
            standing = lying.swapaxes(1, 2)
            clean = np.where(labels[:, None, None] == 0, lying, standing)
            noise = np.random.default_rng(seed).integers(0, 90, clean.shape)
            return (clean + noise).astype(np.uint8)[:, None], labels

        return Decoded(cls.CLASSES, *images(96, 0), *images(48, 1))


STAGES = {"zeros": Zeros}
TECHNIQUES = {"half-zeros": ("half of the weights zero", [{"zeros": {"part": 0.5}}])}
TRANSFORMS = {"zeroed": Zeroed}
MODELS = {"residual": (Residuals, "one residual block", 0.003)}
DATASETS = {"stripes": (Stripes, "144 images of stripes, 8x8 grey, made when they are needed")}
