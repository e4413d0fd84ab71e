"""8-bit weights whose products overflow no 16-bit sum, whatever the image.

x86 CPUs without VNNI multiply unsigned by signed bytes with ``vpmaddubsw``, which adds two
neighbouring products into 16 bits and saturates: the integers that come out are wrong. An
activation is at most 255, so a pair of weights is safe when what is positive in it adds up to at
most 128, and what is negative too (255 x 128 = 32,640 < 2^15). Weights of opposite signs never add
up, so that is |w1 + w2| <= 128 for 8-bit weights, a weaker demand than the 7 bits (|w| <= 63) with
which such CPUs are usually served.

Which weights are neighbours: kernels walk over the input channels of one tap after the other, so a
pair is (2i, 2i+1) of the channels at one tap, where their number is even. Where it is odd, some
kernels pad and others go on with the next tap: there no two weights at all may exceed the limit
together (|w| <= 64).

weight [K, C, ...], K filters, C input channels; integers are held as floats.
"""

from __future__ import annotations

import torch

LIMIT = 128


def _paired(weight: torch.Tensor) -> torch.Tensor | None:
    """[K, C / 2, 2, ...]; None where the channels do not come in pairs."""
    return None if weight.shape[1] % 2 else weight.unflatten(1, (-1, 2))


def largest(weight: torch.Tensor) -> torch.Tensor:
    """[K]: for each filter the largest |w1 + w2| of a pair, or 2 |w| where there are none."""
    pairs = _paired(weight)
    sums = 2 * weight if pairs is None else pairs.sum(2)
    return sums.abs().flatten(1).amax(1)


def projected(weight: torch.Tensor) -> torch.Tensor:
    """Integers -127..127 moved as little as it takes (in squares) for every pair to be safe."""
    pairs = _paired(weight)
    if pairs is None:
        return weight.clamp(-LIMIT // 2, LIMIT // 2)
    total = pairs.sum(2)
    excess = (total.abs() - LIMIT).clamp_min(0)
    first = torch.div(excess + 1, 2, rounding_mode="floor")
    change = torch.stack((first, excess - first), 2) * total.sign().unsqueeze(2)
    return (pairs - change).flatten(1, 2)
