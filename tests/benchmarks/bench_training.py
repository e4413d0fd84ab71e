"""Training speed as ratios: bf16 against fp32, and the loop against a bare one.

    env/run python tests/benchmarks/bench_training.py [--width 1.0] [--images 8192] [--grey]

The bare loop has the same batches, network, optimizer and arithmetic, but no checkpoints, metrics,
progress or schedule. The plain one is bare, with PyTorch's own autocast and fused SGD as they come.
Variants take turns, round after round; the ratios are medians over rounds.
Checkpoints are written for real, to a temporary folder; each costs the same however short the
epoch, so few ``--images`` make the loop look worse than it is. On a GPU it also prints images/s as
a share of the bf16 peak, and a plain DataLoader loop (images as PIL would give them, float32 on the
host).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from pipeline import data
from pipeline.measure import complexity
from pipeline.models import module_of, network
from pipeline.sweep import Recipe
from pipeline.training import losses
from pipeline.training.checkpoint import Checkpointer, Snapshot
from pipeline.training.loop import Course, Hooks, Training, fit, seeded
from pipeline.training.recipe import machine, optimizer

PEAK_TFLOPS = {"A100": 312, "H100": 989, "H200": 989}  # dense bf16, from the data sheets


def main() -> None:
    asked = _parser().parse_args()
    split = _images(asked.images, (1, 28, 28) if asked.grey else (3, 32, 32))
    variants = {
        "loop bf16": lambda: _loop(split, asked, "bf16"),
        "bare bf16": lambda: _bare(split, asked),
        "plain bf16": lambda: _bare(split, asked, plain=True),
        "loop fp32": lambda: _loop(split, asked, "fp32"),
    }
    if machine(Recipe(), asked.device).device.type == "cuda":
        variants["DataLoader bf16"] = lambda: _loader(split, asked)
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(asked.rounds + 1):  # the first warms up
        for name, run in variants.items():
            speeds[name].append(run())
    _print({name: values[1:] for name, values in speeds.items()}, asked)


def _print(speeds: dict[str, list[float]], asked) -> None:
    for name, values in speeds.items():
        print(f"{name:16} {statistics.median(values):10.1f} images/s")
    for a, b in (
        ("loop bf16", "loop fp32"),
        ("loop bf16", "bare bf16"),
        ("loop bf16", "plain bf16"),
        ("loop bf16", "DataLoader bf16"),
    ):
        if b in speeds:
            ratios = [x / y for x, y in zip(speeds[a], speeds[b], strict=True)]
            print(f"{a} / {b}: {statistics.median(ratios):.3f}")
    _print_share(statistics.median(speeds["loop bf16"]), asked)


def _print_share(images_per_second: float, asked) -> None:
    if not torch.cuda.is_available():
        return
    name = torch.cuda.get_device_name(0)
    peak = next((p for key, p in PEAK_TFLOPS.items() if key in name), None)
    macs = complexity.count(_spec(asked))[1]
    if peak:
        share = images_per_second * macs * 2 * 3 / (peak * 1e12)
        print(
            f"{name}: {share:.1%} of the bf16 peak; an epoch of 50,000 images takes "
            f"{50_000 / images_per_second:.2f} s"
        )


def _images(count: int, shape) -> data.Split:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
    images = data.Images(pixels, torch.randint(0, 10, (count,), generator=generator))
    few = data.Images(images.pixels[: count // 20], images.labels[: count // 20])
    classes = tuple("0123456789")
    return data.Split("noise", classes, images, few, few, shape, 128, 1 / 74, False, "")


def _spec(asked):
    shape = (1, 28, 28) if asked.grey else (3, 32, 32)
    return module_of(asked.model).spec(asked.model, asked.width, shape, 10, 128, 1 / 74)


def _loop(split, asked, precision: str) -> float:
    """images/s of a whole epoch, with held-out images evaluated, checkpoint and progress."""
    recipe = Recipe(precision=precision, batch_size=asked.batch, learning_rate=0.01)
    with tempfile.TemporaryDirectory() as folder:
        kept = Checkpointer(Path(folder) / "checkpoint", Path(folder) / "metrics.h5")
        training = Training(network.new(_spec(asked), 0))
        where = machine(recipe, asked.device)
        _synchronize()
        start = time.perf_counter()
        course = Course(recipe, 1, losses.labels_only(0.0), where, 0)
        keep = Hooks(keep=lambda now: kept.save(Snapshot(0, "train", now, ())))
        fit(training, split, course, keep)
        kept.wait()
        _synchronize()
        return len(split.train) / (time.perf_counter() - start)


def _bare(split, asked, plain: bool = False) -> float:
    recipe = Recipe(precision="bf16", batch_size=asked.batch, learning_rate=0.01)
    where = machine(recipe, asked.device)
    net = network.new(_spec(asked), 0).network
    net.to(where.device, memory_format=torch.channels_last).train()
    optim, train = optimizer(net, recipe), split.train.to(where.device)
    if plain:
        optim = torch.optim.SGD(
            net.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
        )
    generator = seeded(where.device, 0, 0)
    _synchronize()
    start = time.perf_counter()
    for images, labels in data.batches(train, asked.batch, generator, crop=4, fill=128):
        with torch.autocast(where.device.type, torch.bfloat16) if plain else where.autocast():
            loss = torch.nn.functional.cross_entropy(net(images).float(), labels)
        optim.zero_grad(set_to_none=True)
        loss.backward()
        optim.step()
    _synchronize()
    return len(split.train) / (time.perf_counter() - start)


def _loader(split, asked) -> float:
    """What a plain script does: a DataLoader over float images on the host."""
    where = machine(Recipe(precision="bf16"), asked.device)
    floats = (split.train.pixels.float() - 128) / 74
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(floats, split.train.labels),
        asked.batch,
        shuffle=True,
        num_workers=4,
        pin_memory=True,
        drop_last=True,
    )
    net = network.new(_spec(asked), 0).network.module.to(where.device).train()  # takes floats
    optim = optimizer(net, Recipe(batch_size=asked.batch, learning_rate=0.01))
    _synchronize()
    start = time.perf_counter()
    for images, labels in loader:
        images, labels = images.to(where.device), labels.to(where.device)
        with where.autocast():
            loss = torch.nn.functional.cross_entropy(net(images), labels)
        optim.zero_grad()
        loss.backward()
        optim.step()
    _synchronize()
    return len(split.train) / (time.perf_counter() - start)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vgg16_bn")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--grey", action="store_true", help="28x28x1 as MNIST; default: 32x32x3")
    return parser


if __name__ == "__main__":
    main()
