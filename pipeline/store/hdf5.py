"""Reads and writes values in an open HDF5 file; `pipeline.store.results` has the layout.

Reading trusts nothing: a file may be malicious, and reports are passed on. It uses h5py's low-level
calls, so that every link and layout is checked before it is followed; that is also twice as fast,
which saves a minute in a report of 10,000 cells. So a `group` is a high-level h5py.Group in `put`,
and a low-level identifier (its `id`) everywhere else.

h5py and numpy are imported where they are used: planning and status need neither.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import h5py
    import numpy
    from h5py import h5f, h5g, h5p

MOST_BYTES = 1 << 27  # of all arrays that are read of one result
SMALL_BYTES = 4096  # an array that is not worth looking up by its place in the file
DEFLATE_RATIO = 1100  # no zlib stream becomes longer than that, many times its own length


def put(group: h5py.Group, name: str, value: Any) -> None:
    """A number, string or array as `name` of an h5py group; TypeError or ValueError for others."""
    import h5py
    import numpy

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


@dataclass
class Budget:
    """What may still be read. An object under many names is read once, but counts under each:
    whoever uses them may copy each. Some kilobytes, compressed, can stand for gigabytes."""

    left_bytes: int = MOST_BYTES
    arrays: dict[tuple[int, int], Any] = field(default_factory=dict)  # by place in the file

    def take(self, n_bytes: int, name: str) -> None:
        """Raises ValueError where it is more than is left."""
        if n_bytes > self.left_bytes:
            raise ValueError(f"{name} has {n_bytes} bytes, more than the {self.left_bytes} left")
        self.left_bytes -= n_bytes


_opened = itertools.count()


def in_memory(data: bytes) -> h5f.FileID:
    """An open HDF5 file with the contents `data`; faster than one that calls back into Python.

    Each gets a name of its own: HDF5 treats two files in memory with the same name as one, so a
    second thread would read the first one's numbers.
    """
    from h5py import h5f, h5p

    access = h5p.create(h5p.FILE_ACCESS)
    access.set_fapl_core(backing_store=False)
    access.set_file_image(data)
    return h5f.open(b"in memory %d" % next(_opened), h5f.ACC_RDONLY, access)


def value_in(group: h5g.GroupID, name: str, most_bytes: int = MOST_BYTES) -> Any:
    """The number, string or array `name` of a group; ValueError for anything else."""
    from h5py import h5o

    if name not in members(group):
        raise ValueError(f"{name} is missing")
    return _value(h5o.open(group, name.encode()), name, Budget(most_bytes))


def number_attribute(owner: h5g.GroupID, name: str) -> int:
    """The one whole number that is the attribute `name`; ValueError for anything else."""
    import numpy
    from h5py import h5a, h5t

    attribute = h5a.open(owner, name.encode())
    if attribute.shape != () or not isinstance(attribute.get_type(), h5t.TypeIntegerID):
        raise ValueError(f"the attribute {name} is no whole number")
    content = numpy.zeros((), dtype=numpy.int64)
    attribute.read(content, h5t.py_create(content.dtype))
    return int(content)


def text_attribute(owner: h5g.GroupID, name: str) -> str:
    """The one string that is the attribute `name`; ValueError for anything else, such as a list of
    a million references to one long string."""
    import numpy
    from h5py import h5a, h5s, h5t

    attribute = h5a.open(owner, name.encode())
    stored = attribute.get_type()
    if attribute.get_space().get_simple_extent_type() != h5s.SCALAR:
        raise ValueError(f"the attribute {name} is not one value")
    if not isinstance(stored, h5t.TypeStringID):
        raise ValueError(f"the attribute {name} is no text")
    content = numpy.zeros((), dtype=attribute.dtype)
    attribute.read(content, h5t.py_create(attribute.dtype))
    value: str | bytes = content.item()
    # UnicodeDecodeError is a ValueError; h5py may have made surrogates of bytes that are no text.
    encoded = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    return encoded.decode()


def members(group: h5g.GroupID) -> list[str]:
    """Names in a group, all hard links within this file; ValueError for any other link."""
    return [name.decode() for name in _inside(group.links.iterate)]


def group_in(parent: h5g.GroupID, name: str) -> h5g.GroupID:
    """The group `name` of a group; ValueError for anything else."""
    from h5py import h5g, h5o

    if name not in members(parent):
        raise ValueError(f"{name} is missing")
    child = h5o.open(parent, name.encode())
    if not isinstance(child, h5g.GroupID):
        raise ValueError(f"{name} is not a group")
    return child


def datasets(
    group: h5g.GroupID,
    wanted: Callable[[str], bool] = lambda name: True,
    budget: Budget | None = None,
) -> Iterator[tuple[str, Any]]:
    """Every wanted dataset under `group`, with its name relative to it; ValueError where all of
    them are more than the budget."""
    from h5py import h5g, h5o

    budget = budget or Budget()
    names = sorted(links(group))
    with_members = {name.rpartition(b"/")[0] for name in names}
    parents: dict[bytes, Any] = {b"": group}
    for name in names:
        if name in with_members:  # a group: not opened separately
            continue
        path, _, last = name.rpartition(b"/")
        if not wanted(name.decode()):
            continue
        if path not in parents:
            parents[path] = h5o.open(group, path)
        child = h5o.open(parents[path], last)
        if not isinstance(child, h5g.GroupID):
            yield name.decode(), _value(child, name.decode(), budget)
        elif len(child):  # `links` visited its members under another name
            raise ValueError(f"{name.decode()} is a group that has two names")


def links(group: h5g.GroupID) -> list[bytes]:
    """All names below `group`, with slashes. Visits each group once, so that a cycle in a malicious
    file does no harm; ValueError for links to other files."""
    return _inside(group.links.visit)


def _inside(each_link: Callable[..., Any]) -> list[bytes]:
    """The names that one of HDF5's iterations visits; ValueError unless all are hard links."""
    from h5py import h5l

    kinds: dict[bytes, int] = {}

    def note(name: bytes, info: Any) -> None:  # must not raise: HDF5 calls it
        kinds[name] = info.type

    each_link(note, info=True)
    if set(kinds.values()) - {h5l.TYPE_HARD}:
        raise ValueError("a link leads out of it")
    return list(kinds)


