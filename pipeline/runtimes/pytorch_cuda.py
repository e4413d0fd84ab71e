"""PyTorch on a GPU, as one deploys it without another dependency: half precision, channels last,
compiled, and each call one CUDA graph.

It runs the float network with the weights that are deployed, batch normalization folded: what was
rounded to integers stays so, but nothing is computed on integers. Images come from the host, and
logits go back to it, within `run`. N images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import first_line
from pipeline.runtimes.contract import Kernels, Shape, share, why_not_importable
from pipeline.runtimes.graphs import Call, Calls

if TYPE_CHECKING:
    import torch

    from pipeline.models.network import ModelState

    Backend = str | Callable[..., Any] | None

TYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class Cuda:
    """The runtime in one precision. `backend`: of torch.compile, None for none; `device`: on a CPU
    there is no graph, which is for tests."""

    precision: str
    backend: Backend = "inductor"
    device: str = "cuda"

    PACKAGE = "torch"
    READS_ARTIFACTS = False
    DEVICE = "cuda"

    @property
    def LABEL(self) -> str:
        return f"PyTorch on a GPU in {self.precision}"

    def available(self) -> str | None:
        if reason := why_not_importable(self.PACKAGE):
            return reason
        if self.device == "cpu":
            return None
        import torch

        if not torch.cuda.is_available():
            return "there is no GPU that CUDA can use"
        if self.precision == "bf16" and torch.cuda.get_device_capability() < (8, 0):
            return f"{torch.cuda.get_device_name()} has no bf16 (it came with Ampere)"
        return None

    def load(self, model: ModelState, threads: int) -> Loaded:
        """`threads` is of CPUs, and not used."""
        import torch

        dtype = getattr(torch, TYPES[self.precision])
        forward = _module(model, dtype, torch.device(self.device))
        return Loaded(forward, model.spec.shape, torch.device(self.device), self.backend)

    def kernels(self, model: ModelState, shape: Shape) -> Kernels:
        import torch

        kinds = (torch.nn.Conv2d, torch.nn.Linear)
        products = [layer for layer in model.network.modules() if isinstance(layer, kinds)]
        return share([(False, layer.weight.numel()) for layer in products])  # all of them in floats


BF16, FP16 = Cuda("bf16"), Cuda("fp16")


def _module(state: ModelState, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    """uint8 [N, C, H, W] -> logits float32 [N, classes]; pixels are normalized in float32."""
    import torch

    from pipeline.models.layers import Network
    from pipeline.models.network import fold, plain

    class Deployed(torch.nn.Module):
        network: Network

        def __init__(self, network: Network):
            super().__init__()
            self.network = network

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            x = self.network.normalize(pixels).to(dtype, memory_format=torch.channels_last)
            return self.network.module(x).float()

    network = fold(plain(state)).network.eval()
    network.requires_grad_(False)
    return Deployed(network).to(device, dtype).to(memory_format=torch.channels_last)


class Loaded:
    """A network on the device, with a graph for each size of batches."""

    def __init__(
        self, module: torch.nn.Module, shape: Shape, device: torch.device, backend: Backend
    ):
        import torch

        self.eager, self.shape, self.device = module, shape, device
        self.not_compiled = None if backend else "not requested"
        self.forward: Callable[[torch.Tensor], torch.Tensor] = module
        if backend:
            self.forward = torch.compile(module, dynamic=False, fullgraph=True, backend=backend)
        self.calls = Calls(self._prepared)

    @property
    def note(self) -> str | None:
        """What differs from this runtime's description of itself."""
        return self.not_compiled and f"not compiled: {self.not_compiled}"

    def run(self, images: np.ndarray) -> np.ndarray:
        return self.calls.run(images)

    def _prepared(self, size: int) -> Call:
        """Compiled; where PyTorch cannot compile this network here, as it is (`not_compiled` has
        the reason), but still in one graph."""
        import torch

        shape = (size, *self.shape)
        if self.not_compiled is None:
            try:
                return Call(self.forward, shape, self.device)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # compilers have no error that all others are of
                self.not_compiled = first_line(getattr(error, "inner_exception", error))
        return Call(self.eager, shape, self.device)
