"""Damaged and hostile coded models: each gives the model or a ValueError of one line, and takes no
more memory than it may.

    env/run python -m tests.benchmarks.fuzz_npk [MUTATIONS] [SEED] [INVENTED]

Most mutations have checksums that fit again, and many change descriptions of tensors, or the coded
values: those that a checksum catches test little. Then INVENTED files whose tensors, of up to
32 MiB, are described by numbers drawn at random within what a decoder accepts.
"""

from __future__ import annotations

import struct
import sys
import tracemalloc
import zlib
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pipeline.artifact.npk import decode as npk
from pipeline.artifact.npk.encode import _described, encode

# Beside what grows with the model: slices, tables, and descriptions of tensors.
SPARE = 64 << 20
LARGEST = 32 << 20  # that is invented


def onnx_bytes(**arrays: np.ndarray) -> bytes:
    """A model that holds these as initializers, and computes nothing."""
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    return helper.make_model(helper.make_graph([], "g", [], [], tensors)).SerializeToString()


def small_model() -> bytes:
    """It has each kind of stream and of plan that there is."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(6, 32))
    dense = rng.normal(size=(40, 9, 6)) @ shared * 12 + rng.normal(size=(40, 9, 32)) * 8
    sparse = rng.integers(-60, 60, (32, 16, 3, 3)) * (rng.random((32, 16, 3, 3)) < 0.1)
    scale = rng.random(40, np.float32)
    return onnx_bytes(
        dense=np.clip(dense.transpose(0, 2, 1).reshape(40, 32, 3, 3), -127, 127).astype(np.int8),
        sparse=sparse.astype(np.int8),
        ternary=rng.choice(np.array([-5, 0, 5], np.int8), (64, 60), p=[0.1, 0.8, 0.1]),
        one=np.array([0.25], np.float32),
        scale=scale,
        product=np.float32(0.25) * scale,
        bias=rng.integers(-900, 900, 200).astype(np.int32),
    )


def mutated(coded: bytes, rng: np.random.Generator) -> bytes:
    head = list(npk.HEAD.unpack_from(coded))
    at = npk.HEAD.size + npk.CHECK.size
    parts = []
    for size in head[4:7]:
        parts.append(bytearray(coded[at : at + size]))
        at += size
    way = rng.integers(6)
    if way == 0:
        return bytes(_changed(bytearray(coded), rng))
    if way == 1:  # descriptions of tensors, unpacked
        plans = bytearray(npk.unpack(memoryview(parts[0]), npk.PLANS_BYTES))
        plans = _changed(plans, rng)
        parts[0] = bytearray(npk.PACKED.pack(0, len(plans))) + plans
    elif way == 2:
        head[2] = int(rng.choice([0, 1, head[2] - 1, head[2] + 1, 2 * head[2], npk.MODEL_BYTES]))
    else:
        which = way - 3
        parts[which] = _changed(parts[which], rng)
    head[4:7] = map(len, parts)
    head[7:10] = map(zlib.crc32, parts)
    packed = npk.HEAD.pack(*head)
    return b"".join([packed, struct.pack("<I", zlib.crc32(packed)), *parts])


def _changed(data: bytearray, rng: np.random.Generator) -> bytearray:
    for _ in range(rng.integers(1, 4)):
        if not data:
            break
        at, way = int(rng.integers(len(data))), rng.integers(6)
        if way == 0:
            del data[at:]
        elif way == 1:
            data[at:at] = rng.bytes(int(rng.integers(1, 9)))
        elif way == 2:
            del data[at : at + int(rng.integers(1, 9))]
        elif way == 3:
            data[at] = int(rng.choice([0, 1, 127, 128, 255]))
        else:
            data[at] ^= 1 << int(rng.integers(8))
    return data


def invented(rng: np.random.Generator, most: int) -> bytes:
    """A file of one tensor, or of four with the bytes of numbers, of at most ``most`` bytes."""
    width = int(rng.choice([1, 4]))
    plans = [_plan(rng, most // width)]
    while len(plans) < width:
        same = {name: getattr(plans[0], name) for name in ("filters", "channels", "positions")}
        plan = replace(_drawn(rng, *same.values()), layout=int(rng.integers(3)))
        if npk._possible(plan):
            plans.append(plan)
    size = width * plans[0].size
    kind = npk.BYTES if width == 1 else int(rng.choice([npk.FLOATS, npk.INTEGERS]))
    streams = [npk.Stream(kind, tuple(plans))]
    described = _described(streams, [npk.Span(0, size, 1)])
    coded = bytes(size // 8 * 4)  # the first symbol of each: others would soon be damaged values
    parts = [npk.PACKED.pack(0, len(part)) + part for part in (described, b"")] + [coded]
    sizes = [*map(len, parts), *map(zlib.crc32, parts)]
    head = npk.HEAD.pack(npk.MAGIC, npk.VERSION, size, bytes(32), *sizes)
    return b"".join([head, npk.CHECK.pack(zlib.crc32(head)), *parts])


def _plan(rng: np.random.Generator, most: int) -> npk.Plan:
    """One that a decoder accepts, and most often a large one."""
    while True:
        positions = int(rng.choice([1, 9, 128, rng.integers(1, 129)]))
        channels = int(2 ** rng.uniform(0, 16))
        filters = int(most * rng.uniform(0.5, 1)) // (channels * positions)
        plan = _drawn(rng, filters, channels, positions)
        if filters > 0 and npk._possible(plan):
            return plan


def _drawn(rng: np.random.Generator, filters: int, channels: int, positions: int) -> npk.Plan:
    numbers = {
        name: int(rng.choice([0, 1, most, rng.integers(most + 1)]))
        for name, most in npk.NUMBERS.items()
    }
    numbers |= {"filters": filters, "channels": channels, "positions": positions}
    numbers["groups"] = int(rng.choice([1, 2, min(channels, 64)]))
    numbers["predictors"] = int(rng.choice([0, min(channels, 128)]))
    numbers["first"] = int(rng.choice([1, 1 << 16]))
    values = rng.choice(256, int(rng.integers(1, 257)), replace=False) - 128
    taps = positions * (positions - 1) // 2 * int(rng.integers(2))
    taps = taps if taps <= 1 << 10 else 0
    return npk.Plan(
        **numbers,
        weights=tuple(rng.choice([-127, 0, 9, 127], 4).tolist()),
        bias=tuple(rng.integers(-npk.LOWEST, npk.LOWEST, positions).tolist()),
        taps=tuple(rng.integers(-127, 128, taps).tolist()),
        alphabet=tuple(sorted(values.tolist())),
    )


def outcome(data: bytes, model: bytes) -> str:
    """What decoding gives; AssertionError where it is neither the model nor one sentence."""
    size = npk.HEAD.unpack_from(data)[2] if len(data) >= npk.HEAD.size else 0
    tracemalloc.start()
    try:
        decoded = npk.decode(data)
    except ValueError as error:
        told = str(error)
        assert told and "\n" not in told, told
    else:
        assert decoded == model
        told = "the model"
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak <= 4 * size + SPARE, f"{peak:,} bytes for {size:,}"
    return told


def run(mutations: int, seed: int) -> Counter[str]:
    model = small_model()
    coded = encode(model)
    assert npk.decode(coded) == model
    onnx.load_model_from_string(model)
    rng = np.random.default_rng(seed)
    return Counter(outcome(mutated(coded, rng), model) for _ in range(mutations))


def run_invented(files: int, seed: int, most: int) -> Counter[str]:
    """Of files that have no model: each ends in a sentence."""
    rng = np.random.default_rng(seed)
    return Counter(outcome(invented(rng, most), b"") for _ in range(files))


def main() -> None:
    mutations, seed, files = (*map(int, sys.argv[1:]), *(10_000, 0, 20)[len(sys.argv) - 1 :])
    told = run(mutations, seed) + run_invented(files, seed, LARGEST)
    for message, count in told.most_common():
        print(f"{count:6}  {message}")
    print(f"{sum(told.values()):6}  files, none of them anything else")


if __name__ == "__main__":
    main()
