"""The one training loop. Every stage that trains calls ``fit``.

Images are uint8 [N, C, H, W] and stay where the device is; labels int64 [N].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pipeline import clock, data
from pipeline.models.initial import image_layers
from pipeline.models.network import ModelState, normalized
from pipeline.sweep import Recipe
from pipeline.training import compiling, graphs
from pipeline.training.lookahead import Lookahead
from pipeline.training.losses import Objective
from pipeline.training.recipe import Machine, group_rate, optimizer
from pipeline.training.step import Step

METRICS = (
    "epoch",
    "loss",
    "accuracy",
    "held_out_loss",
    "held_out_accuracy",
    "learning_rate",
    "seconds",
    "images_per_second",
)
# Of a training: for fewer, on a GPU, compiling takes longer than it saves. Of VGG-16 on an H200 at
# batch 512 it saves 1.3 ms a step, and takes 5 s though its cache is warm.
COMPILED_STEPS = 5_000
Buffers = dict[str, dict[str, torch.Tensor]]  # of the optimizer: parameter's name -> its own


class Diverged(ArithmeticError):
    """The loss is not a number any more; going on would only burn hours."""


@dataclass
class Training:
    """A training as it stands between two epochs: what a checkpoint has to keep.

    There is no random state among it: each epoch draws from a generator seeded by (seed, epoch),
    so the number of epochs done is the random state.
    """

    state: ModelState
    epoch: int = 0
    buffers: Buffers = field(default_factory=dict)
    averages: dict[str, torch.Tensor] = field(default_factory=dict)  # see Lookahead
    columns: dict[str, list[float]] = field(default_factory=lambda: {m: [] for m in METRICS})


@dataclass(frozen=True)
class Course:
    """What a training does from its first epoch to its last; ``seed`` decides all chance in it."""

    recipe: Recipe
    epochs: int
    objective: Objective
    machine: Machine
    seed: int


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Hooks:
    """What else is called, in this order, and with what.

    ``after_step(state, step, steps)``: after each optimizer step, ``step`` of all ``steps`` of the
    training being done, without gradients; the state's own transforms come first. ``after_epoch``:
    the training, before it is kept. ``keep``: the training, to be written down: what hooks did by
    then must be in its state, since a resumed training calls none of them again. ``tick``: about
    once a second, where it stands. ``settle``: before a step is captured; it returns once no other
    thread uses the device.
    """

    after_step: Callable[[ModelState, int, int], None] = _nothing
    after_epoch: Callable[[Training], None] = _nothing
    keep: Callable[[Training], None] = _nothing
    tick: Callable[[dict[str, Any]], None] = _nothing
    phase: Callable[[str], None] = _nothing
    settle: Callable[[], None] = _nothing


def fit(
    training: Training, split: data.Split, course: Course, hooks: Hooks | None = None
) -> Training:
    """Trains until ``course.epochs`` are done.

    Starts from ``training`` as it is: continued from a checkpoint, it ends with the same weights as
    one that was never stopped (same seed, device and threads: bit for bit). Raises Diverged.
    """
    loop = _Loop(training, split, course, hooks or Hooks())
    try:
        return loop.run()
    finally:
        loop.release()


class _Loop:
    def __init__(self, training: Training, split: data.Split, course: Course, hooks: Hooks):
        self.training, self.split, self.course, self.hooks = training, split, course, hooks
        machine, recipe = course.machine, course.recipe
        network = training.state.network.to(machine.device).to(memory_format=torch.channels_last)
        self.network = network
        first = image_layers(training.state) if recipe.whitening else ()
        image = [layer.weight for layer in first]
        self.optim = optimizer(network, recipe, not normalized(network), image)
        _restore_buffers(network, self.optim, training.buffers)
        self.lookahead = Lookahead(network, recipe, training.averages)
        self.train = split.train.to(machine.device)
        self.held_out = split.held_out.to(machine.device)
        flip = split.flip if recipe.flip is None else recipe.flip
        self.how = data.Augmentation(
            recipe.crop, flip, split.zero_point, recipe.cutout, recipe.resized_crop
        )
        self.steps = data.batch_count(len(self.train), recipe.batch_size)
        self.size = min(recipe.batch_size, len(self.train))
        called = compiled(network) if machine.compiled and not machine.graphed else network
        self.step = Step(training.state, called, course.objective, machine, self.optim)
        self.evaluated: Callable[[], tuple[float, float]] = lambda: evaluate(
            called, self.held_out, machine
        )
        self.stepping = self._eager
        self.captured: graphs.Steps | None = None

    def run(self) -> Training:
        training = self.training
        if training.epoch < self.course.epochs and self.course.machine.graphed:
            self._capture()
        while training.epoch < self.course.epochs:
            row = self._row()
            for metric in METRICS:
                training.columns[metric].append(float(row[metric]))
            training.epoch += 1
            self.hooks.after_epoch(training)
            training.buffers = _buffers(self.network, self.optim)
            training.averages = self.lookahead.kept()
            self.hooks.keep(training)
        if self.course.machine.graphed:  # its gradients would keep its memory
            self.optim.zero_grad(set_to_none=True)
        return training

    def release(self) -> None:
        """Nothing can be called any more. What it calls refers to it, and garbage is collected
        seldom: a GPU would keep its graphs, images and momentum while the next stage trains."""
        if self.captured is not None:
            self.captured.graph = None
        vars(self).clear()

    def _row(self) -> dict[str, float]:
        """One epoch, and what is recorded of it: a value for each of METRICS."""
        began = clock.now()
        row = self._epoch()
        if self.training.epoch + 1 == self.course.epochs:
            self.lookahead.finish(self.course.epochs * self.steps)
        seconds = clock.now() - began
        loss, accuracy = self.evaluated()
        if len(self.held_out) and not math.isfinite(loss):  # the last step may have done it
            raise _diverged(loss, self.training.epoch, self.course.recipe)
        if (flaw := self.training.state.flaw()) is not None:
            raise Diverged(
                f"{flaw} in epoch {self.training.epoch + 1}; try a smaller learning rate"
            )
        return row | {
            "epoch": self.training.epoch + 1,
            "held_out_loss": loss,
            "held_out_accuracy": accuracy,
            "learning_rate": float(self.optim.param_groups[0]["lr"]),
            "seconds": seconds,
            "images_per_second": self.steps * self.size / seconds,
        }

    def _epoch(self) -> dict[str, float]:
        """One pass over the training set -> loss and accuracy (means). Sums stay on the device
        until the end: asking for a number each step would make a GPU wait."""
        self.step.begin()
        epoch, state = self.training.epoch, self.training.state
        reported, began = clock.now(), clock.now()
        for step, _ in enumerate(self.stepping(self._draws()), 1):
            with torch.no_grad():
                done = epoch * self.steps + step
                self.hooks.after_step(state, done, self.course.epochs * self.steps)
                self.lookahead.after_step(done, self.course.epochs * self.steps)
            now = clock.now()
            if now - reported > 1.0:
                reported = now
                there = {"step": step, "steps": self.steps}
                self.hooks.tick({**there, "epoch": epoch, "seconds": now - began})
        mean_loss, accuracy = (self.step.total / (self.steps * self.size)).tolist()
        if not math.isfinite(mean_loss):
            raise _diverged(mean_loss, epoch, self.course.recipe)
        return {"loss": mean_loss, "accuracy": accuracy}

    def _draws(self) -> data.Draws:
        generator = seeded(self.course.machine.device, self.course.seed, self.training.epoch)
        return data.draw(self.train, generator, self.how, self._mirrored())

    def _mirrored(self) -> torch.Tensor | None:
        """Which images are mirrored in this epoch, where that is not left to chance: each in every
        other one, half of them in the first (Jordan 2024, arXiv 2404.00498)."""
        if self.course.recipe.flips == "random":
            return None
        device, seed = self.course.machine.device, self.course.seed
        generator = torch.Generator(device).manual_seed(seed * 1_000_003 + 11)
        first = torch.randint(0, 2, (len(self.train),), generator=generator, device=device).bool()
        return first ^ bool(self.training.epoch % 2)

    def _eager(self, draws: data.Draws) -> Iterator[None]:
        """The steps of an epoch, each launched by the host."""
        first = self.training.epoch * self.steps
        for step in range(self.steps):
            for group in self.optim.param_groups:
                group["lr"] = self._rate(group, first + step)
            part = draws.part(slice(step * self.size, (step + 1) * self.size))
            self.step(*self._batch(part))
            yield

    def _batch(self, draws: data.Draws) -> tuple[torch.Tensor, torch.Tensor]:
        return data.augmented(self.train, draws, self.how)

    def _rate(self, group: dict[str, Any], step: int) -> float:
        """The learning rate of a group of the optimizer in step number ``step`` (from 0) of the
        whole training."""
        return group_rate(group, self.course.recipe, step, self.course.epochs * self.steps)

    # --- CUDA graphs -----------------------------------------------------------------------------

    def _pays(self) -> bool:
        """Whether compiling takes less time than it saves."""
        enough = self.course.epochs * self.steps >= COMPILED_STEPS
        return self.course.machine.compiled and (enough or self.course.recipe.compile == "on")

    def _capture(self) -> None:
        """From here on steps and evaluations are replayed, where they can be captured."""
        self.hooks.phase("compile")
        # PyTorch hands out its streams in turns: another thread's may be that which captures.
        self.hooks.settle()
        rates = [
            [self._rate(group, step) for step in range(self.course.epochs * self.steps)]
            for group in self.optim.param_groups
        ]
        steps = graphs.Steps(self.step, self._batch, len(self.train), self.size, rates)
        self.captured = steps
        machine, plain = self.course.machine, self.course.objective
        for objective in ([compiling.compiled(plain)] if self._pays() else []) + [plain]:
            self.step.objective = objective
            if steps.capture(self._draws()):
                self.stepping = lambda draws: steps.replay(draws, self.training.epoch * self.steps)
                break
        if len(self.held_out):
            sums = graphs.captured(
                lambda: summed(self.network, self.held_out, machine), machine.device, "evaluation"
            )
            if sums is not None:
                self.evaluated = lambda: means(sums(), self.held_out)
        self.hooks.phase("train")


def seeded(device: torch.device, seed: int, epoch: int) -> torch.Generator:
    """A generator of its own for each epoch; torch's global one follows, for stages that use it."""
    mixed = (seed * 1_000_003 + epoch * 7_919 + 17) % 2**63
    torch.manual_seed(mixed)
    return torch.Generator(device).manual_seed(mixed)


