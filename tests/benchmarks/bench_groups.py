"""Groups of a traced network beside torch-pruning's (DepGraph, Fang et al. 2023), on classifiers of
torchvision and timm with random weights: what can be cut together, and parameters and MACs once
half of it is cut.

    env/run python -m tests.benchmarks.bench_groups [[timm:]MODEL[@SIDE] ...]

Each group loses a half of its channels, drawn by chance, in both; a network agrees where both end
with the same parameters and MACs, and, by netpress alone, where the smaller network computes what
the whole one does in which the removed filters and their normalization give zero. A network on
which torch-pruning itself raises is not comparable, and does not count as agreeing. `layers`: whose
filters are cut, of those that torch-pruning cuts on its own; the rest has its reason.
"""

from __future__ import annotations

import argparse
import copy
import sys
from dataclasses import replace
from importlib import metadata
from typing import Any, NamedTuple

import torch
import torch_pruning
from torch import nn

from pipeline import registry
from pipeline.measure import complexity
from pipeline.models import network, own
from pipeline.models.layers import Parts
from pipeline.models.spec import NetworkSpec
from pipeline.sweep.settings import Own

CLASSES = 10
MODELS = [
    "alexnet@224",
    "vgg11_bn",
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "densenet121",
    "squeezenet1_1",
    "googlenet@96",
    "inception_v3@128",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mnasnet0_5",
    "shufflenet_v2_x0_5",
    "efficientnet_b0",
    "regnet_y_400mf",
    "convnext_tiny",
    "timm:resnet10t",
    "timm:mobilenetv3_small_050",
    "timm:lcnet_050",
    "timm:tinynet_e",
    "timm:mixnet_s",
    "timm:ghostnet_050",
    "timm:fbnetc_100",
    "timm:regnetx_002",
    "timm:repvgg_a0",
    "timm:dla46_c",
    "timm:skresnet18",
    "timm:ese_vovnet19b_slim_dw",
    "timm:cs3darknet_focus_s",
    "timm:hgnetv2_b0",
    "timm:rexnet_100",
    "timm:convnext_atto",
    "timm:legacy_seresnet18",
    "timm:selecsls42",
    "timm:mobileone_s0",
    "timm:efficientnet_lite0",
    "timm:semnasnet_075",
    "timm:resnet14t",
]
WITHOUT_INIT = {"googlenet", "inception_v3"}  # their own initialization takes half a minute


class Result(NamedTuple):
    parameters: int
    macs: int


def named(name: str) -> own.OwnModel:
    """A classifier of torchvision, or ``timm:NAME``, as a user's own network."""
    package, _, function = name.rpartition(":")
    package = package or "torchvision"
    more = {"init_weights": False} if function in WITHOUT_INIT else {}
    made = Own(
        source=f"{package}.models",
        function=function,
        version=metadata.version(package),
        arguments={"num_classes": CLASSES, **more},
    )
    model = own.OwnModel(made, own.load(made, None))
    registry.fill({})
    registry.add("models", label(name), registry.Added(lambda: (model, name), name, name))
    return model


def label(name: str) -> str:
    """No name of a model that netpress has."""
    return f"theirs-{name.rpartition(':')[2]}"


def spec_of(name: str, side: int) -> NetworkSpec:
    return named(name).spec(label(name), 1.0, (3, side, side), CLASSES, 0, 1.0)


def halves(spec: NetworkSpec) -> list[torch.Tensor]:
    """What stays of each group: a half of the channels that can be cut, by chance."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randperm(count, generator=generator)[: count if g.whole else count - count // 2]
        .sort()
        .values
        for g, count in zip(network.graph_of(spec).groups, spec.channels, strict=True)
    ]


def ours(spec: NetworkSpec) -> Result:
    counts = tuple(len(kept) for kept in halves(spec))
    return Result(*complexity.count(replace(spec, channels=counts)))


def theirs(spec: NetworkSpec) -> Result:
    """The same channels cut by torch-pruning, each group from the first layer that makes it."""
    module, graph = _dependencies(spec)
    names, modules = network.graph_of(spec), dict(module.named_modules())
    stays = halves(spec)
    for i, (kept, count) in enumerate(zip(stays, spec.channels, strict=True)):
        name = names.groups[i].producers[0]
        if len(kept) == count:
            continue
        gone, start, cut = ~_alive(kept, count), 0, []
        for each in names.filters[name]:  # those below `i` are cut by now
            if each == i:
                cut += [start + k for k in gone.nonzero().flatten().tolist()]
            start += len(stays[each]) if each < i else spec.channels[each]
        layer = modules[name]
        graph.get_pruning_group(layer, _function(layer), idxs=cut).prune()
    _split_as(module, replace(spec, channels=tuple(len(kept) for kept in stays)))
    return Result(*_counted(module, spec))


def _dependencies(spec: NetworkSpec) -> tuple[nn.Module, Any]:
    module = network.build(spec).module.eval()
    graph = torch_pruning.DependencyGraph()
    graph.build_dependency(module, example_inputs=torch.zeros(1, *spec.shape), verbose=False)
    return module, graph


def _split_as(module: nn.Module, spec: NetworkSpec) -> None:
    """torch-pruning knows no sizes in a network's code."""
    for name, layer in network.build(spec).module.named_modules():
        if isinstance(layer, Parts):
            split = module.get_submodule(name)
            assert isinstance(split, Parts)
            split.sizes = layer.sizes


