"""Training on a folder of large images against a plain script's: a torch DataLoader with a process
a core, which decodes, crops, mirrors and normalizes each image anew.

    env/run python -m tests.benchmarks.bench_loader [--images 256] [--size 224] [--batch 16]

Both train torchvision's resnet18 on the same JPEG files (those of tests/photographs.py) with random
resized crops and flips, in turns; images are decoded once before netpress's epochs, which is told
apart. Printed are images/s and ratios, netpress / DataLoader: of whole epochs, of the input alone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from pipeline import data, hardware, registry
from pipeline.models import network, own
from pipeline.sweep import Dataset, Recipe
from pipeline.sweep.settings import Own
from pipeline.training import losses
from pipeline.training.loop import Course, Hooks, Training, fit, seeded
from pipeline.training.recipe import machine, optimizer
from tests import photographs

LEAST = 0.35  # part of an image that a crop has
Row = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    torch.set_num_threads(hardware.training_cores())
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "photos"
        photographs.write(folder, options.images // 2, 8)
        recipe = Recipe(
            batch_size=options.batch,
            learning_rate=0.01,
            holdout=0.05,
            resized_crop=LEAST,
            flip=True,
        )
        dataset = Dataset(name="photos", folder=str(folder), size=options.size, flip=True)
        began = time.perf_counter()
        split = data.load(dataset, recipe, 0, folder, Path(place) / "cache")
        print(f"decoded once: {time.perf_counter() - began:.1f} s for all images")
        loader = _loader(folder, options.size, options.batch)
        where = machine(recipe, options.device)
        variants: dict[str, Callable[[], float]] = {
            "epoch, netpress": lambda: _loop(split, recipe, where),
            "epoch, DataLoader": lambda: _plain(loader, split, recipe, where),
            "input, netpress": lambda: _input(_batches(split, recipe, where)),
            "input, DataLoader": lambda: _input(loader),
        }
        speeds: Row = {name: [] for name in variants}
        for _ in range(options.rounds):
            for name, run in variants.items():
                speeds[name].append(run())
    _tell(speeds)


def _tell(speeds: Row) -> None:
    for name, found in speeds.items():
        print(f"{name:20} {statistics.median(found):8.1f} images/s")
    for what in ("epoch", "input"):
        pairs = zip(speeds[f"{what}, netpress"], speeds[f"{what}, DataLoader"], strict=True)
        print(f"{what}: {statistics.median(a / b for a, b in pairs):.2f} times the DataLoader's")


def _loader(folder: Path, size: int, batch: int) -> DataLoader:
    how = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(LEAST, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.25,) * 3),
        ]
    )
    images = datasets.ImageFolder(str(folder / "train"), how)
    # Its processes stay between epochs, as fast as it gets.
    return DataLoader(
        images,
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=hardware.training_cores(),
        persistent_workers=True,
    )


def _state(split: data.Split) -> network.ModelState:
    made = Own(
        source="torchvision.models",
        function="resnet18",
        version=metadata.version("torchvision"),
        arguments={"num_classes": len(split.classes)},
    )
    model = own.OwnModel(made, own.load(made, None))
    registry.fill({})
    registry.add("models", "theirs", registry.Added(lambda: (model, "theirs"), "theirs", "theirs"))
    spec = model.spec("theirs", 1.0, split.shape, len(split.classes), split.zero_point, split.scale)
    return network.new(spec, 0)


def _loop(split: data.Split, recipe: Recipe, where) -> float:
    """The second epoch, images/s: held-out images are evaluated in it, too."""
    ended: list[float] = []
    course = Course(recipe, 2, losses.labels_only(0.0), where, 0)
    hooks = Hooks(keep=lambda now: ended.append(time.perf_counter()))
    fit(Training(_state(split)), split, course, hooks)
    return len(split.train) / (ended[1] - ended[0])


def _plain(loader: DataLoader, split: data.Split, recipe: Recipe, where) -> float:
    """An epoch of a plain script, after a first batch."""
    net = _state(split).network.module.to(where.device, memory_format=torch.channels_last).train()
    optim = optimizer(net, recipe)
    began, count = time.perf_counter(), 0
    for images, labels in loader:
        images = images.to(where.device, memory_format=torch.channels_last)
        with where.autocast():
            loss = torch.nn.functional.cross_entropy(net(images).float(), labels.to(where.device))
        optim.zero_grad()
        loss.backward()
        optim.step()
        count += len(labels)
    return count / (time.perf_counter() - began)


def _batches(split: data.Split, recipe: Recipe, where) -> Iterable:
    generator = seeded(where.device, 0, 0)
    return data.batches(
        split.train, recipe.batch_size, generator, flip=True, resized_crop=recipe.resized_crop
    )


def _input(batches: Iterable) -> float:
    began = time.perf_counter()
    count = sum(len(labels) for _, labels in batches)
    return count / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
