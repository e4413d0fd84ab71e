"""Batches of uint8 images, augmented on the device that holds them.

B images a batch of C channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.split import Images

EVALUATION_BATCH, EVALUATION_PIXELS = 500, 500 * 64 * 64
TRIES = 10  # boxes that are drawn for an image
WIDEST = 4 / 3


def batch_count(images: int, batch_size: int) -> int:
    """Batches in an epoch of training: a last short one is dropped, unless it is the only one."""
    return max(1, images // batch_size)


@dataclass(frozen=True)
class Augmentation:
    """What happens to each image of H x W pixels.

    `crop`: it is shifted by up to so many pixels either way, with `fill` where nothing is (the zero
    point, which is zero to the network). `resized_crop`: instead, a part of it is enlarged to H x W
    (Szegedy et al. 2015, arXiv 1409.4842, section 6): of this least part of its area to all of it,
    3:4 to 4:3 as wide as high, bilinear; 0: not. `flip`: it is mirrored in half of all cases.
    `cutout`: a square with sides of so many pixels becomes `fill`, whose middle may be anywhere
    (DeVries and Taylor 2017).
    """

    crop: int = 0
    flip: bool = False
    fill: int = 0
    cutout: int = 0
    resized_crop: float = 0.0


@dataclass(frozen=True)
class Draws:
    """All that an epoch of training leaves to chance, for N images: `order` int64 [N], `shifts`
    int64 [2, N] (rows and columns, 0 to twice the crop), `mirrored` bool [N], `holes` int64 [2, N]
    (row and column in the middle of each; zeros without cutout), `boxes` float32 [4, N] (of what is
    enlarged first row and column, rows and columns; zeros where nothing is)."""

    order: Tensor
    shifts: Tensor
    mirrored: Tensor
    holes: Tensor
    boxes: Tensor

    def part(self, at: Tensor | slice) -> Draws:
        """Of a batch: of the positions `at` of the order (int64 [B], or a slice)."""
        if isinstance(at, slice):
            return Draws(*(each[..., at] for each in self.tensors()))
        return Draws(*(each.index_select(-1, at) for each in self.tensors()))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.order, self.shifts, self.mirrored, self.holes, self.boxes


def draw(
    images: Images,
    generator: torch.Generator,
    how: Augmentation,
    mirrored: Tensor | None = None,
) -> Draws:
    """On the device of the images. `mirrored` (bool, one for each of `images`): which are, where
    that is not left to chance. Nothing makes the host wait for a GPU where the generator is the
    device's own."""
    count, source, device = len(images), generator.device, images.pixels.device
    order = torch.randperm(count, generator=generator, device=source)
    shifts = torch.randint(0, 2 * how.crop + 1, (2, count), generator=generator, device=source)
    chance = torch.randint(0, 2, (count,), generator=generator, device=source, dtype=torch.bool)
    chosen = (chance if mirrored is None else mirrored.to(source)[order]) & how.flip
    sides = images.pixels.shape[2:]
    holes = torch.zeros_like(shifts)
    for axis, side in enumerate(sides if how.cutout else ()):
        holes[axis] = torch.randint(0, side, (count,), generator=generator, device=source)
    boxes = torch.zeros((4, count), device=source)
    if how.resized_crop:
        boxes = _boxes(count, (sides[0], sides[1]), how.resized_crop, generator)
    return Draws(*(each.to(device) for each in (order, shifts, chosen, holes, boxes)))


def augmented(images: Images, draws: Draws, how: Augmentation) -> tuple[Tensor, Tensor]:
    """The batch (pixels uint8 [B, C, H, W], labels int64 [B]) of these draws [B]."""
    pixels = images.at(draws.order)
    labels = images.labels.index_select(0, draws.order)
    if how.resized_crop:
        pixels = _enlarged(pixels, draws.boxes, draws.mirrored)
    else:
        pixels = _moved(pixels, draws.shifts, draws.mirrored, how.crop, how.fill)
    return _with_holes(pixels, draws.holes, how.cutout, how.fill) if how.cutout else pixels, labels


def batches(
    images: Images,
    batch_size: int,
    generator: torch.Generator,
    mirrored: Tensor | None = None,
    **augmentation: Any,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of training: shuffled (pixels uint8 [B, C, H, W], labels int64 [B]). All that is
    random is drawn here and at once: how far the iterator is read does not change the generator.
    `augmentation`: as Augmentation has it; `mirrored`: as `draw`."""
    how = Augmentation(**augmentation)
    draws = draw(images, generator, how, mirrored)
    size, steps = min(batch_size, len(images)), batch_count(len(images), batch_size)
    slices = (slice(start, start + size) for start in range(0, steps * size, size))
    return (augmented(images, draws.part(at), how) for at in slices)


def ordered(images: Images, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(pixels, labels) of all images as they lie, the last short batch included."""
    return images.batches(batch_size)


def evaluated(images: Images) -> Iterator[tuple[Tensor, Tensor]]:
    """The same in batches for networks that are not trained, of fewer images where these are large:
    the feature maps of 500 photographs of 224 x 224 pixels take more memory than a job has."""
    height, width = images.pixels.shape[-2:]
    return images.batches(max(1, min(EVALUATION_BATCH, EVALUATION_PIXELS // (height * width))))


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


def _boxes(count: int, sides: tuple[int, int], least: float, generator: torch.Generator) -> Tensor:
    """[4, N]: of TRIES boxes for each image the first that lies within it; the whole image where
    none does."""
    place: Any = {"generator": generator, "device": generator.device}
    height, width = sides
    area = height * width * (least + (1 - least) * torch.rand((TRIES, count), **place))
    ratio = torch.exp(math.log(WIDEST) * (2 * torch.rand((TRIES, count), **place) - 1))
    rows, columns = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    fits = (rows >= 1) & (rows <= height) & (columns >= 1) & (columns <= width)
    first = fits.int().argmax(0, keepdim=True)  # the first, or 0 where none fits
    rows, columns, fits = (each.gather(0, first)[0] for each in (rows, columns, fits))
    rows = torch.where(fits, rows, height)
    columns = torch.where(fits, columns, width)
    top, left = torch.rand((2, count), **place)
    top, left = (top * (height - rows + 1)).floor(), (left * (width - columns + 1)).floor()
    return torch.stack((top.clamp(max=height - 1), left.clamp(max=width - 1), rows, columns))


def _enlarged(pixels: Tensor, boxes: Tensor, mirrored: Tensor) -> Tensor:
    """Each image's box, at the size of the image: bilinear, with pixel centers at halves."""
    places = [
        _places(start, length, side)
        for start, length, side in zip(boxes[:2], boxes[2:], pixels.shape[2:], strict=True)
    ]
    rows, columns = places[0], torch.where(mirrored[:, None], places[1].flip(1), places[1])
    grid = torch.stack(torch.broadcast_tensors(columns[:, None, :], rows[:, :, None]), 3)
    sampled = F.grid_sample(pixels.float(), grid, "bilinear", "border", align_corners=True)
    return sampled.round_().to(torch.uint8)  # means of pixels lie between them


def _places(start: Tensor, length: Tensor, side: int) -> Tensor:
    """[B, side]: where on an axis of `side` pixels each pixel of the result lies, -1..1 from the
    first center to the last."""
    center = torch.arange(side, device=start.device) + 0.5
    inside = (center * length[:, None] / side - 0.5).clamp_min(0)
    place = start[:, None] + torch.minimum(inside, length[:, None] - 1)
    return 2 * place / max(1, side - 1) - 1
