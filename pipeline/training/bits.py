"""Truth values, such as a mask has, stored in one bit each: in memory PyTorch gives them a byte."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

Tensors = dict[str, torch.Tensor]


def packed(tensors: Tensors) -> tuple[Tensors, dict[str, list[int]]]:
    """(the tensors, those of truth values as uint8 [ceil(n / 8)]; name -> shape of each such)."""
    shapes = {name: list(t.shape) for name, t in tensors.items() if t.dtype == torch.bool}
    small = {name: torch.from_numpy(np.packbits(tensors[name].numpy())) for name in shapes}
    return tensors | small, shapes


def unpacked(tensors: Tensors, shapes: Mapping[str, Sequence[int]]) -> Tensors:
    """What ``packed`` was given; KeyError, TypeError or ValueError where it was not packed so."""
    return tensors | {name: _unpacked(tensors[name], shape) for name, shape in shapes.items()}


def _unpacked(stored: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    count = math.prod(shape)
    # Before anything of that size is made: a file may declare any.
    if min(shape, default=0) < 0 or stored.shape != ((count + 7) // 8,):
        raise ValueError("truth values that do not fill their shape")
    values = np.unpackbits(stored.numpy(), count=count).astype(bool)
    return torch.from_numpy(values.reshape(shape))
