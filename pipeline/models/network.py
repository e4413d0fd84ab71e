"""What a network is between two stages: a specification, and a module that it builds.

N images, C colour channels, H x W pixels, K filters, L layers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import torch
from torch import nn

from pipeline.models import module_of


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


@dataclass(frozen=True)
class ModelState:
    """What a stage takes and returns."""

    spec: NetworkSpec
    network: nn.Module


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


def build(spec: NetworkSpec) -> nn.Module:
    """A module of this shape with fresh weights (from torch's global generator)."""
    network = module_of(spec.model).build(replace(spec, quantization=None))
    if spec.quantization is not None:
        from pipeline.models.fakequant import insert

        insert(network, spec.quantization)
    return network


def new(spec: NetworkSpec, seed: int) -> ModelState:
    """A freshly initialized network; the same for the same seed, wherever it is called from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ModelState(spec, build(spec))


def restore(spec: NetworkSpec, tensors: dict[str, torch.Tensor]) -> ModelState:
    """The network of ``spec`` with these weights; RuntimeError when they do not fit."""
    with torch.random.fork_rng(devices=[]):
        network = build(spec)
    network.load_state_dict(tensors)
    return ModelState(spec, network)


def parameter_count(spec: NetworkSpec) -> int:
    """Trainable parameters of the float network of this shape, without making its weights."""
    with torch.device("meta"):
        network = module_of(spec.model).build(replace(spec, quantization=None))
    return sum(p.numel() for p in network.parameters())


def groups(spec: NetworkSpec) -> tuple[Group, ...]:
    return module_of(spec.model).groups(spec)


@torch.no_grad()
def shrink(state: ModelState, kept: list[torch.Tensor]) -> ModelState:
    """Removes filters for real: ``kept[i]`` holds the indices (int64, ascending) of the filters of
    group i that stay. The result is a smaller network of the same kind, not a mask."""
    spec = replace(state.spec, channels=tuple(len(k) for k in kept))
    with torch.random.fork_rng(devices=[]):
        network = build(spec).to(next(state.network.parameters()).device)
    tensors = dict(state.network.state_dict())
    for group, index in zip(groups(state.spec), kept, strict=True):
        for owner in filter(None, (group.producer, group.norm)):
            for name in [n for n in tensors if n.rpartition(".")[0] == owner and tensors[n].dim()]:
                tensors[name] = tensors[name].index_select(0, index.to(tensors[name].device))
        for consumer in group.consumers:
            name = f"{consumer}.weight"
            tensors[name] = tensors[name].index_select(1, index.to(tensors[name].device))
    network.load_state_dict(tensors)
    return ModelState(spec, network)


# Below this a float32 is subnormal: x86 computes with it up to a hundred times slower.
SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


@torch.no_grad()
def fold(state: ModelState) -> ModelState:
    """Batch normalization moved into the convolution before it (Jacob et al. 2018, section 3.2):
    ``w' = w * gamma / sqrt(var + eps)``. What becomes subnormal by that is set to zero."""
    if not state.spec.batch_norm:
        return state
    spec = replace(state.spec, batch_norm=False)
    with torch.random.fork_rng(devices=[]):
        network = build(spec).to(next(state.network.parameters()).device)
    tensors = dict(state.network.state_dict())
    modules = dict(state.network.named_modules())
    for group in groups(state.spec):
        conv, norm = modules[group.producer], modules[group.norm]
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        tensors[f"{group.producer}.weight"] = _flushed(conv.weight * factor[:, None, None, None])
        bias = (0.0 if conv.bias is None else conv.bias) - norm.running_mean
        tensors[f"{group.producer}.bias"] = _flushed(norm.bias + bias * factor)
        tensors = {n: t for n, t in tensors.items() if n.rpartition(".")[0] != group.norm}
    network.load_state_dict(tensors)
    return ModelState(spec, network)


def _flushed(values: torch.Tensor) -> torch.Tensor:
    return torch.where(values.abs() < SMALLEST_NORMAL, torch.zeros_like(values), values)
