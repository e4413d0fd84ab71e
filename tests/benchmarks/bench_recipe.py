"""Which settings of a recipe help, on held-out images: no test image is looked at.

    env/run python -m tests.benchmarks.bench_recipe --dataset cifar10-jpeg --width 0.25 \
        --images 10000 --epochs 8 --seeds 0 1 --json found.json

Trains a base for each seed and variant, and prints accuracy on the same 10 % of the training set
(mean, standard deviation over seeds) and seconds of training. A variant is a recipe and what
differs from it: `standard+cutout`, `fast-dirac`, `fast+momentum=0.85`, with `@16` for other epochs;
`short` and `long` are lists of them.
`--json` has each run as soon as it ends; runs that are in the file already are not repeated. All
seeds of a variant share the split, so that accuracies differ by training alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline import data, hardware, store
from pipeline.models import initial, module_of
from pipeline.paths import Work, data_root
from pipeline.sweep import Recipe
from pipeline.sweep.recipes import NAMED
from pipeline.sweep.settings import Dataset
from pipeline.training import loop, losses
from pipeline.training.loop import Course, Diverged, Training, fit
from pipeline.training.recipe import Machine, machine

LARGE = {"batch_size": 512, "learning_rate": 0.2}  # of the standard recipe on a GPU
CHANGES: dict[str, dict[str, Any]] = {
    "smoothing": {"label_smoothing": 0.1},
    "cutout": {"cutout": 8},
    "mixup": {"mixup": 0.2},
    "decay": {"weight_decay": 1e-3},
    "alternating": {"flips": "alternating"},
    "whitening": {"whitening": 1.0},
    "dirac": {"dirac": True},
    "bias": {"bias_rate": 16.0},
    "lookahead": {"lookahead": True},
}
LISTS = {  # by what is learned of them
    "short": (  # in 8 epochs what takes the standard recipe 16
        "standard@16",
        "fast@8",
        "fast+crop=2@8",
        *(f"fast-{name}@8" for name in ("whitening", "dirac", "bias", "alternating", "smoothing")),
        *(f"fast+{name}@8" for name in ("learning_rate=0.4", "batch_size=256", "lookahead")),
        "fast@16",
        "fast+cutout@16",
        "fast+bias_rate=64@8",
    ),
    "long": (  # what regularizes
        "standard@60",
        "standard+smoothing+cutout+decay+alternating@60",
        *(f"standard+{name}@60" for name in ("decay", "smoothing", "cutout", "mixup")),
        "fast+cutout+decay@60",
        "standard+smoothing+mixup+cutout+weight_decay=2e-3+alternating@60",
    ),
}


def main() -> None:
    options = _parser().parse_args()
    variants = [v for name in options.variants for v in LISTS.get(name, (name,))]
    recipes = {variant: recipe_of(variant, options) for variant in variants}
    split, where = _split(options), machine(Recipe(compile=options.compile), options.device)
    if options.compile == "auto":  # graphs, but nothing compiled: runs are short, and differ
        loop.COMPILED_STEPS = sys.maxsize
    began, runs = time.monotonic(), _runs(options.json)
    for seed in options.seeds:
        for variant, recipe in recipes.items():
            if any(_key(run) == (variant, seed, recipe.epochs) for run in runs):
                continue
            if options.seconds and time.monotonic() - began > options.seconds:
                break
            runs.append(_run(variant, recipe, seed, split, where, options))
            gc.collect()  # the graphs of that training, which hold gigabytes
            print(_line(variant, [runs[-1]]), file=sys.stderr, flush=True)
            if options.json:
                store.publish_json(options.json, runs)
    for variant in dict.fromkeys(run["variant"] for run in runs):
        print(_line(variant, [run for run in runs if run["variant"] == variant]))


def recipe_of(variant: str, options: argparse.Namespace) -> Recipe:
    """The recipe that a variant stands for; KeyError for one that means nothing."""
    text, _, epochs = variant.partition("@")
    name, *changes = re.split(r"(?=[+-][a-z])", text)
    own = {**NAMED[name], **(LARGE if name == "standard" else {})}
    own |= dict(map(_setting, options.set))
    if epochs or options.epochs:
        own["epochs"] = int(epochs or options.epochs)
    for change in changes:
        sign, key = change[0], change[1:]
        settings = dict([_setting(key)]) if "=" in key else CHANGES.get(key, {key: None})
        for setting, value in settings.items():
            own[setting] = value if sign == "+" else Recipe.model_fields[setting].default
    return Recipe(**own, compile=options.compile)


def _setting(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value  # a word


def _split(options: argparse.Namespace) -> data.Split:
    """One for all runs, on the device, without the test images."""
    dataset, recipe = Dataset(name=options.dataset), Recipe(holdout=0.1)
    whole = data.load(dataset, recipe, 0, data_root(), options.cache)
    train = data.sample(whole.train, options.images, 0) if options.images else whole.train
    none = data.Images(whole.test.pixels[:0], whole.test.labels[:0])
    device = machine(recipe, options.device).device
    return replace(whole, train=train.to(device), held_out=whole.held_out.to(device), test=none)


def _run(
    variant: str,
    recipe: Recipe,
    seed: int,
    split: data.Split,
    where: Machine,
    options: argparse.Namespace,
) -> dict[str, Any]:
    spec = module_of(options.model).spec(
        options.model,
        options.width,
        split.shape,
        len(split.classes),
        split.zero_point,
        split.scale,
    )
    training = Training(initial.fresh(spec, seed, recipe, split.train))
    objective = losses.labels_only(recipe.label_smoothing, recipe.mixup)
    course = Course(recipe, recipe.epochs, objective, where, seed * 1009)
    began = time.perf_counter()
    try:
        fit(training, split, course)
        failure = None
    except Diverged as error:
        failure = str(error)
    columns = training.columns
    return {
        "variant": variant,
        "seed": seed,
        "epochs": recipe.epochs,
        "held_out_accuracy": columns["held_out_accuracy"][-1] if not failure else None,
        "failure": failure,
        "train_seconds": sum(columns["seconds"]),
        "all_seconds": time.perf_counter() - began,
        "columns": {k: columns[k] for k in ("loss", "accuracy", "held_out_accuracy")},
        "recipe": recipe.decides(),
        "model": f"{options.model} x {options.width}",
        "images": {"train": len(split.train), "held_out": len(split.held_out)},
        "machine": _machine(where),
    }


def _machine(where: Machine) -> dict[str, str]:
    gpu = where.device.type == "cuda"
    name = torch.cuda.get_device_name(where.device) if gpu else hardware.cpu_name()
    return {"name": name, "precision": where.precision, "torch": torch.__version__}


def _runs(path: Path | None) -> list[dict[str, Any]]:
    return json.loads(path.read_text()) if path and path.exists() else []


def _key(run: dict[str, Any]) -> tuple[str, int, int]:
    return run["variant"], run["seed"], run["epochs"]


def _line(variant: str, runs: list[dict[str, Any]]) -> str:
    whole = [run for run in runs if not run["failure"]]
    if not whole:
        return f"{variant:44} {runs[0]['failure']}"
    held_out = [100 * run["held_out_accuracy"] for run in whole]
    train = statistics.mean(100 * run["columns"]["accuracy"][-1] for run in whole)
    seconds = statistics.mean(run["train_seconds"] for run in whole)
    spread = statistics.stdev(held_out) if len(held_out) > 1 else float("nan")
    return (
        f"{variant:44} {whole[0]['epochs']:3} epochs  held out {statistics.mean(held_out):6.2f} % "
        f"({spread:4.2f}, n = {len(held_out)}), training {train:6.2f} %, {seconds:6.1f} s"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="cifar10-jpeg")
    parser.add_argument("--model", default="vgg16_bn")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--images", type=int, help="of the training set; default: all")
    parser.add_argument("--epochs", type=int, help="default: the recipe's, or what `@` says")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", default=list(LISTS), help="or a list of them")
    parser.add_argument("--set", nargs="+", default=[], help="KEY=VALUE, in all recipes")
    parser.add_argument("--seconds", type=float, help="no run is begun after these")
    parser.add_argument("--compile", default="auto", choices=["auto", "on", "off"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cache", type=Path, default=Work(Path("runs")).cache)
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    main()
