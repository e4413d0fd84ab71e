"""Weight sharing: the weights of a layer have few values, which are trained instead of them.

weight and codes [K, C, h, w] or [K, C], scale [K], codebook and members [k].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from torch.autograd.function import FunctionCtx, once_differentiable

from pipeline.models.transforms import Transform, fakequant

if TYPE_CHECKING:
    from pipeline.models.spec import Graph

LARGEST = 63  # of the grid's integers, 7 bits: no two of them overflow a 16-bit sum; see pairs.py


@dataclass(frozen=True)
class Clustered(Transform):
    """Trained weight sharing (Han et al. 2015, arXiv 1510.00149, section 3), of integers: a weight
    is ``scale of its filter x codebook of its layer[code]``, and the codebook is rounded to
    integers -63..63 wherever it is read, in training too, so that what is simulated is what is
    deployed. Code 0 is zero itself, code i the codebook's i-th value from 1.

    Lies on a network that is ``fake-quantized``, whose activations stay as they are.
    ``convolution``, ``linear``: values (k) of a layer of that kind.
    """

    name: ClassVar[str] = "clustered"
    settles: ClassVar[bool] = True

    convolution: int
    linear: int

    def __post_init__(self) -> None:
        for count in (self.convolution, self.linear):
            if not 1 <= count <= 2 * LARGEST + 2:
                raise ValueError(f"expected 1 to {2 * LARGEST + 2} values, got {count!r}")

    def insert(self, module: nn.Module, graph: Graph) -> None:
        for layer in fakequant.layers(module).values():
            values = self.convolution if isinstance(layer, nn.Conv2d) else self.linear
            layer.weight_quantizer = Codebook(layer.weight, values)

    def before_step(self, module: nn.Module) -> None:
        for book in codebooks(module).values():
            book.damp()


class Codebook(fakequant.WeightQuantizer):
    """``codebook`` is in units of the mean scale, so that it is of the size of the weights, and
    learns at the rate at which they do."""

    codes: torch.Tensor
    members: torch.Tensor

    def __init__(self, weight: torch.Tensor, values: int):
        super().__init__(len(weight), fakequant.FakeQuantized(weight_bits=7))
        self.codebook = nn.Parameter(torch.zeros(values))
        self.register_buffer("codes", torch.zeros_like(weight, dtype=torch.uint8))
        self.register_buffer("members", torch.ones(values))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weights that the codes stand for; ``weight`` itself decides nothing any more."""
        scale = self.scale.reshape(-1, *[1] * (weight.dim() - 1))
        return _Shared.apply(self.integers(), self.codes) * scale

    def integers(self) -> torch.Tensor:
        """[k]: the codebook on its grid; the gradient goes straight through."""
        values = self.codebook / self.scale.mean()
        rounded = values.detach().round().clamp(-LARGEST, LARGEST)
        return values + (rounded - values.detach()) if values.requires_grad else rounded

    @torch.no_grad()
    def place(self, weight: torch.Tensor, integers: torch.Tensor) -> None:
        table = torch.cat((integers.new_zeros(1), self.integers().to(integers)))
        ordered, codes = table.sort(stable=True)  # the first of equal values, so zero's code is 0
        self.codes.copy_(codes[torch.searchsorted(ordered, integers.contiguous())])
        super().place(weight, integers)

    def damp(self) -> None:
        """Divides the gradient of each value, the sum of its members' (Han et al. 2015, eq. 3), by
        the root of their number, as Esser et al. (2020, section 2.2) do for scales: a value that a
        million weights share then moves about as far in a step as one of ten."""
        if self.codebook.grad is not None:
            self.codebook.grad.div_(self.members.clamp_min(1).sqrt())

    @torch.no_grad()
    def set(self, codes: torch.Tensor, grid: torch.Tensor, scale: torch.Tensor) -> None:
        """codes [K, ...] 0..k, grid [k] in integers (not yet rounded), scale [K]."""
        self.codes.copy_(codes)
        self.scale.copy_(scale)
        self.codebook.copy_(grid.to(self.scale.device) * self.scale.mean())
        counts = torch.bincount(codes.flatten().long().cpu(), minlength=len(grid) + 1)
        self.members.copy_(counts[1:])


def codebooks(module: nn.Module) -> dict[str, Codebook]:
    """Name of layer -> what its weights share."""
    quantizers = {n: layer.weight_quantizer for n, layer in fakequant.layers(module).items()}
    return {name: book for name, book in quantizers.items() if isinstance(book, Codebook)}


class _Context(FunctionCtx):
    saved_tensors: tuple[torch.Tensor, ...]
    values: int


class _Shared(torch.autograd.Function):
    """(values [k], codes [...] 0..k) -> a value for each code, code 0 being zero. The gradient of a
    value is the sum of its members', added in an order that does not change between runs, which a
    GPU's own way to scatter does not promise."""

    @staticmethod
    def forward(ctx: _Context, values: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(codes)
        ctx.values = len(values)
        table = torch.cat((values.new_zeros(1), values))
        return table.index_select(0, codes.flatten().int()).reshape(codes.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        [codes] = ctx.saved_tensors
        if codes.device.type == "cpu":
            sums = torch.zeros(ctx.values + 1, dtype=torch.float64)
            sums.index_add_(0, codes.flatten().int(), gradient.flatten().double())
            return sums[1:].to(gradient.dtype), None
        each = [torch.where(codes == i + 1, gradient, 0).sum() for i in range(ctx.values)]
        return torch.stack(each), None
