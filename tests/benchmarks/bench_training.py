"""Training speed as ratios: bf16 against fp32, and the loop against a bare one.

    env/run python -m tests.benchmarks.bench_training [--width 1.0] [--images 8192] [--grey]
    env/run python -m tests.benchmarks.bench_training --images 50000 --batch 512 --kinds all

The bare loop has the same batches, network, optimizer and arithmetic, but no checkpoints, metrics,
progress or schedule; on a GPU it is the step alone, compiled, in a CUDA graph, on one batch. The
plain one is bare, with PyTorch's own autocast and fused SGD as they come. Variants take turns,
round after round; the ratios are medians over rounds. Set-up (libraries, compilation, graphs) and
the first epoch are counted apart. Checkpoints are written for real, to a temporary folder; each
costs the same however short the epoch, so few ``--images`` make the loop look worse than it is.

``--kinds``: what else the loop trains, against its float network: ``qat`` and ``qat-learned``
(fake quantization of both kinds), ``kd`` (a teacher of the same size). On a GPU it also prints
images/s as a share of the bf16 peak, and a plain DataLoader loop (images as PIL would give them,
float32 on the host).
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
from pipeline.models.transforms.calibration import calibrate
from pipeline.models.transforms.fakequant import FakeQuantized
from pipeline.sweep import Recipe
from pipeline.training import losses
from pipeline.training.checkpoint import Checkpointer, Snapshot
from pipeline.training.graphs import captured
from pipeline.training.loop import Course, Hooks, Training, fit, seeded
from pipeline.training.recipe import machine, optimizer

PEAK_TFLOPS = {"A100": 312, "H100": 989, "H200": 989}  # dense bf16, from the data sheets
KINDS = ("qat", "qat-learned", "kd")


def main() -> None:
    options = _parser().parse_args()
    split = _images(options.images, (1, 28, 28) if options.grey else (3, 32, 32))
    kinds = KINDS if "all" in options.kinds else options.kinds
    variants = {
        "loop bf16": lambda: _loop(split, options, "bf16"),
        "bare bf16": lambda: _bare(split, options),
        "plain bf16": lambda: _bare(split, options, plain=True),
        "loop fp32": lambda: _loop(split, options, "fp32"),
        **{f"loop {kind}": lambda kind=kind: _loop(split, options, "bf16", kind) for kind in kinds},
    }
    if machine(Recipe(), options.device).device.type == "cuda":
        variants["DataLoader bf16"] = lambda: _loader(split, options)
    if options.only:
        variants = {name: run for name, run in variants.items() if name in options.only}
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(options.rounds + 1):  # the first warms up
        for name, run in variants.items():
            speed, setup = run()
            speeds[name].append(speed)
            if not turn:
                print(f"{name:16} {speed:10.1f} images/s, set-up {setup:.1f} s", flush=True)
                _print_first(
                    {name: values[0] for name, values in speeds.items() if values}, options
                )
    _print({name: values[1:] or values for name, values in speeds.items()}, options)


def _print_first(speeds: dict[str, float], options) -> None:
    """What the variant that came last shows already: who ends this early has the others."""
    name = [*speeds][-1]
    if name == "loop bf16":
        _print_share(speeds[name], options)
    elif "loop bf16" in speeds:
        print(f"loop bf16 / {name}: {speeds['loop bf16'] / speeds[name]:.3f} at first", flush=True)


def _print(speeds: dict[str, list[float]], options) -> None:
    for name, values in speeds.items():
        print(f"{name:16} {statistics.median(values):10.1f} images/s")
    if "loop bf16" not in speeds:
        return
    for name in speeds:
        ratios = [x / y for x, y in zip(speeds["loop bf16"], speeds[name], strict=True)]
        if name != "loop bf16":
            print(f"loop bf16 / {name}: {statistics.median(ratios):.3f}")
    _print_share(statistics.median(speeds["loop bf16"]), options)


def _print_share(images_per_second: float, options) -> None:
    if not torch.cuda.is_available():
        return
    name = torch.cuda.get_device_name(0)
    peak = next((p for key, p in PEAK_TFLOPS.items() if key in name), None)
    macs = complexity.count(_spec(options))[1]
    if peak:
        share = images_per_second * macs * 2 * 3 / (peak * 1e12)
        print(
            f"{name}: batch {options.batch}: {share:.1%} of the bf16 peak; an epoch of 50,000 "
            f"images takes {50_000 / images_per_second:.2f} s"
        )


def _images(count: int, shape) -> data.Split:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
    images = data.Images(pixels, torch.randint(0, 10, (count,), generator=generator))
    few = data.Images(images.pixels[: count // 20], images.labels[: count // 20])
    classes = tuple("0123456789")
    return data.Split("noise", classes, images, few, few, shape, 128, 1 / 74, False, "")


def _spec(options):
    shape = (1, 28, 28) if options.grey else (3, 32, 32)
    return module_of(options.model).spec(options.model, options.width, shape, 10, 128, 1 / 74)


def _begun(options, kind: str, split, device) -> tuple[network.ModelState, losses.Objective]:
    """(network, objective) of a kind of training."""
    state = network.new(_spec(options), 0)
    if kind == "kd":
        teacher = network.new(_spec(options), 1).network.to(device).eval()
        teacher = teacher.to(memory_format=torch.channels_last)
        return state, losses.soft_targets(teacher, 4.0, 0.5, 0.0)
    if kind:
        quantized = FakeQuantized(learned=kind == "qat-learned", pairs=True)
        state = network.with_transform(network.fold(state), quantized)
        wrapped = state.network.to(device)
        few = split.held_out.to(device)
        batches = (wrapped.normalize(pixels) for pixels, _ in data.ordered(few, 64))
        calibrate(wrapped.module, batches, "minmax", (split.zero_point, split.scale))
    return state, losses.labels_only(0.0)


def _loop(split, options, precision: str, kind: str = "") -> tuple[float, float]:
    """(images/s of whole epochs after the first, with held-out images evaluated, checkpoints and
    progress; seconds until the end of the first)."""
    recipe = Recipe(
        precision=precision,
        batch_size=options.batch,
        learning_rate=0.001,
        compile=options.compile or ("on" if torch.cuda.is_available() else "auto"),
    )
    where = machine(recipe, options.device)
    state, objective = _begun(options, kind, split, where.device)
    ended: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        kept = Checkpointer(Path(folder) / "checkpoint", Path(folder) / "metrics.h5")

        def keep(now: Training) -> None:
            kept.save(Snapshot(0, "train", now, ()))
            if now.epoch > options.epochs:
                kept.wait()
            ended.append(time.perf_counter())

        start = time.perf_counter()
        course = Course(recipe, options.epochs + 1, objective, where, 0)
        fit(Training(state), split, course, Hooks(keep=keep))
    return len(split.train) * options.epochs / (ended[-1] - ended[0]), ended[0] - start


def _bare(split, options, plain: bool = False) -> tuple[float, float]:
    start = time.perf_counter()
    recipe = Recipe(precision="bf16", batch_size=options.batch, learning_rate=0.001)
    where = machine(recipe, options.device)
    net = network.new(_spec(options), 0).network
    net.to(where.device, memory_format=torch.channels_last).train()
    optim, train = optimizer(net, recipe), split.train.to(where.device)
    if plain:
        optim = torch.optim.SGD(
            net.parameters(), lr=0.001, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
        )
    called = torch.compile(net, dynamic=False) if where.graphed and not plain else net

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        with torch.autocast(where.device.type, torch.bfloat16) if plain else where.autocast():
            loss = torch.nn.functional.cross_entropy(called(images).float(), labels)
        optim.zero_grad(set_to_none=True)
        loss.backward()
        optim.step()

    generator = seeded(where.device, 0, 0)
    batches = data.batches(train, options.batch, generator, crop=4, fill=128)
    first = next(batches)
    replay = None
    if where.graphed and not plain:
        replay = captured(lambda: step(*first), where.device, "the bare step")
    else:
        step(*first)
    _synchronize()
    began, count = time.perf_counter(), 0
    for _ in range(options.epochs):
        for images, labels in data.batches(train, options.batch, generator, crop=4, fill=128):
            step(images, labels) if replay is None else replay()
            count += len(labels)
    _synchronize()
    return count / (time.perf_counter() - began), began - start


def _loader(split, options) -> tuple[float, float]:
    """What a plain script does: a DataLoader over float images on the host."""
    start = time.perf_counter()
    where = machine(Recipe(precision="bf16"), options.device)
    floats = (split.train.pixels.float() - 128) / 74
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(floats, split.train.labels),
        options.batch,
        shuffle=True,
        num_workers=4,
        pin_memory=True,
        drop_last=True,
    )
    net = network.new(_spec(options), 0).network.module.to(where.device).train()  # takes floats
    optim = optimizer(net, Recipe(batch_size=options.batch, learning_rate=0.001))
    _synchronize()
    began = time.perf_counter()
    for images, labels in loader:
        images, labels = images.to(where.device), labels.to(where.device)
        with where.autocast():
            loss = torch.nn.functional.cross_entropy(net(images), labels)
        optim.zero_grad()
        loss.backward()
        optim.step()
    _synchronize()
    return len(split.train) / (time.perf_counter() - began), began - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vgg16_bn")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=1, help="that are timed, after the first")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", choices=["auto", "on", "off"], help="default: on, on a GPU")
    parser.add_argument("--kinds", nargs="*", default=[], choices=[*KINDS, "all"])
    parser.add_argument("--only", nargs="*", help="variants, by their names")
    parser.add_argument("--grey", action="store_true", help="28x28x1 as MNIST; default: 32x32x3")
    return parser


if __name__ == "__main__":
    main()
