"""Data sets as uint8 tensors: `load` gives training, held-out and test images of one cell.

A data set is one file here and one row in DATASETS (or in the DATASETS of a plug-in), or any folder
of images that a sweep file names. Its module has six things, and all but `decode` and `fetch` are
cheap and torch-free:

    FLIP: bool                          whether mirrored images are images of the same class
    facts(dataset, root)                -> (class names, shape)
    key(dataset, root)                  -> str, changes whenever the decoded pixels would
    verify(dataset, root)               -> whether its files are known to be whole; UserError
                                           where they are damaged
    decode(dataset, root)               -> cache.Decoded: of these facts, labels of 0..K-1 with
                                           every class in the training part (sound.py)
    fetch(dataset, root, say)           brings what is missing, checks what is there

Importing this package imports neither torch nor numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from pipeline import registry
from pipeline.data import entries
from pipeline.errors import UserError, first_line
from pipeline.terminal import tell
from pipeline.versions import SHARED

if TYPE_CHECKING:
    from pipeline.data.augment import (
        Augmentation,
        Draws,
        augmented,
        batch_count,
        batches,
        draw,
        evaluated,
        ordered,
    )
    from pipeline.data.cache import Decoded
    from pipeline.data.pictures import images_from, read_image
    from pipeline.data.split import Images, Split, sample, sample_of_each
    from pipeline.sweep import Dataset, Recipe

__all__ = [
    "DATASETS",
    "FOLDERS",
    "PluginError",
    "VERSION",
    "Augmentation",
    "Draws",
    "Images",
    "Split",
    "augmented",
    "batch_count",
    "batches",
    "draw",
    "current",
    "facts",
    "fetch",
    "images_from",
    "is_folder",
    "load",
    "evaluated",
    "ordered",
    "prepare",
    "read_image",
    "require",
    "sample",
    "sample_of_each",
    "unread",
]


class Entry(NamedTuple):
    """A row of the registry: the module, and what `netpress datasets` shows about it."""

    module: Any  # its path; in a plug-in any object with its functions
    description: str


class DataModule(Protocol):
    """The module of a data set; its members are documented above."""

    FLIP: bool

    def facts(
        self, dataset: Dataset, root: Path
    ) -> tuple[tuple[str, ...], tuple[int, int, int]]: ...

    def key(self, dataset: Dataset, root: Path) -> str: ...

    def verify(self, dataset: Dataset, root: Path) -> bool: ...

    def decode(self, dataset: Dataset, root: Path) -> Decoded: ...

    def fetch(self, dataset: Dataset, root: Path, say: Callable[[str], None]) -> None: ...


class FolderModule(DataModule, Protocol):
    """The module of a folder of images, which has three things more."""

    def unread(self, dataset: Dataset, root: Path) -> list[str]:
        """What lies there and is not read, a sentence each."""

    def sizes(self, dataset: Dataset, root: Path) -> dict[str, int]:
        """Class -> number of training images."""

    def is_there(self, dataset: Dataset, root: Path) -> bool:
        """Whether the folder is on this machine."""


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
VERSION = SHARED["data"]  # raised when pixels or their order change
FOLDERS = frozenset({"cifar10-jpeg"})  # those that may lie elsewhere, by `folder:`
LEAST = 2  # images of a class: one for training, one held out
OWN_FOLDER = "pipeline.data.folder"  # any other name, given with `folder:` in the sweep file

_ELSEWHERE = {
    "Augmentation": "augment",
    "Draws": "augment",
    "Images": "split",
    "Split": "split",
    "augmented": "augment",
    "batch_count": "augment",
    "batches": "augment",
    "draw": "augment",
    "evaluated": "augment",
    "ordered": "augment",
    "images_from": "pictures",
    "read_image": "pictures",
    "sample": "split",
    "sample_of_each": "split",
}


def __getattr__(name: str) -> Any:
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
    key = _key(dataset, root)
    whole = decoded.load(cache, dataset.name, key, lambda: _decoded(dataset, root, key, cache))
    _require_sound(dataset, root, whole.data)  # earlier versions kept anything
    flip = module.FLIP if dataset.flip is None else dataset.flip
    return split(whole, dataset.name, recipe, seed, flip)


def facts(
    dataset: Dataset, root: Path, cache: Path | None = None
) -> tuple[tuple[str, ...], tuple[int, int, int]]:
    """(class names, shape (C, H, W)), without decoding the data set; UserError as in `load`."""
    return _module(dataset).facts(dataset, root)


def require(dataset: Dataset, root: Path, say: Callable[[str], None]) -> None:
    """Raises UserError where files of the data set are missing, and names what brings them, or
    where a class has too few images; reports what there is not read."""
    _key(dataset, root)
    for line in unread(dataset, root):
        say(line)
    if is_folder(dataset):
        check_sizes(dataset.name, _folder_module(dataset).sizes(dataset, root))


def prepare(dataset: Dataset, root: Path, cache: Path, say: Callable[[str], None]) -> None:
    """As `require`; what is not decoded yet is verified, and where nobody knows what its files
    should be (images of the user's own), all are decoded into `cache`. Raises UserError naming the
    first that is damaged; nothing is written then. Reports what there is not read, and how the
    rest is."""
    from pipeline.data import cache as decoded

    require(dataset, root, say)
    module = _module(dataset)
    key = _key(dataset, root)
    if not decoded.is_there(cache, dataset.name, key) and not module.verify(dataset, root):
        decode(dataset, root, cache, say)
    if (sizes := decoded.sizes(cache, dataset.name, key)) is not None:
        check_sizes(dataset.name, sizes)
    for line in entries.notes(cache, dataset.name, key):
        say(line)


def check_sizes(name: str, sizes: Mapping[str, int]) -> None:
    """Raises UserError where a class (name -> number of training images) cannot be divided into
    images for training and held-out ones."""
    for label, count in sizes.items():
        if count < LEAST:
            raise UserError(
                f"{name}: class {label!r} has {count} training image{'s' * (count != 1)}, too few "
                f"to hold one out: expected at least {LEAST}"
            )


def decode(dataset: Dataset, root: Path, cache: Path, say: Callable[[str], None]) -> None:
    """Decode all images into `cache`; UserError names the first that is damaged."""
    from pipeline.data import cache as decoded

    key = _key(dataset, root)
    say(f"{dataset.name}: reading all images, once")
    whole = _decoded(dataset, root, key, cache)  # before the cache has a folder for it
    decoded.load(cache, dataset.name, key, lambda: whole)


def unread(dataset: Dataset, root: Path) -> list[str]:
    """What lies in a folder of images and is not read, a sentence each. UserError as in `load`."""
    return _folder_module(dataset).unread(dataset, root) if is_folder(dataset) else []


def is_folder(dataset: Dataset) -> bool:
    """Whether it is a folder of images, which may change; other data sets have checksums."""
    return dataset.name in FOLDERS or dataset.name not in names()


class Current(NamedTuple):
    """A folder's images as they are now: the key of their names, sizes and times, and their
    fingerprint, None where they were not decoded yet."""

    key: str
    fingerprint: str | None


def current(dataset: Dataset, root: Path, cache: Path) -> Current | None:
    """Cheap: nothing is decoded. None where it is no folder of images, or not on this machine.
    UserError where it is not a data set (any more)."""
    if not is_folder(dataset) or not _folder_module(dataset).is_there(dataset, root):
        return None
    key = _key(dataset, root)
    return Current(key, entries.fingerprint(cache, dataset.name, key))


def fetch(
    dataset: Dataset,
    root: Path,
    cache: Path | None = None,
    say: Callable[[str], None] = lambda line: tell(line, begin=""),
) -> None:
    """Bring the data set to `root` and verify it; with `cache`, decode it there as well.

    Does nothing where it is there already. Raises UserError when the network or a checksum fails.
    """
    module = _module(dataset)
    module.fetch(dataset, root, say)
    if cache is not None:
        from pipeline.data import cache as decoded

        key = _key(dataset, root)
        decoded.load(cache, dataset.name, key, lambda: _decoded(dataset, root, key, cache))


def _decoded(dataset: Dataset, root: Path, key: str, cache: Path) -> Decoded:
    """All images, if they are still those of the key: another's would be kept under it. PluginError
    where they are no data set."""
    from pipeline.data.cache import scratch

    module = _module(dataset)
    with scratch(cache):
        whole = module.decode(dataset, root)
    _require_sound(dataset, root, whole)
    if _key(dataset, root) != key:
        raise UserError(
            f"{dataset.name}: its files changed while they were read; expected them to stay as "
            "they are, call the same command again"
        )
    return whole


def _require_sound(dataset: Dataset, root: Path, whole: Decoded) -> None:
    """Raises PluginError where it is no data set, or not the one of its facts; those of a folder
    come from the same headers as its pixels, and take long to read."""
    from pipeline.data import sound

    where = _where(dataset)
    sound.require(whole, where)
    if not is_folder(dataset):
        sound.require_facts(whole, *_module(dataset).facts(dataset, root), where)


def _where(dataset: Dataset) -> str:
    """What a sentence about it begins with; a plug-in's author is who can mend it."""
    added = registry.added("datasets").get(dataset.name)
    return dataset.name if added is None else f"data set {dataset.name} of plug-in {added.source}"


def names() -> list[str]:
    """Of all data sets there are: built-in, and of the plug-ins of this sweep."""
    return registry.names("datasets", DATASETS)


class PluginError(UserError):
    """A plug-in's data set does not do what its module has to; no input of the user's can help."""


@dataclass(frozen=True)
class _OfPlugin:
    """A plug-in's module, whose errors say which data set it is of, and in which function."""

    module: Any
    where: str

    def __getattr__(self, name: str) -> Any:
        member = getattr(self.module, name)
        return partial(self._called, name, member) if callable(member) else member

    def _called(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except UserError:  # its author's own sentence
            raise
        except (Exception, SystemExit) as error:
            problem = f"{type(error).__name__}: {first_line(error)}"
            raise PluginError(f"{self.where}: {name}: {problem}") from error


def _module(dataset: Dataset) -> DataModule:
    module: DataModule = registry.resolved(_source(dataset))
    is_added = dataset.name in registry.added("datasets")
    return cast(DataModule, _OfPlugin(module, _where(dataset))) if is_added else module


def _folder_module(dataset: Dataset) -> FolderModule:
    """As `_module`, where `is_folder(dataset)`."""
    return registry.resolved(_source(dataset))


def _source(dataset: Dataset) -> Any:
    """The module of a data set, or its name."""
    if dataset.name in names():
        return Entry(*registry.row("datasets", DATASETS, dataset.name)).module
    if dataset.folder:
        return OWN_FOLDER
    raise UserError(
        f"{dataset.name}: no such data set ({', '.join(names())}), and no `folder:` that has its "
        "images"
    )


def _key(dataset: Dataset, root: Path) -> str:
    """What changes whenever the decoded pixels would: with a plug-in's code as well."""
    key = _module(dataset).key(dataset, root)
    stamp = registry.stamp("datasets", dataset.name)
    return key if stamp is None else entries.source_key(stamp, key)
