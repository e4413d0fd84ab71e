"""Training on a folder of large images against a plain script's: a torch DataLoader with a process
a core.

    env/run python -m tests.benchmarks.bench_loader [--images 256] [--size 224] [--batch 16]

Both train torchvision's resnet18 on the same JPEG files (of tests/photographs.py, 240 pixels wide)
with random resized crops and flips, in turns. They do not do the same: the DataLoader's processes
decode each file anew, crop it as it is and enlarge the crop to `size`, mirror and normalize;
netpress decodes and scales each file to `size` once, before its epochs (that time is printed
apart), and crops, enlarges and mirrors these smaller pixels in every epoch.

Printed are images/s and ratios, netpress / DataLoader: of training (no evaluation in it), of the
input alone. The clock starts when an epoch's first batch is done and ends with its last; counted
are the images after the first batch, and all batches are full. The DataLoader's processes are a few
batches ahead by then, so an epoch should be long beside two batches a core.

A batch that takes the DataLoader longer than WAIT is an error, and so is a run beyond `--limit`.
"""

from __future__ import annotations

import argparse
import faulthandler
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
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
from pipeline.training.recipe import Machine, machine, optimizer
from tests import photographs

LEAST = 0.35  # part of an image that a crop has
WAIT = 60  # seconds for a batch of the DataLoader
Row = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--limit", type=int, default=1800, help="seconds, after which it fails")
    options = parser.parse_args()
    faulthandler.dump_traceback_later(options.limit, exit=True)  # whatever hangs
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
            "input, netpress": lambda: _speed(_batches(split, recipe, where), where),
            "input, DataLoader": lambda: _speed(loader, where),
        }
        speeds: Row = {name: [] for name in variants}
        for _ in range(options.rounds):
            for name, run in variants.items():
                speeds[name].append(run())
    _tell(speeds)


def _tell(speeds: Row) -> None:
    for name, rates in speeds.items():
        print(f"{name:20} {statistics.median(rates):8.1f} images/s")
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
        timeout=WAIT,
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


def _loop(split: data.Split, recipe: Recipe, where: Machine) -> float:
    """Training in the second epoch, images/s."""
    steps, times = data.batch_count(len(split.train), recipe.batch_size), list[float]()

    def clock(_: object, step: int, __: int) -> None:
        if step in (steps + 1, 2 * steps):
            times.append(_now(where))

    course = Course(recipe, 2, losses.labels_only(0.0), where, 0)
    fit(Training(_state(split)), split, course, Hooks(after_step=clock))
    began, ended = times
    return (steps - 1) * recipe.batch_size / (ended - began)


def _plain(loader: DataLoader, split: data.Split, recipe: Recipe, where: Machine) -> float:
    """Training by a plain script, images/s."""
    net = _state(split).network.module.to(where.device, memory_format=torch.channels_last).train()
    optim = optimizer(net, recipe)

    def steps() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, labels in loader:
            pixels = images.to(where.device, memory_format=torch.channels_last)
            with where.autocast():
                logits = net(pixels).float()
                loss = torch.nn.functional.cross_entropy(logits, labels.to(where.device))
            optim.zero_grad()
            loss.backward()
            optim.step()
            yield images, labels

    return _speed(steps(), where)


def _batches(
    split: data.Split, recipe: Recipe, where: Machine
) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    generator = seeded(where.device, 0, 0)
    return data.batches(
        split.train, recipe.batch_size, generator, flip=True, resized_crop=recipe.resized_crop
    )


def _speed(batches: Iterable[tuple[torch.Tensor, torch.Tensor]], where: Machine) -> float:
    """Images/s of all batches but the first."""
    each = iter(batches)
    next(each)
    began = _now(where)
    count = sum(len(labels) for _, labels in each)
    return count / (_now(where) - began)


def _now(where: Machine) -> float:
    """Seconds, once all that was given to the device is done."""
    if where.device.type == "cuda":
        torch.cuda.synchronize(where.device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
