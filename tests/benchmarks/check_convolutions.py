"""Convolutions on this CPU beside the same in float64: outputs and gradients of many shapes.

    env/run python -m tests.benchmarks.check_convolutions [--plain]

Prints how many shapes there are, which differ, and by how much: the error as a part of what all
terms of the sum come to without their signs. ``--plain``: without what pipeline/models/strided.py
corrects; the process may be aborted.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from contextlib import nullcontext

import torch
import torch.nn.functional as F

from pipeline import hardware
from pipeline.models.strided import Strided

KERNELS = ((1, 1), (1, 2), (3, 1), (3, 2), (5, 1), (7, 2))  # and strides
CHANNELS = (1, 2, 3, 5, 6, 8, 9, 12, 15, 16, 17, 24)
FILTERS = (1, 2, 3, 7, 8, 10, 16, 17)
SIZES = ((8, 5), (7, 3), (2, 9), (16, 16))  # of maps, and images of a batch
LAYOUTS = (torch.channels_last, torch.contiguous_format)
LARGEST = 1e-5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plain", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    count, wrong = 0, 0
    with nullcontext() if options.plain else Strided():
        for shape in _shapes():
            error = _error(*shape)
            count += 1
            if not error < LARGEST:
                wrong += 1
                print(*shape, f"{error:.1e}", flush=True)
    print(f"{count:,} shapes, {wrong:,} differ; {' '.join(hardware.cpu_flags())}")
    return int(wrong > 0)


def _shapes() -> Iterator[tuple]:
    for layout, (kernel, stride) in itertools.product(LAYOUTS, KERNELS):
        for channels, filters in itertools.product(CHANNELS, FILTERS):
            for size, images in SIZES:
                for groups in {1, channels if channels == filters else 1}:
                    yield layout, kernel, stride, channels, filters, size, images, groups


def _error(layout, kernel, stride, channels, filters, size, images, groups) -> float:
    x = torch.randn(images, channels, size, size).to(memory_format=layout)
    weight = torch.randn(filters, channels // groups, kernel, kernel).to(memory_format=layout)
    mine = _passes(x, weight, stride, groups, torch.float32)
    exact = _passes(x, weight, stride, groups, torch.float64)
    scale = _passes(x.abs(), weight.abs(), stride, groups, torch.float64)
    each = zip(mine, exact, scale, strict=True)
    return max(float((m.double() - e).abs().max() / s.abs().max()) for m, e, s in each)


def _passes(x, weight, stride, groups, dtype) -> list[torch.Tensor]:
    x, weight = (each.detach().to(dtype).requires_grad_() for each in (x, weight))
    output = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, groups)
    gradients = torch.autograd.grad(output, (x, weight), torch.ones_like(output))
    return [output.detach(), *gradients]


if __name__ == "__main__":
    sys.exit(main())
