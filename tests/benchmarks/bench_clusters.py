"""What k-means loses of the weights of a trained base, by where it begins.

    env/run python -m tests.benchmarks.bench_clusters runs CELL [--sparsity 0.98] [--k 16]

For each layer: the weights that are left when the smallest of the whole network are zero, their
kurtosis, and what k shared values times a scale a filter lose of them, for each
``cluster.initialization``: the squared error as a part of the weights' energy, before these values
are rounded to integers, and the median of the errors as parts of each weight, after it. No image is
looked at.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple, get_args

import torch

from pipeline.models.transforms.clustered import LARGEST
from pipeline.paths import Work
from pipeline.techniques import cluster
from pipeline.training.checkpoint import read_model


class Lost(NamedTuple):
    energy: float
    median: float


def lost(weight: torch.Tensor, k: int, begin: cluster.Initialization) -> Lost:
    """Of a weight [K, ...], what is left of it."""
    codes, values, scale = cluster.shared(weight, k, begin)
    step = values.abs().max() / LARGEST
    alive, scale = weight != 0, scale.view(-1, *[1] * (weight.dim() - 1))

    def error(shared: torch.Tensor) -> torch.Tensor:
        return (torch.cat((shared.new_zeros(1), shared))[codes] * scale - weight)[alive]

    kept = weight.double()[alive]
    energy = error(values).square().sum() / kept.square().sum()
    relative = error((values / step).round() * step).abs() / kept.abs()
    return Lost(float(energy), float(relative.median()))


def kurtosis(values: torch.Tensor) -> float:
    centred = values.double() - values.double().mean()
    return float(centred.pow(4).mean() / centred.square().mean().square())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("cell", help="the whole id of a base")
    parser.add_argument("--sparsity", type=float, default=0.98)
    parser.add_argument("--k", type=int, default=16)
    options = parser.parse_args()
    state = read_model(Work(options.work).cell(options.cell).model)
    weights = {n: p.detach() for n, p in state.network.named_parameters() if p.dim() > 1}
    sizes = torch.cat([weight.abs().flatten() for weight in weights.values()])
    threshold = sizes.kthvalue(max(1, int(options.sparsity * len(sizes)))).values
    begins = get_args(cluster.Initialization)
    print(f"{'layer':36}{'weights':>10}{'kurtosis':>10}" + "".join(f"{b:>18}" for b in begins))
    for name, weight in weights.items():
        sparse = torch.where(weight.abs() > threshold, weight, 0.0)
        alive = sparse[sparse != 0]
        if len(alive) > options.k:
            each = (lost(sparse, options.k, begin) for begin in begins)
            errors = "".join(f"{one.energy:10.2%}{one.median:8.1%}" for one in each)
            print(f"{name:36}{len(alive):10,}{kurtosis(alive):10.1f}{errors}")


if __name__ == "__main__":
    main()
