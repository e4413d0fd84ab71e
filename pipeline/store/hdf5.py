"""Reads and writes values in an open HDF5 file; `pipeline.store.results` has the layout.

Reading trusts nothing: a file may be malicious, and reports are passed on. It uses h5py's low-level
calls, so that every link and layout is checked before it is followed; that is also several times as
fast, which saves minutes in a report of 10,000 cells. So a `group` is a high-level h5py.Group in
`put`, and a low-level identifier (its `id`) everywhere else.

Modules that planning and status import import this one where they use it: it needs h5py and numpy.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import h5py
import numpy
from h5py import h5a, h5d, h5f, h5g, h5l, h5o, h5p, h5s, h5t, h5z

from pipeline.store import headers
from pipeline.store.headers import Image

MOST_BYTES = 1 << 27  # of all arrays that are read of one result
SMALL_BYTES = 4096  # of an array that is not worth keeping for its other names
DEFLATE_RATIO = 1100  # no zlib stream becomes longer than that, many times its own length
KINDS = "biufS"  # of numpy's types
ENCODED = b"\x03\x00"  # what HDF5 puts before a datatype message to make it stand alone
TEXT = h5py.string_dtype()  # of an attribute
STORED_TEXT, IN_MEMORY = h5t.py_create(TEXT, logical=True), h5t.py_create(TEXT)
SCALAR = h5s.create(h5s.SCALAR)


def put(group: h5py.Group, name: str, value: Any) -> None:
    """A number, string or array as `name` of an h5py group; TypeError or ValueError for others."""
    if isinstance(value, str):
        encoded = value.encode()
        if b"\0" in encoded:
            raise ValueError(f"{name}: a string with a NUL cannot be stored")
        kind = h5py.string_dtype("utf-8", max(1, len(encoded)))
        group.create_dataset(name, data=numpy.array(encoded, dtype=kind))
        return
    array = numpy.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected numbers or a string, got {type(value).__name__}")
    group.create_dataset(name, data=array)


def put_attribute(group: h5g.GroupID, name: bytes, text: str) -> None:
    """A string as an attribute, in the place of one that has this name."""
    if h5a.exists(group, name):
        h5a.delete(group, name)
    created = h5a.create(group, name, STORED_TEXT, SCALAR)
    created.write(numpy.array(text, dtype=TEXT), IN_MEMORY)


_opened = itertools.count()


@contextlib.contextmanager
def in_memory(data: bytes) -> Iterator[h5f.FileID]:
    """An open HDF5 file with the contents `data`; faster than one that calls back into Python.

    Each gets a name of its own: HDF5 treats two files in memory with the same name as one, so a
    second thread would read the first one's numbers.
    """
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_fapl_core(backing_store=False)
    access.set_fclose_degree(h5f.CLOSE_STRONG)
    access.set_file_image(data)
    file = h5f.open(b"in memory %d" % next(_opened), h5f.ACC_RDONLY, access)
    try:
        yield file
    finally:
        file.close()


@dataclass
class Budget:
    """What may still be read. An object under many names is read once, but counts under each:
    whoever uses them may copy each. Some kilobytes, compressed, can stand for gigabytes."""

    left_bytes: int = MOST_BYTES
    arrays: dict[int, numpy.ndarray] = field(default_factory=dict)  # by place in the file

    def take(self, n_bytes: int, name: str) -> None:
        """Raises ValueError where it is more than is left."""
        if n_bytes > self.left_bytes:
            raise ValueError(f"{name} has {n_bytes} bytes, more than the {self.left_bytes} left")
        self.left_bytes -= n_bytes


Group: TypeAlias = "h5g.GroupID | h5f.FileID"


@dataclass(frozen=True)
class Tree:
    """A group and all that is below it: path -> address of its header, each a hard link within this
    file. `image`: the whole file, where it is in memory and its headers are known to `headers`."""

    group: Group
    paths: dict[bytes, int]
    image: Image | None = None

    @classmethod
    def of(cls, group: Group, image: Image | None = None) -> Tree:
        """Looks at every link, once, and at the members of each group once, so that a cycle in a
        malicious file does no harm; ValueError for links to other files."""
        return cls(group, _inside(group.links.visit), image)

    def members(self) -> list[bytes]:
        """Names in the group itself."""
        return [path for path in self.paths if b"/" not in path]

    def below(self, name: bytes) -> Tree:
        """The group that is a member of this one; ValueError for anything else."""
        if name not in self.paths:
            raise ValueError(f"{name.decode()} is missing")
        child, start = h5o.open(self.group, name), name + b"/"
        if not isinstance(child, h5g.GroupID):
            raise ValueError(f"{name.decode()} is not a group")
        first = len(start)
        paths = {p[first:]: place for p, place in self.paths.items() if p.startswith(start)}
        if not paths:
            _check_empty(child, name)
        return Tree(child, paths, self.image)

    def values(
        self,
        wanted: Callable[[str], bool] = lambda name: True,
        budget: Budget | None = None,
    ) -> dict[str, Any]:
        """Every wanted number, string and array, by its path; ValueError for anything else, and
        where all of them are more than the budget."""
        budget = budget or Budget()
        groups = {path.rpartition(b"/")[0] for path in self.paths if b"/" in path}
        values = {}
        for path, address in sorted(self.paths.items()):
            if path in groups or not wanted(name := path.decode()):
                continue
            array = budget.arrays.get(address)
            if array is None and self.image is not None:
                array = _in_image(self.image, address)
            if array is None:
                child = h5o.open(self.group, path)
                if isinstance(child, h5g.GroupID):
                    _check_empty(child, path)
                    continue
                array = _read(child, name, budget.left_bytes)
            budget.take(array.nbytes, name)
            if array.nbytes > SMALL_BYTES:
                budget.arrays[address] = array
            values[name] = _plain(array)
        return values


def _check_empty(group: h5g.GroupID, name: bytes) -> None:
    """Raises ValueError for a group whose members were visited under another name."""
    if len(group):
        raise ValueError(f"{name.decode()} is a group that has two names")


def value_in(group: Group, name: str, most_bytes: int = MOST_BYTES) -> Any:
    """The number, string or array `name` of a group; ValueError for anything else."""
    if name not in members(group):
        raise ValueError(f"{name} is missing")
    return _plain(_read(h5o.open(group, name.encode()), name, most_bytes))


def members(group: Group) -> list[str]:
    """Names in a group, all hard links within this file; ValueError for any other link."""
    return [name.decode() for name in _inside(group.links.iterate)]


def attribute(group: Group, name: bytes) -> str:
    """The string that is an attribute of a group; ValueError for anything else."""
    if not h5a.exists(group, name):
        raise ValueError(f"the attribute {name.decode()} is missing")
    attr = h5a.open(group, name)
    kind = attr.dtype
    if attr.shape or h5t.check_string_dtype(kind) is None:
        raise ValueError(f"the attribute {name.decode()} is not a string")
    value = numpy.empty((), kind)
    attr.read(value)
    return value.item().decode()


def number_attribute(group: Group, name: bytes) -> int:
    """The whole number that is an attribute of a group; ValueError for anything else."""
    if not h5a.exists(group, name):
        raise ValueError(f"the attribute {name.decode()} is missing")
    attr = h5a.open(group, name)
    if attr.shape != () or attr.dtype.kind not in "iu":
        raise ValueError(f"the attribute {name.decode()} is not a whole number")
    value = numpy.empty((), attr.dtype)
    attr.read(value)
    return int(value)


def _inside(each_link: Callable[..., Any]) -> dict[bytes, int]:
    """The names that one of HDF5's iterations visits, and where each one's header is; ValueError
    unless all are hard links."""
    addresses: dict[bytes, int] = {}
    kinds: set[int] = set()

    def note(name: bytes, info: Any) -> None:  # must not raise: HDF5 calls it
        kinds.add(info.type)
        addresses[name] = info.u

    each_link(note, info=True)
    if kinds - {h5l.TYPE_HARD}:
        raise ValueError("a link leads out of it")
    return addresses


def _plain(array: numpy.ndarray) -> Any:
    """A number, a str or the array."""
    if array.dtype.kind == "S":
        return array.item().decode()
    return array if array.shape else array.item()


def _in_image(image: Image, address: int) -> numpy.ndarray | None:
    """What `_read` would return, in a twentieth of the time; None where only HDF5 can parse it."""
    stored = headers.contiguous(image, address)
    if stored is None:
        return None
    kind, count = _kind(ENCODED + stored.datatype), math.prod(stored.shape)
    if kind.kind not in KINDS or stored.n_bytes != count * kind.itemsize:
        return None
    array = numpy.frombuffer(image.data, kind, count, stored.offset)
    return array.reshape(stored.shape).copy()


def _read(dataset: Any, name: str, most_bytes: int) -> numpy.ndarray:
    """A dataset's content; its bytes must be in this file."""
    if not isinstance(dataset, h5d.DatasetID):
        raise ValueError(f"{name} is not an array or a value")
    stored, shape = dataset.get_type(), dataset.shape
    kind = _kind(stored.encode())
    if kind.kind not in KINDS:
        raise ValueError(f"{name} is neither numbers nor a string")
    if (n_bytes := math.prod(shape) * kind.itemsize) > most_bytes:
        raise ValueError(f"{name} has {n_bytes} bytes, more than the {most_bytes} left")
    _check_stored(dataset, name, shape, kind.itemsize)
    array = numpy.empty(shape, kind)
    if array.size:
        dataset.read(h5s.ALL, h5s.ALL, array, stored)
    return array


