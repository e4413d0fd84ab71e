"""Image files -> classes, by an artifact that a stranger may have made."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import artifact, data, hardware, runtimes
from pipeline.data import folder as folders
from pipeline.errors import Corrupt, UserError

BATCH_BYTES = 64 << 20  # of pixels at once


class Unfit(Exception):
    """This machine computes other classes than those meant; `anyway` requests them all the same."""


@dataclass(frozen=True)
class Prediction:
    """`top`: (class, confidence), the most likely first."""

    image: Path
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Failure:
    """An image that could not be classified."""

    image: Path
    reason: str


def files(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The image files that are meant by files and folders, and a sentence for each kind of file in
    the folders that is not read. Raises UserError where there is nothing at a path, and where a
    folder has no images."""
    images: list[Path] = []
    lines: list[str] = []
    for path in paths:
        if not os.path.exists(path):
            raise UserError(f"{path}: no such image file or folder")
        if not path.is_dir():
            images.append(path)
            continue
        in_folder, passed = folders.below(path)
        if not in_folder:
            raise UserError("; ".join([f"{path}: is a folder without images", *passed]))
        images += in_folder
        lines += passed
    return images, lines


def predict(
    folder: Path,
    paths: Sequence[Path],
    runtime: str = runtimes.DEFAULT,
    anyway: bool = False,
    top: int = 1,
) -> Iterator[Prediction | Failure]:
    """Classifies image files, in the order given, a batch at a time; `top`: how many classes of
    each. An image that cannot be read is a Failure. Raises UserError, one sentence, for whatever is
    wrong with the artifact or the runtime, and Unfit where the model needs what this CPU lacks,
    unless `anyway`."""
    runtimes.of_artifacts(runtime)
    try:
        model = artifact.load(folder)
        if (reason := model.unfit()) and not anyway:
            raise Unfit(f"{folder}: {reason}; `--anyway` classifies all the same")
        session = runtimes.session(model, runtime=runtime)
        for batch, images in _batches(paths, model):
            good = [image for image in images if isinstance(image, np.ndarray)]
            scores = runtimes.logits(session, np.stack(good)) if good else ()
            shares = (row for part in scores for row in _shares(part, folder))
            for path, image in zip(batch, images, strict=True):
                if isinstance(image, np.ndarray):
                    yield Prediction(path, _most_likely(next(shares), model.classes, top))
                else:
                    yield Failure(path, image)
    except Corrupt as error:
        raise UserError(f"{error}; take it anew with `netpress export`") from error


def _batches(
    paths: Sequence[Path], model: artifact.Artifact
) -> Iterator[tuple[Sequence[Path], list[np.ndarray | str]]]:
    """(paths, uint8 [C, H, W] of each or why there is none); while one batch is classified, the
    next one is read."""

    def read(path: Path) -> np.ndarray | str:
        try:
            return data.read_image(path, model.shape, model.background)
        except UserError as error:
            return str(error)

    size = max(1, min(runtimes.BATCH, BATCH_BYTES // math.prod(model.shape)))
    with ThreadPoolExecutor(min(8, hardware.cores())) as pool:

        def begin(start: int) -> list[Future[np.ndarray | str]]:
            return [pool.submit(read, path) for path in paths[start : start + size]]

        reading = begin(0)
        for start in range(0, len(paths), size):
            images = [image.result() for image in reading]
            reading = begin(start + size)
            yield paths[start : start + size], images


def _most_likely(
    shares: np.ndarray, classes: tuple[str, ...], top: int
) -> tuple[tuple[str, float], ...]:
    """`shares` [classes] of one image."""
    best = np.argsort(-shares, kind="stable")[:top]
    return tuple((classes[k], float(shares[k])) for k in best)


def _shares(scores: np.ndarray, folder: Path) -> np.ndarray:
    if not np.isfinite(scores).all():
        raise Corrupt(f"{folder}: what it gives for an image is no finite number")
    return artifact.softmax(scores)
