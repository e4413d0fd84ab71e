"""A user's own network: any torch module that takes float images and gives logits.

What the factory builds is traced once for the shape of its images (``tracing.py``), and its layers'
channels are followed (``coupling.py``). A network with fewer channels is what the factory builds,
with its layers cut to size, so that a checkpoint holds weights alone.

Images [N, C, H, W]; logits [N, classes].
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

import torch
from torch import nn

from pipeline.errors import UserError, first_line
from pipeline.models import coupling, operations, points, tracing, weights
from pipeline.models.layers import Parts, multiple_of
from pipeline.models.spec import Graph, NetworkSpec
from pipeline.models.tracing import NotTraceable, Traced
from pipeline.sweep.settings import Own

Shape = tuple[int, int, int]


class _Known(NamedTuple):
    """The outcome of tracing. ``traced`` is None where it failed: ``graph.left`` has the reason.
    ``parts`` is that of ``Coupling``."""

    traced: Traced | None
    graph: Graph
    channels: tuple[int, ...]
    parts: Mapping[str, tuple[tuple[int, ...], ...]]

    def narrowed(self, group: int, width: float) -> int:
        """Channels of the group at this width."""
        count = self.channels[group]
        if self.graph.groups[group].whole:
            return count
        return min(count, multiple_of(self.graph.step(group, 8), count * width))


class OwnModel:
    """The functions of a model, as ``pipeline.models`` wants them, for a factory."""

    def __init__(self, own: Own, load: Callable[[], ModuleType]):
        self.own, self._load = own, load
        self._known: dict[tuple[Shape, int], _Known] = {}

    def spec(
        self,
        name: str,
        width: float,
        shape: Shape,
        classes: int,
        zero_point: int,
        scale: float,
    ) -> NetworkSpec:
        """``width``, at most 1, cuts every layer that can be cut to that part of its filters, in
        multiples of 8, over all blocks of a grouped convolution."""
        if width > 1:
            raise UserError(f"model {name}: width {width:g}: an own network can only be narrower")
        known = self.known(shape, classes)
        channels = known.channels
        if width < 1 and known.traced is None:
            raise UserError(
                f"model {name}: width {width:g}: it cannot be made narrower, since it cannot be "
                f"traced ({known.graph.left[0]})"
            )
        if width < 1:
            channels = tuple(known.narrowed(i, width) for i in range(len(channels)))
        pixels = self.own.pixels
        if pixels is not None:
            zero_point, scale = pixels.zero_point, pixels.scale
        return NetworkSpec(name, channels, shape, classes, zero_point, scale)

    def build(self, spec: NetworkSpec) -> nn.Module:
        known, module = self.known(spec.shape, spec.classes), self.made()
        if known.traced is not None:
            module = known.traced.on(module)
        _resize(module, known, spec.channels)
        return module.train()

    def graph(self, spec: NetworkSpec) -> Graph:
        return self.known(spec.shape, spec.classes).graph

    def known(self, shape: Shape, classes: int) -> _Known:
        channels, height, width = shape
        key = ((channels, height, width), classes)
        if key not in self._known:
            with torch.random.fork_rng(devices=[]):
                self._known[key] = self._look(*key)
        return self._known[key]

    def _look(self, shape: Shape, classes: int) -> _Known:
        with torch.device("meta"):
            module = self.made()
        for name, layer in module.named_modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)) and "weight" not in layer._parameters:
                self._refuse(
                    f"{name}: computes its weight anew at each call (weight or spectral "
                    "normalization, for example), which is not supported"
                )
        try:
            traced = tracing.traced(module, shape)
        except NotTraceable as error:
            output, ends = self._called(shape)
            self._refuse_other(output, shape, classes)
            graph = Graph((), (), (), left=(f"all of it: {error}",), run_ends=ends)
            return _Known(None, graph, (), {})
        [gives] = [n for n in traced.graph.nodes if n.op == "output"]
        self._refuse_other(operations.shape_of(gives.args[0]), shape, classes)
        coupled = coupling.coupled(traced.whole)
        read = points.read(traced.whole)
        graph = Graph(
            groups=coupled.groups,
            norms=tuple(points.pairs(traced.whole)),
            image=read.image,
            maps=traced.maps,
            shared=read.shared,
            outputs=coupled.outputs,
            inputs=coupled.inputs,
            left=coupled.left,
            run_ends=_ends(points.weighted(traced.whole)),
        )
        return _Known(traced, graph, coupled.channels, coupled.parts)

    def _called(self, shape: Shape) -> tuple[tuple[int, ...] | None, tuple[str, str] | None]:
        """The shape of what it gives for two images, None where that is no tensor; and its layers
        that run first and last."""
        module, ran = self.made().eval(), list[str]()
        for name, layer in module.named_modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
        with torch.no_grad():
            try:
                logits = module(torch.zeros(2, *shape))
            except (Exception, SystemExit) as error:  # whatever a user's code raises
                self._refuse(f"raises {type(error).__name__} when called: {first_line(error)}")
        return tuple(logits.shape) if isinstance(logits, torch.Tensor) else None, _ends(ran)

    def _refuse_other(self, output: tuple[int, ...] | None, shape: Shape, classes: int) -> None:
        if output != (2, classes):
            self._refuse(
                f"gives {list(output or ())} for two images of {list(shape)}, expected "
                f"logits [2, {classes}]; `arguments` are what it is called with"
            )

    # --- what the user gave ----------------------------------------------------------------------

    def made(self) -> nn.Module:
        """What the factory builds, with weights of its own."""
        factory: Any = getattr(self._load(), self.own.function, None)
        if not callable(factory):
            self._refuse("is not there; expected a function that gives a torch module")
        try:
            try:
                module = factory(**self.own.arguments)
            except (NotImplementedError, RuntimeError):  # some read values, which meta has none of
                on = torch.empty(0).device
                with torch.device("cpu"):
                    module = factory(**self.own.arguments).to(on)
        except (Exception, SystemExit) as error:
            raise UserError(
                f"factory {self.own.label}: raises {type(error).__name__}: {first_line(error)}"
            ) from error
        if not isinstance(module, nn.Module):
            self._refuse(f"gives {type(module).__name__}; expected a torch.nn.Module")
        return module

    def _refuse(self, problem: str) -> NoReturn:
        raise UserError(f"factory {self.own.label}: {problem}")


def _ends(layers: Sequence[str]) -> tuple[str, str] | None:
    return (layers[0], layers[-1]) if layers else None


def load(own: Own, copy: Path | None) -> Callable[[], ModuleType]:
    """What imports the factory's source: from its copy in the work root, or, where it is a module,
    as Python does. UserError where it is another one than the cell was made for."""
    loaded: list[ModuleType] = []

    def once() -> ModuleType:
        if not loaded:
            loaded.append(_of_file(own, copy) if copy is not None else _of_module(own))
        return loaded[0]

    return once


def _of_file(own: Own, copy: Path) -> ModuleType:
    from pipeline import plugins

    path = copy if copy.exists() else Path(own.source)
    return plugins.imported(path, Path(own.source), own.sha256)


def _of_module(own: Own) -> ModuleType:
    try:
        module = import_module(own.source)
    except ImportError as error:
        raise UserError(f"factory {own.label}: {error}") from error
    if own.version is not None:
        here = metadata.version(own.source.partition(".")[0])
        if here != own.version:
            raise UserError(
                f"factory {own.label}: this cell needs version {own.version}, here is {here}"
            )
    elif module.__file__ is None or _sha256(Path(module.__file__)) != own.sha256:
        raise UserError(
            f"{module.__file__}: is another file than this cell was made for; load its sweep again"
        )
    return module


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- layers cut to size --------------------------------------------------------------------------


def _resize(module: nn.Module, known: _Known, channels: tuple[int, ...]) -> None:
    """Each layer of the graph with as many filters and inputs as its groups have channels: the
    first ones of what was built, so that fresh weights are still the factory's own."""
    if channels == known.channels:
        return
    for name, groups in known.graph.filters.items():
        _cut_filters(module.get_submodule(name), sum(channels[i] for i in groups))
    for name, groups in known.graph.readers.items():
        before, after = (sum(c[i] for i in groups) for c in (known.channels, channels))
        _cut_inputs(module.get_submodule(name), before, after)
    for name, parts in known.parts.items():
        split = module.get_submodule(name)
        assert isinstance(split, Parts)
        split.sizes = [sum(channels[i] for i in groups) for groups in parts]


