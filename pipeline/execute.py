"""One cell from start to finish: load or resume, stages, artifact, publish; then its measurement.

It is trained, and stays so, whatever becomes of its measurement (`pipeline.measuring`).

Knows nothing of SLURM, of sweeps or of other cells; all that it needs is on disk. Called again
after a kill, it goes on from the last epoch that was kept, and ends with the same weights.
"""

from __future__ import annotations

import json
import math
import platform
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline import (
    artifact,
    clock,
    data,
    done,
    hardware,
    measuring,
    origin,
    runtimes,
    store,
    timeline,
    trained,
)
from pipeline.artifact.float import refuse_unexportable
from pipeline.errors import Corrupt, UserError
from pipeline.measure.inference import require_threads
from pipeline.models import module_of, network
from pipeline.paths import CellPaths, Work
from pipeline.store import StageHistory
from pipeline.sweep import Cell, Recipe, Stage
from pipeline.techniques import context, stage_module, train
from pipeline.training import compiling
from pipeline.training.checkpoint import Checkpointer, Snapshot
from pipeline.training.loop import Course, Hooks, Training, fit
from pipeline.training.recipe import Machine, machine

if TYPE_CHECKING:
    from pipeline.catalog import Catalog
    from pipeline.training.losses import Objective

Progress = Callable[[dict], None]
CALIBRATION_IMAGES = 64  # for the tensors that training left without a scale of their own


def run_cell(
    cell: Cell,
    work: Work,
    data_root: Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress = lambda event: None,
    measures: bool = True,
) -> None:
    """Trains the cell, and with `measures` measures it on this machine; returns at once where that
    is done, whole and made as wanted. Where only a part is missing, or was made in another way,
    only that is made.

    The caller holds the cell's lock (``store.lock_cell``). Raises whatever went wrong; what was
    published before stays, and what was kept so far stays for the next attempt.
    """
    paths = work.cell(cell.id)
    if not _is_sound(paths):
        store.withdraw(paths)
    is_there = done.is_current if measures else done.is_made
    if is_there(paths, done.record(cell)):
        return
    runtimes.require(cell.measure.runtimes)  # before anything is trained for it
    if measures:
        require_threads(cell.measure.threads)
    torch.set_num_threads(threads or hardware.training_cores())
    run = _Run(cell, work, paths, data_root, device, progress)
    try:
        run.go()
    finally:
        run.checkpoints.close()  # nothing of this attempt may write once the lock is gone
    if measures:
        measuring.measure_cell(cell, work, run.split, run.machine.device, run.progress)


def _is_sound(paths: CellPaths) -> bool:
    """Whether nothing is damaged: what is, is set aside; the sound parts of it are used again."""
    try:
        return not paths.manifest.exists() or bool(store.verify(paths))
    except Corrupt:
        return False


