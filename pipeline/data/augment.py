"""Batches of uint8 images, augmented on the device that holds them.

B images a batch of C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.split import Images


def batch_count(images: int, batch_size: int) -> int:
    """Batches in an epoch of training: a last short one is dropped, unless it is the only one."""
    return max(1, images // batch_size)


@dataclass(frozen=True)
class Draws:
    """All that an epoch of training leaves to chance, for N images: `order` int64 [N], `shifts`
    int64 [2, N] (rows and columns, 0 to twice the crop), `mirrored` bool [N], `holes` int64 [2, N]
    (row and column in the middle of each; zeros without cutout)."""

    order: Tensor
    shifts: Tensor
    mirrored: Tensor
    holes: Tensor

    def part(self, at: Tensor | slice) -> Draws:
        """Of a batch: of the positions `at` of the order (int64 [B], or a slice)."""
        if isinstance(at, slice):
            return Draws(*(each[..., at] for each in self.tensors()))
        return Draws(*(each.index_select(-1, at) for each in self.tensors()))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.order, self.shifts, self.mirrored, self.holes


def draw(
    images: Images,
    generator: torch.Generator,
    crop: int = 0,
    flip: bool = False,
    mirrored: Tensor | None = None,
    cutout: int = 0,
) -> Draws:
    """As `batches` says, on the device of the images. Nothing makes the host wait for a GPU where
    the generator is the device's own."""
    count, source, device = len(images), generator.device, images.pixels.device
    order = torch.randperm(count, generator=generator, device=source)
    shifts = torch.randint(0, 2 * crop + 1, (2, count), generator=generator, device=source)
    chance = torch.randint(0, 2, (count,), generator=generator, device=source, dtype=torch.bool)
    chosen = chance if mirrored is None else mirrored.to(source)[order]
    holes = torch.zeros_like(shifts)
    for axis, side in enumerate(images.pixels.shape[2:] if cutout else ()):
        holes[axis] = torch.randint(0, side, (count,), generator=generator, device=source)
    return Draws(order.to(device), shifts.to(device), chosen.to(device) & flip, holes.to(device))


def augmented(
    images: Images, draws: Draws, crop: int, fill: int, cutout: int = 0
) -> tuple[Tensor, Tensor]:
    """The batch (pixels uint8 [B, C, H, W], labels int64 [B]) of these draws [B]."""
    pixels = images.at(draws.order)
    labels = images.labels.index_select(0, draws.order)
    moved = _moved(pixels, draws.shifts, draws.mirrored, crop, fill)
    return _with_holes(moved, draws.holes, cutout, fill) if cutout else moved, labels


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
    """
    draws = draw(images, generator, crop, flip, mirrored, cutout)
    size, steps = min(batch_size, len(images)), batch_count(len(images), batch_size)
    slices = (slice(start, start + size) for start in range(0, steps * size, size))
    return (augmented(images, draws.part(at), crop, fill, cutout) for at in slices)


def ordered(images: Images, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(pixels, labels) of all images as they lie, the last short batch included."""
    return images.batches(batch_size)


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


def _with_holes(pixels: Tensor, middles: Tensor, side: int, fill: int) -> Tensor:
    """Each image without the square of this side around its middle."""
    first = middles - side // 2
    rows, columns = (
        (position >= start[:, None]) & (position < start[:, None] + side)
        for start, position in zip(
            first, (torch.arange(n, device=pixels.device) for n in pixels.shape[2:]), strict=True
        )
    )
    return pixels.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], fill)