def _value(dataset: Any, name: str, budget: Budget) -> Any:
    """A dataset's content: numbers, or a str; its bytes must be in this file."""
    from h5py import h5d

    if not isinstance(dataset, h5d.DatasetID):
        raise ValueError(f"{name} is not an array or a value")
    stored, shape = dataset.get_type(), dataset.shape
    kind = _kind(stored.encode())
    if kind.kind not in "biufS":
        raise ValueError(f"{name} is neither numbers nor a string")
    n_bytes = math.prod(shape) * kind.itemsize
    budget.take(n_bytes, name)
    if n_bytes <= SMALL_BYTES:
        return _content(dataset, name, kind, shape)
    place = _place(dataset)
    if place not in budget.arrays:
        budget.arrays[place] = _content(dataset, name, kind, shape)
    return budget.arrays[place]


def _place(dataset: h5py.h5d.DatasetID) -> tuple[int, int]:
    from h5py import h5o

    info = h5o.get_info(dataset)
    return info.fileno, info.addr


def _content(
    dataset: h5py.h5d.DatasetID, name: str, kind: numpy.dtype, shape: tuple[int, ...]
) -> Any:
    import numpy
    from h5py import h5s

    _check_stored(dataset, name, shape, kind.itemsize)
    array = numpy.empty(shape, kind)
    if array.size:
        dataset.read(h5s.ALL, h5s.ALL, array, dataset.get_type())
    if kind.kind == "S":
        return array.item().decode()
    return array if shape else array.item()


@functools.lru_cache(1000)
def _kind(stored: bytes) -> numpy.dtype:
    """The numpy type for an HDF5 type; cached, since decoding costs as much as reading."""
    from h5py import h5t

    return h5t.decode(stored).dtype


def _check_stored(
    dataset: h5py.h5d.DatasetID, name: str, shape: tuple[int, ...], item_bytes: int
) -> None:
    """Raises ValueError unless all of it is in this file; also where a small file declares a huge
    array that was never written, or that would grow when it is decompressed."""
    from h5py import h5d

    n_bytes, stored_bytes = math.prod(shape) * item_bytes, dataset.get_storage_size()
    if dataset.get_offset() is not None and stored_bytes == n_bytes:
        return  # contiguous in this file, as nearly all are
    made = dataset.get_create_plist()
    layout = made.get_layout()
    if layout == h5d.CHUNKED:
        _check_chunks(dataset, made, name, shape)
        whole = n_bytes <= DEFLATE_RATIO * stored_bytes
    else:
        inside = layout in (h5d.CONTIGUOUS, h5d.COMPACT) and not made.get_external_count()
        if not inside:
            raise ValueError(f"{name} is not stored as one piece in this file")
        whole = stored_bytes == n_bytes
    if not whole:
        raise ValueError(f"{name} is not stored in full")


def _check_chunks(
    dataset: h5py.h5d.DatasetID, made: h5p.PropDCID, name: str, shape: tuple[int, ...]
) -> None:
    """Raises ValueError unless every chunk exists, and all filters are HDF5's own: any other would
    be a plug-in, loaded from the file system."""
    from h5py import h5z

    filters = {made.get_filter(i)[0] for i in range(made.get_nfilters())}
    if filters - {h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE}:
        raise ValueError(f"{name} is stored with an unknown filter")
    chunk = made.get_chunk()
    expected = math.prod(-(-size // step) for size, step in zip(shape, chunk, strict=True))
    beyond = any(step > max(1, size) for size, step in zip(shape, chunk, strict=True))
    if beyond or dataset.get_num_chunks() != expected:
        raise ValueError(f"{name} is not stored in full")
