"""Training, held-out and test images of one cell.

N images of C channels, H x W pixels: uint8 [N, C, H, W]; labels int64 [N], K classes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipeline.data import check_sizes
from pipeline.data.cache import Checked, Decoded
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.sweep import Recipe

CHUNK = 1000  # images at once, where all would take as much memory again


@dataclass(frozen=True, eq=False)
class Images:
    """pixels uint8 [N, C, H, W] and labels int64 [N], on one device. With `rows` (int64 [N]) they
    are these of more `pixels`, which are a mapped file that is not copied."""

    pixels: Tensor
    labels: Tensor
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, index: Tensor) -> Tensor:
        """The pixels of these (int64 [B], 0..N): [B, C, H, W]."""
        rows = index if self.rows is None else self.rows.index_select(0, index)
        return self.pixels.index_select(0, rows)

    def array(self) -> np.ndarray:
        """All pixels, uint8 [N, C, H, W]; of a part of a mapped file a copy."""
        return (self.pixels if self.rows is None else self.pixels[self.rows]).numpy()

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(pixels, labels) of all as they lie, the last short batch included."""
        if self.rows is None:
            return zip(self.pixels.split(size), self.labels.split(size), strict=True)
        index = torch.arange(len(self)).split(size)
        return ((self.at(part), self.labels[part]) for part in index)

    def to(self, device: torch.device | str) -> Images:
        if self.rows is None:
            return Images(self.pixels.to(device), self.labels.to(device))
        if torch.device(device).type == "cpu":
            return self
        pixels = torch.empty((len(self), *self.pixels.shape[1:]), dtype=torch.uint8, device=device)
        for part, (few, _) in zip(pixels.split(CHUNK), self.batches(CHUNK), strict=True):
            part.copy_(few)
        return Images(pixels, self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Split:
    """The data of one cell. A pixel p is normalized as (p - zero_point) * scale, where both come
    from the training part alone: one integer and one factor for all channels, so that uint8 images
    are a quantized tensor already. `fingerprint` is of the whole data set, before the split; `key`
    of the files that it was read from; `notes` are lines for the user about its images."""

    name: str
    classes: tuple[str, ...]
    train: Images
    held_out: Images
    test: Images
    shape: tuple[int, int, int]
    zero_point: int
    scale: float
    flip: bool
    fingerprint: str
    key: str = ""
    notes: tuple[str, ...] = ()


def split(whole: Checked, name: str, recipe: Recipe, seed: int, flip: bool) -> Split:
    """Stratified and decided by `seed` alone. The test images are the same for all seeds."""
    data = whole.data
    train, held_out = train_and_held_out(data, recipe.train_images, recipe.holdout, seed, name)
    test = sliver(data.test_labels, recipe.test_images, ranking(len(data.test_labels), "test"))
    parts = {
        "train": _images(data.train_pixels, data.train_labels, train),
        "held_out": _images(data.train_pixels, data.train_labels, held_out),
        "test": _images(data.test_pixels, data.test_labels, test),
    }
    zero_point, scale = normalization(parts["train"], name)
    channels, height, width = data.train_pixels.shape[1:]
    return Split(
        name,
        data.classes,
        **parts,
        shape=(channels, height, width),
        zero_point=zero_point,
        scale=scale,
        flip=flip,
        fingerprint=whole.fingerprint,
        key=whole.key,
        notes=data.notes,
    )


def train_and_held_out(
    data: Decoded, images: int | None, holdout: float, seed: int, name: str = "data set"
) -> tuple[np.ndarray, np.ndarray]:
    """Indices into the training set, ascending: `holdout` of each class is held out, at least one
    image; with `images`, both parts come from a sliver of about that many."""
    order = ranking(len(data.train_labels), "train", seed)
    if not holdout:
        return sliver(data.train_labels, images, order), np.empty(0, np.int64)
    check_sizes(name, dict(zip(data.classes, data.sizes(), strict=True)))
    kept = sliver(data.train_labels, images, order, least=2)
    order = order[np.isin(order, kept)]
    sizes = np.bincount(data.train_labels[kept])
    counts = shares(round(holdout * len(kept)), sizes, 1, sizes - 1)
    held_out = first_of_each(data.train_labels, counts, order)
    return np.setdiff1d(kept, held_out, assume_unique=True), held_out


def sliver(labels: np.ndarray, images: int | None, order: np.ndarray, least: int = 1) -> np.ndarray:
    """Indices, ascending, of about `images` images in proportion to the classes, but at least
    `least` of each; of all images where `images` is None."""
    if images is None or images >= len(labels):
        return np.arange(len(labels))
    sizes = np.bincount(labels)
    return first_of_each(labels, shares(images, sizes, least, sizes), order)


def sample(images: Images, count: int, seed: int) -> Images:
    """About `count` of `images`, stratified, the same for the same seed."""
    labels = images.labels.cpu().numpy()
    return _at(images, sliver(labels, count, ranking(len(labels), "sample", seed)))


def sample_of_each(images: Images, count: int, seed: int) -> Images:
    """`count` of each class, or all where it has fewer; the same for the same seed."""
    labels = images.labels.cpu().numpy()
    counts = np.minimum(count, np.bincount(labels))
    return _at(images, first_of_each(labels, counts, ranking(len(labels), "sample", seed)))


def _at(images: Images, numbers: np.ndarray) -> Images:
    index = torch.from_numpy(numbers)
    return Images(images.at(index.to(images.pixels.device)), images.labels[index])


def shares(total: int, sizes: np.ndarray, least: int, most: np.ndarray) -> np.ndarray:
    """`total` divided in proportion to `sizes` by largest remainder, each within least..most.

    The sum is `total`, but more where `least` adds to it, and less where `most` leaves no room.
    """
    exact = sizes * (total / sizes.sum())
    counts = np.clip(np.floor(exact).astype(np.int64), least, most)
    while (missing := total - counts.sum()) > 0 and (room := counts < most).any():
        lack = np.where(room, exact - counts, -np.inf)
        counts[np.argsort(-lack, kind="stable")[: min(missing, room.sum())]] += 1
    return counts


def first_of_each(labels: np.ndarray, counts: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Indices, ascending, of the first counts[k] images of each class k in this order."""
    ordered = labels[order]
    return np.sort(np.concatenate([order[ordered == k][:n] for k, n in enumerate(counts)]))


def ranking(count: int, *seed: object) -> np.ndarray:
    """A permutation of range(count), decided by `seed` alone: splitmix64 (Steele et al. 2014).

    No library's generator is used, so no upgrade moves an image across a split.
    """
    salt = int.from_bytes(hashlib.sha256(repr(seed).encode()).digest()[:8], "big")
    x = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(x ^ (x >> np.uint64(31)), kind="stable")


def normalization(images: Images, name: str) -> tuple[int, float]:
    """(zero_point, scale): the rounded mean of all pixels, and 1 / their standard deviation.

    Sums are of integers, so every machine finds the same.
    """
    histogram = torch.zeros(256, dtype=torch.int64)
    for pixels, _ in images.batches(CHUNK):
        histogram += torch.bincount(pixels.flatten(), minlength=256)
    counts = histogram.tolist()
    number = sum(counts)
    total = sum(value * n for value, n in enumerate(counts))
    squares = sum(value * value * n for value, n in enumerate(counts))
    spread = number * squares - total * total
    if not spread:
        raise UserError(f"{name}: every pixel of every training image is the same")
    return round(total / number), number / math.sqrt(spread)


def resized(data: Decoded, size: int | None) -> Decoded:
    """All images brought to size x size (bilinear); unchanged where size is None."""
    if size is None or tuple(data.train_pixels.shape[2:]) == (size, size):
        return data
    return replace(
        data,
        train_pixels=_resized(data.train_pixels, size),
        test_pixels=_resized(data.test_pixels, size),
    )


def _resized(pixels: np.ndarray, size: int) -> np.ndarray:
    parts = [
        torch.nn.functional.interpolate(part.float(), (size, size), mode="bilinear", antialias=True)
        .round()
        .clamp(0, 255)
        .to(torch.uint8)
        for part in torch.from_numpy(pixels).split(1000)
    ]
    return torch.cat(parts).numpy()


def _images(pixels: np.ndarray, labels: np.ndarray, index: np.ndarray) -> Images:
    whole = len(index) == len(labels)
    if isinstance(pixels, np.memmap) and not whole:
        rows = torch.from_numpy(index)
        return Images(torch.from_numpy(pixels), torch.from_numpy(labels[index]), rows)
    return Images(
        torch.from_numpy(pixels if whole else pixels[index]),
        torch.from_numpy(labels if whole else labels[index]),
    )
