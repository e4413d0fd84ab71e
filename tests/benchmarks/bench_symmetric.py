"""What activations that are symmetric around zero cost, in accuracy.

    env/run python -m tests.benchmarks.bench_symmetric SWEEP --work FOLDER

Of each int8 artifact of a sweep that was run: accuracy on the test set as it is, and of the graph
that TensorRT is given of it (`artifact/symmetric.py`), both in ONNX Runtime, and the images that
both classify alike.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx

from pipeline import artifact, catalog, data, runtimes, sweep
from pipeline.artifact.symmetric import symmetric
from pipeline.paths import Work, data_root
from pipeline.runtimes import onnxruntime


def main() -> None:
    options = _parser().parse_args()
    work, root = Work(options.work), data_root()
    print(f"{'cell':56} {'artifact':>9} {'symmetric':>9} {'points':>7} {'agreement':>9}")
    for cell in sweep.load(options.sweep, catalog.built_in()).cells:
        folder = work.cell(cell.id).artifact
        if not folder.is_dir():
            continue
        model = artifact.load(folder)
        if model.manifest["kind"] != "int8":
            continue
        test = data.load(cell.dataset, cell.recipe, cell.seed, root, work.cache).test
        images, labels = test.pixels.numpy(), test.labels.numpy()
        graph = symmetric(onnx.load_model_from_string(model.model)).SerializeToString()
        answers = [
            np.concatenate([*runtimes.logits(session, images)]).argmax(1)
            for session in (runtimes.session(model), onnxruntime.load(graph, 0))
        ]
        before, after = (100 * float(np.mean(each == labels)) for each in answers)
        alike = 100 * float(np.mean(answers[0] == answers[1]))
        name = f"{cell.dataset.name}/{cell.model.name}/{cell.technique}/{cell.seed}"
        print(
            f"{name:56} {before:9.2f} {after:9.2f} {after - before:+7.2f} {alike:9.2f}", flush=True
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="where its cells are")
    return parser


if __name__ == "__main__":
    main()
