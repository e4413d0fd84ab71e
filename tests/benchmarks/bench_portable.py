"""What it costs that no product of an int8 artifact can overflow, in accuracy.

    env/run python -m tests.benchmarks.bench_portable [--datasets mnist cifar10-jpeg] [--seeds 0 1]
        [--techniques qat-int8 ...] [--modes off auto] [--width 0.25]

Trains a base for each data set and seed, and from it ptq-int8, qat-int8 and small-and-int8 with
each ``quantize.reduce_range``: ``off`` (any 8-bit weights), ``auto`` (8 bits, no pair overflows a
16-bit sum), ``on`` (7 bits). Prints the accuracy of the simulated networks, which the artifacts
share, on the images held out and on the test set, and the differences to ``off``. Where there is a
GPU all of them run on it at once. ``--keep FOLDER`` keeps the artifacts of the first seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import yaml

from pipeline import artifact, catalog, data, execute, store, sweep
from pipeline.measure.cell import predict
from pipeline.paths import Work, data_root
from pipeline.sweep import Cell
from pipeline.training.recipe import machine

MODES = ("off", "auto", "on")
QUANTIZE = {"aware": True}
PRUNED = [{"prune": {"parameters_kept": 0.0625}}, {"finetune": {"teacher": "base"}}]
CHAINS = {
    "ptq-int8": [{"quantize": {}}],
    "qat-int8": [{"quantize": {"aware": True}}],
    "small-and-int8": [*PRUNED, {"quantize": {"aware": True, "teacher": "base"}}],
}
TRAINING = {
    "mnist": {"epochs": 6, "batch_size": 256, "learning_rate": 0.1, "crop": 2},
    "cifar10-jpeg": {"epochs": 16, "batch_size": 512, "learning_rate": 0.2, "crop": 2},
    "digits": {"epochs": 4, "batch_size": 64, "learning_rate": 0.05},
}


def main() -> None:
    options = _parser().parse_args()
    if options.one:
        dataset, seed = options.one
        print(json.dumps(_rows(dataset, int(seed), options)), flush=True)
        return
    runs = [(dataset, seed) for dataset in options.datasets for seed in options.seeds]
    rows = [row for process_rows in _processes(runs, options) for row in process_rows]
    for row in rows:
        print("{dataset:13} {seed} {technique:15} {mode:5} {held_out:.4f} {test:.4f}".format(**row))
    _print_differences(rows)


def _processes(runs: list[tuple[str, int]], options) -> Iterable[list[dict]]:
    started = []
    for dataset, seed in runs:
        own = ["--one", dataset, str(seed), "--width", str(options.width)]
        own += ["--keep", options.keep] if options.keep and seed == options.seeds[0] else []
        own += ["--techniques", *options.techniques, "--modes", *options.modes]
        own += ["--train-images", str(options.train_images)] if options.train_images else []
        command = [sys.executable, "-m", "tests.benchmarks.bench_portable", *own]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        if not options.at_once:
            yield _result(started.pop())
    for process in started:
        yield _result(process)


def _result(process: subprocess.Popen) -> list[dict]:
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a training ended with {process.returncode}")
    return json.loads(output.splitlines()[-1])


def _rows(dataset: str, seed: int, options) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        cells = _cells(Path(folder), dataset, seed, options)
        work = Work(Path(folder) / "work")
        return [row for cell in cells for row in _row(cell, work, options)]


def _cells(folder: Path, dataset: str, seed: int, options) -> tuple[Cell, ...]:
    """The base, and every technique in every mode: the last stage's setting is what differs."""
    define = {
        f"{technique}.{mode}": [
            *chain[:-1],
            {"quantize": {**chain[-1]["quantize"], "reduce_range": mode}},
        ]
        for technique in options.techniques
        for chain in [CHAINS[technique]]
        for mode in options.modes
    }
    training = dict(TRAINING[dataset], holdout=0.1)
    if options.train_images:
        training["train_images"] = options.train_images
    request = {
        "name": "portable",
        "models": [{"name": "vgg16_bn", "width": options.width}],
        "datasets": [dataset],
        "seeds": [seed],
        "techniques": ["base", *define],
        "training": training,
        "define": define,
    }
    path = folder / "portable.yaml"
    path.write_text(yaml.safe_dump(request))
    return sweep.load(path, catalog.built_in()).cells


def _row(cell: Cell, work: Work, options) -> Iterable[dict]:
    paths = work.cell(cell.id)
    with store.lock_cell(paths):
        run = execute._Run(cell, work, paths, data_root(), "auto", lambda event: None)
        store.publish_json(paths.cell_json, cell.to_json())
        state, history = run.staged()
        run.checkpoints.close()
        if cell.is_base or options.keep:
            run.write_artifact(state)
        if cell.is_base:  # what the others start from has to be published
            facts = run.facts()
            bytes_of = store.result_bytes(cell.to_json(), facts, history, {"accuracy": 0.0})
            store.publish_bytes(paths.result, bytes_of)
            store.write_manifest(paths)
    technique, _, mode = cell.technique.partition(".")
    if options.keep and (cell.is_base or mode == "auto"):
        _keep(paths.artifact, Path(options.keep) / f"{cell.dataset.name}-{technique}")
    row = {
        "dataset": cell.dataset.name,
        "seed": cell.seed,
        "technique": technique,
        "mode": mode,
        "held_out": _accuracy(state, run.split.held_out, cell),
        "test": _accuracy(state, run.split.test, cell),
    }
    print(json.dumps(row), file=sys.stderr, flush=True)
    yield row


def _keep(source: Path, target: Path) -> None:
    artifact.load(source)
    if sum(path.stat().st_size for path in source.iterdir()) < 16 * 2**20:
        store.publish_folder(
            target,
            lambda new: [(new / p.name).write_bytes(p.read_bytes()) for p in source.iterdir()],
        )


def _accuracy(state, images: data.Images, cell: Cell) -> float:
    device = machine(cell.recipe).device
    classes = predict(state.network.to(device), images, device)
    return float((classes == images.labels).float().mean())


def _print_differences(rows: list[dict]) -> None:
    print("\npoints of accuracy above `off`: mean (standard deviation) over seeds")
    by_key = {(r["dataset"], r["seed"], r["technique"], r["mode"]): r for r in rows}
    for dataset, technique in dict.fromkeys((r["dataset"], r["technique"]) for r in rows):
        if technique not in CHAINS:
            continue
        seeds = sorted({r["seed"] for r in rows if r["dataset"] == dataset})
        for mode in dict.fromkeys(r["mode"] for r in rows if r["mode"] not in ("", "off")):
            line = f"{dataset:13} {technique:15} {mode:5}"
            for part in ("held_out", "test"):
                gaps = [
                    100
                    * (
                        by_key[dataset, s, technique, mode][part]
                        - by_key[dataset, s, technique, "off"][part]
                    )
                    for s in seeds
                ]
                spread = statistics.stdev(gaps) if len(gaps) > 1 else float("nan")
                line += f"  {part} {statistics.mean(gaps):+.3f} ({spread:.3f})"
            print(line)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", default=["mnist", "cifar10-jpeg"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--techniques", nargs="+", choices=CHAINS, default=list(CHAINS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--train-images", type=int)
    parser.add_argument("--keep")
    parser.add_argument(
        "--at-once", action="store_true", help="all data sets and seeds in parallel"
    )
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
