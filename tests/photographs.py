"""A folder of large images for examples: parts of the two photographs that scikit-learn ships.

`env/run python -m tests.photographs FOLDER [--train 120] [--test 40]` writes 240 x 240 pixels to
FOLDER/{train,test}/{flower,temple}/N.jpg. The test images are of the right quarter of each
photograph, the training images of the rest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 240
CLASSES = {"flower": "flower.jpg", "temple": "china.jpg"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=120, help="images of a class")
    parser.add_argument("--test", type=int, default=40, help="images of a class")
    options = parser.parse_args()
    write(options.folder, options.train, options.test)


def write(folder: Path, train: int, test: int) -> None:
    from sklearn.datasets import load_sample_image

    generator = np.random.default_rng(0)
    for name, file in CLASSES.items():
        whole = load_sample_image(file)  # [427, 640, 3]
        border = whole.shape[1] * 3 // 4
        parts = {"train": (whole[:, :border], train), "test": (whole[:, border:], test)}
        for part, (pixels, count) in parts.items():
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                _crop(pixels, generator).save(folder / part / name / f"{i}.jpg", quality=90)


def _crop(pixels: np.ndarray, generator: np.random.Generator) -> Image.Image:
    """A square of at least 120 pixels a side, anywhere in it."""
    side = int(generator.integers(120, min(pixels.shape[:2]) + 1))
    top = int(generator.integers(0, pixels.shape[0] - side + 1))
    left = int(generator.integers(0, pixels.shape[1] - side + 1))
    square = Image.fromarray(pixels[top : top + side, left : left + side])
    return square.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


if __name__ == "__main__":
    main()
