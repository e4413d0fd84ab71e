"""CIFAR-10 (A. Krizhevsky 2009): 50,000 + 10,000 photographs, 32x32, colour, 10 classes.

DATA_ROOT/cifar-10-batches-py/*, as torchvision lays them out, downloads and parses them. They are
Python pickles, which could run anything: nothing is unpickled before its MD5 is the original's,
by our list first, by torchvision's own again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data import downloads

if TYPE_CHECKING:
    from pipeline.data.cache import Decoded
    from pipeline.sweep import Dataset

FLIP = True
NATIVE = 32
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}


def facts(dataset: Dataset, root: Path) -> tuple[tuple[str, ...], tuple[int, int, int]]:
    size = dataset.size or NATIVE
    return CLASSES, (3, size, size)


def key(dataset: Dataset, root: Path) -> str:
    return downloads.key(dataset, _folder(root), MD5)


def verify(dataset: Dataset, root: Path) -> bool:
    downloads.verify("cifar10", _folder(root), MD5, "md5")
    return True


def decode(dataset: Dataset, root: Path) -> Decoded:
    verify(dataset, root)
    import numpy as np
    from torchvision.datasets import CIFAR10

    from pipeline.data.cache import Decoded
    from pipeline.data.split import resized

    arrays = []
    for train in (True, False):
        part = CIFAR10(str(root), train=train, download=False)
        arrays.append(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)))  # from [N, H, W, C]
        arrays.append(np.asarray(part.targets, dtype=np.int64))
    return resized(Decoded(CLASSES, *arrays), dataset.size)


def fetch(dataset: Dataset, root: Path, say: Callable[[str], None]) -> None:
    def download() -> None:
        from torchvision.datasets import CIFAR10

        CIFAR10(str(root), download=True)

    downloads.fetch("cifar10", _folder(root), MD5, "md5", download, say)


def _folder(root: Path) -> Path:
    return Path(root) / "cifar-10-batches-py"
