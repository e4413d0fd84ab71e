"""Simulated quantization: float arithmetic on values that integers can express.

Every convolution and linear layer rounds its input (per tensor, uint8) and its weight (per filter,
symmetric int8); sums and average poolings round their inputs. Two that read the same tensor share
its quantization. A bias (int32, in steps of input scale x weight scale) is rounded in evaluation
alone: too fine for training to notice, but without it a value in a thousand is another one than
the deployed model's. That one is another thing, ``pipeline/artifact/``; it takes these scales as
they are.

x [N, C, H, W], weight [K, C, h, w] or [K, C], weight scale [K], input scale and zero point [].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.models.layers import Sum
from pipeline.models.transforms import Integers, Point, Transform, pairs
from pipeline.models.transforms.lsq import learned_step

if TYPE_CHECKING:
    from pipeline.models.spec import Graph

ACTIVATION_MAX = 255  # uint8
SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class FakeQuantized(Transform):
    """Jacob et al. 2018, section 3; Krishnamoorthi 2018.

    ``weight_bits``: 8, or 7 (|w| <= 63). ``pairs``: 8 bits whose products overflow no 16-bit sum,
    see ``pairs.py``. ``learned``: scales are parameters (LSQ, Esser et al. 2020, section 2);
    otherwise activation ranges are fixed by calibration and weight scales follow the weights.
    """

    name: ClassVar[str] = "fake-quantized"

    weight_bits: int = 8
    learned: bool = False
    pairs: bool = False

    def __post_init__(self) -> None:
        if self.weight_bits not in (7, 8):
            raise ValueError(f"weight_bits: expected 7 or 8, got {self.weight_bits!r}")

    def insert(self, module: nn.Module, graph: Graph) -> None:
        for layer in module.modules():
            if type(layer) in SIMULATED:
                layer.__class__ = SIMULATED[type(layer)]
                assert isinstance(layer, Simulated)
                layer.prepare(self)
        by_name = points(module)
        for name in graph.image:
            by_name[name].exact = True
        for readers in graph.shared:
            for name in readers[1:]:
                _set_point(module, name, by_name[readers[0]])

    def plain(self, module: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """With the rounded weights: rounded again at the same scale they are the same integers,
        also where the simulation cut them off at its range."""
        module.eval()
        kept = {n: t for n, t in tensors.items() if not {*n.split(".")} & set(QUANTIZERS)}
        with torch.no_grad():
            rounded = {
                f"{name}.weight": layer.quantized_weight() for name, layer in layers(module).items()
            }
        return kept | rounded

    def scaled(
        self, tensors: dict[str, torch.Tensor], layer: str, factor: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        name = f"{layer}.weight_quantizer.scale"
        return {**tensors, name: usable(tensors[name] * factor.abs())}

    def flaw(self, module: nn.Module) -> str | None:
        quantizers: list[tuple[str, WeightQuantizer | InputQuantizer]] = [
            *((name, layer.weight_quantizer) for name, layer in layers(module).items()),
            *points(module).items(),
        ]
        for name, quantizer in quantizers:
            if quantizer.scale.min() <= 0:
                return f"a learned range of {name} is not positive any more"
        return None

    def integers(self, module: nn.Module) -> Integers:
        return Integers(
            weights={
                name: Point(tuple(layer.weight_quantizer.scale.detach().cpu().tolist()))
                for name, layer in layers(module).items()
            },
            inputs={
                name: Point((point.scale.item(),), int(point.zero_point))
                for name, point in points(module).items()
            },
        )


QUANTIZERS = ("input_quantizer", "input_quantizers", "weight_quantizer")


class InputQuantizer(nn.Module):
    """Rounds a tensor of activations to uint8. ``exact``: the image itself, which is integers."""

    scale: torch.Tensor
    zero_point: torch.Tensor

    def __init__(self, learned: bool):
        super().__init__()
        self.learned, self.exact = learned, False
        _add_scale(self, torch.ones(()), learned)
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.exact:
            return x
        if self.learned and self.training:
            shift = self.zero_point
            low, high = -shift, ACTIVATION_MAX - shift
            return learned_step(x.float(), self.scale, low, high, ACTIVATION_MAX, x[0].numel())
        scale = self.scale.detach()
        if torch.compiler.is_compiling():
            return _fake_quantized(x.float(), scale, self.zero_point, 0, ACTIVATION_MAX)
        return torch.fake_quantize_per_tensor_affine(
            x.float(), scale, self.zero_point, 0, ACTIVATION_MAX
        )


class WeightQuantizer(nn.Module):
    """Rounds a weight [K, ...] to integers -limit..limit times a scale a filter. Others, for fewer
    integers, say by ``widest`` and ``rounded`` what they do, and derive from it."""

    scale: torch.Tensor

    def __init__(self, filters: int, settings: FakeQuantized):
        super().__init__()
        self.limit = 2 ** (settings.weight_bits - 1) - 1
        self.learned, self.pairs = settings.learned, settings.pairs
        _add_scale(self, torch.ones(filters), self.learned)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        if self.learned and self.training:
            scale = self.scale.reshape(-1, *[1] * (weight.dim() - 1))
            rounded = learned_step(
                weight, scale, -self.limit, self.limit, self.limit, weight[0].numel()
            )
        else:
            if self.training:
                self.scale.copy_(self.widest(weight))
            rounded = self.rounded(weight, self.scale.detach())
        return self.safe(rounded, self.scale.detach()) if self.pairs else rounded

    def rounded(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """To the nearest multiples of ``scale`` [K]; straight-through gradient inside the range."""
        # PyTorch's own asks a GPU for its zero points: the host waits, and no graph can hold that.
        if torch.compiler.is_compiling() or weight.is_cuda:
            each = scale.reshape(-1, *[1] * (weight.dim() - 1))
            return _fake_quantized(weight, each, 0, -self.limit, self.limit)
        zero = torch.zeros(len(scale), dtype=torch.int32, device=scale.device)
        return torch.fake_quantize_per_channel_affine(
            weight, scale, zero, 0, -self.limit, self.limit
        )

    def safe(self, rounded: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Its pairs moved to where no 16-bit sum overflows; the gradient goes straight through."""
        scale = scale.reshape(-1, *[1] * (rounded.dim() - 1))
        moved = pairs.projected(torch.round(rounded.detach() / scale)) * scale
        return moved if not rounded.requires_grad else rounded + (moved - rounded.detach())

    def deployed(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """What is left of ``weight`` at this scale [K]."""
        rounded = self.rounded(weight, scale)
        return self.safe(rounded, scale) if self.pairs else rounded

    @torch.no_grad()
    def place(self, weight: torch.Tensor, integers: torch.Tensor) -> None:
        """Sets ``weight`` so that it is rounded to ``integers`` [K, ...], all of which the layer's
        weights are rounded to already, at the scale that there is."""
        weight.copy_(integers * self.scale.reshape(-1, *[1] * (weight.dim() - 1)))

    def widest(self, weight: torch.Tensor) -> torch.Tensor:
        """The scale [K] with which each filter just fits, as it is; see ``widest``."""
        fitting = widest(weight, self.limit)
        if not self.pairs:
            return fitting
        by_pairs = pairs.largest(weight.detach()) / pairs.LIMIT
        return torch.maximum(fitting, by_pairs)


def _fake_quantized(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | int, low: int, high: int
) -> torch.Tensor:
    """PyTorch's own fake quantization, value for value, in operations that a compiler fuses with
    what is around them; its own would go through the activations twice more."""
    steps = torch.round(x * (1 / scale)) + zero_point
    rounded = (steps.clamp(low, high) - zero_point) * scale
    through = torch.where((steps >= low) & (steps <= high), x, 0)
    return rounded.detach() + (through - through.detach())


def _add_scale(module: nn.Module, scale: torch.Tensor, learned: bool) -> None:
    if learned:
        module.scale = nn.Parameter(scale)
    else:
        module.register_buffer("scale", scale)


class _Weighted(nn.Module):
    """What the convolution and the linear layer share; weight names stay those of the float layer,
    so that a state dict moves between the two."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    input_quantizer: InputQuantizer
    weight_quantizer: WeightQuantizer

    def prepare(self, settings: FakeQuantized) -> None:
        self.input_quantizer = InputQuantizer(settings.learned)
        self.weight_quantizer = WeightQuantizer(len(self.weight), settings)

    def quantized_weight(self) -> torch.Tensor:
        return self.weight_quantizer(self.weight)

    def quantized_bias(self) -> torch.Tensor | None:
        if self.bias is None or self.training:
            return self.bias
        step = self.input_quantizer.scale.detach() * self.weight_quantizer.scale.detach()
        return torch.round(self.bias / step) * step


class FakeQuantConv2d(_Weighted, nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.quantized_weight(), self.quantized_bias()
        return self._conv_forward(self.input_quantizer(x), weight, bias)


# torch declares the bias of a linear layer as a parameter, though it may be None.
class FakeQuantLinear(_Weighted, nn.Linear):  # type: ignore[misc]
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.quantized_weight(), self.quantized_bias()
        return F.linear(self.input_quantizer(x), weight, bias)


class FakeQuantSum(Sum):
    def prepare(self, settings: FakeQuantized) -> None:
        both = (InputQuantizer(settings.learned) for _ in range(2))
        self.input_quantizers = nn.ModuleList(both)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        first, second = self.input_quantizers
        return first(a) + second(b)

    def operands(self) -> list[InputQuantizer]:
        """The quantizers of a and of b."""
        return [q for q in self.input_quantizers if isinstance(q, InputQuantizer)]


class FakeQuantAvgPool2d(nn.AdaptiveAvgPool2d):
    input_quantizer: InputQuantizer

    def prepare(self, settings: FakeQuantized) -> None:
        self.input_quantizer = InputQuantizer(settings.learned)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.input_quantizer(x))


Simulated = FakeQuantConv2d | FakeQuantLinear | FakeQuantSum | FakeQuantAvgPool2d
SIMULATED: dict[type[nn.Module], type[Simulated]] = {
    nn.Conv2d: FakeQuantConv2d,
    nn.Linear: FakeQuantLinear,
    Sum: FakeQuantSum,
    nn.AdaptiveAvgPool2d: FakeQuantAvgPool2d,
}


def layers(module: nn.Module) -> dict[str, FakeQuantConv2d | FakeQuantLinear]:
    """Name -> layer with a quantized weight, in the order in which they were registered (that of
    the data, in a chain)."""
    weighted = (FakeQuantConv2d, FakeQuantLinear)
    return {n: m for n, m in module.named_modules() if isinstance(m, weighted)}


def points(module: nn.Module) -> dict[str, InputQuantizer]:
    """Name of each quantization point (see ``Graph.shared``) -> what rounds its tensor; the same
    object for those that read the same tensor."""
    quantizers: dict[str, InputQuantizer] = {}
    for name, layer in module.named_modules():
        if not isinstance(layer, Simulated):
            continue
        if isinstance(layer, FakeQuantSum):
            quantizers |= {f"{name}:{i}": each for i, each in enumerate(layer.operands())}
        else:
            quantizers[name] = layer.input_quantizer
    return quantizers


def _set_point(module: nn.Module, name: str, quantizer: InputQuantizer) -> None:
    layer_name, _, operand = name.partition(":")
    layer = module.get_submodule(layer_name)
    assert isinstance(layer, Simulated)
    if isinstance(layer, FakeQuantSum):
        layer.input_quantizers[int(operand)] = quantizer
    else:
        layer.input_quantizer = quantizer


def widest(weight: torch.Tensor, weight_max: int) -> torch.Tensor:
    """The scale [K] with which each filter's largest weight just fits."""
    return usable(weight.detach().abs().flatten(1).amax(1) / weight_max)


def usable(scale: torch.Tensor) -> torch.Tensor:
    """``scale`` [K], where a filter of zeros gets the largest of the others, 1 without others: any
    scale would do for its weights, but its bias is deployed as a multiple of it. So does one whose
    own scale would be subnormal, as its inverse is infinite; its weights all round to zero."""
    normal = scale >= SMALLEST_NORMAL
    largest = torch.where(normal.any(), scale.amax(), torch.ones_like(scale[0]))
    return torch.where(normal, scale, largest)
