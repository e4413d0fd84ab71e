"""One image file -> uint8 [C, H, W], the same way for training sets and for `netpress predict`."""

from __future__ import annotations

import contextlib
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pipeline.errors import UserError

# Only decoders that run in this process: for PostScript, Pillow would start an interpreter.
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "WEBP", "TIFF", "GIF")
MAX_PIXELS = 64_000_000  # a small file may claim more than the memory holds
GREY = {"1", "L", "LA", "La"}
DEEP = ("I", "F")  # 16 and 32 bits a channel, such as "I;16"
MODES = {1: "L", 3: "RGB"}


def read_image(path: str | Path, shape: tuple[int, int, int]) -> np.ndarray:
    """The image at `path` as uint8 [C, H, W]: turned as its EXIF data says, transparent parts on
    white, grey or colour by C, resized (bilinear) where its size differs. Raises UserError when it
    cannot be read."""
    with quietly():
        return pixels(open_image(path), path, shape[0], shape[1:])


def images_from(paths: Sequence[str | Path], shape: tuple[int, int, int]) -> np.ndarray:
    """The images at `paths` as uint8 [N, C, H, W]; UserError names the first that is none."""
    if not paths:
        return np.empty((0, *shape), np.uint8)
    return np.stack([read_image(path, shape) for path in paths])


def open_image(path: str | Path) -> Image.Image:
    """The upright image, opened; raises UserError."""
    with _readable(path):
        _check_kind(path)
        image = Image.open(path, formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise UserError(
                f"{path}: has {image.width}x{image.height} pixels, expected at most {MAX_PIXELS:,}"
            )
        if image.mode.startswith(DEEP):
            raise UserError(f"{path}: has more than 8 bits a channel, expected 8")
        ImageOps.exif_transpose(image, in_place=True)
        return image


def pixels(
    image: Image.Image, path: str | Path, channels: int, size: tuple[int, int] | None
) -> np.ndarray:
    """uint8 [C, H, W] of an opened image, resized to `size` (H, W) where it has another."""
    with _readable(path):
        if image.has_transparency_data:
            image = _on_white(image)
        if image.mode != MODES[channels]:
            image = image.convert(MODES[channels])
        if size and (image.height, image.width) != tuple(size):
            image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        array = np.asarray(image)
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _on_white(image: Image.Image) -> Image.Image:
    """What lies below a transparent pixel is arbitrary, and nobody sees it: often black."""
    if image.mode == "La":  # premultiplied, which Pillow turns into nothing but this
        image = image.convert("LA")
    seen = Image.new("RGBA", image.size, "white")
    seen.alpha_composite(image.convert("RGBA"))
    return seen


def _check_kind(path: str | Path) -> None:
    """Opening a pipe would wait for ever."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise UserError(f"{path}: no such image file") from None
    if stat.S_ISDIR(mode):
        raise UserError(f"{path}: is a folder, expected an image file")
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: is not a regular file, expected an image file")


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
        raise UserError(f"{path}: cannot be read as an image ({reason})") from error
