"""Parameters and multiply-accumulates (MACs) of an image, counted on the float network's shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from pipeline.models.network import build, graph_of
from pipeline.models.spec import NetworkSpec


def count(spec: NetworkSpec) -> tuple[int, int]:
    """(parameters, MACs an image): convolutions and linear layers, as the field counts them."""
    module, uses = _used(spec)
    macs = sum(places * module.get_parameter(f"{name}.weight").numel() for name, places in uses)
    return sum(p.numel() for p in module.parameters()), macs


def _used(spec: NetworkSpec) -> tuple[nn.Module, list[tuple[str, int]]]:
    """The float network without memory, and for each call of a convolution or linear layer its name
    and the positions at which its weight is used."""
    uses: list[tuple[str, int]] = []

    def use(name: str) -> Callable[[nn.Module, object, torch.Tensor], None]:
        def add(layer: nn.Module, inputs: object, output: torch.Tensor) -> None:
            uses.append((name, output.numel() // len(layer.get_parameter("weight"))))

        return add

    with torch.device("meta"):
        network = build(spec.structure).eval()
        for name, module in network.module.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.register_forward_hook(use(name))
        network(torch.zeros(1, *spec.shape))
    return network.module, uses


def by_channels(spec: NetworkSpec) -> Callable[[Sequence[int]], tuple[int, int]]:
    """What ``count`` gives for the same network with other channel counts, without building it:
    each dimension of a tensor that is a group's follows its count."""
    graph, (module, uses) = graph_of(spec), _used(spec)
    positions: dict[str, int] = {}
    for name, places in uses:
        positions[name] = positions.get(name, 0) + places
    tensors = []
    for name, parameter in module.named_parameters():
        layer, _, kind = name.rpartition(".")
        groups = [graph.filters.get(layer, ()), graph.readers.get(layer, ())][: parameter.dim()]
        fixed = parameter.numel()
        for each in filter(None, groups):
            fixed //= sum(spec.channels[i] for i in each)
        tensors.append((groups, fixed, positions.get(layer, 0) if kind == "weight" else 0))

    def count(channels: Sequence[int]) -> tuple[int, int]:
        parameters = macs = 0
        for groups, size, used in tensors:
            for each in filter(None, groups):
                size *= sum(channels[i] for i in each)
            parameters += size
            macs += size * used
        return parameters, macs

    return count


def subnormals(model: bytes) -> int:
    """Numbers in an ONNX model that are not zero but too small for fast arithmetic; see
    ``network.fold``, which leaves none."""
    import onnx

    tensors = onnx.load_model_from_string(model).graph.initializer
    floats = (onnx.numpy_helper.to_array(t) for t in tensors if t.data_type == t.FLOAT)
    tiny = np.finfo(np.float32).tiny
    return sum(int(((t != 0) & (np.abs(t) < tiny)).sum()) for t in floats)
