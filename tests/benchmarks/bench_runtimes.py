"""Artifacts on every runtime that is installed: accuracy on the whole test set, and agreement.

    env/run python -m tests.benchmarks.bench_runtimes ARTIFACT ... [--exact N]

Prints for each artifact the largest sum of two neighbouring 8-bit products (32,767 fits into 16
bits), the accuracy on each runtime, and on how many images it agrees with the first one. With
``--exact`` also the agreement with exact integers, computed in numpy, on the first N images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx

from pipeline import artifact, data
from pipeline.artifact import saturation
from pipeline.measure import inference
from pipeline.paths import Work, data_root, work_root
from pipeline.sweep import Dataset, Recipe
from tests import integers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--exact", type=int, default=0, metavar="N")
    options = parser.parse_args()
    for folder in options.artifacts:
        loaded = artifact.load(folder)
        model = onnx.load_model_from_string(loaded.model)
        name = loaded.manifest["dataset"]
        split = data.load(Dataset(name=name), Recipe(), 0, data_root(), Work(work_root()).cache)
        pixels, labels = split.test.pixels.numpy(), split.test.labels.numpy()
        print(f"{folder}: {name}, largest sum of two products {saturation.largest_sum(model):,}")
        classes = {
            runtime: inference.timed_logits(loaded, pixels, runtime)[0].argmax(1)
            for runtime in ("onnxruntime", "openvino")
        }
        first = next(iter(classes.values()))
        for runtime, own in classes.items():
            accuracy, same = np.mean(own == labels), np.mean(own == first)
            print(f"  {runtime:12} accuracy {accuracy:.4f}, agreement {same:.4f}")
        if options.exact:
            exact = integers.logits(model, pixels[: options.exact]).argmax(1)
            same = np.mean(exact == first[: options.exact])
            print(f"  {'exact':12} agreement {same:.4f} of {options.exact} images")


if __name__ == "__main__":
    main()
