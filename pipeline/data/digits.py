"""The handwritten digits that ship with scikit-learn: 1,797 images, 8x8, grey, 10 classes.

(E. Alpaydin and C. Kaynak 1998, the test part.) Each pixel becomes 4x4, so that a network for
32x32 takes them. They come without a division, so a quarter of each class is the test set, chosen
once for all.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from pipeline.data.cache import Decoded
    from pipeline.sweep import Dataset

FLIP = False
NATIVE = 8
SIZE = 32
TEST = 450  # of 1,797
CLASSES = tuple("0123456789")
FILE = "datasets/data/digits.csv.gz"  # in scikit-learn: 64 pixels of 0..16 and a label a line


def facts(dataset: Dataset, root: Path) -> tuple[tuple[str, ...], tuple[int, int, int]]:
    size = dataset.size or SIZE
    return CLASSES, (1, size, size)


def key(dataset: Dataset, root: Path) -> str:
    from pipeline.data.entries import source_key

    return source_key("digits", version("scikit-learn"), dataset.size)


def verify(dataset: Dataset, root: Path) -> bool:
    return True


def decode(dataset: Dataset, root: Path) -> Decoded:
    import numpy as np

    from pipeline.data.cache import Decoded
    from pipeline.data.split import ranking, sliver

    images, labels = _read()
    pixels = _enlarged(images, dataset.size or SIZE)[:, None]
    test = sliver(labels, TEST, ranking(len(labels), "digits"))
    train = np.setdiff1d(np.arange(len(labels)), test)
    return Decoded(CLASSES, pixels[train], labels[train], pixels[test], labels[test])


def fetch(dataset: Dataset, root: Path, say: Callable[[str], None]) -> None:
    say("digits: nothing to download, they ship with scikit-learn")


def _read() -> tuple[np.ndarray, np.ndarray]:
    """Images, float64 [N, 8, 8] of 0..16, and labels, int64 [N], without importing scikit-learn:
    its own function brings SciPy and pandas with it, which takes a second of a core."""
    import numpy as np

    spec = find_spec("sklearn")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder, FILE)).exists():
            rows = np.loadtxt(path, delimiter=",")
            return rows[:, :-1].reshape(-1, NATIVE, NATIVE), rows[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits  # a version that keeps them elsewhere

    digits = load_digits()
    return digits.images, digits.target.astype(np.int64)


def _enlarged(images: np.ndarray, size: int) -> np.ndarray:
    """[N, 8, 8] of 0..16 -> uint8 [N, size, size] of 0..255, nearest neighbour."""
    import numpy as np

    pixels = np.round(images * (255 / 16)).astype(np.uint8)
    nearest = np.arange(size) * NATIVE // size
    return np.ascontiguousarray(pixels[:, nearest][:, :, nearest])
