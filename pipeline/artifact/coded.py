"""The two forms of an artifact: *runnable*, the ONNX model that a runtime reads, and *stored*, what
lies on disk or is sent: the same, or coded. Decoding gives the recorded bytes.

A codec is one entry of CODECS. It must give the same bytes on every machine, and its decoder must
not need more memory than the size that the manifest declares: a stranger may have written both.
"""

from __future__ import annotations

import lzma
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import Corrupt


@dataclass(frozen=True)
class Codec:
    """``encode``: model -> stored bytes. ``decode``: (stored bytes, size of the model) -> model;
    ValueError where the bytes are not that of a model of this size. ``decoder``: a program of one
    file that decodes without netpress, where no tool that people have does."""

    suffix: str
    encode: Callable[[bytes], bytes]
    decode: Callable[[bytes, int], bytes]
    decoder: Path | None = None


XZ_MEMORY = 128 << 20  # preset 9 needs 65 MiB to decode


def _xz(model: bytes) -> bytes:
    return lzma.compress(model, preset=9 | lzma.PRESET_EXTREME, check=lzma.CHECK_NONE)


def _unxz(data: bytes, size: int) -> bytes:
    decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)
    try:
        model = decoder.decompress(data, max_length=size)
        # The end of the stream may come after the last byte of the model; more is too much.
        more = b"" if decoder.eof else decoder.decompress(b"", max_length=1)
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(str(error)) from error
    if len(model) != size or more or not decoder.eof or decoder.unused_data:
        raise ValueError(f"expected {size:,} bytes of a model")
    return model


def _npk(model: bytes) -> bytes:
    from pipeline.artifact.npk.encode import encode

    return encode(model)


def _unnpk(data: bytes, size: int) -> bytes:
    from pipeline.artifact.npk.decode import decode

    return decode(data, size)


CODECS: dict[str, Codec] = {
    "npk": Codec(".npk", _npk, _unnpk, Path(__file__).parent / "npk" / "decode.py"),
    "xz": Codec(".xz", _xz, _unxz),
}


def decoded(data: bytes, codec: str | None, size: int, where: str) -> bytes:
    """The runnable model of ``size`` bytes in what is stored; Corrupt where it is none."""
    if codec is None:
        return data
    try:
        return CODECS[codec].decode(data, size)
    except ValueError as error:
        raise Corrupt(f"{where}: cannot be decoded ({error})") from error
