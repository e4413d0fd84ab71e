"""Codes an ONNX model so that ``decode.py`` gives its bytes back; see FORMAT.md.

The numbers are cut out of the file's bytes. Integer weights are coded tensor by tensor, small
tensors of floats and of int32 together; what is left, the skeleton, by LZMA.
"""

from __future__ import annotations

import hashlib
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import constriction
import numpy as np

from pipeline.artifact.npk import decode as npk
from pipeline.artifact.npk.decode import BYTES, FLOATS, INTEGERS, Plan, Span, Stream
from pipeline.artifact.npk.known import Known
from pipeline.artifact.npk.plans import Option, of_bytes, of_weights
from pipeline.artifact.npk.spans import FLOAT, INT32, Numbers, initializers

LEAST = 256  # integers of a tensor that is coded by itself
POOLED = 1 << 14  # numbers of 4 bytes of a tensor that is coded with others
NS_PER_VALUE = 90.0  # of decoding, on average: more is not spent on fewer bytes
NS_AT_LEAST = 20e6
USUAL = 94  # the properties of LZMA that xz has: lc 3, lp 0, pb 2
PLAIN = 1 << 16  # bytes of a model that LZMA alone may code better


@dataclass(frozen=True)
class Source:
    """Where the values of a stream come from, and what they are: int8 [K, P, C] for each plan."""

    numbers: list[Numbers]
    kind: int
    values: list[np.ndarray]
    options: list[list[Option]]


def encode(model: bytes) -> bytes:
    """The coded file; the skeleton alone where coding the numbers apart takes more."""
    tensors = initializers(model)
    products = _products(model, tensors)
    sources = list(_sources(model, tensors, products))
    whole = _file(model, sources, products)
    if len(model) > PLAIN and len(whole) < len(_lzma(model, USUAL)):
        return whole
    return min(whole, _file(model, [], {}), key=len)


def _sources(
    model: bytes, tensors: list[Numbers], products: dict[Numbers, tuple[Numbers, Numbers]]
) -> Iterator[Source]:
    pools: dict[int, list[Numbers]] = {FLOATS: [], INTEGERS: []}
    used = {factor for factors in products.values() for factor in factors}
    for numbers in tensors:
        kind = {FLOAT: FLOATS, INT32: INTEGERS}.get(numbers.kind, BYTES)
        if numbers in products or numbers.count < (1 if numbers in used else 4):
            continue
        if kind != BYTES and numbers.count < POOLED:
            pools[kind].append(numbers)
        elif kind != BYTES:
            yield _of_numbers(model, [numbers], kind)
        elif numbers.count >= LEAST and len(set(model[numbers.start : numbers.stop])) > 1:
            yield _of_weights(model, numbers)
    for kind, pool in pools.items():
        if pool and (used & set(pool) or _pays(model, pool, kind)):
            yield _of_numbers(model, pool, kind)


def _pays(model: bytes, pool: list[Numbers], kind: int) -> bool:
    """Whether the numbers take less than as a part of the skeleton."""
    together = b"".join(model[n.start : n.stop] for n in pool)
    source = _of_numbers(model, pool, kind)
    coded = sum(options[0].bits for options in source.options) / 8 + 3 * len(pool)
    return coded < len(_lzma(together, USUAL))


def _of_weights(model: bytes, numbers: Numbers) -> Source:
    values = np.frombuffer(model, np.int8, numbers.count, numbers.start)
    seen, options = of_weights(values, numbers.dims)
    return Source([numbers], BYTES, [seen], [options])


def _of_numbers(model: bytes, pool: list[Numbers], kind: int) -> Source:
    parts = [np.frombuffer(model, "<u4", n.count, n.start) for n in pool]
    planes = _bytes(np.concatenate(parts).astype(np.uint32), kind)
    made = [of_bytes(plane) for plane in planes]
    return Source(pool, kind, [values for values, _ in made], [options for _, options in made])


def _bytes(numbers: np.ndarray, kind: int) -> np.ndarray:
    """int8 [4, n], the inverse of ``decode.numbers``."""
    if kind == FLOATS:
        turned = numbers << np.uint32(1) | numbers >> np.uint32(31)
    else:
        turned = numbers << np.uint32(1) ^ (numbers.view(np.int32) >> 31).view(np.uint32)
    return np.ascontiguousarray(turned.astype("<u4").view(np.int8).reshape(-1, 4).T)


def _products(model: bytes, tensors: list[Numbers]) -> dict[Numbers, tuple[Numbers, Numbers]]:
    """Tensors of floats that are, bit for bit, one of one number times another of their length,
    all before them: the scale of a bias is that of its input times that of its weights."""
    values = {
        n: np.frombuffer(model, "<f4", n.count, n.start)
        for n in tensors
        if n.kind == FLOAT and n.count < POOLED
    }
    products: dict[Numbers, tuple[Numbers, Numbers]] = {}
    before: list[Numbers] = []
    for numbers, value in values.items():
        if numbers.count > 1:
            factors = _factors(value, values, [n for n in before if n not in products])
            if factors is not None:
                products[numbers] = factors
        before.append(numbers)
    return products