class _Run:
    """The state of one attempt at one cell."""

    def __init__(
        self,
        cell: Cell,
        work: Work,
        paths: CellPaths,
        data_root: Path,
        device: str,
        progress: Progress,
    ):
        self.cell, self.work, self.paths = cell, work, paths
        self.timeline = timeline.Timeline()
        self.progress = self._told(progress)
        self.machine: Machine = machine(cell.recipe, device)
        if self.machine.compiled:
            compiling.use_cache(work)
        self.began, self.began_s = time.time(), clock.now()
        self.origin = origin.loaded()
        self.split = data.load(cell.dataset, cell.recipe, cell.seed, data_root, work.cache)
        self.checkpoints = Checkpointer(paths.checkpoint, paths.metrics, self.split.fingerprint)
        self.stages = cell.stages or (Stage("train", train.Settings()),)
        self.trained_s = 0.0  # by the attempts before this one
        self.kept: dict[str, Any] = {}  # facts of the training, where it was over before
        self._base: network.ModelState | None = None

    def _told(self, progress: Progress) -> Progress:
        def tell(event: dict) -> None:
            self.timeline.event(event)
            progress({"cell": self.cell.id, **event})

        return tell

    def go(self) -> None:
        content = store.json_bytes(self.cell.to_json())
        if done.is_trained(self.cell, self.work):
            if self.paths.cell_json.read_bytes() != content:
                done.replace_cell_json(self.paths, content)
            return
        if self.paths.manifest.exists():  # only its artifact is outdated
            trained.require_images(self.paths, self.split, f"{self.cell.name} ({self.cell.id})")
        if not self.paths.cell_json.exists():
            store.publish_bytes(self.paths.cell_json, content)
        state, history = self.staged()
        start = trained.start_facts(self.cell, self.work, state)
        if self.paths.manifest.exists():
            store.retract(self.paths)  # from here on, what it vouches for changes
        store.publish_bytes(self.paths.cell_json, content)
        measuring.keep_earlier(self.paths)
        self.progress({"stage": "artifact"})
        self.write_artifact(state)
        size = measuring.size(measuring.Candidate(state, artifact.load(self.paths.artifact)))
        result = store.result_bytes(self.cell.to_json(), {**self.facts(), **start}, history, size)
        store.publish_bytes(self.paths.result, result)
        store.publish_bytes(self.paths.metrics, store.history_bytes(history))
        images = {"key": self.split.key, "fingerprint": self.split.fingerprint}
        made_with = done.of_artifact(done.record(self.cell))
        store.write_manifest(self.paths, {"images": images, done.MADE_WITH: made_with})

    # --- stages ----------------------------------------------------------------------------------

    def staged(self) -> tuple[network.ModelState, list[StageHistory]]:
        """The final network, and what was recorded on the way; resumed where a snapshot is, which
        after the last stage is the final network itself."""
        snapshot = self.checkpoints.load()
        index = snapshot.index if snapshot else 0
        history = list(snapshot.history) if snapshot else []
        state = snapshot.training.state if snapshot else self.first()
        if snapshot:
            # As it was without the interruption: sums differ in their last bits by where they are
            # made, and what a stage chooses by them may, too.
            state.network.to(self.machine.device if snapshot.on_gpu else "cpu")
            columns = (*(stage.columns for stage in history), snapshot.training.columns)
            self.trained_s = sum(sum(column.get("seconds", ())) for column in columns)
        if snapshot and index == len(self.stages):
            self.kept = snapshot.facts or self.earlier_facts()
        for i in range(index, len(self.stages)):
            here = snapshot if snapshot and snapshot.index == i else None
            state = self.stage(i, state, history, here)
            done = Snapshot(i + 1, self.name(i + 1), Training(state), tuple(history))
            if i + 1 < len(self.stages):
                self.checkpoints.save(done, wait=True)
            else:
                self.checkpoints.finish(replace(done, facts=self.of_training()), self.paths.model)
        state.network.to("cpu").to(memory_format=torch.contiguous_format)  # as one that was read
        return state, history

    def name(self, index: int) -> str:
        return self.stages[index].name if index < len(self.stages) else "done"

    def first(self) -> network.ModelState:
        """What the first stage is given: the base, or for the base itself a shape to fill."""
        if not self.cell.is_base:
            return self.base()
        spec = module_of(self.cell.model.name).spec(
            self.cell.model.name,
            self.cell.model.width,
            self.split.shape,
            len(self.split.classes),
            self.split.zero_point,
            self.split.scale,
        )
        fresh = network.new(spec, self.cell.seed)
        if self.cell.model.own is not None:
            refuse_unexportable(fresh, self.cell.model.label)
        return (
            fresh if self.cell.model.start is None else trained.started(fresh, self.cell, self.work)
        )

    def stage(
        self,
        index: int,
        state: network.ModelState,
        history: list[StageHistory],
        snapshot: Snapshot | None,
    ) -> network.ModelState:
        stage, settings = self.stages[index], self.stages[index].settings
        name = f"{index}-{stage.name}"
        self.progress({"stage": name})
        seed = self.cell.seed * 1009 + index
        trainings = _Trainings(self, index, seed, history, snapshot)
        ctx = context.Context(
            self.cell,
            self.split,
            self.machine,
            seed,
            self.teacher,
            trainings.train,
            lambda event: self.progress({"stage": name, **_shown(event)}),
        )
        return stage_module(stage.name).apply(state, settings, ctx)

    # --- the base --------------------------------------------------------------------------------

    def base(self) -> network.ModelState:
        """A fresh copy of the trained base; raises as `trained.base`."""
        return trained.base(self.cell, self.work, self.split)

    def teacher(self) -> network.ModelState:
        """The base as one looks at it: kept, on the device, in eval mode."""
        if self._base is None:
            self._base = self.base()
            self._base.network.to(self.machine.device).to(memory_format=torch.channels_last).eval()
        return self._base

    # --- artifact --------------------------------------------------------------------------------

    def write_artifact(self, state: network.ModelState) -> None:
        sample = data.sample(self.split.train, CALIBRATION_IMAGES, self.cell.seed)
        facts = {
            "dataset": self.cell.dataset.name,
            "technique": self.cell.technique,
            "cell": self.cell.id,
            **{k: v for k, v in self.cell.dataset.of_images.items() if k == "background"},
        }
        artifact.write(state, self.paths.artifact, facts, sample.pixels.numpy(), self.split.classes)

    # --- facts -----------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """For the result. What only writes an artifact of weights that are there adds its time; all
        else is of the machine and the code that trained them."""
        mine = self.of_training()
        return {
            **mine,
            **{name: self.kept[name] for name in mine if name in self.kept},
            **self.spent(),
            done.MADE_WITH: done.of_artifact(done.record(self.cell)),
            "needs": artifact.load(self.paths.artifact).manifest["needs"],
            "all_threads": self.cell.measure.threads or hardware.cores(),
            "dataset_fingerprint": self.split.fingerprint,
            **({"image_notes": list(self.split.notes)} if self.split.notes else {}),
        }

    def of_training(self) -> dict[str, Any]:
        return {
            **self.origin.facts(),
            "hardware": hardware.describe(),
            "device": str(self.machine.device),
            "precision": self.machine.precision,
            "threads": torch.get_num_threads(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.began)),
            "peak_memory_bytes": peak_memory_bytes(),
            "peak_gpu_memory_bytes": peak_gpu_memory_bytes(self.machine.device),
            **self.spent(),
        }

    def spent(self) -> dict[str, Any]:
        """The time so far, with that of the training in earlier attempts."""
        before_s = self.kept.get("seconds") or self.trained_s
        before = self.kept.get("phases") or {"train": self.trained_s}
        return {
            "seconds": before_s + clock.now() - self.began_s,
            "phases": timeline.together([before, self.timeline.seconds()]),
        }

    def earlier_facts(self) -> dict[str, Any]:
        """Those of the result that is there, where the weights have none, as in earlier versions;
        without the time where that was of a measurement as well."""
        try:
            result = store.read_result(self.paths.result, with_history=False)
        except (FileNotFoundError, Corrupt):
            return {}
        unknown = ("seconds", "phases") if "accuracy" in result.measured else ()
        return {name: value for name, value in result.facts.items() if name not in unknown}


class _Trainings:
    """The trainings of one stage, one after the other, and where a snapshot stands among them."""

    def __init__(
        self,
        run: _Run,
        index: int,
        seed: int,
        history: list[StageHistory],
        snapshot: Snapshot | None,
    ):
        self.run, self.index, self.seed = run, index, seed
        self.history = history
        self.snapshot = snapshot if snapshot and snapshot.training.epoch else None
        self.part = -1  # of the training that was begun last

    def train(
        self,
        start: Callable[[], network.ModelState],
        objective: Callable[[network.ModelState], Objective],
        epochs: int,
        recipe: Recipe,
        **hooks: Callable[..., None],
    ) -> network.ModelState:
        self.part += 1
        snapshot = self.snapshot
        if snapshot and self.part < snapshot.part:  # its history is the snapshot's already
            return snapshot.training.state
        resumed = snapshot is not None and self.part == snapshot.part
        training = snapshot.training if snapshot and resumed else Training(start())
        training.state.network.to(self.run.machine.device)
        seed = self.seed + 100_003 * self.part
        course = Course(recipe, epochs, objective(training.state), self.run.machine, seed)
        self.run.progress({"stage": self.name, "epoch": training.epoch, "epochs": epochs})
        own = Hooks(
            keep=self.keeper(epochs),
            tick=self.ticker(epochs),
            phase=self.begun,
            settle=self.run.checkpoints.wait,  # it copies tensors from the device
            **hooks,
        )
        fit(training, self.run.split, course, own)
        self.history.append(StageHistory(self.index, self.stage, training.columns))
        return training.state

    @property
    def stage(self) -> str:
        """`quantize`, and `quantize.2` for the second training of the stage."""
        name = self.run.name(self.index)
        return f"{name}.{self.part + 1}" if self.part else name

    @property
    def name(self) -> str:
        return f"{self.index}-{self.stage}"

    def begun(self, phase: str) -> None:
        self.run.progress({"stage": self.name, "what": phase})

    def keeper(self, epochs: int) -> Callable[[Training], None]:
        history, part = tuple(self.history), self.part

        def keep(now: Training) -> None:
            self.run.checkpoints.save(Snapshot(self.index, self.stage, now, history, part))
            last = {k: now.columns[k][-1] for k in ("loss", "held_out_accuracy", "seconds")}
            self.run.progress(
                {
                    "stage": self.name,
                    "epoch": now.epoch,
                    "epochs": epochs,
                    "loss": last["loss"],
                    "accuracy": last["held_out_accuracy"],
                    "seconds_left": (epochs - now.epoch) * last["seconds"],
                }
            )

        return keep

    def ticker(self, epochs: int) -> Callable[[dict], None]:
        def tick(event: dict) -> None:
            part = event["step"] / event["steps"]
            left = event["seconds"] / part * (epochs - event["epoch"] - part)
            done = event["epoch"] + part
            self.run.progress(
                {"stage": self.name, "epoch": done, "epochs": epochs, "seconds_left": left}
            )

        return tick


def _shown(event: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage may tell of itself, without what nobody who listens could read."""
    return {
        key: value
        for key, value in event.items()
        if (key in context.NUMBERS and _is_finite(value))
        or (key == context.WHAT and isinstance(value, str))
    }


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def peak_gpu_memory_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def read_cell(paths: CellPaths, catalog: Catalog) -> Cell:
    """The cell in cell.json, and this process knows the plug-ins that it needs; Corrupt where it is
    none, is that of another folder, or is of other versions than this code's: what they made would
    have its id. UserError where a plug-in is not here."""
    try:
        data = json.loads(paths.cell_json.read_bytes())
        known = catalog.of_cell(data, paths)
        cell = Cell.from_json(data, known)
    except UserError:
        raise
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise Corrupt(f"{paths.cell_json}: {error}") from error
    if cell.id != paths.id:  # the lock that is held would not be that of the folder written to
        raise Corrupt(f"{paths.cell_json}: is cell {cell.id}, expected {paths.id}")
    if other := cell.differs_from(cell.of_this_version(known)):
        raise Corrupt(f"{paths.cell_json}: is a cell of another version of netpress ({other})")
    return cell
