"""Which ranges a fake-quantized network begins with: what its float self sees on training images.

Values of activations and weights are float tensors of any shape; weight scale [K].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pipeline.models.transforms.fakequant import (
    ACTIVATION_MAX,
    SIMULATED,
    SMALLEST_NORMAL,
    FakeQuantConv2d,
    FakeQuantLinear,
    InputQuantizer,
    layers,
    points,
)

FLOATS: dict[type[nn.Module], type[nn.Module]] = {s: kind for kind, s in SIMULATED.items()}


@torch.no_grad()
def calibrate(
    module: nn.Module, batches: Iterable[torch.Tensor], method: str, image: tuple[int, float]
) -> None:
    """Sets every scale and zero point from what the float network sees on training images.

    ``batches``: what ``module`` takes. ``image`` is (zero_point, scale) of the images themselves.
    ``method``: ``minmax`` takes the whole range seen, ``mse`` the part that loses least in squared
    error (of 32 candidates).
    """
    seen = _observe(module, batches)
    for layer in layers(module).values():
        layer.weight_quantizer.scale.copy_(_weight_scale(layer, method))
    names: dict[InputQuantizer, list[str]] = {}
    for name, point in points(module).items():
        names.setdefault(point, []).append(name)
    for point, readers in names.items():
        zero_point, scale = image
        if not point.exact:
            scale, zero_point = _range(_together([seen[name] for name in readers]), method)
        point.scale.fill_(scale)
        point.zero_point.fill_(zero_point)


def _together(samples: list[torch.Tensor]) -> torch.Tensor:
    """What readers of one quantizer see, each tensor once: those of a concatenation see other
    numbers than those of its parts."""
    different: list[torch.Tensor] = []
    for sample in samples:
        if not any(torch.equal(sample, other) for other in different):
            different.append(sample)
    return torch.cat(different)


SAMPLE = 16384  # values kept of each input and batch: enough for a histogram, small in memory


def _observe(module: nn.Module, batches: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Runs the float network; name of point -> a sample of its values, extremes included."""
    seen: dict[str, list[torch.Tensor]] = {}

    def keep(names: list[str]) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            for name, tensor in zip(names, inputs, strict=True):
                flat = tensor.float().flatten()
                sample = flat[:: _stride(flat.numel())]
                seen.setdefault(name, []).extend((sample, flat.amin()[None], flat.amax()[None]))

        return hook

    by_layer: dict[str, list[str]] = {}
    for name in points(module):
        by_layer.setdefault(name.partition(":")[0], []).append(name)
    handles = [
        module.get_submodule(layer).register_forward_pre_hook(keep(names))
        for layer, names in by_layer.items()
    ]
    try:
        with _as_floats(module):
            module.eval()
            for images in batches:
                module(images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(values) for name, values in seen.items()}


@contextmanager
def _as_floats(module: nn.Module) -> Iterator[None]:
    simulated = [m for m in module.modules() if type(m) in FLOATS]
    kinds = [type(m) for m in simulated]
    for layer, kind in zip(simulated, kinds, strict=True):
        layer.__class__ = FLOATS[kind]
    try:
        yield
    finally:
        for layer, kind in zip(simulated, kinds, strict=True):
            layer.__class__ = kind


def _stride(values: int) -> int:
    """About one value in ``values / SAMPLE``, at a distance that shares no factor with the sides of
    feature maps: a power of two would look at the left edge of each image, and nowhere else."""
    step = max(1, values // SAMPLE)
    while math.gcd(step, 2 * 3 * 5 * 7) > 1:
        step += 1
    return step


# Parts of the range that are tried, 0.25 to 1.
CANDIDATES = tuple((31 + 3 * i) / 124 for i in range(32))


def _range(values: torch.Tensor, method: str) -> tuple[float, int]:
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    if high - low < ACTIVATION_MAX * SMALLEST_NORMAL:  # nothing but zeros, as good as
        return 1.0, 0
    parts = CANDIDATES if method == "mse" else (1.0,)
    return min((_affine(low * p, high * p) for p in parts), key=lambda a: _loss(values, *a))


def _affine(low: float, high: float) -> tuple[float, int]:
    scale = (high - low) / ACTIVATION_MAX
    return scale, round(-low / scale)


def _loss(values: torch.Tensor, scale: float, zero_point: int) -> float:
    rounded = torch.fake_quantize_per_tensor_affine(values, scale, zero_point, 0, ACTIVATION_MAX)
    return float(torch.mean((rounded - values) ** 2))


def _weight_scale(layer: FakeQuantConv2d | FakeQuantLinear, method: str) -> torch.Tensor:
    quantizer = layer.weight_quantizer
    full = quantizer.widest(layer.weight)
    if method != "mse":
        return full
    best, scale = torch.full_like(full, float("inf")), full
    for part in CANDIDATES:
        left = quantizer.deployed(layer.weight, full * part)
        loss = (left - layer.weight).square().flatten(1).mean(1)
        best, scale = torch.minimum(loss, best), torch.where(loss < best, full * part, scale)
    return scale
