"""Calls of a GPU, each one CUDA graph: memory that stays where it is, for a few sizes of batches.

What computes is a function on the device; it is captured here, and images are moved to it and
logits back. N images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    Forward = Callable[[torch.Tensor], torch.Tensor]  # uint8 [N, C, H, W] -> float32 [N, classes]

SIZES = (1, 64, 1024)  # images of a graph; what is in between is filled up
WARM_UP = 3  # calls before a graph is captured: compilation, and cuDNN's choice of algorithms
MOST_VARIANTS = 1000  # that PyTorch may compile of one function: sizes x networks x precisions


class Calls:
    """One for each of SIZES that was needed so far."""

    def __init__(self, prepare: Callable[[int], Call]):
        self._prepare = prepare
        self._calls: dict[int, Call] = {}

    def run(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, C, H, W] -> logits float32 [N, classes]; as many as there are, SIZES[-1] at a
        time at most."""
        most = SIZES[-1]
        parts = [images[i : i + most] for i in range(0, len(images), most)]
        return np.concatenate([self.of(len(part)).run(part) for part in parts])

    def of(self, images: int) -> Call:
        """The one for that many images, prepared at first use."""
        size = next(size for size in SIZES if size >= images)
        if size not in self._calls:
            self._calls[size] = self._prepare(size)
        return self._calls[size]


class Call:
    """One size: memory that stays where it is, and what is done between."""

    def __init__(self, forward: Forward, shape: tuple[int, ...], device: torch.device):
        import torch

        self.forward, on_gpu = forward, device.type == "cuda"
        self.host = torch.zeros(shape, dtype=torch.uint8, pin_memory=on_gpu)
        self.pixels = self.host.to(device)
        self.graph: torch.cuda.CUDAGraph | None = None
        with fastest():
            logits = self._warm()
            if on_gpu:
                self.graph = torch.cuda.CUDAGraph()
                with capturing(self.graph):
                    logits = self.forward(self.pixels)
        self.logits = logits
        self.given = torch.zeros(logits.shape, pin_memory=on_gpu)

    def _warm(self) -> torch.Tensor:
        """On a stream of its own, as capturing requires."""
        import torch

        if self.pixels.device.type != "cuda":
            return self.forward(self.pixels)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                logits = self.forward(self.pixels)
        torch.cuda.current_stream().wait_stream(stream)
        return logits

    def run(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, C, H, W], N at most this size -> logits float32 [N, classes]."""
        import torch

        self.host[: len(images)].copy_(torch.from_numpy(np.ascontiguousarray(images)))
        self.pixels.copy_(self.host, non_blocking=True)
        self.compute()
        self.given.copy_(self.logits, non_blocking=True)
        self.wait()
        return self.given[: len(images)].numpy().copy()

    def compute(self) -> None:
        """On the images that are on the device; on a GPU this only begins it."""
        if self.graph is not None:
            self.graph.replay()
            return
        with fastest():
            self.logits = self.forward(self.pixels)

    def wait(self) -> None:
        import torch

        if self.graph is not None:
            torch.cuda.current_stream().synchronize()


@contextmanager
def capturing(graph: torch.cuda.CUDAGraph, error_mode: str = "global") -> Iterator[None]:
    """What is launched meanwhile is captured in the graph. Where that fails, PyTorch leaves the
    stream on which it captures as the current one: here it is what it was, whatever happens.
    ``error_mode``: see torch.cuda.graph."""
    import torch

    with (
        torch.cuda.stream(torch.cuda.current_stream()),
        torch.cuda.graph(graph, capture_error_mode=error_mode),
    ):
        yield


@contextmanager
def fastest() -> Iterator[None]:
    """Whatever training set: the fastest algorithms, of the requested precision."""
    import torch
    import torch._dynamo

    with (
        torch.no_grad(),
        torch.backends.cudnn.flags(
            enabled=True, benchmark=True, deterministic=False, allow_tf32=False
        ),
        torch._dynamo.config.patch(recompile_limit=MOST_VARIANTS),
    ):
        yield
