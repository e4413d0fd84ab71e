"""1x1 convolutions with a stride and few inputs, where their gradients are needed on a CPU.

oneDNN 3.12, which is in PyTorch 2.14, gathers the pixels that such a convolution sees in a buffer
for as many channels as there are, but steps through it by whole blocks of 8 (AVX2) or 16 (AVX-512)
of them. With fewer inputs it writes past the end: gradients are wrong by as much as they are large,
or the process is aborted (github.com/uxlfoundation/oneDNN/issues/6035). Shortcuts of narrow
networks are such convolutions. Of the pixels alone that it sees it is one without a stride, and
right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

Sizes = int | tuple[int, ...]  # of rows and columns: one for both, or one for each

BLOCK = 16  # channels, with AVX-512; AVX2 has 8


def corrected(images: torch.Tensor) -> AbstractContextManager[Any]:
    """While it is active, ``F.conv2d`` is right where a gradient may be taken of it. Nothing is
    changed on a GPU, which has kernels of its own, nor in what is exported."""
    if images.device.type != "cpu" or torch.compiler.is_exporting():
        return nullcontext()
    return Strided() if torch.is_grad_enabled() else nullcontext()


class Strided(TorchFunctionMode):
    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        return (_conv2d if function is F.conv2d else function)(*args, **kwargs)


def _conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> torch.Tensor:
    rows, columns = stride if isinstance(stride, tuple) else (stride, stride)
    affected = (
        max(rows, columns) > 1
        and weight.shape[1] < BLOCK
        and weight.shape[2:] == (1, 1)
        and padding in (0, (0, 0), "valid")
    )
    if affected:
        input, stride = input[..., ::rows, ::columns], 1
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
