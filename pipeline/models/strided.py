"""1x1 convolutions with a stride and few inputs, where their gradients are needed on a CPU.

oneDNN 3.12, which is in PyTorch 2.14, gathers the pixels that such a convolution sees in a buffer
for as many channels as there are, but steps through it by whole blocks of 8 (AVX2) or 16 (AVX-512)
of them. With fewer inputs it writes past the end: gradients are wrong by as much as they are large,
or the process is aborted (github.com/uxlfoundation/oneDNN/issues/6035). Shortcuts of narrow
networks are such convolutions. Of the pixels alone that it sees it is one without a stride, and
right.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from pipeline.models.convolving import Call, Convolving, pair

BLOCK = 16  # channels, with AVX-512; AVX2 has 8


def corrected(images: torch.Tensor) -> AbstractContextManager[Any]:
    """While it is active, ``F.conv2d`` is right where a gradient may be taken of it. Nothing is
    changed on a GPU, which has kernels of its own, nor in what is exported."""
    if images.device.type != "cpu" or torch.compiler.is_exporting():
        return nullcontext()
    return Strided() if torch.is_grad_enabled() else nullcontext()


class Strided(Convolving):
    def convolve(self, call: Call) -> torch.Tensor:
        rows, columns = pair(call.stride)
        affected = (
            (rows, columns) != (1, 1)
            and call.weight.shape[1] < BLOCK
            and call.weight.shape[2:] == (1, 1)
            and call.padding in (0, (0, 0), "valid")
        )
        if affected:
            call = call._replace(input=call.input[..., ::rows, ::columns], stride=1)
        return call.plain()
