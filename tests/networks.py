"""Every technique on networks that differ in kind, at tiny widths: small real cells on the digits,
and what each of them has to keep to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from pipeline import artifact, catalog, data, execute, plugins, runtimes, store
from pipeline.measure import complexity
from pipeline.models import mobilenet, resnet
from pipeline.models.spec import NetworkSpec
from pipeline.paths import Work
from pipeline.sweep import Cell
from pipeline.techniques import TECHNIQUES
from pipeline.training.checkpoint import read_model
from tests import cells
from tests.test_techniques import Made, staged

NETS = Path(__file__).with_name("own_network") / "nets.py"
NETWORKS: dict[str, dict[str, Any]] = {
    "vgg16_bn": {"name": "vgg16_bn", "width": 0.125},
    "resnet20": {"name": "resnet20", "width": 0.5},
    "resnet18": {"name": "resnet18", "width": 0.125},
    "mobilenetv2": {"name": "mobilenetv2", "width": 0.25},
    "own": {"name": "mixed", "factory": f"{NETS}:build", "arguments": {"width": 48, "side": 16}},
}
SIZE = {"vgg16_bn": 32}  # of the images; the others take smaller ones, which cost a quarter
TRAINING = {
    "epochs": 3,
    "batch_size": 16,
    "learning_rate": 0.05,
    "crop": 0,
    "train_images": 800,
}
RATE = {"own": {"learning_rate": 0.02}}  # not all of it is normalized
SHORT = {**TRAINING, "epochs": 1, "train_images": 240}
# So small a network has no sixteenth in multiples of 8 filters.
FINE = {"prune.multiple": [2]}
GRID = {
    "small-and-int8": FINE,
    "small-and-rate": FINE,
    # Most weights of the own network are its last layer's.
    "deep-compression": {"sparsify.ends": ["sparse"]},
    "sparse-random": {"sparsify.ends": ["sparse"]},
    "low-rank": {"low-rank.parameters_kept": [0.5], "low-rank.multiple": [2]},
}
MORE = {
    "own": {
        "distill-staged": {"distill-staged.stages": [2]},  # it has no more maps
        "dkd": {"dkd.learning_rate_factor": [0.25]},
    },
    # Its depthwise filters differ so much in size that one scale a layer, or few weights of so
    # small a network, leave one answer for all images; answers near to each other show nothing.
    "mobilenetv2": {
        "dkd": {"dkd.learning_rate_factor": [0.25]},
        "inq-5": {"quantize-incremental.scales": ["filter"]},
        "inq-3": {"quantize-incremental.learning_rate_factor": [0.3]},
        "deep-compression": {"sparsify.ends": ["sparse"], "sparsify.sparsity": [0.7]},
        "sparse-random": {"sparsify.ends": ["sparse"], "sparsify.sparsity": [0.7]},
        "small-and-rate": {**FINE, "rate.learning_rate_factor": [0.1]},
    },
}
# As many weights as the base has, all of them floats, in no coded form.
AS_LARGE = {"base", "base-longer", "base-anew", "sparse-random"}
# As many weights, of fewer bits: by these transforms.
FEWER_BITS = {
    "ptq-int8": {"fake-quantized"},
    "qat-int8": {"fake-quantized"},
    "deep-compression": {"masked", "clustered", "encoded"},
    "inq-5": {"powers-of-two", "encoded"},
    "inq-3": {"powers-of-two", "encoded"},
    "qat-int4": {"low-bits", "encoded"},
    "qat-int2": {"low-bits", "encoded"},
    "ternary": {"ternary", "encoded"},
    "binary": {"binary", "encoded"},
    "binary-ternary": {"binary-ternary", "encoded"},
    "rate": {"fake-quantized", "encoded"},
}
# And of those that have fewer weights.
AS_WELL = {
    "small-and-int8": {"fake-quantized"},
    "small-and-rate": {"fake-quantized", "encoded"},
    "low-rank": {"factored"},
}


def shortened(patch: pytest.MonkeyPatch) -> None:
    """ResNet-8 for ResNet-20, with one block of each kind, and the first stages of MobileNetV2: the
    whole ones take the tests three times as long."""
    patch.setitem(resnet.STAGES, "resnet20", (resnet.SMALL, 1))
    patch.setattr(mobilenet, "STAGES", mobilenet.STAGES[:3])


class Row(NamedTuple):
    """What came of a technique on a network, beside the base."""

    stored: float  # bytes of the artifact, a part of the base's
    macs: float  # a part of the base's
    agreement: float  # of the artifact with the simulation, part of the images
    apart: float  # largest difference of their logits, a part of the range of these
    integer: float | None  # part of the MACs that integer kernels computed; None: in floats
    accuracy: float  # of the artifact, on the test set
    resumed: bool  # killed at each stage and epoch: the same bits and history

    def __str__(self) -> str:
        share = "float" if self.integer is None else f"{self.integer:.1%}"
        return (
            f"{self.stored:.2f} | {self.macs:.2f} | {self.agreement:.2%} | {share} | "
            f"{self.accuracy:.1%} | {'yes' if self.resumed else 'NO'}"
        )


@dataclass
class Bench:
    """A trained base of one of NETWORKS, and the cells that stand on it."""

    folder: Path
    work: Work
    cells: Mapping[str, Cell]
    known: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def trained(folder: Path, network: str, training: Mapping[str, Any] = TRAINING) -> Bench:
        made = cells.cells(
            folder,
            TECHNIQUES,
            models=[NETWORKS[network]],
            datasets=[{"name": "digits", "size": SIZE.get(network, 16)}],
            training={**training, **RATE.get(network, {})},
            grid=GRID | MORE.get(network, {}),
        )
        work = Work(folder / "work")
        bench = Bench(folder, work, {cell.family: cell for cell in made.values()})
        base = bench.cells["base"]
        if base.model.own is not None:
            plugins.keep_own([base.model], work)
        bench.enter()
        with cells.one_core(), store.lock_cell(work.cell(base.id)):
            execute.run_cell(base, work, work.root, device="cpu", threads=1, measures=False)
        return bench

    def enter(self) -> None:
        """This process knows the network from now on, until it enters another bench."""
        base = self.cells["base"]
        described = json.loads(json.dumps(base.to_json()))
        catalog.built_in().of_cell(described, self.work.cell(base.id))

    @property
    def split(self) -> data.Split:
        if "split" not in self.known:
            base = self.cells["base"]
            self.known["split"] = data.load(
                base.dataset, base.recipe, base.seed, self.work.root, self.work.cache
            )
        return self.known["split"]

    def beside(self, name: str) -> Work:
        """A work root of its own; in it the decoded data, and the base."""
        work = Work(self.folder / name)
        shutil.rmtree(work.root, ignore_errors=True)
        for part in (f"cells/{self.cells['base'].id}", "cache", "plugins"):
            if (self.work.root / part).exists():
                shutil.copytree(self.work.root / part, work.root / part)
        return work

    def staged(self, name: str, work: str, heard: set | None = None) -> Made:
        cell, place = self.cells[name], self.beside(work)
        if cell.is_base:
            shutil.rmtree(place.cell(cell.id).folder)
        return staged(cell, place, heard)

    def deployed(self, made: Made, name: str) -> artifact.Artifact:
        folder = self.folder / "artifacts" / name
        shutil.rmtree(folder, ignore_errors=True)
        sample = data.sample(self.split.train, 64, 0).pixels.numpy()
        artifact.write(made.state, folder, {}, sample, self.split.classes)
        return artifact.load(folder)

    def row(self, name: str) -> Row:
        """All of it for real: the technique, again with kills, its artifact on its runtime."""
        self.enter()
        whole = self.staged(name, "whole")
        resumed = self.staged(name, "killed", set())
        deployed = self.deployed(whole, name)
        split, base = self.split, artifact.load(self.work.cell(self.cells["base"].id).artifact)
        images = torch.cat((split.test.pixels, split.train.pixels))
        with torch.inference_mode():
            simulated = whole.state.network.eval()(images).numpy()
        session = runtimes.session(deployed, 1)
        logits = np.concatenate(list(runtimes.logits(session, images.numpy())))
        ran, right = runtimes.kernels(deployed), split.test.labels.numpy()
        return Row(
            stored=deployed.stored_bytes / base.stored_bytes,
            macs=self.macs(whole),
            agreement=float(np.mean(logits.argmax(1) == simulated.argmax(1))),
            apart=float(np.abs(logits - simulated).max() / np.ptp(simulated, 0).max()),
            integer=ran.integer_share if deployed.quantized else None,
            accuracy=float(np.mean(logits[: len(right)].argmax(1) == right)),
            resumed=resumed.content == whole.content and resumed.curves == whole.curves,
        )

    def macs(self, made: Made) -> float:
        """A part of the base's."""
        return complexity.count(made.state.spec)[1] / self.base_macs

    @property
    def base_macs(self) -> int:
        return self.base_size[1]

    @property
    def base_parameters(self) -> int:
        return self.base_size[0]

    @property
    def base_size(self) -> tuple[int, int]:
        """Parameters and MACs."""
        if "size" not in self.known:
            self.known["size"] = complexity.count(self.base_spec)
        return self.known["size"]

    @property
    def base_spec(self) -> NetworkSpec:
        if "spec" not in self.known:
            state = read_model(self.work.cell(self.cells["base"].id).model)
            self.known["spec"] = state.spec
        return self.known["spec"]
