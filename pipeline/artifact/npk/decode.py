"""Decodes ``model.onnx.npk`` to the ``model.onnx`` that it was made of, byte for byte.

    python decode.py model.onnx.npk model.onnx

Needs numpy and constriction, nothing else: netpress decodes with this file, and exports it beside
a coded model. ``FORMAT.md`` in netpress says what the bytes mean.

Nothing in a file is trusted: whatever is wrong with one is a ValueError. Encoder and decoder must
compute the same probabilities on every machine, so these are integers, made from integers by
exact operations: no logarithm, exponential or sum of fractions, whose last bit differs between
CPUs, math libraries and versions of numpy. Where floats appear they hold integers that they
represent exactly.

Shapes: K filters, C channels, P positions of a kernel; a block has F of the filters. A slice is
what a block has at one position, [F, C]: its probabilities depend on slices before it alone.
"""

from __future__ import annotations

import hashlib
import lzma
import struct
import sys
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import constriction
import numpy as np

MAGIC = b"\x89NPK"
VERSION = 1
MODEL_BYTES = 2**31 - 1  # what a message of protobuf, which ONNX is, can have at most
BYTES, FLOATS, INTEGERS = range(3)  # kinds of streams
STREAMS, SPANS = 1 << 12, 1 << 14
PLANS_BYTES = 1 << 20
PADDING = 1 << 9
SLICE, BLOCK = 1 << 17, 1 << 20  # elements; fewer where a single filter has more
NS_AT_MOST, NS_PER_VALUE_AT_MOST = 4e9, 400.0  # of decoding
BINS = 5  # of a predicted value, where it is context
TAP = 64  # the unit of `Plan.taps`
FACTOR = 512  # the unit of how much of a channel is in another
WEIGHT = 32  # the unit of `Plan.weights`
MEAN = 256  # the unit of a mean
LOWEST = 1 << 13
OCTAVE = 32  # the unit of a logarithm to base 2; it is an integer, rounded down
PRIOR = 1 << 16  # what frequencies add up to before anything was seen, about
# From the lengths of integers, so exact: log2(2x + 1), and log2(1 + x / 1024).
LOG_ODD = np.array([(x**OCTAVE).bit_length() - 1 for x in range(1, 8192, 2)], np.int32)
LOG_MANTISSA = np.array([(x**OCTAVE).bit_length() - 321 for x in range(1024, 2048)], np.int64)

LAYOUTS = ((0, 1, 2), (0, 2, 1), (1, 2, 0))  # of [K, P, C]: themselves, [K, C, P], [P, C, K]
Code = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Plan:
    """How one tensor of bytes is coded; all of it is in the file."""

    filters: int
    channels: int
    positions: int = 1
    layout: int = 0  # the axes of the tensor, as it is in the model: see LAYOUTS
    first: int = 1  # filters in the first block; a next one has as many as all before it
    residual: int = (
        0  # 1: a symbol is the difference to what was predicted; 0: a place in `alphabet`
    )
    zeros: int = 0  # 1: whether a value is zero is coded apart
    shape: int = 0  # of the distribution of differences: 8 Laplace, 16 Gauss; 0 flat
    gain: int = 0  # what a symbol that was seen adds to its frequency; 0: none changes
    bin: int = 0  # > 0: half the width of the bins of predicted values, which are context
    classes: int = 1  # of the magnitude that is expected
    width: int = 1  # of such a class, as a logarithm
    low: int = 0  # the logarithm at which they begin, plus LOWEST
    coarse: int = 0  # 2^coarse classes share the frequencies of an alphabet
    groups: int = 1  # of channels
    predictors: int = 0  # channels of groups before from which one is predicted
    ridge: int = 0  # what holds these predictions small
    mean: int = 0  # the magnitude that is expected where nothing was seen
    weights: tuple[int, ...] = (
        0,
        0,
        0,
        0,
    )  # of near, filter, column and channel in what is expected
    bias: tuple[int, ...] = (0,)  # [P] or [1]: what is added at a position
    taps: tuple[int, ...] = ()  # [P * (P - 1) / 2]: a position is predicted from those before it
    alphabet: tuple[int, ...] = ()  # the values that are coded by their place, ascending

    @property
    def size(self) -> int:
        return self.filters * self.channels * self.positions


