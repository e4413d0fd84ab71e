"""The ridge of `distill-few`, chosen on images that were held out: no test image is looked at.

    env/run python -m tests.benchmarks.bench_few [--dataset digits] [--width 0.25] [--epochs 12]

Trains a base for each seed and cuts it to half of its parameters; prints the accuracy on the
held-out images after the cut alone (``none``) and with each ridge, for some counts of unlabelled
images: mean and standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import yaml

from pipeline import catalog, execute, store, sweep
from pipeline.measure.cell import predict
from pipeline.paths import Work, data_root
from pipeline.sweep import Cell
from pipeline.techniques import distill_few

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
IMAGES = (10, 50, 500)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    accuracies: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for cell in _cells(Path(folder), options):
            for key, accuracy in _accuracies(cell, Work(Path(folder) / "work")).items():
                accuracies.setdefault(key, []).append(accuracy)
    for (technique, ridge), values in accuracies.items():
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        mean = statistics.mean(values)
        print(f"{technique:10} ridge {ridge:6}  held out {100 * mean:6.2f} % ({100 * spread:.2f})")


def _cells(folder: Path, options: argparse.Namespace) -> tuple[Cell, ...]:
    define = {f"few-{n}": [{"distill-few": {"parameters_kept": 0.5, "images": n}}] for n in IMAGES}
    define["cut-alone"] = [{"prune": {"parameters_kept": 0.5}}]
    request = {
        "name": "few",
        "models": [{"name": "vgg16_bn", "width": options.width}],
        "datasets": [options.dataset],
        "seeds": options.seeds,
        "techniques": ["base", *define],
        "training": {
            "epochs": options.epochs,
            "batch_size": 64,
            "learning_rate": 0.05,
            "holdout": 0.25,
        },
        "define": define,
    }
    path = folder / "few.yaml"
    path.write_text(yaml.safe_dump(request))
    return sweep.load(path, catalog.built_in()).cells


def _accuracies(cell: Cell, work: Work) -> dict[tuple[str, str], float]:
    paths = work.cell(cell.id)
    with store.lock_cell(paths):
        if cell.is_base:
            execute.run_cell(cell, work, data_root())
        ridges = RIDGES if cell.technique.startswith("few-") else (None,)
        return {
            (cell.technique, "none" if ridge is None else f"{ridge:g}"): _held_out(
                cell, work, ridge
            )
            for ridge in ridges
        }


def _held_out(cell: Cell, work: Work, ridge: float | None) -> float:
    """Accuracy of the cell's network on the held-out images, nothing of it kept."""
    import shutil

    paths = work.cell(cell.id)
    distill_few.RIDGE = distill_few.RIDGE if ridge is None else ridge
    run = execute._Run(cell, work, paths, data_root(), "auto", lambda event: None)
    state, _ = run.staged()
    run.checkpoints.close()
    classes = predict(state.network, run.split.held_out, run.machine.device)
    if not cell.is_base:
        shutil.rmtree(paths.checkpoint, ignore_errors=True)
    return float((classes == run.split.held_out.labels).float().mean())


if __name__ == "__main__":
    main()
