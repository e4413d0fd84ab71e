"""Batches of uint8 images, augmented on the device that holds them.

B images a batch of C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.split import Images


def batch_count(images: int, batch_size: int) -> int:
    """Batches in an epoch of training: a last short one is dropped, unless it is the only one."""
    return max(1, images // batch_size)


def batches(
    images: Images,
    batch_size: int,
    generator: torch.Generator,
    crop: int = 0,
    flip: bool = False,
    fill: int = 0,
    mirrored: Tensor | None = None,
    cutout: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of training: shuffled (pixels uint8 [B, C, H, W], labels int64 [B]).

    Each image is shifted by up to `crop` pixels either way, with `fill` where nothing is (the zero
    point, which is zero to the network), and mirrored in half of all cases with `flip`, or where
    `mirrored` (bool, one for each of `images`) says so. With `cutout`, a square with sides of so
    many pixels becomes `fill`, whose middle may be anywhere (DeVries and Taylor 2017). All that is
    random is drawn here and at once: how far the iterator is read does not change the generator.
    Nothing makes the host wait for a GPU where the generator is the device's own.
    """
    count, source, device = len(images), generator.device, images.pixels.device
    order = torch.randperm(count, generator=generator, device=source)
    shifts = torch.randint(0, 2 * crop + 1, (2, count), generator=generator, device=source)
    chance = torch.randint(0, 2, (count,), generator=generator, device=source, dtype=torch.bool)
    chosen = chance if mirrored is None else mirrored.to(source)[order]
    plan = order.to(device), shifts.to(device), chosen.to(device) & flip
    size = min(batch_size, count)
    made = _epoch(images, plan, size, batch_count(count, batch_size), crop, fill)
    if not cutout:
        return made
    sides = torch.tensor(images.pixels.shape[2:], device=source)
    middles = torch.rand(2, count, generator=generator, device=source) * sides[:, None]
    return _with_holes(made, middles.to(device), cutout, fill)


def _with_holes(
    batches: Iterator[tuple[Tensor, Tensor]], middles: Tensor, side: int, fill: int
) -> Iterator[tuple[Tensor, Tensor]]:
    start = 0
    for pixels, labels in batches:
        middle = middles[:, start : start + len(labels)].floor()
        start += len(labels)
        yield _with_hole(pixels, middle, side, fill), labels


def _with_hole(pixels: Tensor, middle: Tensor, side: int, fill: int) -> Tensor:
    """Each image without the square of this side around its `middle` (row and column, [2, B])."""
    first = middle.long() - side // 2
    rows, columns = (
        (position >= start[:, None]) & (position < start[:, None] + side)
        for start, position in zip(
            first, (torch.arange(n, device=pixels.device) for n in pixels.shape[2:]), strict=True
        )
    )
    hole = rows[:, None, :, None] & columns[:, None, None, :]
    return pixels.masked_fill(hole, fill)


def ordered(images: Images, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(pixels, labels) of all images as they lie, the last short batch included."""
    return zip(images.pixels.split(batch_size), images.labels.split(batch_size), strict=True)


def _epoch(
    images: Images,
    plan: tuple[Tensor, Tensor, Tensor],
    size: int,
    steps: int,
    crop: int,
    fill: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    order, shifts, mirrored = plan
    for start in range(0, steps * size, size):
        at = slice(start, start + size)
        pixels = images.pixels.index_select(0, order[at])
        yield (
            _moved(pixels, shifts[:, at], mirrored[at], crop, fill),
            images.labels.index_select(0, order[at]),
        )


def _moved(pixels: Tensor, shifts: Tensor, mirrored: Tensor, crop: int, fill: int) -> Tensor:
    """A window of H x W of each padded image. One gather on flat positions: four times faster on a
    CPU than indexing by image, row and column."""
    batch, channels, height, width = pixels.shape
    padded = F.pad(pixels, (crop,) * 4, value=fill)
    rows = shifts[0, :, None] + torch.arange(height, device=pixels.device)
    columns = shifts[1, :, None] + torch.arange(width, device=pixels.device)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    flat = rows[:, :, None] * (width + 2 * crop) + columns[:, None, :]
    flat = flat.view(batch, 1, height * width).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, flat).view(pixels.shape)
