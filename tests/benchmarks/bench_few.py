"""Few-sample distillation on images that were held out: no test image is looked at.

    env/run python -m tests.benchmarks.bench_few [--dataset digits] [--width 0.25] [--epochs 12]

Trains a base for each seed and cuts it; prints the accuracy on the held-out images of the base,
after the cut alone, after fine-tuning for as many epochs (`finetuned`), and of `distill-few` with
each ridge, for some counts of unlabelled images and what least squares solve for: mean and standard
deviation over seeds.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

import yaml

from pipeline import catalog, execute, store, sweep
from pipeline.measure.cell import predict
from pipeline.paths import Work, data_root
from pipeline.sweep import Cell
from pipeline.techniques import distill_few

SOLVE = ("outputs", "weights")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train-images", type=int, help="of the training set")
    parser.add_argument("--kept", type=float, default=0.5, help="of the parameters")
    parser.add_argument("--images", type=int, nargs="+", default=[10, 50, 500])
    parser.add_argument("--ridges", type=float, nargs="+", default=[1e-3, 1e-2, 1e-1])
    options = parser.parse_args()
    accuracies: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for cell in _cells(Path(folder), options):
            work = Work(Path(folder) / "work")
            for key, accuracy in _accuracies(cell, work, options.ridges).items():
                accuracies.setdefault(key, []).append(accuracy)
    for (technique, ridge), values in accuracies.items():
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        mean = statistics.mean(values)
        print(f"{technique:16} ridge {ridge:6}  held out {100 * mean:6.2f} % ({100 * spread:.2f})")


def _cells(folder: Path, options: argparse.Namespace) -> tuple[Cell, ...]:
    cut = {"parameters_kept": options.kept}
    define = {
        "cut-alone": [{"prune": cut}],
        "finetuned": [{"prune": cut}, {"finetune": {}}],
        **{
            f"few-{solve}-{count}": [{"distill-few": {**cut, "images": count, "solve": solve}}]
            for solve in SOLVE
            for count in options.images
        },
    }
    training = {"epochs": options.epochs, "batch_size": 64, "learning_rate": 0.05, "holdout": 0.25}
    if options.train_images:
        training["train_images"] = options.train_images
    request = {
        "name": "few",
        "models": [{"name": "vgg16_bn", "width": options.width}],
        "datasets": [options.dataset],
        "seeds": options.seeds,
        "techniques": ["base", *define],
        "training": training,
        "define": define,
    }
    path = folder / "few.yaml"
    path.write_text(yaml.safe_dump(request))
    return sweep.load(path, catalog.built_in()).cells


def _accuracies(cell: Cell, work: Work, ridges: list[float]) -> dict[tuple[str, str], float]:
    paths = work.cell(cell.id)
    with store.lock_cell(paths):
        if cell.is_base:
            execute.run_cell(cell, work, data_root())
        tried = ridges if cell.technique.startswith("few-") else [None]
        return {
            (cell.technique, "none" if ridge is None else f"{ridge:g}"): _held_out(
                cell, work, ridge
            )
            for ridge in tried
        }


def _held_out(cell: Cell, work: Work, ridge: float | None) -> float:
    """Accuracy of the cell's network on the held-out images, nothing of it kept."""
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
