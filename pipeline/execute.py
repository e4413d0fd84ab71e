"""One cell from start to finish: load or resume, stages, artifact, measure, publish.

Knows nothing of SLURM, of sweeps or of other cells; all that it needs is on disk. Called again after
a kill, it goes on from the last epoch that was kept, and ends with the same weights.
"""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from pipeline import artifact, data, store
from pipeline.errors import Corrupt
from pipeline.measure import cell as measuring
from pipeline.measure import hardware
from pipeline.models import module_of, network
from pipeline.paths import CODE, CellPaths, Work
from pipeline.store import StageHistory
from pipeline.sweep import Cell, Recipe, Stage
from pipeline.techniques import context, stage_module, train
from pipeline.training.checkpoint import Checkpointer, Snapshot, model_bytes, read_model
from pipeline.training.loop import Training, fit
from pipeline.training.recipe import Machine, machine

Progress = Callable[[dict], None]
CALIBRATION_IMAGES = 64  # for the tensors that training left without a scale of their own
PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "numpy", "h5py")


class NoBase(Exception):
    """The base of this cell has no valid result; it has to be made first."""


def run_cell(
    cell: Cell,
    work: Work,
    data_root: Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress = lambda event: None,
) -> None:
    """Makes the cell's result, or returns at once where it is published and whole.

    The caller holds the cell's lock (``store.lock_cell``). Raises whatever went wrong; nothing is
    published then, and what was kept so far stays for the next attempt.
    """
    paths = work.cell(cell.id)
    if _already_done(paths):
        return
    torch.set_num_threads(threads or hardware.cores())
    _Run(cell, work, paths, data_root, device, progress).go()


def _already_done(paths: CellPaths) -> bool:
    """What is damaged is set aside; the sound parts of it are used again."""
    if not paths.manifest.exists():
        return False
    try:
        store.verify(paths)
        return True
    except Corrupt:
        store.withdraw(paths)
        return False