def cut_layers(spec: NetworkSpec) -> tuple[set[str], set[str]]:
    """Layers whose filters can be cut: here, and as torch-pruning sees it by itself."""
    mine = {n for g in network.graph_of(spec).groups if not g.whole for n in g.producers}
    module, graph = _dependencies(spec)
    names = {layer: name for name, layer in module.named_modules()}
    last = [m for m in names if _filters(m) == CLASSES]
    kinds = [nn.Conv2d, nn.Linear]
    others = set()
    for group in graph.get_all_groups(ignored_layers=last, root_module_types=kinds):
        for dependency, _ in group:
            layer = dependency.target.module
            if isinstance(layer, (nn.Conv2d, nn.Linear)) and graph.is_out_channel_pruning_fn(
                dependency.handler
            ):
                others.add(names[layer])
    return mine, others


def _filters(layer: nn.Module) -> int | None:
    return len(layer.weight) if isinstance(layer, (nn.Conv2d, nn.Linear)) else None


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


def _counted(module: nn.Module, spec: NetworkSpec) -> tuple[int, int]:
    macs = 0

    def add(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal macs
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        macs += output.numel() // len(layer.weight) * layer.weight.numel()

    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(add)
    with torch.inference_mode():
        module(torch.zeros(1, *spec.shape))
    return sum(p.numel() for p in module.parameters()), macs


@torch.no_grad()
def difference(spec: NetworkSpec, kept: list[torch.Tensor] | None = None) -> float:
    """Largest difference, relative to the largest logit, between the smaller network and the whole
    one in which the channels that are to go are zero wherever they are made, and between that and
    the one in which no layer reads them."""
    state, kept = network.new(spec, 0), kept or halves(spec)
    _enliven(state.network)
    smaller, graph = network.shrink(state, kept).network.module, network.graph_of(spec)
    alive = [_alive(*each) for each in zip(kept, spec.channels, strict=True)]
    silent, unread = (copy.deepcopy(state.network.module) for _ in range(2))
    for name, groups in graph.filters.items():
        layer, stays = silent.get_submodule(name), torch.cat([alive[i] for i in groups])
        for parameter in layer.parameters(recurse=False):
            parameter[~stays] = 0
    for name, groups in graph.readers.items():
        layer, stays = unread.get_submodule(name), torch.cat([alive[i] for i in groups])
        weight = layer.get_parameter("weight")
        weight[:, ~stays.repeat_interleave(weight.shape[1] // len(stays))] = 0
    images = torch.randn(2, *spec.shape, generator=torch.Generator().manual_seed(0)).double()
    logits, *others = (module.double().eval()(images) for module in (smaller, silent, unread))
    return max(float((logits - o).abs().max() / o.abs().max()) for o in others)


def _enliven(module: nn.Module) -> None:
    """Normalizations as training leaves them, none of which is the identity."""
    generator = torch.Generator().manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            assert layer.running_mean is not None and layer.running_var is not None
            for tensor, spread, middle in (
                (layer.weight, 0.5, 1.0),
                (layer.bias, 0.2, 0.0),
                (layer.running_mean, 0.2, 0.0),
                (layer.running_var, 0.5, 1.0),
            ):
                if tensor is not None:
                    noise = torch.rand(len(tensor), generator=generator) * 2 - 1
                    tensor.copy_(middle + spread * noise)


def _alive(kept: torch.Tensor, count: int) -> torch.Tensor:
    return torch.isin(torch.arange(count), kept)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    agreements: list[bool | None] = []
    print("| network | groups | layers | parameters, M | MACs, M | apart | | whole, and why |")
    print("|---|---|---|---|---|---|---|---|")
    for given in parser.parse_args().models:
        name, _, side = given.partition("@")
        line, agrees = compared(name, int(side or 64))
        agreements.append(agrees)
        print(f"| {given} | {line} |{' WRONG' if agrees is False else ''}", flush=True)
    print(summary(agreements))
    return 1 if False in agreements else 0


def summary(agreements: list[bool | None]) -> str:
    """Counts of the agreements that `compared` returned."""
    line = f"{agreements.count(True)} agree, {agreements.count(None)} not comparable"
    return line + (f", {agreements.count(False)} WRONG" if False in agreements else "")


def compared(name: str, side: int) -> tuple[str, bool | None]:
    """A row of the table, and whether both libraries agree; None where torch-pruning raised, and
    the logits are right."""
    spec = spec_of(name, side)
    graph = network.graph_of(spec)
    before, mine = Result(*complexity.count(spec)), ours(spec)
    groups = sum(not group.whole for group in graph.groups)
    try:
        here, there = cut_layers(spec)
        layers = f"{len(here & there)} of {len(there)}"
        layers += f", {len(here - there)} more" if here - there else ""
        other: Result | str = theirs(spec)
    except Exception as error:  # what the other library raises: there is nothing to compare with
        first = (str(error).splitlines() or [""])[0][:80]
        other, layers = f"raises {type(error).__name__}: {first}", "?"
    apart = difference(spec)
    agrees: bool | None = other == mine and apart < 1e-6
    if isinstance(other, str) and apart < 1e-6:
        agrees = None
    verdict = "agrees" if agrees else f"torch-pruning {other}"
    line = (
        f"{groups} | {layers} | {before.parameters / 1e6:.2f} to {mine.parameters / 1e6:.2f} | "
        f"{before.macs / 1e6:.0f} to {mine.macs / 1e6:.0f} | {apart:.0e} | {verdict} | "
        f"{'; '.join(graph.left)}"
    )
    return line, agrees


if __name__ == "__main__":
    sys.exit(main())
