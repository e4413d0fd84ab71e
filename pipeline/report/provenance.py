"""Where the numbers come from: seeds, what was shared, recipe, hardware, versions, commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipeline import timeline, usage
from pipeline.hardware import instruction_sets
from pipeline.report import content
from pipeline.report.frames import Frames
from pipeline.report.jobs import Usage
from pipeline.report.metrics import METRIC
from pipeline.sweep import Recipe, Sweep

OF_A_SEED = (
    "a seed determines the initial weights, the held-out split, the order and augmentation of the "
    "training images, the calibration sample, and random pruning"
)
SHARED = (
    "all techniques of one data set, model and seed start from the same base or have it as teacher "
    "({count}), with the same recipe, held-out split and test set; stages at the same position of "
    "their chains see the same images in the same order with the same augmentation"
)


def facts(sweep: Sweep, frames: Frames, usages: Mapping[str, Usage]) -> list[tuple[str, str]]:
    """(label, value): what was shared, hardware, versions, commit; where cells differ, each value
    with its count. `usages`: a cell's id -> its job's record of usage."""
    return [*_shared(sweep), *_machines(frames), *_gpu_hours(frames, usages)]


def _shared(sweep: Sweep) -> Iterator[tuple[str, str]]:
    seeds = content.seeds(sweep).partition(": ")[2]
    yield "Seeds", f"{seeds}; {OF_A_SEED}"
    bases = len({cell.base_id for cell in sweep.cells})
    if bases < len(sweep.cells):
        count = "1 base" if bases == 1 else f"{bases:,} bases in all"
        yield "Shared", SHARED.format(count=count)
    recipes = {cell.dataset.name: _recipe(cell.recipe) for cell in sweep.cells}
    if len(set(recipes.values())) == 1:
        yield "Recipe", next(iter(recipes.values()))
    else:
        yield from ((f"Recipe on {name}", text) for name, text in recipes.items())


def _recipe(recipe: Recipe) -> str:
    parts = (
        f"{recipe.epochs} {'epoch' if recipe.epochs == 1 else 'epochs'}",
        f"batches of {recipe.batch_size}",
        f"peak learning rate {recipe.learning_rate:g} ({recipe.schedule}, warm-up over "
        f"{recipe.warmup * 100:g} % of all steps)",
        f"momentum {recipe.momentum:g}",
        f"weight decay {recipe.weight_decay:g}",
        f"label smoothing {recipe.label_smoothing:g}" if recipe.label_smoothing else "",
        f"random crops with {recipe.crop} pixels of padding" if recipe.crop else "",
        *_extras(recipe),
        f"{recipe.holdout * 100:g} % of the training set held out",
        f"only {recipe.train_images:,} training images" if recipe.train_images else "",
        f"only {recipe.test_images:,} test images" if recipe.test_images else "full test set",
    )
    return ", ".join(part for part in parts if part)


def _extras(recipe: Recipe) -> tuple[str, ...]:
    """What the standard recipe does without."""
    frozen = f"{recipe.whitening * 100:g} % of all steps"
    return (
        "flips that alternate" if recipe.flips == "alternating" else "",
        f"cutout of {recipe.cutout} pixels" if recipe.cutout else "",
        f"parts of {recipe.resized_crop * 100:g} % and more of an image, enlarged"
        if recipe.resized_crop
        else "",
        f"a whitening first convolution, frozen for {frozen}" if recipe.whitening else "",
        "identity (dirac) initialization" if recipe.dirac else "",
        f"biases of normalization at {recipe.bias_rate:g} times the rate"
        if recipe.bias_rate != 1
        else "",
        "lookahead" if recipe.lookahead else "",
        f"mixup with Beta({recipe.mixup:g}, {recipe.mixup:g})" if recipe.mixup else "",
    )


def _machines(frames: Frames) -> list[tuple[str, str]]:
    facts = [row.facts for row in frames.rows]
    hardware = [fact.get("hardware") or {} for fact in facts]
    lines = (
        ("CPU", _counted(_cpu(h) for h in hardware)),
        ("CPU flags", _counted(_listed(h.get("flags")) for h in hardware)),
        ("GPU", _counted(_gpu(h) for h in hardware)),
        ("Training device", _counted(fact.get("device") for fact in facts)),
        ("Training precision", _counted(fact.get("precision") for fact in facts)),
        ("Versions", _counted(_versions(fact.get("versions") or {}) for fact in facts)),
        ("Commit", _counted(fact.get("commit") for fact in facts)),
        ("Snapshot of the code", _counted(fact.get("snapshot") for fact in facts)),
        ("Images", _counted(_noted(fact.get("image_notes")) for fact in facts)),
        ("Changed during the run", _counted(map(_changed, facts))),
        ("Total training time", _training(frames)),
        ("Mean time of a cell", timeline.line(f["phases"] for f in facts if f.get("phases"))),
    )
    return [(label, value) for label, value in lines if value]


def _gpu_hours(frames: Frames, usages: Mapping[str, Usage]) -> Iterator[tuple[str, str]]:
    """As the jobs say, else of the cells that trained on a GPU of this machine."""
    if usages:
        yield "GPU-hours", METRIC["gpu_hours"].show(usage.gpu_hours(usages.values()))
        return
    on_gpu = (row for row in frames.rows if str(row.facts.get("device")).startswith("cuda"))
    spent = [row.seconds for row in on_gpu if row.seconds is not None]
    if spent:
        hours = METRIC["gpu_hours"].show(sum(spent) / 3600)
        yield "GPU-hours", f"{hours} (total time of the cells that ran on a GPU)"


def _counted(values: Iterable[Any]) -> str:
    """The value, or each of several with the number of cells that it holds for."""
    counts = Counter(str(value) for value in values if value)
    if len(counts) < 2:
        return next(iter(counts), "")
    values = (f"{v} ({n} {'cell' if n == 1 else 'cells'})" for v, n in sorted(counts.items()))
    return "; ".join(values)


def _cpu(hardware: dict[str, Any]) -> str:
    cores = hardware.get("cores")
    count = f"{cores} core{'s' if cores != 1 else ''}" if cores else ""
    return ", ".join(part for part in (hardware.get("cpu") or "", count) if part)


def _gpu(hardware: Mapping[str, Any]) -> str:
    """`NVIDIA H200, driver 580.65`; older results do not say the driver."""
    driver = hardware.get("gpu_driver")
    parts = (hardware.get("gpu"), driver and f"driver {driver}")
    return ", ".join(part for part in parts if part)


def machine(facts: Mapping[str, Any]) -> str:
    """What measured a result: `CPU, 2 cores, AVX2`; "" where it does not say."""
    hardware = facts.get("hardware")
    if not isinstance(hardware, dict):
        return ""
    kinds = (label for _, label in instruction_sets(hardware.get("flags")))
    return ", ".join(part for part in (_cpu(hardware), *kinds) if part)


def _listed(flags: Any) -> str:
    return flags if isinstance(flags, str) else " ".join(map(str, flags or ()))


def _noted(lines: Any) -> str:
    """Of a folder of images: what was left out, and how the rest was read."""
    return "; ".join(map(str, lines)) if isinstance(lines, list) else ""


def _versions(versions: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


def _changed(fact: Mapping[str, Any]) -> str:
    """`code, commit`: what at a cell's end was no longer what is given for it above."""
    return ", ".join(map(str, fact.get("changed_meanwhile") or ()))


def _training(frames: Frames) -> str:
    seconds = [row.training_seconds for row in frames.rows if row.training_seconds is not None]
    minutes = sum(seconds) / 60
    if not seconds:
        return ""
    return f"{minutes:.1f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
