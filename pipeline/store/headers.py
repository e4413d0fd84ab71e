"""Finds a dataset of a small HDF5 file in the file's bytes, without opening it.

HDF5 takes some twenty times as long to open, describe and close a dataset as to copy its number,
and a report reads forty of each result. Only headers as h5py writes them by default are parsed
here; for any other this returns None, and HDF5 reads it.

HDF5 File Format Specification 3.0: superblock (II.A), object header version 1 (IV.A.1.a), messages
for dataspace (IV.A.2.b), datatype (IV.A.2.d) and data layout (IV.A.2.i).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

SIGNATURE = b"\x89HDF\r\n\x1a\n"
# Signature, version of the superblock, four bytes that do not matter here, bytes of an address and
# of a length.
SUPERBLOCK = struct.Struct("<8sB4xBB")
HEADER = struct.Struct("<BxHII4x")  # version, messages, references, bytes of the messages
MESSAGE = struct.Struct("<HHB3x")  # type, bytes, flags
DATASPACE = struct.Struct("<BBB5x")  # version, dimensions, flags
LAYOUT = struct.Struct("<BBQQ")  # version, class, address, bytes
NIL, SPACE, TYPE, FILL_VALUE, LAYOUT_TYPE = 0x0, 0x1, 0x3, 0x5, 0x8
CONSTANT = 0x1  # the one flag of a message that changes nothing for a reader
CONTIGUOUS = 1


@dataclass(frozen=True)
class Image:
    """The bytes of an HDF5 file that begins at `base`, where its addresses count from."""

    data: bytes
    base: int

    @classmethod
    def of(cls, data: bytes, base: int) -> Image | None:
        """None for a file with another superblock than h5py's default."""
        try:
            known = SUPERBLOCK.unpack_from(data, base) == (SIGNATURE, 0, 8, 8)
        except struct.error:
            known = False
        return cls(data, base) if known else None


@dataclass(frozen=True)
class Stored:
    """`datatype`: the message; `offset`: of the first byte in the image; `n_bytes`: of all."""

    datatype: bytes
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


def contiguous(image: Image, address: int) -> Stored | None:
    """The dataset whose header is at this address, where it is stored in one piece."""
    try:
        messages = _messages(image.data, image.base + address)
        if messages is None or messages.keys() - {NIL, FILL_VALUE} != {SPACE, TYPE, LAYOUT_TYPE}:
            return None
        shape = _shape(messages[SPACE])
        version, kind, place, n_bytes = LAYOUT.unpack_from(messages[LAYOUT_TYPE])
    except struct.error:  # it ends too early
        return None
    offset = image.base + place
    if shape is None or (version, kind) != (3, CONTIGUOUS) or offset + n_bytes > len(image.data):
        return None
    return Stored(messages[TYPE], shape, offset, n_bytes)


def _messages(data: bytes, start: int) -> dict[int, bytes] | None:
    """Type of a message -> its content, of an object header in one piece; None for any other."""
    version, _, _, size = HEADER.unpack_from(data, start)
    place, end = start + HEADER.size, start + HEADER.size + size
    if version != 1:
        return None
    messages: dict[int, bytes] = {}
    while place < end:
        kind, length, flags = MESSAGE.unpack_from(data, place)
        place += MESSAGE.size
        if (kind in messages and kind != NIL) or flags & ~CONSTANT or place + length > end:
            return None
        messages[kind] = data[place : place + length]
        place += length
    return messages


def _shape(message: bytes) -> tuple[int, ...] | None:
    version, dimensions, _ = DATASPACE.unpack_from(message)
    if version != 1:
        return None
    return struct.unpack_from(f"<{dimensions}Q", message, DATASPACE.size)
