"""The image files of a folder -> arrays, and what its user has to know of them.

N images of C channels, H x W pixels: uint8 [N, C, H, W]; labels int64 [N].
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from pipeline import hardware
from pipeline.data import cache, pictures
from pipeline.data.cache import Decoded
from pipeline.data.pictures import Traits, Unreadable
from pipeline.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.data.folder import Folder
    from pipeline.sweep import Dataset

AT_ONCE = 64  # files a task: for tiny images one task each would cost more than decoding
MOST_NAMED = 3
Result = TypeVar("Result")


class First(NamedTuple):
    """The image that decides the size of all, where no setting does."""

    path: str
    width: int
    height: int


class Read(NamedTuple):
    """An image uint8 [C, H, W] and its traits; None where it cannot be read and is left out."""

    pixels: np.ndarray | None
    traits: Traits = Traits()


@dataclass
class _Tally:
    """What is to be reported of the images of both parts."""

    images: int = 0
    odd: int = 0  # of another colour than most
    skipped: list[str] = field(default_factory=list)
    deep: int = 0
    outlined: int = 0
    blank: int = 0

    def add(self, read: Read, path: str, channels: int) -> None:
        self.images += 1
        if read.pixels is None:
            self.skipped.append(path)
            return
        self.odd += read.traits.grey != (channels == 1)
        self.deep += read.traits.deep
        self.outlined += read.traits.outlined
        self.blank += read.traits.outlined and read.pixels.min() == read.pixels.max()


def shape_of(dataset: Dataset, folder: Folder) -> tuple[int, int, int]:
    """(C, H, W): by the settings of the data set, else grey where most training images are, and of
    the size of the first. Raises Unreadable, unless such images are to be skipped."""
    channels, size = dataset.channels, dataset.size
    if channels and size:
        return channels, size, size
    first = first_of(dataset, folder)
    if channels is None:
        paths = [file.path for file in folder.images("train")]
        greys = [g for g in _each(paths, lambda path: _is_grey(path, dataset)) if g is not None]
        channels = 1 if 2 * sum(greys) > len(greys) else 3
    return channels, size or first.height, size or first.width


def first_of(dataset: Dataset, folder: Folder) -> First:
    """The first training image that can be read."""
    with pictures.quietly():
        for path in (file.path for file in folder.images("train")):
            try:
                image = pictures.upright(pictures.open_image(path), path)
                return First(path, image.width, image.height)
            except Unreadable:
                if dataset.on_error != "skip":
                    raise
    raise UserError(f"{dataset.name}: none of its training images can be read")


def decoded(dataset: Dataset, folder: Folder) -> Decoded:
    """All images; UserError names the first that is refused."""
    shape = shape_of(dataset, folder)
    _check_memory(dataset.name, folder, shape)
    first = first_of(dataset, folder)
    tally = _Tally()
    train, test = (_part(dataset, folder, part, shape, first, tally) for part in ("train", "test"))
    if train[0].min() == train[0].max():
        laid = f", laid on {dataset.background} where it is transparent" if tally.outlined else ""
        more = "; `background:` with the data set chooses another colour" if laid else ""
        raise UserError(
            f"{dataset.name}: every pixel of every training image is the same{laid}{more}"
        )
    notes = tuple(f"{dataset.name}: {note}" for note in _notes(dataset, shape[0], tally))
    return Decoded(folder.classes, train[0], train[1], test[0], test[1], notes=notes)


def _part(
    dataset: Dataset,
    folder: Folder,
    part: str,
    shape: tuple[int, int, int],
    first: First,
    tally: _Tally,
) -> tuple[np.ndarray, np.ndarray]:
    """(pixels, labels) of one part, without what is skipped."""
    files = [file.path for file in folder.images(part)]
    pixels = cache.empty((len(files), *shape))
    good, kept = np.zeros(len(files), bool), 0
    for i, read in enumerate(_each(files, lambda path: _read(path, dataset, shape, first))):
        tally.add(read, files[i], shape[0])
        if read.pixels is not None:
            pixels[kept] = read.pixels
            good[i], kept = True, kept + 1
    counts = [len(folder.files[part][name]) for name in folder.classes]
    labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)[good]
    _check_rest(dataset.name, folder, part, labels)
    return pixels[: len(labels)], labels


def _check_rest(name: str, folder: Folder, part: str, labels: np.ndarray) -> None:
    for label, count in zip(
        folder.classes, np.bincount(labels, minlength=len(folder.classes)), strict=True
    ):
        if not count:
            raise UserError(f"{name}: none of the images in {part}/{label} can be read")


def _each(paths: Sequence[str], of: Callable[[str], Result]) -> Iterator[Result]:
    """Of every file, in order, so that of several bad ones the first is named; Pillow leaves the
    interpreter to others while it decodes."""

    def some(start: int) -> list[Result]:
        return [of(path) for path in paths[start : start + AT_ONCE]]

    with pictures.quietly(), ThreadPoolExecutor(min(8, hardware.cores())) as pool:
        try:
            for results in pool.map(some, range(0, len(paths), AT_ONCE)):
                yield from results
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _is_grey(path: str, dataset: Dataset) -> bool | None:
    """By its header; None where it cannot be read."""
    try:
        return pictures.is_grey(pictures.open_image(path))
    except Unreadable:
        if dataset.on_error == "skip":
            return None
        raise


def _read(path: str, dataset: Dataset, shape: tuple[int, int, int], first: First) -> Read:
    try:
        image = pictures.open_image(path)
        traits = pictures.traits(image, path)
        pictures.upright(image, path)
        if not dataset.size and (image.height, image.width) != shape[1:]:
            raise UserError(
                f"{path}: has {image.width}x{image.height} pixels, but the first image, "
                f"{first.path}, has {shape[2]}x{shape[1]}: give `size:` with the data set in the "
                "sweep file to resize all"
            )
        return Read(pictures.pixels(image, path, shape[0], shape[1:], dataset.background), traits)
    except Unreadable:
        if dataset.on_error == "skip":
            return Read(None)
        raise


def _check_memory(name: str, folder: Folder, shape: tuple[int, int, int]) -> None:
    count = sum(len(folder.images(part)) for part in folder.files)
    needed = count * shape[0] * shape[1] * shape[2]
    size = f"{name}: {count:,} images of {shape[2]}x{shape[1]} take {needed / 2**30:.0f} GiB"
    free = cache.room() if needed >= cache.MAPPED else None
    if free is not None:
        if 2 * needed > free:  # once while they are decoded, once in the cache
            raise UserError(
                f"{size}, twice while they are decoded, and the cache's disk has "
                f"{free / 2**30:.0f} free: give a smaller `size:` in the sweep file, or another "
                "folder by NETPRESS_WORK"
            )
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory / 2:
        raise UserError(
            f"{size} of this machine's {memory / 2**30:.0f}: give a smaller `size:` in the sweep "
            "file"
        )


def _notes(dataset: Dataset, channels: int, tally: _Tally) -> Iterator[str]:
    if tally.skipped:
        named = ", ".join(ascii(path)[1:-1] for path in tally.skipped[:MOST_NAMED])
        more = f", and {len(tally.skipped) - MOST_NAMED} more" * (len(tally.skipped) > MOST_NAMED)
        yield (
            f"{len(tally.skipped):,} of {tally.images:,} images cannot be read and are left out "
            f"(`on_error: skip`): {named}{more}"
        )
    if tally.odd and dataset.channels is None:
        odd, most, other = ("grey", "colour", 1) if channels == 3 else ("in colour", "grey", 3)
        yield (
            f"{tally.odd:,} of {tally.images:,} images {_are(tally.odd)} {odd}; all are read as "
            f"{most}, as most of them are; `channels: {other}` with the data set reads all as "
            f"{'grey' if other == 1 else 'colour'}"
        )
    if tally.outlined:
        blank = f", and {tally.blank:,} of them show nothing then" if tally.blank else ""
        yield (
            f"in {tally.outlined:,} of {tally.images:,} images transparency alone makes the "
            f"picture; they are laid on {dataset.background}{blank}; `background:` with the data "
            "set chooses another colour"
        )
    if tally.deep:
        yield (
            f"{tally.deep:,} of {tally.images:,} images {_have(tally.deep)} 16 bits a channel, of "
            "which the upper 8 are read"
        )


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _have(count: int) -> str:
    return "has" if count == 1 else "have"
