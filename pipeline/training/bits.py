"""Truth values, such as a mask has, stored in one bit each: in memory PyTorch gives them a byte.

The shape is in the name, ``features.0.mask bits 64x3x3x3``: a second entry in the metadata of a
safetensors file would come before or after the first by chance, and the file would not be the same
bytes for the same weights.
"""

from __future__ import annotations

import math
import re

import numpy as np
import torch

Tensors = dict[str, torch.Tensor]
NAME = re.compile(r"(.*) bits ([0-9]{1,9}(?:x[0-9]{1,9})*)?")


def packed(tensors: Tensors) -> Tensors:
    """Those of truth values as uint8 [ceil(n / 8)], under another name."""
    return dict(_packed(name, tensor) for name, tensor in tensors.items())


def _packed(name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    if tensor.dtype != torch.bool:
        return name, tensor
    shape = "x".join(map(str, tensor.shape))
    return f"{name} bits {shape}", torch.from_numpy(np.packbits(tensor.numpy()))


def unpacked(tensors: Tensors) -> Tensors:
    """What ``packed`` was given; ValueError where bits do not fill the shape in their name."""
    return dict(_unpacked(name, tensor) for name, tensor in tensors.items())


def _unpacked(name: str, stored: torch.Tensor) -> tuple[str, torch.Tensor]:
    match = NAME.fullmatch(name)
    if not match:
        return name, stored
    shape = [int(size) for size in (match[2] or "").split("x") if size]
    count = math.prod(shape)
    # Before anything of that size is made: a file may declare any.
    if stored.dtype != torch.uint8 or stored.shape != ((count + 7) // 8,):
        raise ValueError(f"{match[1]}: bits that do not fill their shape")
    values = np.unpackbits(stored.numpy(), count=count).astype(bool)
    return match[1], torch.from_numpy(values.reshape(shape))
