"""What a network is between two stages: a specification, and a module that it builds.

N images, C colour channels, H x W pixels, K filters, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import nn

from pipeline.models import module_of
from pipeline.models.layers import Network
from pipeline.models.spec import SMALLEST_NORMAL, Graph, NetworkSpec
from pipeline.models.transforms import Integers, Transform
from pipeline.models.transforms.folded import Folded


@dataclass(frozen=True)
class ModelState:
    """What a stage takes and returns."""

    spec: NetworkSpec
    network: Network

    def before_step(self) -> None:
        """What transforms do to the gradients before each optimizer step."""
        for transform in self.spec.transforms:
            transform.before_step(self.network.module)

    def after_step(self) -> None:
        """What transforms do after each optimizer step."""
        for transform in self.spec.transforms:
            transform.after_step(self.network.module)

    def flaw(self) -> str | None:
        """What training made of it that no network can be computed with; None: nothing."""
        flaws = (transform.flaw(self.network.module) for transform in self.spec.transforms)
        return next((flaw for flaw in flaws if flaw is not None), None)


def build(spec: NetworkSpec) -> Network:
    """A module of this shape with fresh weights (from torch's global generator)."""
    model = module_of(spec.model)
    module, graph = model.build(spec), model.graph(spec)
    for transform in spec.transforms:
        transform.insert(module, graph)
        graph = transform.graph(graph)
    return Network(module, spec.zero_point, spec.scale, graph.maps)


def graph_of(spec: NetworkSpec) -> Graph:
    graph = module_of(spec.model).graph(spec)
    for transform in spec.transforms:
        graph = transform.graph(graph)
    return graph


def new(spec: NetworkSpec, seed: int) -> ModelState:
    """A freshly initialized network; the same for the same seed, wherever it is called from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ModelState(spec, build(spec))


def restore(spec: NetworkSpec, tensors: dict[str, torch.Tensor]) -> ModelState:
    """The network of ``spec`` with these weights; RuntimeError when they do not fit."""
    with torch.device("meta"):  # where sizes cost nothing: a file may specify any
        build(spec).load_state_dict({n: t.to("meta") for n, t in tensors.items()})
    with torch.random.fork_rng(devices=[]):
        network = build(spec)
    _load(network, tensors)
    return ModelState(spec, network)


@torch.no_grad()
def _load(module: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """``tensors`` into a module. A parameter that several layers share, as a factory may write it,
    becomes one of each where these have other values by now: each was folded or rounded alone."""
    names: dict[nn.Parameter, str] = {}
    for name, parameter in [*module.named_parameters(remove_duplicate=False)]:
        first = names.setdefault(parameter, name)
        if first != name and not torch.equal(tensors[first], tensors[name]):
            owner, _, attribute = name.rpartition(".")
            own = nn.Parameter(torch.empty_like(parameter), parameter.requires_grad)
            setattr(module.get_submodule(owner), attribute, own)
    module.load_state_dict(tensors)


def parameter_count(spec: NetworkSpec) -> int:
    """Trainable parameters of the float network of this shape, without making its weights."""
    with torch.device("meta"):
        network = build(spec.structure)
    return sum(p.numel() for p in network.parameters())


def with_transform(state: ModelState, transform: Transform) -> ModelState:
    """The same network with one more transform on it."""
    spec = state.spec.with_transform(transform)
    placed = restore(state.spec, state.network.state_dict())
    placed.network.to(next(state.network.parameters()).device)
    transform.insert(placed.network.module, graph_of(state.spec))
    placed.network.to(next(state.network.parameters()).device)
    return ModelState(spec, placed.network)


def without(state: ModelState, transform: str, tensors: str) -> ModelState:
    """The same network without the transform of this name, whose own tensors lie in the submodule
    ``tensors``."""
    own, device = f"module.{tensors}.", next(state.network.parameters()).device
    left = {n: t for n, t in state.network.state_dict().items() if not n.startswith(own)}
    kept = tuple(each for each in state.spec.transforms if each.name != transform)
    restored = restore(replace(state.spec, transforms=kept), left)
    restored.network.to(device)
    return restored


def normalized(network: nn.Module) -> bool:
    """Whether batch normalization holds the network's activations in their range."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())


@torch.no_grad()
def plain(state: ModelState) -> ModelState:
    """The float network with the weights that are deployed, on the CPU: what only changes how
    numbers are computed is taken off, the last first."""
    import copy

    network = copy.deepcopy(state.network).cpu().eval()
    tensors = {n.removeprefix("module."): t for n, t in network.state_dict().items()}
    for transform in reversed(state.spec.transforms):
        if not transform.structural:
            tensors = transform.plain(network.module, tensors)
    return restore(state.spec.structure, {f"module.{n}": t for n, t in tensors.items()})


def integers(state: ModelState) -> Integers | None:
    """How its artifact computes in integers; None where it computes in floats."""
    for transform in reversed(state.spec.transforms):
        described = transform.integers(state.network.module)
        if described is not None:
            return described
    return None


def codec(state: ModelState) -> str | None:
    """The codec of its artifact's stored form; None where that is the runnable model itself."""
    codecs = [transform.codec_of_artifact() for transform in state.spec.transforms]
    return next((name for name in reversed(codecs) if name), None)


@torch.no_grad()
def shrink(state: ModelState, kept: list[torch.Tensor]) -> ModelState:
    """Removes filters for real: ``kept[i]`` holds the indices (int64, ascending) of the filters of
    group i that stay. The result is a smaller network of the same kind, not a mask."""
    spec = replace(state.spec, channels=tuple(len(k) for k in kept))
    device = next(state.network.parameters()).device
    with torch.random.fork_rng(devices=[]):
        network = build(spec).to(device)
    graph, tensors = graph_of(state.spec), dict(state.network.module.state_dict())
    for owner, groups in graph.filters.items():
        index = of_axis(groups, state.spec.channels, kept).to(device)
        for name in [n for n in tensors if n.startswith(f"{owner}.") and tensors[n].dim()]:
            tensors[name] = tensors[name].index_select(0, index)
    for consumer, groups in graph.readers.items():
        index = of_axis(groups, state.spec.channels, kept).to(device)
        channels = sum(state.spec.channels[i] for i in groups)
        for name in [n for n in tensors if n.startswith(f"{consumer}.") and tensors[n].dim() > 1]:
            inputs = tensors[name].shape[1] // channels  # of a channel, where maps are flattened
            wide = (index[:, None] * inputs + torch.arange(inputs, device=device)).flatten()
            tensors[name] = tensors[name].index_select(1, wide)
    network.module.load_state_dict(tensors)
    return ModelState(spec, network)


def of_axis(
    groups: tuple[int, ...], channels: tuple[int, ...], kept: list[torch.Tensor]
) -> torch.Tensor:
    """Indices, on an axis that has the channels of ``groups`` side by side, of those that stay."""
    starts = accumulate((channels[i] for i in groups[:-1]), initial=0)
    return torch.cat([kept[i].cpu() + start for i, start in zip(groups, starts, strict=True)])


@torch.no_grad()
def fold(state: ModelState) -> ModelState:
    """Batch normalization moved into the convolution before it (Jacob et al. 2018, section 3.2):
    ``w' = w * gamma / sqrt(var + eps)``. What becomes subnormal by that is set to zero. Of a
    quantized network the integers stay as they are: the factor goes into their scales."""
    norms = graph_of(state.spec).norms
    if not norms or state.spec.has(Folded.name):
        return state
    spec = state.spec.with_transform(Folded())
    with torch.random.fork_rng(devices=[]):
        network = build(spec).to(next(state.network.parameters()).device)
    tensors = dict(state.network.module.state_dict())
    for conv_name, norm_name in norms:
        conv = state.network.module.get_submodule(conv_name)
        norm = state.network.module.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None and norm.running_var is not None
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        tensors[f"{conv_name}.weight"] = _flushed(conv.weight * factor[:, None, None, None])
        bias = (0.0 if conv.bias is None else conv.bias) - norm.running_mean
        tensors[f"{conv_name}.bias"] = _flushed(norm.bias + bias * factor)
        tensors = {n: t for n, t in tensors.items() if not n.startswith(f"{norm_name}.")}
        for transform in state.spec.transforms:
            tensors = transform.scaled(tensors, conv_name, factor)
    _load(network.module, tensors)
    return ModelState(spec, network)


def _flushed(values: torch.Tensor) -> torch.Tensor:
    return torch.where(values.abs() < SMALLEST_NORMAL, torch.zeros_like(values), values)
