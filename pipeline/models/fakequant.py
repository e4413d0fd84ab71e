"""Simulated quantization: float arithmetic on values that integers can express.

Every convolution and linear layer rounds its input (per tensor, uint8) and its weight (per filter,
symmetric int8). Its bias (int32, in steps of input scale x weight scale) is rounded in evaluation
alone: too fine for training to notice, but without it a value in a thousand is another one than
the deployed model's. That one is another thing, ``pipeline/artifact/``; it takes these scales as
they are.

x [N, C, H, W], weight [K, C, h, w] or [K, C], weight scale [K], input scale and zero point [].
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from pipeline.models.spec import SMALLEST_NORMAL, Quantization

ACTIVATION_MAX = 255  # uint8


class _FakeQuantized:
    """What the convolution and the linear layer share; weight names stay those of the float layer,
    so that a state dict moves between the two."""

    def prepare(self, quantization: Quantization) -> None:
        self.weight_max = 2 ** (quantization.weight_bits - 1) - 1
        self.learned = quantization.learned
        scale, rows = torch.ones(()), torch.ones(len(self.weight))
        if self.learned:
            self.input_scale, self.weight_scale = nn.Parameter(scale), nn.Parameter(rows)
        else:
            self.register_buffer("input_scale", scale)
            self.register_buffer("weight_scale", rows)
        self.register_buffer("input_zero_point", torch.zeros((), dtype=torch.int32))
        self.exact_input = False  # the image itself: an integer already

    def quantized_input(self, x: torch.Tensor) -> torch.Tensor:
        if self.exact_input:
            return x
        if self.learned and self.training:
            shift = self.input_zero_point
            low, high = -shift, ACTIVATION_MAX - shift
            return _lsq(x.float(), self.input_scale, low, high, ACTIVATION_MAX, x[0].numel())
        return torch.fake_quantize_per_tensor_affine(
            x.float(), self.input_scale.detach(), self.input_zero_point, 0, ACTIVATION_MAX
        )

    def quantized_weight(self) -> torch.Tensor:
        if self.learned and self.training:
            scale = self.weight_scale.reshape(-1, *[1] * (self.weight.dim() - 1))
            limit = self.weight_max
            return _lsq(self.weight, scale, -limit, limit, limit, self.weight[0].numel())
        if self.training:
            self.weight_scale.copy_(widest(self.weight, self.weight_max))
        scale = self.weight_scale.detach()
        zero = torch.zeros(len(scale), dtype=torch.int32, device=scale.device)
        return torch.fake_quantize_per_channel_affine(
            self.weight, scale, zero, 0, -self.weight_max, self.weight_max
        )

    def quantized_bias(self) -> torch.Tensor | None:
        if self.bias is None or self.training:
            return self.bias
        step = self.input_scale.detach() * self.weight_scale.detach()
        return torch.round(self.bias / step) * step


class FakeQuantConv2d(_FakeQuantized, nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.quantized_weight(), self.quantized_bias()
        return self._conv_forward(self.quantized_input(x), weight, bias)


class FakeQuantLinear(_FakeQuantized, nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.quantized_weight(), self.quantized_bias()
        return F.linear(self.quantized_input(x), weight, bias)


def _lsq(x, scale, low, high, bound: int, values: int):
    """Rounds to multiples of ``scale``, from ``low`` to ``high`` of them, with the gradients of
    Esser et al. (2020). ``bound`` is the largest integer that the scale is multiplied with,
    ``values`` how many values have one scale (of an image: more of them in a batch teach the same
    scale). Their root damps the scale's gradient, so that it moves as fast as the weights do
    (section 2.2)."""
    return _LearnedStep.apply(x, scale, low, high, (values * bound) ** -0.5)


class _LearnedStep(torch.autograd.Function):
    """Equations 1 to 3: straight through inside the range, and for the scale ``round(v) - v``
    inside, the bound outside, v being x / scale. Written as one function, since a chain of them
    would go through the activations, which bound the time, twenty times instead of twelve."""

    @staticmethod
    def forward(ctx, x, scale, low, high, damping):
        rounded = (x / scale).clamp_(low, high).round_().mul_(scale)
        ctx.save_for_backward(x, scale, rounded)
        ctx.low, ctx.high, ctx.damping = low, high, damping
        return rounded

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, scale, rounded = ctx.saved_tensors
        inside = (x >= ctx.low * scale).logical_and_(x <= ctx.high * scale)
        steps = torch.where(inside, x, 0).neg_().add_(rounded).mul_(gradient)
        to_scale = steps.sum_to_size(scale.shape) * (ctx.damping / scale)
        return torch.where(inside, gradient, 0), to_scale, None, None, None


def widest(weight: torch.Tensor, weight_max: int) -> torch.Tensor:
    """The scale [K] with which each filter's largest weight just fits.

    A filter of zeros gets the largest scale of the others, 1 without others: any scale would do for
    its weights, but its bias is deployed as a multiple of it. So does one whose own scale would be
    subnormal, as its inverse is infinite; its weights all round to zero.
    """
    scale = weight.detach().abs().flatten(1).amax(1) / weight_max
    usable = scale >= SMALLEST_NORMAL
    largest = torch.where(usable.any(), scale.amax(), torch.ones_like(scale[0]))
    return torch.where(usable, scale, largest)


def insert(network: nn.Module, quantization: Quantization) -> None:
    """Turns every convolution and linear layer of ``network`` into its fake-quantized self."""
    kinds = {nn.Conv2d: FakeQuantConv2d, nn.Linear: FakeQuantLinear}
    for module in network.modules():
        if type(module) in kinds:
            module.__class__ = kinds[type(module)]
            module.prepare(quantization)
    first = next(iter(layers(network).values()))
    first.exact_input = True


def layers(network: nn.Module) -> dict[str, _FakeQuantized]:
    """Name -> layer, in the order in which they were registered (that of the data, in a chain)."""
    return {n: m for n, m in network.named_modules() if isinstance(m, _FakeQuantized)}


@torch.no_grad()
def calibrate(
    network: nn.Module, batches: Iterator[torch.Tensor], method: str, first: tuple[int, float]
) -> None:
    """Sets every scale and zero point from what the float network sees on training images.

    ``first`` is (zero_point, scale) of the images themselves. ``method``: ``minmax`` takes the
    whole range seen, ``mse`` the part that loses least in squared error (of 32 candidates).
    """
    seen = _observe(network, batches)
    for name, layer in layers(network).items():
        layer.weight_scale.copy_(_weight_scale(layer, method))
        scale, zero_point = first[1], first[0]
        if not layer.exact_input:
            scale, zero_point = _range(seen[name], method)
        layer.input_scale.fill_(scale)
        layer.input_zero_point.fill_(zero_point)


SAMPLE = 16384  # values kept of each input and batch: enough for a histogram, small in memory


def _observe(network: nn.Module, batches) -> dict[str, torch.Tensor]:
    """Runs the float network; name of layer -> a sample of its input values, extremes included."""
    seen: dict[str, list[torch.Tensor]] = {}

    def keep(name):
        def hook(_, inputs):
            flat = inputs[0].float().flatten()
            sample = flat[:: _stride(flat.numel())]
            seen.setdefault(name, []).extend((sample, flat.amin()[None], flat.amax()[None]))

        return hook

    floats = {m: m.__class__ for m in layers(network).values()}
    handles = [m.register_forward_pre_hook(keep(n)) for n, m in layers(network).items()]
    try:
        for module in floats:
            module.__class__ = nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Linear
        network.eval()
        for images in batches:
            network(images)
    finally:
        for handle in handles:
            handle.remove()
        for module, kind in floats.items():
            module.__class__ = kind
    return {name: torch.cat(values) for name, values in seen.items()}


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
    parts = CANDIDATES if method == "mse" else [1.0]
    return min((_affine(low * p, high * p) for p in parts), key=lambda a: _loss(values, *a))


def _affine(low: float, high: float) -> tuple[float, int]:
    scale = (high - low) / ACTIVATION_MAX
    return scale, round(-low / scale)


def _loss(values: torch.Tensor, scale: float, zero_point: int) -> float:
    rounded = torch.fake_quantize_per_tensor_affine(values, scale, zero_point, 0, ACTIVATION_MAX)
    return float(torch.mean((rounded - values) ** 2))


def _weight_scale(layer, method: str) -> torch.Tensor:
    full = widest(layer.weight, layer.weight_max)
    if method != "mse":
        return full
    zero = torch.zeros(len(full), dtype=torch.int32, device=full.device)
    best, scale = torch.full_like(full, float("inf")), full
    for part in CANDIDATES:
        rounded = torch.fake_quantize_per_channel_affine(
            layer.weight, full * part, zero, 0, -layer.weight_max, layer.weight_max
        )
        loss = (rounded - layer.weight).square().flatten(1).mean(1)
        best, scale = torch.minimum(loss, best), torch.where(loss < best, full * part, scale)
    return scale
