"""Values in and out of an open HDF5 file; `pipeline.store.results` says what netpress keeps in one.

Reading trusts nothing: a file may have been built to mislead, and reports are passed on. It goes
through h5py's low-level calls, so that every link and layout is looked at before anything is
followed; it is also twice as fast, which is a minute in a report of 10,000 cells. So a `group` is
h5py's high-level one in `put`, and a low-level identifier (its `id`) everywhere else.

h5py and numpy are imported where they are used: planning and status need neither.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

MOST_BYTES = 1 << 28  # of one array
DEFLATE_RATIO = 1100  # no zlib stream becomes longer than that, many times its own length


def put(group, name: str, value: Any) -> None:
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


_opened = itertools.count()


def in_memory(data: bytes):
    """An open HDF5 file that is `data` alone; faster than one that calls back into Python.

    HDF5 takes two files in memory that have the same name for one: a second thread that reads
    would be given the first one's numbers.
    """
    from h5py import h5f, h5p

    access = h5p.create(h5p.FILE_ACCESS)
    access.set_fapl_core(backing_store=False)
    access.set_file_image(data)
    return h5f.open(b"in memory %d" % next(_opened), h5f.ACC_RDONLY, access)


def value_in(group, name: str) -> Any:
    """The number, string or array `name` of a group; ValueError where it is none."""
    from h5py import h5o

    if name not in members(group):
        raise ValueError(f"{name} is missing")
    return _value(h5o.open(group, name.encode()), name)


def members(group) -> list[str]:
    """Names in a group, all of which lie in this very file; ValueError for any other link."""
    return [name.decode() for name in _inside(group.links.iterate)]


def group_in(parent, name: str):
    """The group `name` of a group; ValueError where it is none."""
    from h5py import h5g, h5o

    if name not in members(parent):
        raise ValueError(f"{name} is missing")
    child = h5o.open(parent, name.encode())
    if not isinstance(child, h5g.GroupID):
        raise ValueError(f"{name} is not a group")
    return child


def datasets(group, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[str, Any]]:
    """Every wanted dataset under `group`, by its name from there."""
    from h5py import h5g, h5o

    names = sorted(links(group))
    with_members = {name.rpartition(b"/")[0] for name in names}
    parents: dict[bytes, Any] = {b"": group}
    for name in names:
        if name in with_members:  # a group: not opened for itself
            continue
        path, _, last = name.rpartition(b"/")
        if not wanted(name.decode()):
            continue
        if path not in parents:
            parents[path] = h5o.open(group, path)
        child = h5o.open(parents[path], last)
        if not isinstance(child, h5g.GroupID):
            yield name.decode(), _value(child, name.decode())
        elif len(child):  # its members have been seen under another name
            raise ValueError(f"{name.decode()} is a group that has two names")


def links(group) -> list[bytes]:
    """All names below `group`, with slashes. Leads through each group once, so that one which is
    its own member, in a file built to mislead, is no trap; ValueError for links that lead out."""
    return _inside(group.links.visit)


def _inside(each_link: Callable[..., Any]) -> list[bytes]:
    """The names that one of HDF5's iterations meets; ValueError unless all are hard links."""
    from h5py import h5l

    kinds: dict[bytes, int] = {}

    def note(name: bytes, info) -> None:  # must not raise: HDF5 calls it
        kinds[name] = info.type

    each_link(note, info=True)
    if set(kinds.values()) - {h5l.TYPE_HARD}:
        raise ValueError("a link leads out of it")
    return list(kinds)


def _value(dataset, name: str) -> Any:
    """A dataset's content: numbers as they are, strings as str; its bytes must be in this file."""
    import numpy
    from h5py import h5d, h5s

    if not isinstance(dataset, h5d.DatasetID):
        raise ValueError(f"{name} is not an array or a value")
    stored, shape = dataset.get_type(), dataset.shape
    kind = _kind(stored.encode())
    if kind.kind not in "biufS":
        raise ValueError(f"{name} is neither numbers nor a string")
    _check_stored(dataset, name, shape, kind.itemsize)
    array = numpy.empty(shape, kind)
    if array.size:
        dataset.read(h5s.ALL, h5s.ALL, array, stored)
    if kind.kind == "S":
        return array.item().decode()
    return array if shape else array.item()


@functools.lru_cache(1000)
def _kind(stored: bytes):
    """numpy's type for one of HDF5's; remembered, since asking costs as much as reading."""
    from h5py import h5t

    return h5t.decode(stored).dtype


def _check_stored(dataset, name: str, shape: tuple[int, ...], item_bytes: int) -> None:
    """All of it is in this file. Also stops a small file that declares a huge array, which was
    never written or would grow when it is read."""
    from h5py import h5d

    n_bytes, stored_bytes = math.prod(shape) * item_bytes, dataset.get_storage_size()
    if dataset.get_offset() is not None and stored_bytes == n_bytes:
        return  # in one piece at a place in this file, as nearly all are
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


def _check_chunks(dataset, made, name: str, shape: tuple[int, ...]) -> None:
    """Every chunk is there, and no other filter than those that HDF5 itself has: a third one would
    be a plug-in, looked for in the file system."""
    from h5py import h5z

    filters = {made.get_filter(i)[0] for i in range(made.get_nfilters())}
    if filters - {h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE}:
        raise ValueError(f"{name} is stored with an unknown filter")
    chunk = made.get_chunk()
    expected = math.prod(-(-size // step) for size, step in zip(shape, chunk, strict=True))
    beyond = any(step > max(1, size) for size, step in zip(shape, chunk, strict=True))
    if beyond or dataset.get_num_chunks() != expected:
        raise ValueError(f"{name} is not stored in full")
