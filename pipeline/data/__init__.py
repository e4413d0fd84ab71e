"""Data sets as uint8 tensors: `load` gives training, held-out and test images of one cell.

A data set is one file here and one row in DATASETS, or any folder of images that a sweep file
names. Its module has six things, and all but `decode` and `fetch` are cheap and torch-free:

    FLIP: bool                          whether mirrored images are images of the same class
    facts(dataset, root)                -> (class names, shape)
    key(dataset, root)                  -> str, changes whenever the decoded pixels would
    verify(dataset, root)               -> whether its files are known to be whole; UserError
                                           where they are damaged
    decode(dataset, root)               -> cache.Decoded
    fetch(dataset, root, say)           brings what is missing, checks what is there

Importing this package imports neither torch nor numpy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import UserError
from pipeline.terminal import printable

if TYPE_CHECKING:
    from pipeline.data.augment import batch_count, batches, ordered
    from pipeline.data.pictures import images_from, read_image
    from pipeline.data.split import Images, Split, sample
    from pipeline.sweep import Dataset, Recipe

__all__ = [
    "DATASETS",
    "FOLDERS",
    "Images",
    "Split",
    "batch_count",
    "batches",
    "facts",
    "fetch",
    "images_from",
    "load",
    "ordered",
    "prepare",
    "read_image",
    "require",
    "sample",
]


class Entry(NamedTuple):
    """A row of the registry: the module, and what `netpress datasets` says about it."""

    module: str
    description: str


DATASETS = {
    "digits": Entry(
        "pipeline.data.digits",
        "1,797 handwritten digits, 8x8 grey, enlarged to 32x32; ships with scikit-learn",
    ),
    "mnist": Entry(
        "pipeline.data.mnist",
        "70,000 handwritten digits, 28x28 grey; `netpress fetch` downloads 12 MB",
    ),
    "cifar10": Entry(
        "pipeline.data.cifar10",
        "60,000 photographs in 10 classes, 32x32 colour; `netpress fetch` downloads 170 MB",
    ),
    "cifar10-jpeg": Entry(
        "pipeline.data.cifar10_jpeg",
        "CIFAR-10 as JPEG files, pixels differ a little; DATA_ROOT/cifar10-jpeg/{train,test}/CLASS",
    ),
}
FOLDERS = frozenset({"cifar10-jpeg"})  # those that may lie elsewhere, by `folder:`
OWN_FOLDER = "pipeline.data.folder"  # any other name, given with `folder:` in the sweep file

_ELSEWHERE = {
    "Images": "split",
    "Split": "split",
    "batch_count": "augment",
    "batches": "augment",
    "ordered": "augment",
    "images_from": "pictures",
    "read_image": "pictures",
    "sample": "split",
}


def __getattr__(name: str):
    """What needs torch or numpy is imported at first use, so that `plan` never pays for it."""
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ELSEWHERE[name]}"), name)


def load(dataset: Dataset, recipe: Recipe, seed: int, root: Path, cache: Path) -> Split:
    """The data of one cell, split; the same for the same seed on every machine.

    `root` is the data root, `cache` the folder for decoded pixels. Raises UserError where data is
    missing, damaged or not a data set.
    """
    from pipeline.data import cache as decoded
    from pipeline.data.split import split

    module = _module(dataset)
    found = decoded.load(
        cache, dataset.name, module.key(dataset, root), lambda: module.decode(dataset, root)
    )
    flip = module.FLIP if dataset.flip is None else dataset.flip
    return split(found, dataset.name, recipe, seed, flip)


def facts(
    dataset: Dataset, root: Path, cache: Path | None = None
) -> tuple[tuple[str, ...], tuple[int, int, int]]:
    """(class names, shape (C, H, W)), without decoding the data set; UserError as in `load`."""
    return _module(dataset).facts(dataset, root)


def require(dataset: Dataset, root: Path) -> None:
    """Raises UserError where files of the data set are missing, and names what brings them."""
    _module(dataset).key(dataset, root)


def prepare(dataset: Dataset, root: Path, cache: Path, say: Callable[[str], None]) -> None:
    """As `require`; what is not decoded yet is verified, and where nobody knows what its files
    should be (images of the user's own), all are decoded into `cache`. Raises UserError naming the
    first that is damaged; nothing is written then."""
    from pipeline.data import cache as decoded

    module = _module(dataset)
    key = module.key(dataset, root)
    if not decoded.is_there(cache, dataset.name, key) and not module.verify(dataset, root):
        say(f"{dataset.name}: reading all images, once")
        found = module.decode(dataset, root)
        decoded.load(cache, dataset.name, key, lambda: found)


def fetch(
    dataset: Dataset,
    root: Path,
    cache: Path | None = None,
    say: Callable[[str], None] = lambda line: print(printable(line), file=sys.stderr),
) -> None:
    """Bring the data set to `root` and verify it; with `cache`, decode it there as well.

    Does nothing where it is there already. Raises UserError when the network or a checksum fails.
    """
    module = _module(dataset)
    module.fetch(dataset, root, say)
    if cache is not None:
        from pipeline.data import cache as decoded

        key = module.key(dataset, root)
        decoded.load(cache, dataset.name, key, lambda: module.decode(dataset, root))


def _module(dataset: Dataset):
    if dataset.name in DATASETS:
        return import_module(DATASETS[dataset.name].module)
    if dataset.folder:
        return import_module(OWN_FOLDER)
    names = ", ".join(DATASETS)
    raise UserError(
        f"{dataset.name}: no such data set ({names}), and no `folder:` that has its images"
    )
