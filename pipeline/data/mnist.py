"""MNIST (Y. LeCun, C. Cortes, C. Burges): 60,000 + 10,000 handwritten digits, 28x28, grey.

DATA_ROOT/MNIST/raw/*-ubyte, as torchvision lays them out, downloads and parses them. torchvision
looks only whether these files exist, so their SHA-256 is checked here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data import downloads

if TYPE_CHECKING:
    from pipeline.data.cache import Decoded
    from pipeline.sweep import Dataset

FLIP = False
NATIVE = 28
CLASSES = tuple("0123456789")
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def facts(dataset: Dataset, root: Path) -> tuple[tuple[str, ...], tuple[int, int, int]]:
    size = dataset.size or NATIVE
    return CLASSES, (1, size, size)


def key(dataset: Dataset, root: Path) -> str:
    return downloads.key(dataset, _folder(root), SHA256)


def verify(dataset: Dataset, root: Path) -> bool:
    downloads.verify("mnist", _folder(root), SHA256, "sha256")
    return True


def decode(dataset: Dataset, root: Path) -> Decoded:
    verify(dataset, root)
    from torchvision.datasets.mnist import read_image_file, read_label_file

    from pipeline.data.cache import Decoded
    from pipeline.data.split import resized

    train_pixels, train_labels, test_pixels, test_labels = (
        (read_image_file if "images" in name else read_label_file)(_folder(root) / name).numpy()
        for name in SHA256
    )
    whole = Decoded(CLASSES, train_pixels[:, None], train_labels, test_pixels[:, None], test_labels)
    return resized(whole, dataset.size)


def fetch(dataset: Dataset, root: Path, say: Callable[[str], None]) -> None:
    def download() -> None:
        from torchvision.datasets import MNIST

        MNIST(str(root), download=True)

    downloads.fetch("mnist", _folder(root), SHA256, "sha256", download, say)


def _folder(root: Path) -> Path:
    return Path(root) / "MNIST" / "raw"