def _cut_filters(layer: nn.Module, filters: int) -> None:
    for name, tensor in [*layer.named_parameters(recurse=False)]:
        setattr(layer, name, nn.Parameter(tensor.detach()[:filters].clone()))
    for name, buffer in [*layer.named_buffers(recurse=False)]:
        setattr(layer, name, buffer[:filters].clone() if buffer.dim() else buffer)
    if isinstance(layer, nn.Conv2d):
        if layer.groups == layer.in_channels == layer.out_channels > 1:  # depthwise
            layer.groups = layer.in_channels = filters
        layer.out_channels = filters
    elif isinstance(layer, nn.Linear):
        layer.out_features = filters
    elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
        layer.num_features = filters


def _cut_inputs(layer: nn.Module, before: int, after: int) -> None:
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    inputs = layer.weight.shape[1] // before * after
    layer.register_parameter("weight", nn.Parameter(layer.weight.detach()[:, :inputs].clone()))
    if isinstance(layer, nn.Linear):
        layer.in_features = inputs
    else:
        layer.in_channels = inputs * layer.groups


# --- weights that were brought -------------------------------------------------------------------


def brought(own: Own) -> dict[str, torch.Tensor]:
    """The user's trained weights by the names of the factory's module; raises as
    ``weights.read``."""
    assert own.weights is not None
    return weights.read(Path(own.weights), own.weights_sha256)


def fill(module: nn.Module, own: Own) -> None:
    """The brought weights into a module; UserError where they are not those of its layers."""
    weights.fill(module, brought(own), str(own.weights), f"what {own.label} builds")