def _diverged(loss: float, epoch: int, recipe: Recipe) -> Diverged:
    return Diverged(
        f"the loss became {loss} in epoch {epoch + 1}; "
        f"try a learning_rate below {recipe.learning_rate:g}"
    )


def compiled(network: nn.Module) -> nn.Module:
    """torch declares a function, but what it makes of a module is one."""
    return torch.compile(network)  # type: ignore[return-value]


def evaluate(network: nn.Module, images: data.Images, machine: Machine) -> tuple[float, float]:
    """Mean cross entropy and accuracy on images that are not augmented; nan without images."""
    if not len(images):
        return float("nan"), float("nan")
    return means(summed(network, images.to(machine.device), machine), images)


@torch.no_grad()
def summed(network: nn.Module, images: data.Images, machine: Machine) -> torch.Tensor:
    """[2], on the device: sum of the cross entropies, number of images classified right."""
    network.eval()
    total = torch.zeros(2, device=machine.device)
    for batch, labels in data.evaluated(images):
        with machine.autocast():
            logits = network(batch)
        loss = nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
        total += torch.stack((loss, (logits.argmax(1) == labels).sum().float()))
    return total


def means(sums: torch.Tensor, images: data.Images) -> tuple[float, float]:
    loss, accuracy = (sums / len(images)).tolist()
    return loss, accuracy


def _buffers(network: nn.Module, optim: torch.optim.Optimizer) -> Buffers:
    """What the optimizer remembers, by parameter name: {name: {"momentum_buffer": tensor}}."""
    names: dict[torch.Tensor, str] = {p: n for n, p in network.named_parameters()}
    return {
        names[p]: {k: v for k, v in kept.items() if torch.is_tensor(v)}
        for p, kept in optim.state.items()
    }


def _restore_buffers(network: nn.Module, optim: torch.optim.Optimizer, buffers: Buffers) -> None:
    """In each parameter's own memory layout: fused and foreach updates rely on it."""
    parameters = dict(network.named_parameters())
    for name, kept in buffers.items():
        p = parameters[name]
        optim.state[p] = {
            k: torch.empty_like(p).copy_(v) if v.shape == p.shape else v.to(p.device)
            for k, v in kept.items()
        }
