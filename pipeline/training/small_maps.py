"""Convolutions over small maps as one matrix product, for training in bf16 on a CPU.

oneDNN splits a convolution by the pixels of a map; of the 4x4 and 2x2 that VGG's last blocks see,
that leaves too little for a CPU's matrix units. What a kernel sees of each pixel, written side by
side (im2col: Chellapilla et al. 2006, section 4.1), makes it one product that is large enough. The
numbers are the same but for the order in which they are added.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd.function import FunctionCtx, once_differentiable

from pipeline.models.convolving import Call, Convolving, pair

LARGEST = 4  # pixels a side: at 8x8 the convolution is as fast, and the columns cost memory


class SmallMaps(Convolving):
    """While it is active, ``F.conv2d`` under autocast to bf16 takes the product wherever that is
    the same convolution: stride 1, no dilation, no groups, an odd square kernel whose padding keeps
    the map's size."""

    def convolve(self, call: Call) -> torch.Tensor:
        kernel, half = call.weight.shape[-1], call.weight.shape[-1] // 2
        fits = (
            torch.is_autocast_enabled("cpu")
            and call.input.dim() == 4
            and max(call.input.shape[2:]) <= LARGEST
            and call.weight.shape[2] == kernel == 2 * half + 1
            and pair(call.padding) == (half, half)
            and (pair(call.stride), pair(call.dilation), call.groups) == ((1, 1), (1, 1), 1)
        )
        if not fits:
            return call.plain()
        output = _Product.apply(call.input.to(torch.bfloat16), _taps(call.weight))
        return output if call.bias is None else output + call.bias.to(torch.bfloat16).view(-1, 1, 1)


def _taps(weight: torch.Tensor) -> torch.Tensor:
    """[O, I, K, K] -> [O, K, K, I] in bf16. In channels_last that is how they lie in memory, and
    PyTorch converts what is contiguous five times as fast as the same numbers named otherwise."""
    return weight.permute(0, 2, 3, 1).to(torch.bfloat16)


class _ProductContext(FunctionCtx):
    """What PyTorch hands to both passes."""

    saved_tensors: tuple[torch.Tensor, ...]
    needs_input_grad: tuple[bool, ...]


class _Product(torch.autograd.Function):
    """[N, I, H, W], [O, K, K, I] -> [N, O, H, W], images in channels_last, so that the matrices are
    views of what is there."""

    @staticmethod
    def forward(ctx: _ProductContext, images: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
        columns = _columns(images, taps.shape[1])
        ctx.save_for_backward(columns, taps)
        return _as_maps(columns @ taps.flatten(1).t(), images)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: _ProductContext, gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        columns, taps = ctx.saved_tensors
        kernel = taps.shape[1]
        to_images = to_taps = None
        if ctx.needs_input_grad[0]:  # the same convolution back, with the kernel turned around
            turned = taps.flip(1, 2).permute(1, 2, 0, 3).flatten(0, 2)
            to_images = _as_maps(_columns(gradient, kernel) @ turned, gradient)
        if ctx.needs_input_grad[1]:
            pixels = gradient.permute(0, 2, 3, 1).flatten(0, 2)
            to_taps = (pixels.t() @ columns).view(taps.shape)
        return to_images, to_taps


def _columns(maps: torch.Tensor, kernel: int) -> torch.Tensor:
    """[N, C, H, W] -> [N H W, K K C]: each pixel's neighbourhood, zeros around the map."""
    half = kernel // 2
    padded = F.pad(maps.permute(0, 2, 3, 1), (0, 0, half, half, half, half))
    seen = padded.unfold(1, kernel, 1).unfold(2, kernel, 1)  # [N, H, W, C, K, K]
    return seen.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(0, 2)


def _as_maps(pixels: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    number, _, height, width = like.shape
    return pixels.view(number, height, width, -1).permute(0, 3, 1, 2)