@functools.lru_cache(1000)
def _kind(encoded: bytes) -> numpy.dtype:
    """The numpy type for an HDF5 type; cached, since decoding costs as much as reading."""
    return h5t.decode(encoded).dtype


def _check_stored(
    dataset: h5d.DatasetID, name: str, shape: tuple[int, ...], item_bytes: int
) -> None:
    """Raises ValueError unless all of it is in this file; also where a small file declares a huge
    array that was never written, or that would grow when it is decompressed."""
    n_bytes, stored_bytes = math.prod(shape) * item_bytes, dataset.get_storage_size()
    if dataset.get_offset() is not None and stored_bytes == n_bytes:
        return  # contiguous in this file, as nearly all are
    made = dataset.get_create_plist()
    layout = made.get_layout()
    if layout == h5d.CHUNKED:
        _check_chunks(dataset, made, name, shape)
        whole = n_bytes <= min(MOST_BYTES, DEFLATE_RATIO * stored_bytes)
    else:
        inside = layout in (h5d.CONTIGUOUS, h5d.COMPACT) and not made.get_external_count()
        if not inside:
            raise ValueError(f"{name} is not stored as one piece in this file")
        whole = stored_bytes == n_bytes
    if not whole:
        raise ValueError(f"{name} is not stored in full")


def _check_chunks(
    dataset: h5d.DatasetID, made: h5p.PropDCID, name: str, shape: tuple[int, ...]
) -> None:
    """Raises ValueError unless every chunk exists, and all filters are HDF5's own: any other would
    be a plug-in, loaded from the file system."""
    filters = {made.get_filter(i)[0] for i in range(made.get_nfilters())}
    if filters - {h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE}:
        raise ValueError(f"{name} is stored with an unknown filter")
    chunk = made.get_chunk()
    expected = math.prod(-(-size // step) for size, step in zip(shape, chunk, strict=True))
    beyond = any(step > max(1, size) for size, step in zip(shape, chunk, strict=True))
    if beyond or dataset.get_num_chunks() != expected:
        raise ValueError(f"{name} is not stored in full")
