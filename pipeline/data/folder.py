"""Any folder of images: FOLDER/train/CLASS/*.jpg and FOLDER/test/CLASS/*.jpg.

The layout of torchvision's ImageFolder: classes are the sub-folders in alphabetical order, images
may lie in sub-folders of theirs, links to folders are followed. Hidden files are passed over; other
files that are not read are counted and named. Images are grey [1, H, W] where most of the training
images are, else colour [3, H, W], unless `channels` says which.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline import paths
from pipeline.errors import UserError
from pipeline.terminal import printable

if TYPE_CHECKING:
    from pipeline.data.cache import Decoded
    from pipeline.sweep import Dataset

FLIP = False  # digits and letters must not be mirrored; a sweep file may say `flip: true`
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif"),
    *(".png", ".apng"),
    *(".pbm", ".pgm", ".ppm", ".pnm"),
    *(".bmp", ".gif", ".tif", ".tiff", ".webp"),
)
PARTS = ("train", "test")
MOST_NAMED = 10  # folders with files that are not read; of the others the number is enough
OPTIONAL = {  # where Pillow was built with a decoder: its name for it
    ".avif": "avif",
    **dict.fromkeys((".jp2", ".j2k", ".jpf", ".jpx"), "jpg_2000"),
}


class Unread(NamedTuple):
    """What in a folder is no image: files by extension, links that lead back."""

    files: Counter[str]
    links: Counter[str]


class Folder(NamedTuple):
    """The image files of a data set, {part: {class: files}}, all in alphabetical order; `unread`:
    {folder below `top`: what in it is not read}."""

    top: str
    classes: tuple[str, ...]
    files: dict[str, dict[str, list[os.DirEntry[str]]]]
    unread: dict[str, Unread]

    def images(self, part: str) -> list[os.DirEntry[str]]:
        return [file for name in self.classes for file in self.files[part][name]]


def facts(dataset: Dataset, root: Path) -> tuple[tuple[str, ...], tuple[int, int, int]]:
    from pipeline.data import decoding

    folder = search(dataset.name, place(dataset, root))
    return folder.classes, decoding.shape_of(dataset, folder)


def key(dataset: Dataset, root: Path) -> str:
    from pipeline.data.entries import source_key

    folder = search(dataset.name, place(dataset, root))
    listing = hashlib.sha256()
    for part in PARTS:
        for file in folder.images(part):
            stat = _stat(file)
            path = file.path[len(folder.top) :]  # so that a folder may move
            line = f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
            listing.update(line.encode(errors="surrogateescape"))
    more = [dataset.of_images] if dataset.of_images else []  # older keys lack it
    return source_key("folder", dataset.size, listing.hexdigest(), *more)


def sizes(dataset: Dataset, root: Path) -> dict[str, int]:
    """Class -> number of training images."""
    folder = search(dataset.name, place(dataset, root))
    return {name: len(files) for name, files in folder.files["train"].items()}


def verify(dataset: Dataset, root: Path) -> bool:
    return False  # only decoding them all can tell


def decode(dataset: Dataset, root: Path) -> Decoded:
    from pipeline.data import decoding

    return decoding.decoded(dataset, search(dataset.name, place(dataset, root)))


def fetch(dataset: Dataset, root: Path, say: Callable[[str], None]) -> None:
    top = place(dataset, root)
    folder = search(dataset.name, top)
    counts = " and ".join(f"{len(folder.images(part)):,} for {part}" for part in PARTS)
    say(f"{dataset.name}: {top} has {len(folder.classes)} classes, images: {counts}")
    for line in _unread_lines(dataset.name, folder):
        say(line)


def unread(dataset: Dataset, root: Path) -> list[str]:
    """What lies there and is not read, a sentence a folder; none where all is."""
    return _unread_lines(dataset.name, search(dataset.name, place(dataset, root)))


def is_there(dataset: Dataset, root: Path) -> bool:
    return all((place(dataset, root) / part).is_dir() for part in PARTS)


def place(dataset: Dataset, root: Path) -> Path:
    """Where the images lie; a relative `folder:` is below the data root, else DATA_ROOT/NAME."""
    return Path(root) / paths.expanded(dataset.folder or dataset.name)


def search(name: str, top: Path) -> Folder:
    """The images of a data set; UserError where the layout is not the expected one."""
    for part in PARTS:
        if not (top / part).is_dir():
            raise UserError(
                f"{name}: no images in {top / part}, expected {top}/train/CLASS/*.jpg and "
                f"{top}/test/CLASS/*.jpg; put them there, or set NETPRESS_DATA or `folder:`"
            )
    passed: dict[str, Unread] = {}
    files = {part: _by_class(top, part, passed) for part in PARTS}
    _check_classes(name, top, files, passed)
    _check_apart(name, files)
    return Folder(str(top), tuple(files["train"]), files, passed)


def below(top: Path) -> tuple[list[Path], list[str]]:
    """All image files in a folder, however deep, in alphabetical order; and what in it is not read,
    a sentence each. Raises UserError where it cannot be read."""
    passed = Unread(Counter(), Counter())
    files = [Path(entry.path) for entry in _images(str(top), {_identity(os.stat(top))}, passed)]
    lines = (_files_unread(str(top), passed.files), _links_unread(str(top), passed.links))
    return files, [line for line in lines if line]


def _by_class(top: Path, part: str, passed: dict[str, Unread]) -> dict[str, list[os.DirEntry[str]]]:
    """{class: files} of a part; what is not read goes to `passed`."""
    above = {_identity(os.stat(folder)) for folder in (top, top / part)}
    beside = passed[part] = Unread(Counter(), Counter())
    files: dict[str, list[os.DirEntry[str]]] = {}
    for entry in _entries(top / part):
        if not _is_folder(entry):
            beside.files[_extension(entry.name)] += 1  # it belongs to no class
        elif _identity(_stat(entry)) in above:
            beside.links[entry.name] += 1
        else:
            mine = passed[f"{part}/{entry.name}"] = Unread(Counter(), Counter())
            seen = above | {_identity(_stat(entry))}
            files[entry.name] = list(_images(entry.path, seen, mine))
    return files


def _identity(stat: os.stat_result) -> tuple[int, int]:
    """The same for a folder, whichever path or link leads to it."""
    return stat.st_dev, stat.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # such as a link to itself
        raise UserError(f"{entry.path}: cannot be read ({error.strerror})") from error


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from error


def _stat(file: os.DirEntry[str]) -> os.stat_result:
    try:
        return file.stat()
    except OSError as error:
        raise UserError(f"{file.path}: cannot be read ({error.strerror})") from error


def _images(folder: str, seen: set[tuple[int, int]], passed: Unread) -> Iterator[os.DirEntry[str]]:
    """`seen`: the folders that were entered for this class, and those above it; a second time would
    count images twice, or never end."""
    for entry in _entries(folder):
        if not _is_folder(entry):
            if _is_read(entry.name):
                yield entry
            else:
                passed.files[_extension(entry.name)] += 1
        elif (identity := _identity(_stat(entry))) not in seen:
            seen.add(identity)
            yield from _images(entry.path, seen, passed)
        elif entry.is_symlink():
            passed.links[entry.name] += 1


def _is_read(name: str) -> bool:
    extension = _extension(name)
    return extension in EXTENSIONS or (extension in OPTIONAL and _decodes(OPTIONAL[extension]))


@cache
def _decodes(feature: str) -> bool:
    from PIL import features  # only for the few folders that have such files

    return features.check(feature) is True


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "no extension"


def _unread_lines(name: str, images: Folder) -> list[str]:
    lines = [
        f"{name}: {line}"
        for folder, passed in images.unread.items()
        for line in (
            _files_unread(_place(folder), passed.files),
            _links_unread(folder, passed.links),
        )
        if line
    ]
    more = len(lines) - MOST_NAMED
    return lines if more < 2 else [*lines[:MOST_NAMED], f"{name}: and so in {more} more folders"]


def _place(folder: str) -> str:
    return f"{folder}, outside of the class folders," if folder in PARTS else folder


def _files_unread(place: str, files: Counter[str]) -> str:
    """`8 files in train/b were not read: .heic`."""
    if not files:
        return ""
    kinds = sorted(files)
    listed = ", ".join(kinds if len(kinds) == 1 else (f"{kind} ({files[kind]})" for kind in kinds))
    count = files.total()
    are = "1 file" if count == 1 else f"{count:,} files"
    were = "was" if count == 1 else "were"
    return f"{are} in {printable(place)} {were} not read: {printable(listed)}"


def _links_unread(folder: str, links: Counter[str]) -> str:
    if not links:
        return ""
    return (
        f"links in {printable(folder)} to folders above, or to such as were read already, were "
        f"not followed: {printable(', '.join(sorted(links)))}"
    )


def _check_classes(
    name: str,
    top: Path,
    files: dict[str, dict[str, list[os.DirEntry[str]]]],
    passed: dict[str, Unread],
) -> None:
    train, test = set(files["train"]), set(files["test"])
    if len(train) < 2:
        raise UserError(f"{name}: {len(train)} class in {top / 'train'}, expected at least 2")
    for only, (here, there) in ((train - test, PARTS), (test - train, PARTS[::-1])):
        if only:
            raise UserError(
                f"{name}: class {min(only)!r} is in {top / here}, but not in {top / there}"
            )
    for part in PARTS:
        for label, images in files[part].items():
            if not images:
                unread = _files_unread(f"{part}/{label}", passed[f"{part}/{label}"].files)
                but = f"; {unread}" if unread else ""
                raise UserError(f"{name}: class folder {top / part / label} has no images{but}")
            if not label.isprintable():
                raise UserError(f"{name}: class name {label!r} is not printable, rename its folder")


def _check_apart(name: str, files: dict[str, dict[str, list[os.DirEntry[str]]]]) -> None:
    """By links, or by folders that are links, one file can be an image of both parts, or of two
    classes of one."""
    found: dict[tuple[int, int], tuple[str, str, str]] = {}
    for part in PARTS:
        for label, images in files[part].items():
            for image in images:
                if not _stat(image).st_ino:  # on a disk that numbers no files
                    continue
                before = found.setdefault(_identity(_stat(image)), (part, label, image.path))
                if before[:2] != (part, label):
                    raise UserError(
                        f"{name}: {image.path} and {before[2]} are the same file, expected other "
                        f"images in {part}/{label} than in {'/'.join(before[:2])}"
                    )
