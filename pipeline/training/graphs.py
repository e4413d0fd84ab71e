"""A whole training step as one CUDA graph: the host launches one thing a step instead of hundreds.

What changes from step to step (which images, their augmentation, the learning rate) lies in tensors
on the device, at places that do not change; counters on the device say where a step is. Where a
graph cannot be captured, steps are launched by the host as on a CPU, and a line says so.

A CPU has no graphs: there the same code runs step by step, which is how it is tested without a GPU.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from pipeline.data import Draws
from pipeline.errors import first_line
from pipeline.runtimes.graphs import capturing
from pipeline.terminal import tell
from pipeline.training.step import Step

WARM_UP = 3  # runs before a capture: libraries set themselves up in the first ones

Batch = tuple[torch.Tensor, torch.Tensor]


class Steps:
    """The steps of a training on N images, B a batch; ``rates``: of each of the optimizer's groups,
    the learning rate of each step.

    While one batch is trained on, the next one is gathered and augmented, in another branch of the
    graph.
    """

    def __init__(
        self,
        step: Step,
        batch: Callable[[Draws], Batch],
        images: int,
        size: int,
        rates: Sequence[Sequence[float]],
    ):
        device = step.machine.device
        self.step, self.batch, self.images = step, batch, images
        self.rates = torch.tensor(rates, dtype=torch.float32, device=device)
        self.rate = torch.empty(len(rates), device=device)
        self.number = torch.zeros(1, dtype=torch.int64, device=device)  # of the next step
        self.at = torch.arange(size, device=device)  # where the next batch is in the order
        self.first = self.at.clone()
        self.draws: Draws | None = None
        self.now: Batch | None = None
        self.graph: Callable[[], Any] | None = None

    def capture(self, draws: Draws) -> bool:
        """False, and a line for the user, where it cannot be. Weights and the optimizer's memory
        are afterwards what they were; ``draws``: of any epoch."""
        rates = [group["lr"] for group in self.step.optim.param_groups]
        for group, rate in zip(self.step.optim.param_groups, self.rate, strict=True):
            group["lr"] = rate  # in the same memory
        _fill_momentum(self.step.optim)
        self.begin(draws, 0)
        self.step.begin()
        with _unchanged(self.step):
            self.graph = captured(self._once, self.step.machine.device, "the training step")
        if self.graph is None:
            for group, rate in zip(self.step.optim.param_groups, rates, strict=True):
                group["lr"] = rate
        return self.graph is not None

    def replay(self, draws: Draws, first: int) -> Iterator[None]:
        """The steps of the epoch with these draws, from step ``first`` (from 0) of the training."""
        assert self.graph is not None, "captured before"
        self.begin(draws, first)
        for _ in range(self.images // len(self.at)):
            self.graph()
            yield

    def begin(self, draws: Draws, first: int) -> None:
        if self.draws is None:
            self.draws = Draws(*(each.clone() for each in draws.tensors()))
        for mine, given in zip(self.draws.tensors(), draws.tensors(), strict=True):
            mine.copy_(given)
        self.number.fill_(first)
        self.at.copy_(self.first)
        self._keep(self._next())

    def _once(self) -> None:
        """One step, and beside it the next batch."""
        assert self.now is not None
        self.rate.copy_(self.rates.index_select(1, self.number).squeeze(1))
        self.number.add_(1).remainder_(self.rates.shape[1])  # stays an index while it is warmed up
        if self.rates.is_cuda:
            main, beside = torch.cuda.current_stream(), torch.cuda.Stream()
            beside.wait_stream(main)
            with torch.cuda.stream(beside):
                following = self._next()
            try:
                self.step(*self.now)
            finally:  # else the capture of a step that fails could not end, nor free its memory
                main.wait_stream(beside)
        else:
            following = self._next()
            self.step(*self.now)
        self._keep(following)

    def _next(self) -> Batch:
        assert self.draws is not None
        batch = self.batch(self.draws.part(self.at))
        self.at.add_(len(self.at)).remainder_(self.images)  # after the last batch comes any other
        return batch

    def _keep(self, batch: Batch) -> None:
        if self.now is None:
            self.now = batch[0].clone(), batch[1].clone()
        for mine, given in zip(self.now, batch, strict=True):
            mine.copy_(given)


def captured(
    function: Callable[[], Any], device: torch.device, name: str
) -> Callable[[], Any] | None:
    """What runs ``function`` again and returns what it returned, in the same tensors; None, and a
    line for the user, where it cannot be captured: also where a graph's own memory is too much."""
    if device.type != "cuda":
        for _ in range(WARM_UP):
            function()
        return function
    try:
        return _captured(function)
    except Exception as error:  # compilers have none that all others are of
        line = first_line(error)
    gc.collect()  # the error's frames are left: what the capture took is free for the eager steps
    torch.cuda.empty_cache()
    tell(f"{name} cannot be captured in a CUDA graph, so it runs without one ({line})")
    return None


def _captured(function: Callable[[], Any]) -> Callable[[], Any]:
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    # Other threads may use the device meanwhile: checkpoints are written in one.
    with capturing(graph, "thread_local"):
        results = function()

    def replay() -> Any:
        graph.replay()
        return results

    return replay


def _fill_momentum(optim: torch.optim.Optimizer) -> None:
    """Zeros, which the first step makes into what it would have begun with: a graph has one kind of
    step only."""
    for group in optim.param_groups:
        for p in group["params"] if group["momentum"] else ():
            if p.requires_grad and "momentum_buffer" not in optim.state[p]:
                optim.state[p]["momentum_buffer"] = torch.zeros_like(p)


@contextmanager
def _unchanged(step: Step) -> Iterator[None]:
    """Weights, buffers, momentum, sums and random numbers are afterwards what they were."""
    module, device = step.state.network, step.machine.device
    tensors = [*module.parameters(), *module.buffers(), step.total]
    tensors += [t for kept in step.optim.state.values() for t in kept.values()]
    before = [t.detach().clone() for t in tensors]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
    with torch.no_grad():
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)
