"""The one training loop. Every stage that trains calls ``fit``.

Images are uint8 [N, C, H, W] and stay where the device is; labels int64 [N].
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from pipeline import data
from pipeline.models.network import ModelState, normalized
from pipeline.sweep import Recipe
from pipeline.training.losses import Objective
from pipeline.training.recipe import Machine, learning_rate, optimizer

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
EVALUATION_BATCH = 500


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
    buffers: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    columns: dict[str, list[float]] = field(default_factory=lambda: {m: [] for m in METRICS})


def fit(
    training: Training,
    split: data.Split,
    recipe: Recipe,
    epochs: int,
    objective: Objective,
    machine: Machine,
    seed: int,
    *,
    keep: Callable[[Training], None] = lambda training: None,
    tick: Callable[[dict], None] = lambda event: None,
) -> Training:
    """Trains until ``epochs`` are done; calls ``keep`` after each, ``tick`` about once a second.

    Starts from ``training`` as it is: continued from a checkpoint, it ends with the same weights as
    one that was never stopped (same seed, device and threads: bit for bit).
    """
    network = training.state.network.to(machine.device, memory_format=torch.channels_last)
    optim = optimizer(network, recipe, clipped=not normalized(network))
    _restore_buffers(network, optim, training.buffers)
    optim.register_step_post_hook(lambda *_: training.state.after_step())
    train, held_out = split.train.to(machine.device), split.held_out.to(machine.device)
    called = torch.compile(network) if machine.compiled else network
    while training.epoch < epochs:
        began = time.perf_counter()
        generator = seeded(machine.device, seed, training.epoch)
        row = _epoch(
            called,
            optim,
            train,
            split,
            recipe,
            epochs,
            training.epoch,
            objective,
            machine,
            generator,
            tick,
        )
        seconds = time.perf_counter() - began
        loss, accuracy = evaluate(called, held_out, machine)
        if len(held_out) and not math.isfinite(loss):  # the last step may have done it
            raise _diverged(loss, training.epoch, recipe)
        row |= {
            "epoch": training.epoch + 1,
            "held_out_loss": loss,
            "held_out_accuracy": accuracy,
            "learning_rate": optim.param_groups[0]["lr"],
            "seconds": seconds,
            "images_per_second": row.pop("images") / seconds,
        }
        for metric in METRICS:
            training.columns[metric].append(float(row[metric]))
        training.epoch += 1
        training.buffers = _buffers(network, optim)
        keep(training)
    return training


def seeded(device: torch.device, seed: int, epoch: int) -> torch.Generator:
    """A generator of its own for each epoch; torch's global one follows, for stages that use it."""
    mixed = (seed * 1_000_003 + epoch * 7_919 + 17) % 2**63
    torch.manual_seed(mixed)
    return torch.Generator(device).manual_seed(mixed)


def _epoch(
    network, optim, train, split, recipe, epochs, epoch, objective, machine, generator, tick
) -> dict:
    """One pass over the training set -> loss and accuracy (means), images seen. Sums stay on the
    device until the end: asking for a number each step would make a GPU wait."""
    network.train()
    total = torch.zeros(2, device=machine.device)
    images_seen, told, began = 0, time.perf_counter(), time.perf_counter()
    steps = data.batch_count(len(train.labels), recipe.batch_size)
    flip = split.flip if recipe.flip is None else recipe.flip
    batches = data.batches(
        train, recipe.batch_size, generator, crop=recipe.crop, flip=flip, fill=split.zero_point
    )
    for step, (images, labels) in enumerate(batches):
        for group in optim.param_groups:
            group["lr"] = learning_rate(recipe, epoch * steps + step, epochs * steps)
        with machine.autocast():
            loss, logits = objective(network, images, labels)
        optim.zero_grad(set_to_none=True)
        loss.backward()
        optim.step()
        with torch.no_grad():
            total += torch.stack(
                (loss.detach().float() * len(labels), (logits.argmax(1) == labels).sum().float())
            )
        images_seen += len(labels)
        now = time.perf_counter()
        if now - told > 1.0:
            told = now
            tick({"step": step + 1, "steps": steps, "epoch": epoch, "seconds": now - began})
    mean_loss, accuracy = (total / images_seen).tolist()
    if not math.isfinite(mean_loss):
        raise _diverged(mean_loss, epoch, recipe)
    return {"loss": mean_loss, "accuracy": accuracy, "images": images_seen}


def _diverged(loss: float, epoch: int, recipe: Recipe) -> Diverged:
    return Diverged(
        f"the loss became {loss} in epoch {epoch + 1}; "
        f"try a learning_rate below {recipe.learning_rate:g}"
    )


@torch.no_grad()
def evaluate(network: nn.Module, images: data.Images, machine: Machine) -> tuple[float, float]:
    """Mean cross entropy and accuracy on images that are not augmented; nan without images."""
    if not len(images.labels):
        return float("nan"), float("nan")
    network.eval()
    total = torch.zeros(2, device=machine.device)
    for batch, labels in data.ordered(images.to(machine.device), EVALUATION_BATCH):
        with machine.autocast():
            logits = network(batch)
        loss = nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
        total += torch.stack((loss, (logits.argmax(1) == labels).sum().float()))
    loss, accuracy = (total / len(images.labels)).tolist()
    return loss, accuracy


def _buffers(network: nn.Module, optim: torch.optim.Optimizer) -> dict:
    """What the optimizer remembers, by parameter name: {name: {"momentum_buffer": tensor}}."""
    names = {p: n for n, p in network.named_parameters()}
    return {
        names[p]: {k: v for k, v in kept.items() if torch.is_tensor(v)}
        for p, kept in optim.state.items()
    }


def _restore_buffers(network: nn.Module, optim: torch.optim.Optimizer, buffers: dict) -> None:
    """In each parameter's own memory layout: fused and foreach updates rely on it."""
    parameters = dict(network.named_parameters())
    for name, kept in buffers.items():
        p = parameters[name]
        optim.state[p] = {
            k: torch.empty_like(p).copy_(v) if v.shape == p.shape else v.to(p.device)
            for k, v in kept.items()
        }
