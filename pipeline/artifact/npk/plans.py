"""How a tensor is coded in the fewest bytes: plans are tried, on a part of it where it is large."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from pipeline.artifact.npk.decode import (
    BLOCK,
    LOWEST,
    MEAN,
    OCTAVE,
    SLICE,
    TAP,
    WEIGHT,
    Plan,
    decoding_ns,
)
from pipeline.artifact.npk.decode import NUMBERS as MOST
from pipeline.artifact.npk.known import Features, bits

TRIED = 32_000  # values of a tensor on which plans are compared
TRIED_TOGETHER = 250_000  # where channels are predicted, which takes many filters to show
FITTED = 16_000  # and on which what is expected is fitted
SHAPES = (8, 10, 13, 16)
GAINS = (4, 16, 64)
ROW = 512  # values of a filter where a tensor has none; less than PADDING are too many
WIDTH = 8  # of a class, a quarter of an octave


@dataclass(frozen=True)
class Option:
    """A plan, what the tensor takes with it, and how long decoding does, about."""

    plan: Plan
    bits: float
    ns: float


def of_weights(flat: np.ndarray, dims: tuple[int, ...]) -> tuple[np.ndarray, list[Option]]:
    """(values int8 [K, P, C], options, the best first) for the int8 values of a tensor, under the
    best of the ways to see it as filters, positions and channels."""
    candidates = [(view, _options(view, layout)) for view, layout in _views(flat, dims)]
    return min(candidates, key=lambda pair: pair[1][0].bits)


def _views(flat: np.ndarray, dims: tuple[int, ...]) -> Iterator[tuple[np.ndarray, int]]:
    """(int8 [K, P, C], layout): a convolution; the same as a matrix [P C, K], as deployed for small
    maps; a matrix of a linear layer, either way."""
    rest = math.prod(dims[2:])
    if len(dims) > 2 and dims[1] <= MOST["channels"] and rest <= 32:
        yield flat.reshape(dims[0], dims[1], rest).transpose(0, 2, 1), 1
        return
    if len(dims) == 2 and dims[0] % 9 == 0 and dims[0] <= 9 * MOST["channels"]:
        yield flat.reshape(9, dims[0] // 9, dims[1]).transpose(2, 0, 1), 2
    if len(dims) == 2 and dims[1] <= MOST["channels"]:
        yield flat.reshape(dims[0], 1, dims[1]), 0
    else:
        yield rows(flat, ROW), 0


def rows(flat: np.ndarray, size: int) -> np.ndarray:
    """[K, 1, size], the last of them filled up with zeros."""
    padding = -len(flat) % size
    return np.concatenate([flat, np.zeros(padding, np.int8)]).reshape(-1, 1, size)


def of_bytes(flat: np.ndarray) -> tuple[np.ndarray, list[Option]]:
    """The same for bytes int8 [n] of numbers, whose frequencies are estimated from those before."""
    values = rows(flat, 32 if len(flat) < 1 << 14 else ROW)
    k, _, c = values.shape
    alphabet = tuple(np.unique(values).tolist())
    plans = [Plan(k, c, alphabet=alphabet, gain=gain) for gain in (0, *GAINS)]
    return values, _sorted(plans, values)


def _options(true: np.ndarray, layout: int) -> list[Option]:
    k, p, c = true.shape
    part, larger = (true[: max(16, n // (p * c))] for n in (TRIED, TRIED_TOGETHER))
    alphabet = tuple(np.unique(true).tolist())  # of all: a plan is for the whole tensor
    options = _sorted(_plans(np.ascontiguousarray(part), layout, alphabet), part, k)
    best = next((option.plan for option in options if option.plan.residual), None)
    if best is None or min(k, c) < 16 or true.size < 4096 or not _related(true):
        return options
    larger = np.ascontiguousarray(larger)
    plans = [replace(best, filters=len(larger)), *_together(best, larger)]
    return sorted([*options[1:], *_sorted(plans, larger, k)], key=lambda option: option.bits)


def _related(true: np.ndarray) -> bool:
    """Whether what the channels of half of the filters have in common predicts those of the
    others: the second half of the channels from the first, by least squares."""
    k, p, c = true.shape
    step = -(-k * p * c // TRIED_TOGETHER)
    values = true[::step].reshape(-1, c).astype(np.float64)
    half, predictors = len(values) // 2, min(c // 2, 64)
    seen, new = values[:half], values[half:]
    products = seen[:, :predictors].T @ seen[:, :predictors]
    ridge = 0.2 * np.trace(products) / predictors * np.eye(predictors)
    factors = np.linalg.solve(products + ridge, seen[:, :predictors].T @ seen[:, c // 2 :])
    left = new[:, c // 2 :] - new[:, :predictors] @ factors
    return float((left**2).sum()) < 0.96 * float((new[:, c // 2 :] ** 2).sum())


def _sorted(plans: Iterable[Plan], part: np.ndarray, filters: int = 0) -> list[Option]:
    """Options for all filters, of what plans take for a part of them."""
    scale = max(1.0, filters / len(part))
    made = []
    for plan in plans:
        whole = replace(plan, filters=max(filters, len(part)))
        cost = bits(plan, part) * scale + 8 * _plan_bytes(plan)
        made.append(Option(whole, cost, decoding_ns(whole)))
    return sorted(made, key=lambda option: option.bits)


def _plan_bytes(plan: Plan) -> int:
    steps = np.diff(np.array(plan.alphabet), 2)
    return 12 + len(plan.bias) + len(plan.taps) + int(np.count_nonzero(steps))


def _plans(true: np.ndarray, layout: int, alphabet: tuple[int, ...]) -> Iterator[Plan]:
    k, p, c = true.shape
    mean = int(np.abs(true.astype(np.int32)).mean() * MEAN)
    # Where there is one position, groups of channels show how large the values of a filter are.
    groups = 4 if p == 1 and c >= 64 else 1
    plain = Plan(k, c, p, layout, first=max(1, k // 8), groups=groups, mean=mean)
    if len(alphabet) > 24:
        start = with_taps(plain, true) if p > 1 and _smooth(true) else plain
        yield from _tuned(replace(start, residual=1, gain=GAINS[1]), true)
    yield from _of_values(replace(plain, first=max(1, k // 16)), true, alphabet)


def _smooth(true: np.ndarray) -> bool:
    """Whether positions predict each other: the last one, from all others."""
    by_position = true.transpose(1, 0, 2).reshape(true.shape[1], -1).astype(np.float64)
    products = by_position @ by_position.T + np.eye(len(by_position))
    left = 1 / np.linalg.inv(products)[-1, -1]
    return bool(left < 0.99 * products[-1, -1])


def _together(best: Plan, true: np.ndarray) -> Iterator[Plan]:
    """The best plan, but channels predicted from others."""
    k, _, c = true.shape
    for groups, predictors in ((2, 64), (4, 64), (4, 128)):
        if (predictors == 64 or c > 64) and min(predictors, c) * c <= SLICE:
            grouped = replace(best, filters=k, first=max(1, k // 4), groups=groups, ridge=12)
            yield _shaped(fitted(replace(grouped, predictors=min(predictors, c)), true), best.shape)


def _tuned(plan: Plan, true: np.ndarray) -> Iterator[Plan]:
    fit = fitted(plan, true)
    best = min((_shaped(fit, shape) for shape in SHAPES), key=lambda p: bits(p, true))
    yield from (replace(best, gain=gain) for gain in GAINS)
    mean = float(np.abs(true.astype(np.int32)).mean()) + 0.01
    constant = replace(plan, low=round(np.log2(mean) * OCTAVE) + LOWEST)
    yield _shaped(constant, best.shape)


def _shaped(plan: Plan, shape: int) -> Plan:
    """With classes of the scale of a distribution of this shape, instead of its mean magnitude."""
    s = shape / 8
    scale = math.log(2) ** (1 / s) * math.gamma(1 / s) / math.gamma(2 / s)
    shift = round(math.log2(scale) * OCTAVE)
    bias = tuple(value + shift for value in plan.bias)
    return replace(plan, shape=shape, low=plan.low + shift, bias=bias)


def _of_values(plain: Plan, true: np.ndarray, alphabet: tuple[int, ...]) -> Iterator[Plan]:
    """Zero apart or not; how often each occurs, or that in classes of what is expected, and in
    bins of what is predicted."""
    zeros = float((true == 0).mean())
    other = tuple(value for value in alphabet if value)
    kinds = [replace(plain, alphabet=alphabet)]
    if zeros and other:
        kinds.append(replace(plain, zeros=1, alphabet=other))
    if len(alphabet) > 64 and zeros < 0.3:
        yield replace(plain, alphabet=alphabet, gain=GAINS[0])
        return
    for kind in kinds:
        yield from (replace(kind, gain=gain) for gain in GAINS)
    if len(alphabet) == 1 or true.size < 1024:
        return
    for kind in kinds:
        plan = fitted(replace(kind, gain=16), true)
        yield from (replace(plan, coarse=coarse) for coarse in (6, 1))
        if plain.positions > 1:
            yield from _with_bins(replace(with_taps(plan, true), coarse=6), true)


def _with_bins(plan: Plan, true: np.ndarray) -> Iterator[Plan]:
    spread = np.sqrt((true.astype(np.float64) ** 2).mean()) * TAP
    for share in (0.1, 0.25):
        yield replace(plan, bin=max(1, int(spread * share)))


def with_taps(plan: Plan, true: np.ndarray) -> Plan:
    """Least squares: each position predicted from those before."""
    by_position = true.transpose(1, 0, 2).reshape(plan.positions, -1).astype(np.float64)
    products = by_position @ by_position.T
    ridge = np.trace(products) / plan.positions * 0.002 + 1
    taps: list[int] = []
    for q in range(1, plan.positions):
        coefficients = np.linalg.solve(products[:q, :q] + ridge * np.eye(q), products[:q, q])
        taps += np.clip(np.rint(coefficients * TAP), -127, 127).astype(int).tolist()
    return replace(plan, taps=tuple(taps))


def fitted(plan: Plan, true: np.ndarray) -> Plan:
    """The plan with the weights and classes that expect magnitudes best: an exponential
    distribution whose mean is two to a weighted sum of the features, by maximum likelihood
    (Fisher scoring)."""
    table = Features(plan, true).table()
    table = table[:, :: max(1, table.shape[1] // FITTED)]
    position, features, size = table[0].astype(int), table[1:5] / OCTAVE, table[5]
    own_bias = true.size >= 4096
    p = plan.positions if own_bias else 1
    index = position % p
    chosen = [i for i in range(4) if features[i].std() > 0.01]
    if not 8 <= plan.filters <= 1 << 20 or plan.positions * plan.channels > BLOCK:
        chosen = [i for i in chosen if i != 2]
    n = len(chosen)
    center = features[chosen].mean(1, keepdims=True)
    x = np.concatenate([features[chosen] - center, np.eye(p)[index].T]).T
    theta = np.concatenate([np.zeros(n), np.full(p, np.log(size.mean() + 0.01))])
    prior, ridge = theta.copy(), np.diag([10.0] * n + [1.0] * p)
    size = size + 0.02 * size.mean() + 1e-3
    for _ in range(10):
        ratio = np.minimum(size / np.exp(np.clip(x @ theta, -12, 8)), 50)
        gradient = x.T @ (ratio - 1) - ridge @ (theta - prior)
        theta += np.clip(np.linalg.solve(x.T @ x + ridge, gradient), -0.7, 0.7)
    octaves = theta / np.log(2)
    weights = np.zeros(4, int)
    weights[chosen] = np.clip(np.rint(octaves[:n] * WEIGHT), -127, 127)
    shift = weights[chosen] / WEIGHT @ center[:, 0]
    bias = np.rint((octaves[n:] - shift) * OCTAVE).astype(int)
    expected = weights / WEIGHT @ (features * OCTAVE) + bias[index]
    low, high = np.quantile(expected, [0.002, 0.998])
    return replace(
        plan,
        weights=tuple(weights.tolist()),
        bias=tuple(bias.tolist()),
        low=int(low) + LOWEST,
        width=WIDTH,
        classes=int(np.clip((high - low) // WIDTH + 1, 2, 64)),
    )
