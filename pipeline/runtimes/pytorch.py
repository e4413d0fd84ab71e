"""PyTorch eager in float32: the network that an artifact was made from, as the reference.

Fake quantization stays in it, and is computed in floats.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.runtimes.contract import Kernels, Shape, share, why_not_importable

if TYPE_CHECKING:
    import torch

    from pipeline.models.network import ModelState

LABEL, PACKAGE, READS_ARTIFACTS = "PyTorch", "torch", False


def available() -> str | None:
    return why_not_importable(PACKAGE)


@dataclass(frozen=True)
class Loaded:
    network: torch.nn.Module
    threads: int

    def run(self, images: np.ndarray) -> np.ndarray:
        import torch

        with _threads(self.threads), torch.inference_mode():
            return self.network(torch.from_numpy(images)).numpy()


def load(model: ModelState, threads: int) -> Loaded:
    import torch

    network = copy.deepcopy(model.network).cpu().float().eval()
    return Loaded(network.to(memory_format=torch.contiguous_format), threads)


def kernels(model: ModelState, shape: Shape) -> Kernels:
    import torch

    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    products = [layer for layer in model.network.modules() if isinstance(layer, kinds)]
    return share([(False, layer.weight.numel()) for layer in products])  # all of them in floats


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """PyTorch has one number for the whole process."""
    import torch

    before = torch.get_num_threads()
    if before == number:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
