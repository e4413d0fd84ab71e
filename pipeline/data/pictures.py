"""One image file -> uint8 [C, H, W], the same way for training sets and for `netpress predict`."""

from __future__ import annotations

import contextlib
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, features

from pipeline.errors import UserError

# Only decoders that run in this process: for PostScript, Pillow would start an interpreter.
FORMATS = (
    *("JPEG", "PNG", "BMP", "PPM", "WEBP", "TIFF", "GIF"),
    *(("JPEG2000",) if features.check("jpg_2000") else ()),
    *(("AVIF",) if features.check("avif") else ()),
)
MAX_PIXELS = 64_000_000  # a small file may claim more than the memory holds
GREY = {"1", "L", "LA", "La"}
DEEP = ("I", "F")  # 16 and 32 bits a channel, such as "I;16"
MODES = {1: "L", 3: "RGB"}
WHITE = "white"


class Unreadable(UserError):
    """No image that can be used is at this path."""


class Traits(NamedTuple):
    """grey: by its mode or palette. deep: it has 16 bits a channel, of which Pillow gives the upper
    8. outlined: what is seen of it has one colour, so that transparency alone makes the picture."""

    grey: bool = False
    deep: bool = False
    outlined: bool = False


def read_image(
    path: str | Path, shape: tuple[int, int, int], background: str = WHITE
) -> np.ndarray:
    """The image at `path` as uint8 [C, H, W]: turned as its EXIF data says, transparent parts on
    the background, grey or colour by C, resized (bilinear) where its size differs. Raises
    Unreadable."""
    with quietly():
        image = upright(open_image(path), path)
        return pixels(image, path, shape[0], shape[1:], background)


def images_from(
    paths: Sequence[str | Path], shape: tuple[int, int, int], background: str = WHITE
) -> np.ndarray:
    """The images at `paths` as uint8 [N, C, H, W]; Unreadable names the first that is none."""
    if not paths:
        return np.empty((0, *shape), np.uint8)
    return np.stack([read_image(path, shape, background) for path in paths])


def open_image(path: str | Path) -> Image.Image:
    """The image, opened: only its header is read. Raises Unreadable."""
    with _readable(path):
        _check_kind(path)
        image = Image.open(path, formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise Unreadable(
                f"{path}: has {image.width}x{image.height} pixels, expected at most {MAX_PIXELS:,}"
            )
        if image.mode.startswith(DEEP):
            raise Unreadable(
                f"{path}: has one channel of 16 or 32 bits, whose range is not known; expected 8 "
                "bits a channel"
            )
        return image


def upright(image: Image.Image, path: str | Path) -> Image.Image:
    """The same, turned as its EXIF data says; raises Unreadable."""
    with _readable(path):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def is_grey(image: Image.Image) -> bool:
    """Whether its mode, or its whole palette, has only greys."""
    if image.mode != "P":
        return image.mode in GREY
    palette = np.array(image.getpalette("RGB") or [0, 0, 0], np.uint8).reshape(-1, 3)
    return bool((palette == palette[:, :1]).all())


def traits(image: Image.Image, path: str | Path) -> Traits:
    """Of an image that was only opened; raises Unreadable."""
    with _readable(path):
        deep = any(
            ";16" in str(tile[3]) for tile in getattr(image, "tile", ())
        )  # such as "RGB;16B"
        return Traits(is_grey(image), deep, image.has_transparency_data and _is_outlined(image))


def _is_outlined(image: Image.Image) -> bool:
    """Whether transparency varies and all that is seen has one colour."""
    parts = np.asarray(_with_alpha(image)).reshape(-1, 4)
    alpha = parts[:, 3]
    if alpha.min() == alpha.max():
        return False
    seen = parts[alpha > 0][:, :3]
    return bool((seen == seen[0]).all())


def pixels(
    image: Image.Image,
    path: str | Path,
    channels: int,
    size: tuple[int, int] | None,
    background: str = WHITE,
) -> np.ndarray:
    """uint8 [C, H, W] of an opened image, resized to `size` (H, W) where it has another;
    transparent parts on the background, a colour as Pillow names it. Raises Unreadable."""
    with _readable(path):
        if image.has_transparency_data:
            image = _laid_on(background, image)
        if image.mode != MODES[channels]:
            image = image.convert(MODES[channels])
        if size and (image.height, image.width) != tuple(size):
            image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        array = np.asarray(image)
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _laid_on(background: str, image: Image.Image) -> Image.Image:
    """What lies below a transparent pixel is arbitrary, and nobody sees it: often black."""
    seen = Image.new("RGBA", image.size, background)
    seen.alpha_composite(_with_alpha(image))
    return seen


def _with_alpha(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # premultiplied, which Pillow turns into nothing but this
        image = image.convert("LA")
    return image.convert("RGBA")


def _check_kind(path: str | Path) -> None:
    """Opening a pipe would wait for ever."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise Unreadable(f"{path}: no such image file") from None
    if stat.S_ISDIR(mode):
        raise Unreadable(f"{path}: is a folder, expected an image file")
    if not stat.S_ISREG(mode):
        raise Unreadable(f"{path}: is not a regular file, expected an image file")


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Pillow warns of large images on its own; here they are an error or no matter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    """Damaged files make Pillow raise nearly anything: OSError, SyntaxError, struct.error, ..."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Unreadable(f"{path}: cannot be read as an image ({reason})") from error
