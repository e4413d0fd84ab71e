"""Groups of a traced network beside torch-pruning's (DepGraph, Fang et al. 2023), on classifiers of
torchvision with random weights: what can be cut together, and parameters and MACs once half of it
is cut.

    env/run python tests/benchmarks/oracle_pruning.py [MODEL@SIDE ...]

Each group loses its last half of channels in both; a network agrees where both end with the same
parameters and MACs, and, by netpress alone, where the smaller network computes what the whole one
does with those channels silenced. What one of the two leaves whole is named.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from typing import Any, NamedTuple

import torch
import torch_pruning
from torch import nn

from pipeline import registry
from pipeline.errors import UserError
from pipeline.measure import complexity
from pipeline.models import network, own
from pipeline.models.spec import NetworkSpec
from pipeline.sweep.settings import Own

CLASSES = 10
MODELS = [
    "alexnet@224",
    "vgg11@64",
    "vgg13_bn@64",
    "vgg16_bn@64",
    "vgg19@64",
    "resnet18@64",
    "resnet34@64",
    "resnet50@64",
    "resnet101@64",
    "resnet152@64",
    "wide_resnet50_2@64",
    "resnext50_32x4d@64",
    "densenet121@64",
    "densenet169@64",
    "squeezenet1_0@64",
    "squeezenet1_1@64",
    "googlenet@96",
    "inception_v3@128",
    "mobilenet_v2@64",
    "mobilenet_v3_small@64",
    "mobilenet_v3_large@64",
    "mnasnet0_5@64",
    "mnasnet1_0@64",
    "shufflenet_v2_x0_5@64",
    "shufflenet_v2_x1_0@64",
    "efficientnet_b0@64",
    "efficientnet_b1@64",
    "efficientnet_v2_s@64",
    "regnet_y_400mf@64",
    "regnet_x_400mf@64",
    "convnext_tiny@64",
]
WITHOUT_INIT = {"googlenet", "inception_v3"}  # their own initialization takes half a minute


class Result(NamedTuple):
    parameters: int
    macs: int


def named(name: str) -> own.OwnModel:
    """A classifier of torchvision, as a user's own network."""
    more = {"init_weights": False} if name in WITHOUT_INIT else {}
    made = Own(
        source="torchvision.models",
        function=name,
        version=metadata.version("torchvision"),
        arguments={"num_classes": CLASSES, **more},
    )
    model = own.OwnModel(made, own.load(made, None))
    registry.fill({})
    registry.add("models", name, registry.Added(lambda: (model, name), name, name))
    return model


def spec_of(name: str, side: int) -> NetworkSpec:
    return named(name).spec(name, 1.0, (3, side, side), CLASSES, 0, 1.0)


