"""What k-means loses of the weights of a trained base, by where it begins.

    env/run python -m tests.benchmarks.bench_clusters runs CELL [--sparsity 0.98] [--k 16]

For each layer: the weights that are left when the smallest of the whole network are zero, their
kurtosis, and the squared error of k shared values times a scale a filter, as a part of the weights'
energy, for each ``cluster.initialization``. No image is looked at.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

import torch

from pipeline.paths import Work
from pipeline.techniques import cluster
from pipeline.training.checkpoint import read_model


def lost(weight: torch.Tensor, k: int, begin: cluster.Initialization) -> float:
    """Of a weight [K, ...]: squared error over the sum of its squares."""
    codes, values, scale = cluster.shared(weight, k, begin)
    kept = torch.cat((values.new_zeros(1), values))[codes]
    kept = kept * scale.view(-1, *[1] * (weight.dim() - 1))
    return float((kept - weight).square().sum() / weight.double().square().sum())


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
    print(f"{'layer':36}{'weights':>10}{'kurtosis':>10}" + "".join(f"{b:>12}" for b in begins))
    for name, weight in weights.items():
        sparse = torch.where(weight.abs() > threshold, weight, 0.0)
        alive = sparse[sparse != 0]
        if len(alive) > options.k:
            errors = "".join(f"{lost(sparse, options.k, begin):12.2%}" for begin in begins)
            print(f"{name:36}{len(alive):10,}{kurtosis(alive):10.1f}{errors}")


if __name__ == "__main__":
    main()
