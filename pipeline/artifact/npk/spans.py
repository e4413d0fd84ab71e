"""Where the numbers lie in the bytes of an ONNX model: taken out and put back there, they leave
the same file, which parsing it and writing it again would not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# Fields of protobuf's messages ModelProto, GraphProto and TensorProto.
GRAPH, INITIALIZER, DIMS, DATA_TYPE, FLOAT_DATA, RAW_DATA = 7, 5, 1, 2, 4, 9
FLOAT, UINT8, INT8, INT32 = 1, 2, 3, 6
WIDTH = {FLOAT: 4, UINT8: 1, INT8: 1, INT32: 4}


@dataclass(frozen=True)
class Numbers:
    """The values of one initializer: bytes ``start`` to ``stop`` of the model."""

    start: int
    stop: int
    kind: int  # TensorProto's data_type
    dims: tuple[int, ...]

    @property
    def count(self) -> int:
        return (self.stop - self.start) // WIDTH[self.kind]


def initializers(model: bytes) -> list[Numbers]:
    """Those of the kinds in WIDTH, in the order of the file; none where it is no ONNX model."""
    try:
        spans = [
            numbers
            for field, _, start, stop in _fields(model, 0, len(model))
            if field == GRAPH
            for inner, kind, first, last in _fields(model, start, stop)
            if (inner, kind) == (INITIALIZER, BYTES)
            for numbers in _numbers(model, first, last)
        ]
    except (IndexError, ValueError):
        return []
    return sorted(spans, key=lambda numbers: numbers.start)


def _numbers(model: bytes, start: int, stop: int) -> Iterator[Numbers]:
    dims, data_type, data = [], 0, None
    for field, kind, first, last in _fields(model, start, stop):
        if (field, kind) == (DIMS, VARINT):
            dims.append(_varint(model, first)[0])
        elif (field, kind) == (DIMS, BYTES):
            while first < last:
                size, first = _varint(model, first)
                dims.append(size)
        elif (field, kind) == (DATA_TYPE, VARINT):
            data_type = _varint(model, first)[0]
        elif field in (FLOAT_DATA, RAW_DATA) and kind == BYTES:
            data = (first, last)
    if data and data_type in WIDTH:
        count = 1
        for size in dims:
            count *= size
        if count * WIDTH[data_type] == data[1] - data[0]:
            yield Numbers(*data, data_type, tuple(dims))


def _fields(model: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, wire type, first byte, byte after the last) of each field of a message."""
    while at < end:
        key, at = _varint(model, at)
        kind = key & 7
        if kind == VARINT:
            stop = _varint(model, at)[1]
        elif kind == BYTES:
            size, at = _varint(model, at)
            stop = at + size
        elif kind in (FIXED32, FIXED64):
            stop = at + (4 if kind == FIXED32 else 8)
        else:
            raise ValueError("no wire type of protobuf")
        if stop > end:
            raise ValueError("a field is cut off")
        yield key >> 3, kind, at, stop
        at = stop


def _varint(model: bytes, at: int) -> tuple[int, int]:
    """(value, the byte after it)."""
    value = shift = 0
    while True:
        byte = model[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number is too long")
