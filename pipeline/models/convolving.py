"""Convolutions that are computed in another way while that is active."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

Sizes = int | tuple[int, ...]  # of rows and columns: one for both, or one for each


class Call(NamedTuple):
    """The arguments of ``F.conv2d``."""

    input: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    stride: Sizes = 1
    padding: Sizes | str = 0
    dilation: Sizes = 1
    groups: int = 1

    def plain(self) -> torch.Tensor:
        return F.conv2d(
            self.input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )


class Convolving(TorchFunctionMode):
    """While it is active, each call of ``F.conv2d`` goes to `convolve`, which may call it."""

    def convolve(self, call: Call) -> torch.Tensor:
        raise NotImplementedError

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.conv2d:
            return self.convolve(Call(*args, **kwargs))
        return function(*args, **kwargs)


def pair(value: Sizes | str) -> tuple[int | str, ...]:
    return value if isinstance(value, tuple) else (value, value)
