"""What a cell costs on a GPU, before it has run: arithmetic, and labelled as that."""

from __future__ import annotations

from pipeline.sweep import Cell, Dataset, Recipe

SOURCE = (
    "arithmetic for one A100: 94 TFLOP an epoch of 50,000 images of 32x32 through a full-width "
    "VGG-16 at 40 % of the bf16 peak, and 2 minutes a cell for its start and its measurement; "
    "nothing of it was measured here"
)
OVERHEAD_S = 120.0
EPOCH_S = 0.75  # the arithmetic above: 94.1 TFLOP / (0.4 x 312 TFLOP/s)
EPOCH_PIXELS = 50_000 * 32 * 32
MAC_SHARE = {"vgg11": 0.49, "vgg13": 0.73, "vgg16": 1.0, "vgg19": 1.27}  # of VGG-16's, same width
TRAINING_SET = {  # name: (images, pixels an image); one that is not here counts as CIFAR-10
    "digits": (1_347, 32 * 32),
    "mnist": (60_000, 28 * 28),
    "cifar10": (50_000, 32 * 32),
    "cifar10-jpeg": (50_000, 32 * 32),
}


def gpu_seconds(cell: Cell) -> float:
    """Estimated seconds on one GPU for `cell` alone, its base being there already."""
    return OVERHEAD_S + epochs(cell) * _epoch_s(cell)


def epochs(cell: Cell) -> int:
    """Epochs of training in all its stages, or of the base's own training."""
    if cell.is_base:
        return cell.recipe.epochs
    return sum(_stage_epochs(stage.settings, cell.recipe) for stage in cell.stages)


def _stage_epochs(settings, recipe: Recipe) -> int:
    trains = hasattr(settings, "epochs_of") and getattr(settings, "aware", True)
    return settings.epochs_of(recipe) if trains else 0


def _epoch_s(cell: Cell) -> float:
    depth = MAC_SHARE.get(cell.model.name.removesuffix("_bn"), 1.0)
    pixels = _pixels(cell.dataset, cell.recipe)
    return EPOCH_S * depth * cell.model.width**2 * pixels / EPOCH_PIXELS


def _pixels(dataset: Dataset, recipe: Recipe) -> float:
    images, pixels = TRAINING_SET.get(dataset.name, TRAINING_SET["cifar10"])
    images = min(images, recipe.train_images or images)
    return images * (1 - recipe.holdout) * (dataset.size**2 if dataset.size else pixels)
