"""What a network is specified by, and the entrance that all have.

N images, C colour channels, H x W pixels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import nn

# Below this a float32 is subnormal: x86 computes with it up to a hundred times slower.
SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Quantization:
    """How weights and activations are brought to integers.

    ``weight_bits`` is 8, or 7 where 8-bit products saturate (x86 without VNNI).
    ``learned``: scales are parameters (LSQ, Esser et al. 2020, section 2); otherwise activation
    ranges are fixed by calibration and weight scales follow the weights.
    """

    weight_bits: int = 8
    learned: bool = False


@dataclass(frozen=True)
class NetworkSpec:
    """All that is needed to build the module anew; its weights come from a checkpoint.

    A pixel p (0..255) enters as ``(p - zero_point) * scale``: one integer and one factor for all
    channels, so that a uint8 image is a quantized tensor already and loses nothing.
    """

    model: str
    channels: tuple[int, ...]
    batch_norm: bool
    shape: tuple[int, int, int]
    classes: int
    zero_point: int
    scale: float
    quantization: Quantization | None = None

    def to_json(self) -> dict:
        return asdict(self)

    @staticmethod
    def from_json(data: dict) -> NetworkSpec:
        quantization = data["quantization"]
        return NetworkSpec(
            **{
                **data,
                "channels": tuple(data["channels"]),
                "shape": tuple(data["shape"]),
                "quantization": Quantization(**quantization) if quantization else None,
            }
        )


class Group(NamedTuple):
    """Filters that live and die together: those of ``producer``, with the channels of its
    normalization (None: there is none) and the inputs of every consumer."""

    producer: str
    norm: str | None
    consumers: tuple[str, ...]


class Normalize(nn.Module):
    """Pixels 0..255 [N, C, H, W], uint8 or float -> float32 around zero."""

    def __init__(self, zero_point: int, scale: float):
        super().__init__()
        self.zero_point, self.scale = float(zero_point), float(scale)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images.float() - self.zero_point) * self.scale