class _Run:
    """The state of one attempt at one cell."""

    def __init__(self, cell, work, paths, data_root, device, progress: Progress):
        self.cell, self.work, self.paths = cell, work, paths
        self.progress = lambda event: progress({"cell": cell.id, **event})
        self.machine: Machine = machine(cell.recipe, device)
        self.began = time.time()
        self.split = data.load(cell.dataset, cell.recipe, cell.seed, data_root, work.cache)
        self.checkpoints = Checkpointer(paths.checkpoint, paths.metrics)
        self.stages = cell.stages or (Stage("train", train.Settings()),)
        self._base: network.ModelState | None = None

    def go(self) -> None:
        if not self.paths.cell_json.exists():
            store.publish_json(self.paths.cell_json, self.cell.to_json())
        state, history = self.staged()
        self.progress({"stage": "artifact"})
        self.write_artifact(state)
        measured = self.measured(state)
        facts = self.facts()
        result = store.result_bytes(self.cell.to_json(), facts, history, measured)
        store.publish_bytes(self.paths.result, result)
        store.publish_bytes(self.paths.metrics, store.history_bytes(history))
        store.publish_bytes(self.paths.model, model_bytes(state))
        store.write_manifest(self.paths, {"accuracy": measured["accuracy"]})
        self.remove_checkpoints()

    # --- stages ----------------------------------------------------------------------------------

    def staged(self) -> tuple[network.ModelState, list[StageHistory]]:
        """The final network, and what was recorded on the way; resumed where a snapshot is."""
        snapshot = self.checkpoints.load()
        index = snapshot.index if snapshot else 0
        history = list(snapshot.history) if snapshot else []
        state = snapshot.training.state if snapshot else self.first()
        for i in range(index, len(self.stages)):
            here = snapshot if snapshot and snapshot.index == i else None
            state = self.stage(i, state, history, here)
            done = Snapshot(i + 1, self.name(i + 1), Training(state), tuple(history))
            self.checkpoints.save(done, wait=True)
        state.network.to("cpu")
        return state, history

    def name(self, index: int) -> str:
        return self.stages[index].name if index < len(self.stages) else "done"

    def first(self) -> network.ModelState:
        """What the first stage is given: the base, or for the base itself a shape to fill."""
        if not self.cell.is_base:
            return self.base()
        spec = module_of(self.cell.model.name).spec(
            self.cell.model.name, self.cell.model.width, self.split.shape,
            len(self.split.classes), self.split.zero_point, self.split.scale,
        )  # fmt: skip
        return network.new(spec, self.cell.seed)

    def stage(self, index, state, history, snapshot: Snapshot | None) -> network.ModelState:
        stage, settings = self.stages[index], self.stages[index].settings
        self.progress({"stage": f"{index}-{stage.name}"})
        seed = self.cell.seed * 1009 + index

        def trained(start, objective, epochs: int, recipe: Recipe) -> network.ModelState:
            training = snapshot.training if snapshot and snapshot.training.epoch else None
            training = training or Training(start())
            training.state.network.to(self.machine.device)
            self.fit(index, training, objective, epochs, recipe, seed, tuple(history))
            history.append(StageHistory(index, stage.name, training.columns))
            return training.state

        ctx = context.Context(
            self.cell, self.split, self.machine, seed, self.teacher, trained, self.progress
        )
        return stage_module(stage.name).apply(state, settings, ctx)

    def fit(self, index, training, objective, epochs, recipe, seed, history) -> None:
        name = f"{index}-{self.name(index)}"

        def keep(now: Training) -> None:
            self.checkpoints.save(Snapshot(index, self.name(index), now, history))
            last = {k: now.columns[k][-1] for k in ("loss", "held_out_accuracy", "seconds")}
            self.progress(
                {"stage": name, "epoch": now.epoch, "epochs": epochs, "loss": last["loss"],
                 "accuracy": last["held_out_accuracy"],
                 "seconds_left": (epochs - now.epoch) * last["seconds"]}
            )  # fmt: skip

        def tick(event: dict) -> None:
            part = event["step"] / event["steps"]
            left = event["seconds"] / part * (epochs - event["epoch"] - part)
            self.progress({"stage": name, "epoch": event["epoch"] + part, "epochs": epochs,
                           "seconds_left": left})  # fmt: skip

        self.progress({"stage": name, "epoch": training.epoch, "epochs": epochs})
        fit(training, self.split, recipe, epochs, objective(training.state), self.machine, seed,
            keep=keep, tick=tick)  # fmt: skip

    # --- the base --------------------------------------------------------------------------------

    @property
    def base_paths(self) -> CellPaths:
        return self.work.cell(self.cell.base_id)

    def base(self) -> network.ModelState:
        """A fresh copy of the trained base; NoBase where it is not there or damaged."""
        try:
            store.verify(self.base_paths)
            return read_model(self.base_paths.model)
        except Corrupt as error:
            raise NoBase(f"its base {self.cell.base_id} is not there or damaged: {error}") from error

    def teacher(self) -> network.ModelState:
        """The base as one looks at it: kept, on the device, in eval mode."""
        if self._base is None:
            self._base = self.base()
            self._base.network.to(self.machine.device, memory_format=torch.channels_last).eval()
        return self._base

    # --- artifact and measurement ----------------------------------------------------------------

    def write_artifact(self, state: network.ModelState) -> None:
        sample = data.sample(self.split.train, CALIBRATION_IMAGES, self.cell.seed)
        facts = {
            "dataset": self.cell.dataset.name,
            "technique": self.cell.technique,
            "cell": self.cell.id,
        }
        artifact.write(
            state, self.paths.artifact, facts, sample.pixels.numpy(), self.split.classes
        )

    def measured(self, state: network.ModelState) -> dict[str, object]:
        mine = measuring.Candidate(state, artifact.load(self.paths.artifact))
        base = mine
        if not self.cell.is_base:
            base = measuring.Candidate(self.base(), artifact.load(self.base_paths.artifact))

        def tick(what: str) -> None:
            self.progress({"stage": "measure", "what": what})

        return measuring.measure(
            mine, base, self.split, self.cell.measure, self.machine, tick
        )

    def facts(self) -> dict:
        return {
            "versions": versions(),
            "commit": commit(),
            "hardware": hardware.describe(),
            "device": str(self.machine.device),
            "precision": self.machine.precision,
            "threads": torch.get_num_threads(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.began)),
            "seconds": time.time() - self.began,
            "dataset_fingerprint": self.split.fingerprint,
            "peak_memory_bytes": peak_memory_bytes(),
            "peak_gpu_memory_bytes": peak_gpu_memory_bytes(self.machine.device),
        }

    def remove_checkpoints(self) -> None:
        """The result is published; of the way there only the final weights are kept."""
        for path in self.paths.checkpoint.iterdir():
            if path != self.paths.model:
                path.unlink()


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}}


def commit() -> str | None:
    """The commit that the code is at, with a + where it was changed; None outside of git."""
    git = ["git", "-C", str(CODE)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"],
                                 capture_output=True, text=True)  # fmt: skip
    except FileNotFoundError:  # no git on this machine
        return None
    if head.returncode:
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def peak_gpu_memory_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def failure_of(error: BaseException) -> tuple[str, str]:
    """(kind, one line) of what ended an attempt: the kind decides what `resume` does about it."""
    import errno

    line = (str(error).strip().splitlines() or ["no message"])[0][:500]
    named = f"{type(error).__name__}: {line}"
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in line:
        return "out_of_memory", f"out of memory: {named}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk_full", f"disk full: {line}"
    if isinstance(error, NoBase):
        return "no_base", line
    return "exception", named


def read_cell(paths: CellPaths, catalog) -> Cell:
    """The cell in cell.json; Corrupt where it is none."""
    try:
        return Cell.from_json(json.loads(paths.cell_json.read_bytes()), catalog)
    except (OSError, ValueError) as error:
        raise Corrupt(f"{paths.cell_json}: {error}") from error