def halves(spec: NetworkSpec) -> list[torch.Tensor]:
    """What stays of each group: the first half of the channels that can be cut."""
    groups = network.graph_of(spec).groups
    return [
        torch.arange(count if group.whole else count - count // 2)
        for group, count in zip(groups, spec.channels, strict=True)
    ]


def ours(spec: NetworkSpec) -> Result:
    counts = tuple(len(kept) for kept in halves(spec))
    return Result(*complexity.count(replace(spec, channels=counts)))


def theirs(spec: NetworkSpec) -> Result:
    """The same halves cut by torch-pruning, each group from the first layer that makes it."""
    module = network.build(spec).module.eval()
    images = torch.zeros(1, *spec.shape)
    graph = torch_pruning.DependencyGraph().build_dependency(module, example_inputs=images)
    ours_, modules = network.graph_of(spec), dict(module.named_modules())
    for i, index in _last_halves(spec):
        name = ours_.groups[i].producers[0]
        start = sum(len(kept) for kept in _before(ours_.filters[name], i, spec, done=i))
        cut = graph.get_pruning_group(
            modules[name], _function(modules[name]), idxs=[start + k for k in index]
        )
        cut.prune()
    return Result(*_counted(module, spec))


def _function(layer: nn.Module) -> Any:
    if isinstance(layer, nn.Linear):
        return torch_pruning.prune_linear_out_channels
    assert isinstance(layer, nn.Conv2d)
    depthwise = layer.groups == layer.out_channels > 1
    return (
        torch_pruning.prune_depthwise_conv_out_channels
        if depthwise
        else torch_pruning.prune_conv_out_channels
    )


def _last_halves(spec: NetworkSpec) -> Iterator[tuple[int, list[int]]]:
    for i, (kept, count) in enumerate(zip(halves(spec), spec.channels, strict=True)):
        if len(kept) < count:
            yield i, list(range(len(kept), count))


def _before(groups: tuple[int, ...], group: int, spec: NetworkSpec, done: int) -> Iterator[range]:
    """Channels before those of ``group`` on the same axis; groups below ``done`` are cut by now."""
    kept = halves(spec)
    for each in groups[: groups.index(group)]:
        yield range(len(kept[each]) if each < done else spec.channels[each])


def _counted(module: nn.Module, spec: NetworkSpec) -> tuple[int, int]:
    macs = 0

    def add(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal macs
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        macs += (output.shape[2:].numel() if output.dim() == 4 else 1) * layer.weight.numel()

    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(add)
    with torch.inference_mode():
        module(torch.zeros(1, *spec.shape))
    return sum(p.numel() for p in module.parameters()), macs


def difference(spec: NetworkSpec) -> float:
    """Largest difference, relative to the largest logit, between the smaller network and the whole
    one in which the channels that are to go reach no reader."""
    state = network.new(spec, 0)
    state.network.eval()
    small = network.shrink(state, halves(spec)).network.eval()
    silenced, graph = copy.deepcopy(state.network), network.graph_of(spec)
    kept = halves(spec)
    for name, groups in graph.readers.items():
        layer = silenced.module.get_submodule(name)
        alive = torch.cat([_alive(kept[i], spec.channels[i]) for i in groups])
        alive = alive.repeat_interleave(layer.weight.shape[1] // len(alive))
        layer.weight.data[:, ~alive] = 0
    pixels = torch.randint(0, 2, (2, *spec.shape), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = silenced(pixels), small(pixels)
    return float((found - expected).abs().max() / expected.abs().max())


def _alive(kept: torch.Tensor, count: int) -> torch.Tensor:
    return torch.isin(torch.arange(count), kept)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    wrong = 0
    for asked in parser.parse_args().models:
        name, _, side = asked.partition("@")
        began = time.perf_counter()
        try:
            line, agrees = compared(name, int(side or 64))
        except UserError as error:
            line, agrees = str(error), False
        wrong += not agrees
        print(f"{asked:24} {line} {time.perf_counter() - began:.0f} s", flush=True)
    print(f"{wrong} do not agree" if wrong else "all agree")
    return 1 if wrong else 0


def compared(name: str, side: int) -> tuple[str, bool]:
    spec = spec_of(name, side)
    graph = network.graph_of(spec)
    before, mine = Result(*complexity.count(spec)), ours(spec)
    cut = sum(not group.whole for group in graph.groups)
    left = f"; whole: {' | '.join(graph.left)}" if graph.left else ""
    try:
        other: Result | str = theirs(spec)
    except Exception as error:  # whatever the other library raises is its answer
        other = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    apart = difference(spec)
    same = other == mine and apart < 1e-3
    verdict = "agrees" if same else f"DIFFERS: torch-pruning {other}"
    return (
        f"{cut:3} groups, {before.parameters / 1e6:.2f} -> {mine.parameters / 1e6:.2f} M, "
        f"{before.macs / 1e6:.0f} -> {mine.macs / 1e6:.0f} M MACs, {apart:.0e} apart, "
        f"{verdict}{left}",
        same,
    )


if __name__ == "__main__":
    sys.exit(main())