def _factors(
    product: np.ndarray, values: dict[Numbers, np.ndarray], before: list[Numbers]
) -> tuple[Numbers, Numbers] | None:
    if not np.isfinite(product).all():
        return None
    ones = [n for n in before if n.count == 1]
    for many in [n for n in before if n.count == len(product)]:
        for one in ones:
            with np.errstate(all="ignore"):
                same = (values[one] * values[many]).tobytes() == product.tobytes()
            if same:
                return one, many
    return None


def _file(
    model: bytes, sources: list[Source], products: dict[Numbers, tuple[Numbers, Numbers]]
) -> bytes:
    plans = _affordable([options for source in sources for options in source.options])
    if sum(map(npk.decoding_ns, plans)) > npk.most_ns(plans):  # thousands of small tensors
        return _file(model, [], {})
    encoder = constriction.stream.queue.RangeEncoder()

    def sink(symbols: np.ndarray, frequencies: np.ndarray) -> None:
        categorical = constriction.stream.model.Categorical(frequencies, perfect=False)
        encoder.encode(symbols.astype(np.int32), categorical)

    streams, at = [], 0
    for source in sources:
        own = tuple(plans[at : at + len(source.values)])
        at += len(own)
        streams.append(Stream(source.kind, own))
        for plan, values in zip(own, source.values, strict=True):
            Known(plan, values, sink).run()
    spans, skeleton = _spans(model, sources, products)
    described = _described(streams, spans)
    coded = encoder.get_compressed().astype("<u4").tobytes() if sources else b""
    parts = [_packed(described), _packed(skeleton), coded]
    head = npk.HEAD.pack(
        npk.MAGIC,
        npk.VERSION,
        len(model),
        hashlib.sha256(model).digest(),
        *map(len, parts),
        *map(zlib.crc32, parts),
    )
    return b"".join([head, npk.CHECK.pack(zlib.crc32(head)), *parts])


def _affordable(options: list[list[Option]]) -> list[Plan]:
    """The fewest bits that are decoded in the time there is: where the best of all take longer,
    those give way whose time buys least."""
    chosen = [own[0] for own in options]
    time = max(NS_AT_LEAST, NS_PER_VALUE * sum(o.plan.size for o in chosen))
    while sum(o.ns for o in chosen) > time:
        faster = [
            ((other.bits - now.bits) / (now.ns - other.ns), place, other)
            for place, (now, own) in enumerate(zip(chosen, options, strict=True))
            for other in own
            if other.ns < now.ns
        ]
        if not faster:
            break
        _, place, other = min(faster, key=lambda change: change[:2])
        chosen[place] = other
    return [option.plan for option in chosen]


def _spans(
    model: bytes, sources: list[Source], products: dict[Numbers, tuple[Numbers, Numbers]]
) -> tuple[list[Span], bytes]:
    """Of the file in its order, and what they leave."""
    stream = {n: number for number, source in enumerate(sources, 1) for n in source.numbers}
    cut = sorted([*stream, *products], key=lambda n: n.start)
    place = {n: number for number, n in enumerate(cut)}
    spans, left, end = [], [], 0
    for n in cut:
        one, many = (place[f] for f in products[n]) if n in products else (0, 0)
        spans.append(Span(n.start - end, n.stop - n.start, stream.get(n, 0), (one, many)))
        left.append(model[end : n.start])
        end = n.stop
    return spans, b"".join([*left, model[end:]])


def _described(streams: list[Stream], spans: list[Span]) -> bytes:
    out = bytearray()

    def count(value: int) -> None:
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)

    def plan(plan: Plan) -> None:
        for name in npk.NUMBERS:
            count(getattr(plan, name))
        for values in (plan.weights, plan.bias, plan.taps):
            count(len(values))
            for value in values:
                count(2 * value if value >= 0 else -2 * value - 1)
        count(len(plan.alphabet))
        for before, value in zip((-129, *plan.alphabet), plan.alphabet, strict=False):
            count(value - before - 1)

    count(len(streams))
    for stream in streams:
        count(stream.kind)
        for own in stream.plans:
            plan(own)
    count(len(spans))
    for span in spans:
        for value in (span.gap, span.size, span.source, *(span.factors if not span.source else ())):
            count(value)
    return bytes(out)


def _packed(content: bytes) -> bytes:
    """By whichever properties of LZMA do best, or as it is."""
    packed = [npk.PACKED.pack(0, len(content)) + content]
    for lc, lp, pb in ((3, 0, 2), (4, 0, 0), (0, 0, 0), (0, 2, 2)):
        method = 1 + (pb * 5 + lp) * 9 + lc
        packed.append(npk.PACKED.pack(method, len(content)) + _lzma(content, method))
    return min(packed, key=len)


def _lzma(content: bytes, method: int) -> bytes:
    filters = [{**npk.lzma_filter(method, len(content)), "preset": 9 | lzma.PRESET_EXTREME}]
    return lzma.compress(content, lzma.FORMAT_RAW, filters=filters)
