"""What a decoded data set has to be: a plug-in's author can get any of it wrong, and numbers of
such images would be published as if they were right.

N images of C channels, H x W pixels: uint8 [N, C, H, W]; labels int64 [N], K classes.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from pipeline.data import PluginError
from pipeline.data.cache import Decoded

PARTS = ("train", "test")


def require(data: Any, where: str) -> None:
    """Raises PluginError, in which `where` is the data set, for what `decode` must not give."""
    if not isinstance(data, Decoded):
        _refuse(where, f"expected a pipeline.data.cache.Decoded, got {type(data).__name__}")
    for part in PARTS:
        pixels, labels = (getattr(data, f"{part}_{what}") for what in ("pixels", "labels"))
        _require_array(pixels, np.uint8, 4, f"{where}: {part}_pixels")
        _require_array(labels, np.int64, 1, f"{where}: {part}_labels")
        if len(pixels) != len(labels) or not len(labels):
            _refuse(
                where,
                f"expected as many {part}_labels as {part}_pixels, at least 1, got {len(labels)} "
                f"and {len(pixels)}",
            )
        least, most = int(labels.min()), int(labels.max())
        if least < 0 or most >= len(data.classes):
            _refuse(
                where,
                f"expected {part}_labels of 0..{len(data.classes) - 1}, for {len(data.classes)} "
                f"classes, got {least}..{most}",
            )
    if data.train_pixels.shape[1:] != data.test_pixels.shape[1:]:
        shapes = " and ".join(str(list(getattr(data, f"{p}_pixels").shape[1:])) for p in PARTS)
        _refuse(where, f"expected training and test images of one shape, got {shapes}")
    if 0 in (sizes := data.sizes()):
        _refuse(where, f"class {data.classes[sizes.index(0)]!r} has no training image")


def require_facts(
    data: Decoded, classes: tuple[str, ...], shape: tuple[int, int, int], where: str
) -> None:
    """Raises PluginError, as `require`, where its classes and the shape [C, H, W] of its images are
    not those that `facts` gives: networks are planned by these."""
    got = tuple(data.classes), tuple(data.train_pixels.shape[1:])
    expected = tuple(classes), tuple(shape)
    for what, is_here, is_given in zip(("classes", "images of shape"), got, expected, strict=True):
        if is_here != is_given:
            _refuse(where, f"expected {what} {list(is_given)}, as in facts, got {list(is_here)}")


def _require_array(array: Any, dtype: type, dimensions: int, where: str) -> None:
    is_array = isinstance(array, np.ndarray)
    if not is_array or array.dtype != dtype or array.ndim != dimensions:
        got = f"{array.dtype} {list(array.shape)}" if is_array else type(array).__name__
        form = "[N, C, H, W]" if dimensions == 4 else "[N]"
        _refuse(where, f"expected an array of {np.dtype(dtype)} {form}, got {got}")


def _refuse(where: str, problem: str) -> NoReturn:
    raise PluginError(f"{where}: {problem}")