# The numbers of a plan as they are in the file, with the most that each can be.
NUMBERS = {
    "filters": MODEL_BYTES,
    "channels": 1 << 16,
    "positions": 1 << 7,
    "layout": 2,
    "first": 1 << 16,
    "residual": 1,
    "zeros": 1,
    "shape": 64,
    "gain": 1 << 12,
    "bin": 1 << 13,
    "classes": 64,
    "width": 1 << 10,
    "low": 2 * LOWEST,
    "coarse": 6,
    "groups": 64,
    "predictors": 128,
    "ridge": 1 << 10,
    "mean": 1 << 16,
}


def most_filters(plan: Plan) -> int:
    """Of a block."""
    return max(1, min(SLICE // plan.channels, BLOCK // (plan.channels * plan.positions)))


def decoding_ns(plan: Plan) -> float:
    """How long decoding takes, about, on one core of 2.6 GHz. All encoders share this rule: they
    make the same file."""
    blocks, done, most = 0, 0, most_filters(plan)
    while done < plan.filters:
        done += min(max(plan.first, done), most, plan.filters - done)
        blocks += 1
    slices = blocks * plan.positions * plan.groups
    solving = (blocks - 1) * plan.predictors * (10_000 + 0.5 * plan.predictors * plan.channels)
    return 50.0 * plan.size + 100_000.0 * slices + solving


def most_ns(plans: Iterable[Plan]) -> float:
    """Of decoding all of a file: more than any encoder spends on as many values."""
    return NS_AT_MOST + NS_PER_VALUE_AT_MOST * sum(plan.size for plan in plans)


def log2(x: np.ndarray) -> np.ndarray:
    """Of integers > 0; frexp and multiplying by a power of two are exact."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    return (
        OCTAVE * (exponent.astype(np.int64) - 1)
        + LOG_MANTISSA[(mantissa * 2048).astype(np.int64) - 1024]
    )


def within(x: np.ndarray, low: int, high: int) -> np.ndarray:
    """Clipped in place: np.clip takes longer than the rest of a small slice."""
    np.maximum(x, low, out=x)
    return np.minimum(x, high, out=x)


def _root(n: int) -> int:
    """Its integer root of the order OCTAVE."""
    low, high = 0, 1 << (n.bit_length() // OCTAVE + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle**OCTAVE <= n else (low, middle)
    return low


POWERS = np.array([_root(1 << (20 * OCTAVE + i)) for i in range(OCTAVE)], np.int64)


def power(x: np.ndarray) -> np.ndarray:
    """2^20 times two to the x, of logarithms in [-20, 20] octaves."""
    octaves, rest = np.divmod(np.clip(x, -20 * OCTAVE, 20 * OCTAVE), OCTAVE)
    return (POWERS[rest] << np.maximum(octaves, 0)) >> np.maximum(-octaves, 0)


def distributions(plan: Plan) -> np.ndarray:
    """Frequencies [classes, 256] of the differences -128 ... 127: 2^-(|k| / m)^(shape / 8), where
    m is the magnitude in the middle of a class."""
    if plan.shape == 0:
        return np.full((plan.classes, 256), PRIOR // 256, np.int64)
    size = np.abs(np.arange(-128, 128))
    middle = plan.low - LOWEST + plan.width * np.arange(plan.classes) + plan.width // 2
    relative = log2(np.maximum(size, 1))[None] - middle[:, None]
    bits = power(np.minimum(relative * plan.shape // 8, 5 * OCTAVE)) * OCTAVE >> 20
    height = np.where(size == 0, 1 << 20, power(-bits))
    return height * PRIOR // height.sum(1, keepdims=True) + 1


class Frequencies:
    """Of symbols in each class; they change between slices only."""

    def __init__(self, classes: int, symbols: int, gain: int, start: np.ndarray | None) -> None:
        self.seen = np.zeros((classes, symbols), np.int64)
        self.start, self.gain = start, gain

    def now(self) -> np.ndarray:
        """int64 [classes, symbols], all above 0."""
        if self.start is not None:
            both = self.seen.copy()  # differences of either sign are as likely
            both[:, 1:] += self.seen[:, :0:-1]
            return self.start + self.gain * both
        if self.gain == 0:
            return np.ones_like(self.seen)
        # Where a class has seen little, what all have seen counts.
        overall = self.seen.sum(0) * 4 + 1
        shared = overall * (16 * len(overall) + 64) // overall.sum() + 1
        return shared + self.gain * self.seen

    def add(self, classes: np.ndarray, symbols: np.ndarray) -> None:
        rows, columns = self.seen.shape
        at = classes.astype(np.int64) * columns + symbols
        self.seen += np.bincount(at, minlength=rows * columns).reshape(rows, columns)


class Channels:
    """Predicts the channels of a group from those of groups before it, at most ``predictors``, by
    least squares over the filters of all blocks before."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.count = plan, min(plan.predictors, plan.channels)
        self.products = np.zeros((self.count, plan.channels if self.count else 0))
        self.factors: list[np.ndarray] = []

    def part(self, group: int) -> slice:
        c, groups = self.plan.channels, self.plan.groups
        return slice(c * group // groups, c * (group + 1) // groups)

    def learn(self, block: np.ndarray) -> None:
        """Adds the products of the values int8 [F, P, all channels]. 1023 * 128^2 < 2^24: float32
        has these sums exactly, in whatever order they are added."""
        if self.count:
            rows = block.reshape(-1, self.plan.channels)
            for start in range(0, len(rows), 1023):
                some = rows[start : start + 1023].astype(np.float32)
                self.products += some[:, : self.count].T @ some

    def solve(self) -> None:
        """Gauss-Jordan elimination, one operation on each number at a time, which rounds in one
        way only; a matrix routine may add in any order."""
        self.factors = []
        if not self.count or not self.products.any():
            return
        left = self.products.copy()
        ridge = np.trace(left) * self.plan.ridge / (self.count * 64)
        left[range(self.count), range(self.count)] += ridge + 1
        starts = [self.part(group).start for group in range(self.plan.groups)]
        done = 0
        for group, start in enumerate(starts):
            for pivot in range(done, min(start, self.count)):
                row = left[pivot, pivot + 1 :] / left[pivot, pivot]
                left[:, pivot + 1 :] -= left[:, pivot, None] * row
                left[pivot, pivot + 1 :] = row
            done = min(start, self.count)
            factors = np.rint(left[:done, self.part(group)] * FACTOR)
            self.factors.append(np.clip(np.nan_to_num(factors), -1023, 1023).astype(np.float32))

    def guess(self, block: np.ndarray, group: int) -> np.ndarray:
        """float64 [P, F * C], integers, in units of 1 / TAP. 1023 * 128^2 < 2^24 again."""
        at = self.part(group)
        f, p, c = len(block), self.plan.positions, at.stop - at.start
        if not self.factors or at.start == 0:
            return np.broadcast_to(0.0, (p, f * c))
        factors = self.factors[group]
        known = block[:, :, : len(factors)].transpose(1, 0, 2).reshape(p * f, -1)
        products = known.astype(np.float32) @ factors
        return np.floor(products.astype(np.float64) * TAP / FACTOR).reshape(p, f * c)


class Tensor:
    """The values of one tensor, slice by slice: what is known of those before gives the
    frequencies of the next. The encoder runs this too, with a ``code`` that knows the values.
    C is from here on the number of channels of a group."""

    def __init__(self, plan: Plan, code: Code) -> None:
        self.plan, self.code = plan, code
        k, c, p = plan.filters, plan.channels, plan.positions
        self.values = np.zeros((k, p, c), np.int8)
        # Sums of magnitudes over the filters of all blocks before.
        self.column = np.zeros((p, c) if plan.weights[2] else (p, 1), np.int32)
        self.channel = np.zeros(c, np.int64)
        self.channels = Channels(plan)
        self.alphabet = np.array(plan.alphabet, np.int8)
        self.flags = Frequencies(plan.classes, 2, plan.gain, None)
        if plan.residual:
            start = distributions(plan)
            self.symbols = Frequencies(plan.classes, 256, plan.gain, start)
        else:
            classes = ((plan.classes - 1) >> plan.coarse) + 1
            bins = BINS if plan.bin else 1
            self.symbols = Frequencies(classes * bins, len(plan.alphabet), plan.gain, None)

    def run(self) -> np.ndarray:
        """int8 [K, P, all channels]."""
        done, most = 0, most_filters(self.plan)
        while done < self.plan.filters:
            size = min(max(self.plan.first, done), most, self.plan.filters - done)
            self._block(done, done + size)
            done += size
        return self.values

    def _block(self, start: int, stop: int) -> None:
        plan = self.plan
        self.start, self.block = start, self.values[start:stop]
        self.filter = np.zeros(stop - start, np.int64)
        columns, channel = np.zeros_like(self.column), np.zeros_like(self.channel)
        self._know()
        self.channels.solve()
        for group in range(plan.groups):
            self.group, self.at = group, self.channels.part(group)
            f, c = len(self.block), self.at.stop - self.at.start
            self.near = np.zeros((f, c), np.int32)
            self.guess = self.channels.guess(self.block, group)
            self.apart = np.zeros((plan.positions, self.near.size) if plan.taps else (0, 0))
            for position in range(plan.positions):
                magnitude = self._position(position)
                if plan.weights[2]:
                    columns[position, self.at] = magnitude.sum(0)
            channel[self.at] = self.near.sum(0)
        self.column += columns
        self.channel += channel
        self.channels.learn(self.block)

    def _position(self, position: int) -> np.ndarray:
        """Codes a slice; int32 [F, C], the magnitudes of its differences."""
        self.seen = self.plan.positions * self.at.start + position * self.near.shape[1]
        self.predicted = self._predicted(position)
        values, differences = self._slice(position)
        self.block[:, position, self.at] = values.reshape(self.near.shape)
        if self.plan.taps:
            self.apart[position] = values * np.float64(TAP) - self.guess[position]
        magnitude = np.abs(differences.astype(np.int32)).reshape(self.near.shape)
        self.near += magnitude
        self.filter += magnitude.sum(1)
        return magnitude

    def _predicted(self, position: int) -> np.ndarray:
        """int32 [F * C], in units of 1 / TAP. The sums are of integers and below 2^53, so float64
        has them exactly, in whatever order they are added."""
        guess = self.guess[position]
        if not self.plan.taps or position == 0:
            return guess.astype(np.int32)
        first = position * (position - 1) // 2
        taps = np.array(self.plan.taps[first : first + position], np.float64)
        return (guess + np.floor(taps @ self.apart[:position] / TAP)).astype(np.int32)

    def _know(self) -> None:
        """Before a block: logarithms of the mean magnitudes of columns [P, all channels] or [P, 1]
        and of channels, relative to what is expected where nothing was seen."""
        mean, k, p = self.plan.mean, self.start, self.plan.positions
        column = (self.column * np.int64(MEAN) + mean * 4) // (k + 4)
        channel = (self.channel * MEAN + mean * 4) // (k * p + 4)
        self.usual = int(log2(np.array(mean + 1)))
        self.of_column = (log2(column + 1) - self.usual).astype(np.int32)
        self.of_channel = (log2(channel + 1) - self.usual).astype(np.int32)

    def features(self, position: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Logarithms: of magnitudes at positions before [F, C]; and, relative to what is expected,
        of means of the filter [F, 1], of the column [C] or [1], and of the channel [C]."""
        mean = (self.filter * MEAN + self.plan.mean * 8) // (self.seen + 8)
        return (
            LOG_ODD.take(self.near, mode="clip"),
            (log2(mean + 1) - self.usual).astype(np.int32)[:, None],
            self.of_column[position, self.at if self.plan.weights[2] else slice(1)],
            self.of_channel[self.at],
        )

    def _classes(self, position: int) -> np.ndarray:
        """uint8 [F * C]: the class of the magnitude that is expected."""
        plan = self.plan
        if plan.classes == 1:
            return np.zeros(self.near.size, np.uint8)
        near, of_filter, column, channel = self.features(position)
        bias = plan.bias[position % len(plan.bias)] - plan.low + LOWEST
        near *= plan.weights[0]
        near += of_filter * plan.weights[1]
        near += column * plan.weights[2] + channel * plan.weights[3] + bias * WEIGHT
        near //= WEIGHT * plan.width
        return within(near, 0, plan.classes - 1).astype(np.uint8).ravel()

    def rounded(self) -> np.ndarray:
        """int8 [F * C]: what is predicted."""
        return within((self.predicted + TAP // 2) // TAP, -128, 127).astype(np.int8)

    def _slice(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """(values, differences to what was predicted), int8 [F * C]."""
        plan, classes = self.plan, self._classes(position)
        if plan.residual:
            symbols = self._coded(self.symbols, classes)
            differences = (symbols - 128).astype(np.int8)
            return differences + self.rounded(), differences  # modulo 256
        shared = classes >> plan.coarse
        if plan.bin:
            bins = within((self.predicted + plan.bin) // (2 * plan.bin), -2, 2) + 2
            shared = (shared * np.uint16(BINS) + bins).astype(np.uint16)
        values = np.zeros(len(classes), np.int8)
        at = np.flatnonzero(self._coded(self.flags, classes)) if plan.zeros else slice(None)
        values[at] = self.alphabet[self._coded(self.symbols, shared[at])]
        return values, values

    def _coded(self, frequencies: Frequencies, classes: np.ndarray) -> np.ndarray:
        """The symbols of these classes [n], in groups of one class: faster than one by one."""
        if frequencies.seen.shape[1] == 1:
            return np.zeros(len(classes), np.int64)
        order = np.argsort(classes, kind="stable")
        end = np.cumsum(np.bincount(classes))
        table = frequencies.now().astype(np.float64)
        symbols = np.empty(len(classes), np.int64)
        start = 0
        for group, stop in enumerate(end.tolist()):
            if stop > start:
                symbols[order[start:stop]] = self.code(order[start:stop], table[group])
            start = stop
        frequencies.add(classes, symbols)
        return symbols


@dataclass
class Reader:
    """Integers of 7 bits a byte, the lowest first; the eighth bit says that more follow."""

    data: bytes
    at: int = 0

    def count(self, most: int) -> int:
        value = shift = 0
        while True:
            if self.at >= len(self.data) or shift > 28:
                raise ValueError("a number is cut off")
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        if value > most:
            raise ValueError(f"a number is {value:,}, expected at most {most:,}")
        return value

    def signed(self, most: int = 1 << 14) -> int:
        value = self.count(2 * most)
        return value >> 1 ^ -(value & 1)

    def take(self, count: int) -> bytes:
        taken = self.data[self.at : self.at + count]
        if len(taken) < count:
            raise ValueError("it is cut off")
        self.at += count
        return taken


def read_plan(reader: Reader) -> Plan:
    numbers = {name: reader.count(most) for name, most in NUMBERS.items()}
    weights, bias, taps = (
        tuple(reader.signed(most) for _ in range(reader.count(1 << 10)))
        for most in (127, LOWEST, 127)
    )
    alphabet, value = [], -129
    for _ in range(reader.count(256)):
        value += 1 + reader.count(255)
        alphabet.append(value)
    plan = Plan(**numbers, weights=weights, bias=bias, taps=taps, alphabet=tuple(alphabet))
    if not _possible(plan):
        raise ValueError("a tensor is coded as none can be")
    return plan


def _possible(plan: Plan) -> bool:
    """Also, nothing that is kept beside a tensor is large where the tensor is not."""
    p, c = plan.positions, plan.channels
    together = plan.predictors > 0 or len(plan.taps) > 0
    return (
        0 < plan.size <= MODEL_BYTES
        and min(plan.first, plan.classes, plan.width, plan.groups) > 0
        and plan.groups <= c
        and len(plan.taps) in (0, p * (p - 1) // 2)
        and len(plan.weights) == 4
        and len(plan.bias) in (1, p)
        and (plan.residual == 1 or len(plan.alphabet) > 0)
        and (len(plan.alphabet) == 0 or plan.alphabet[-1] < 128)
        and (plan.weights[2] == 0 or (8 <= plan.filters <= 1 << 20 and p * c <= BLOCK))
        and (not together or p * c <= SLICE)
        and plan.predictors <= c
        and plan.predictors * c <= SLICE
    )


@dataclass(frozen=True)
class Span:
    """Bytes of the model that are not in the skeleton: ``gap`` bytes of it come before them."""

    gap: int
    size: int
    source: int  # 0: a product; else the stream whose next bytes they are, plus 1
    factors: tuple[int, int] = (0, 0)  # float32 spans: one of one number, one as long as this


@dataclass(frozen=True)
class Stream:
    """The bytes of one or more spans: as they are, or those of float32 or int32, whose four bytes
    are coded apart, [4, n]. Less than PADDING at its end belongs to none."""

    kind: int
    plans: tuple[Plan, ...]

    @property
    def size(self) -> int:
        return sum(plan.size for plan in self.plans)


def read_streams(reader: Reader) -> list[Stream]:
    streams = []
    for _ in range(reader.count(STREAMS)):
        kind = reader.count(2)
        plans = tuple(read_plan(reader) for _ in range(4 if kind else 1))
        if len({plan.size for plan in plans}) > 1:
            raise ValueError("the bytes of a number are not as many as each other")
        streams.append(Stream(kind, plans))
    return streams


def read_spans(reader: Reader) -> list[Span]:
    spans = []
    for _ in range(reader.count(SPANS)):
        gap, size, source = (reader.count(most) for most in (MODEL_BYTES, MODEL_BYTES, SPANS))
        factors = (reader.count(SPANS), reader.count(SPANS)) if source == 0 else (0, 0)
        spans.append(Span(gap, size, source, factors))
    return spans


def numbers(kind: int, planes: np.ndarray) -> np.ndarray:
    """uint32 [n] of their bytes uint8 [4, n], the lowest first. The sign comes last: of floats,
    since the exponent is one byte then; of integers, since a small one has small bytes then."""
    joined = np.ascontiguousarray(planes.T).view("<u4").ravel()
    sign = joined & np.uint32(1)
    if kind == FLOATS:
        return joined >> np.uint32(1) | sign << np.uint32(31)
    return joined >> np.uint32(1) ^ (np.uint32(0) - sign)


HEAD = struct.Struct("<4sBI32s6I")  # magic, version, size, SHA-256, sizes of parts, their CRC-32
CHECK = struct.Struct("<I")  # of the head
PACKED = struct.Struct("<BI")  # 0 as it is, else 1 + the properties of LZMA; unpacked size


def unpack(part: memoryview, most: int) -> bytes:
    """What is in a part that is packed; ValueError where that is more than ``most`` bytes."""
    method, size = PACKED.unpack_from(part)
    if size > most or method > 225:
        raise ValueError("a part says that it is larger than it can be")
    packed = part[PACKED.size :]
    if method == 0:
        unpacked = bytes(packed)
    else:
        decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[lzma_filter(method, size)])
        unpacked = decoder.decompress(packed, max_length=size)
    if len(unpacked) != size:
        raise ValueError("a part has another size than it says")
    return unpacked


def lzma_filter(method: int, size: int) -> dict[str, int]:
    rest, lc = divmod(method - 1, 9)
    pb, lp = divmod(rest, 5)
    window = min(max(size, 1 << 12), 1 << 26)
    return {"id": lzma.FILTER_LZMA1, "dict_size": window, "lc": lc, "lp": lp, "pb": pb}


class Words:
    """The coded values of all tensors, one after the other."""

    def __init__(self, coded: memoryview) -> None:
        if len(coded) % 4:
            raise ValueError("its coded values are cut off")
        words = np.frombuffer(coded, "<u4").astype(np.uint32, copy=False)
        self.decoder = constriction.stream.queue.RangeDecoder(words)

    def __call__(self, at: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
        # constriction adds these up from the first to the last, divides once and multiplies
        # once for each: basic operations of float64, which give the same everywhere.
        model = constriction.stream.model.Categorical(frequencies, perfect=False)
        return self.decoder.decode(model, len(at))


def decode(data: bytes, size: int | None = None) -> bytes:
    """The model; ValueError where ``data`` is not that of one (of ``size`` bytes, if given)."""
    try:
        with np.errstate(all="ignore"):  # of a hostile file
            return _decode(data, size)
    except ValueError:
        raise
    except (lzma.LZMAError, EOFError, struct.error, AssertionError, OverflowError) as error:
        raise ValueError(f"it is damaged ({error})") from error
    except MemoryError as error:
        raise ValueError("there is not enough memory for what it says that it has") from error
    except BaseException as error:
        # What a panic in constriction becomes derives from BaseException alone.
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError("its coded values are damaged") from error


def _decode(data: bytes, expected: int | None) -> bytes:
    if len(data) < HEAD.size + CHECK.size:
        raise ValueError("it is cut off")
    magic, version, size, digest, *sizes_and_checks = HEAD.unpack_from(data)
    if magic != MAGIC:
        raise ValueError("it is no file of this format")
    if version != VERSION:
        raise ValueError(f"it has version {version} of the format, expected {VERSION}")
    if zlib.crc32(data[: HEAD.size]) != CHECK.unpack_from(data, HEAD.size)[0]:
        raise ValueError("its head is damaged")
    if size > MODEL_BYTES or expected not in (None, size) or len(data) > size + (1 << 12):
        raise ValueError(f"it says that it has {size:,} bytes of a model")
    view = memoryview(data)
    plans, skeleton, coded = _parts(view, sizes_and_checks[:3], sizes_and_checks[3:])
    reader = Reader(unpack(plans, PLANS_BYTES))
    streams, spans = read_streams(reader), read_spans(reader)
    if reader.at < len(reader.data):
        raise ValueError("it says more than there is")
    model = filled(unpack(skeleton, size), streams, spans, size, Words(coded))
    if hashlib.sha256(model).digest() != digest:
        raise ValueError("what it is decoded to has another SHA-256 than it says")
    return bytes(model)


def _parts(data: memoryview, sizes: list[int], checks: list[int]) -> list[memoryview]:
    at = HEAD.size + CHECK.size
    parts: list[memoryview] = []
    if at + sum(sizes) != len(data) or min(sizes[:2]) < PACKED.size:
        raise ValueError("it is cut off, or more follows")
    for size, check in zip(sizes, checks, strict=True):
        parts.append(data[at : at + size])
        at += size
        if zlib.crc32(parts[-1]) != check:
            raise ValueError("a part of it is damaged")
    return parts


def filled(
    skeleton: bytes, streams: list[Stream], spans: list[Span], size: int, words: Words
) -> bytearray:
    """The model: its skeleton, with the bytes of the spans where they belong."""
    _check_sizes(skeleton, streams, spans, size)
    _check_time([plan for stream in streams for plan in stream.plans])
    model = bytearray(size)
    at, taken = 0, 0
    places: list[int] = []
    parts: list[list[tuple[int, int]]] = [[] for _ in range(len(streams) + 1)]
    for span in spans:
        model[at : at + span.gap] = skeleton[taken : taken + span.gap]
        taken += span.gap
        places.append(at + span.gap)
        at = places[-1] + span.size
        parts[span.source].append((places[-1], at))
    model[at:] = skeleton[taken:]
    whole = np.frombuffer(model, np.uint8)
    for number, stream in enumerate(streams, 1):
        into = [whole[start:stop] for start, stop in parts[number]]
        for plane, plan in enumerate(stream.plans):  # one at a time, as each is a quarter of them
            place(Tensor(plan, words).run(), plan, into, plane, len(stream.plans))
        if stream.kind != BYTES:
            join(stream.kind, into)
    if not words.decoder.maybe_exhausted():
        raise ValueError("more follows its coded values")
    for at, span in zip(places, spans, strict=True):
        if span.source == 0:
            factors = [whole[places[i] : places[i] + spans[i].size] for i in span.factors]
            one, many = (np.frombuffer(part, "<f4") for part in factors)
            whole[at : at + span.size] = (one * many).astype("<f4").view(np.uint8)
    return model


def _check_sizes(skeleton: bytes, streams: list[Stream], spans: list[Span], size: int) -> None:
    """Before anything of these sizes is made."""
    gaps, bytes_of_spans = sum(span.gap for span in spans), sum(span.size for span in spans)
    if gaps > len(skeleton) or len(skeleton) + bytes_of_spans != size:
        raise ValueError("its parts have other sizes than the model")
    parts: list[list[int]] = [[] for _ in range(len(streams) + 1)]
    for place, span in enumerate(spans):
        if span.source > len(streams):
            raise ValueError("bytes of it come from no tensor")
        parts[span.source].append(span.size)
        if span.source == 0:
            one, many = span.factors
            if max(one, many) >= place or (spans[one].size, spans[many].size) != (4, span.size):
                raise ValueError("bytes of it are no product of others")
    for number, stream in enumerate(streams, 1):
        width, spare = len(stream.plans), stream.size - sum(parts[number])
        if not 0 <= spare < PADDING * width or any(size % width for size in parts[number]):
            raise ValueError("a tensor has other sizes than its bytes")


def _check_time(plans: list[Plan]) -> None:
    """Before anything is decoded: a small file can describe hours of arithmetic."""
    if sum(map(decoding_ns, plans)) > most_ns(plans):
        raise ValueError("its tensors take longer to decode than any that netpress codes")


def place(
    tensor: np.ndarray, plan: Plan, into: list[np.ndarray], plane: int = 0, width: int = 1
) -> None:
    """Writes a tensor's bytes into the parts of the model that have them: each into every
    ``width``-th byte, from byte ``plane`` on; one that is a part as a whole without a copy."""
    axes = LAYOUTS[plan.layout]
    if width == 1 and [part.size for part in into] == [plan.size]:
        shape = [tensor.shape[axis] for axis in axes]
        into[0].view(np.int8).reshape(shape)[...] = tensor.transpose(axes)
        return
    flat = tensor.transpose(axes).reshape(-1).view(np.uint8)
    done = 0
    for part in into:
        count = part.size // width
        part[plane::width] = flat[done : done + count]
        done += count


def join(kind: int, into: list[np.ndarray]) -> None:
    """Makes numbers of the planes of their bytes, in place."""
    for part in into:
        for at in range(0, part.size, 1 << 18):
            some = part[at : at + (1 << 18)]
            some[:] = numbers(kind, some.reshape(-1, 4).T).astype("<u4").view(np.uint8)


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: python decode.py model.onnx.npk model.onnx")
    coded, model = map(Path, sys.argv[1:])
    try:
        model.write_bytes(decode(coded.read_bytes()))
    except (OSError, ValueError) as error:
        sys.exit(f"{coded}: {error}")


if __name__ == "__main__":
    main()
