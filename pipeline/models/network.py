"""What a network is between two stages: a specification, and a module that it builds.

N images, C colour channels, H x W pixels, K filters, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from pipeline.models import fakequant, module_of
from pipeline.models.spec import SMALLEST_NORMAL, Group, NetworkSpec


@dataclass(frozen=True)
class ModelState:
    """What a stage takes and returns."""

    spec: NetworkSpec
    network: nn.Module


def build(spec: NetworkSpec) -> nn.Module:
    """A module of this shape with fresh weights (from torch's global generator)."""
    network = module_of(spec.model).build(replace(spec, quantization=None))
    if spec.quantization is not None:
        fakequant.insert(network, spec.quantization)
    return network


def new(spec: NetworkSpec, seed: int) -> ModelState:
    """A freshly initialized network; the same for the same seed, wherever it is called from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ModelState(spec, build(spec))


def restore(spec: NetworkSpec, tensors: dict[str, torch.Tensor]) -> ModelState:
    """The network of ``spec`` with these weights; RuntimeError when they do not fit."""
    with torch.device("meta"):  # where sizes cost nothing: a file may ask for any
        build(spec).load_state_dict({n: t.to("meta") for n, t in tensors.items()})
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
