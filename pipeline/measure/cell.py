"""Everything that is measured of one finished cell, on the artifact that would be deployed.

Names and units are those under ``/measure`` in result.h5; ``report/metrics.py`` says what they mean
to a reader. Images are uint8 [N, C, H, W].
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from pipeline import hardware, runtimes
from pipeline.artifact import Artifact, softmax
from pipeline.data import Images, Split, evaluated
from pipeline.measure import accuracy, complexity, energy, gpu, inference, latency, similarity
from pipeline.measure.series import BATCHES, ENERGY, THREADS, Model, Series, Threads
from pipeline.measure.spaced import spaced
from pipeline.models.network import ModelState
from pipeline.sweep import Measure

DIFFERING = 16  # images that are kept to be looked at, as far as they fit into
DIFFERING_BYTES = 1 << 26
SIMULATED_ACCURACY = 1 / 3  # of the seconds for the simulated network; the rest times it
PROBE = 8  # images that tell how long it takes

Sessions = dict[tuple[str, Model], runtimes.Session]  # (runtime, model) -> what is timed


class NotInteger(RuntimeError):
    """A quantized model whose products were computed in floats: no result, but a failure."""


@dataclass(frozen=True)
class Candidate:
    """A trained network and the artifact that was made from it."""

    state: ModelState
    artifact: Artifact


def measure(
    mine: Candidate,
    base: Candidate,
    split: Split,
    settings: Measure,
    device: torch.device,
    tick: Callable[[str], None],
    known: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """Of the candidate, and of its base beside it in the same process; raises NotInteger. `known`:
    what is no time, where it is known of this kind of CPU (pipeline/same_kind.py)."""
    with hardware.using(settings.threads):
        tick("kernels")
        measured = size(mine) | {f"base_{k}": v for k, v in size(base).items()}
        measured |= _kernels(mine)
        if known is None:
            tick("accuracy")
            measured |= _accuracy(mine, base, split)
            measured |= _simulated(mine, split, settings, device, measured)
            measured |= _elsewhere(mine, split, settings, measured)
            measured |= _held_out(mine, base, split, device)
        else:
            tick("test set")
            measured = {**known, **measured, **_seconds(mine, base, split, settings)}
        budget = latency.Budget((1 - SIMULATED_ACCURACY) * settings.simulated_seconds)
        for threads in THREADS:
            tick(f"latency, {threads} thread{'s' if threads == 'all' else ''}")
            measured |= _latency(mine, base, settings, threads, budget)
        measured |= _on_gpu(mine, base, split, settings, measured, tick)
    return measured


def size(candidate: Candidate) -> dict[str, object]:
    """What no machine decides: bytes of the artifact, parameters, multiply-accumulates."""
    parameters, macs = complexity.count(candidate.state.spec)
    return {
        "stored_bytes": candidate.artifact.stored_bytes,
        "runnable_bytes": candidate.artifact.runnable_bytes,
        "parameters": parameters,
        "macs": macs,
    }


def _kernels(mine: Candidate) -> dict[str, object]:
    ran = runtimes.kernels(mine.artifact)
    if mine.artifact.quantized and not ran.integer:
        raise NotInteger(
            "the artifact is quantized, but ONNX Runtime computed all its products in floats here"
        )
    return {
        "integer_kernels": ran.integer,
        "integer_share": ran.integer_share,
        "subnormals": complexity.subnormals(mine.artifact.model),
        "channels": np.array(mine.state.spec.channels, np.int64),
    }


def _accuracy(mine: Candidate, base: Candidate, split: Split) -> dict:
    """The artifacts', on the whole test set."""
    images, labels = split.test.array(), split.test.labels.numpy()
    own_logits, own_seconds = inference.timed_logits(mine.artifact, images)
    base_logits, base_seconds = inference.timed_logits(base.artifact, images)
    own, others = own_logits.argmax(1), base_logits.argmax(1)
    return {
        **accuracy.of_predictions(own, others, labels),
        "test_set_seconds": own_seconds,
        "base_test_set_seconds": base_seconds,
        "predictions": own.astype(np.uint16),
        "base_predictions": others.astype(np.uint16),
        "labels": labels.astype(np.uint16),
        **_differing(own_logits, base_logits, images, labels),
    }


def _seconds(mine: Candidate, base: Candidate, split: Split, settings: Measure) -> dict:
    """What this machine takes for the test set, where its predictions are known already."""
    images = split.test.array()
    own, others = (inference.timed_logits(one.artifact, images)[1] for one in (mine, base))
    return {"test_set_seconds": own, "base_test_set_seconds": others} | {
        f"runtimes/{name}/test_set_seconds": inference.timed_logits(mine.artifact, images, name)[1]
        for name in runtimes.on_cpu(settings.runtimes)[1:]
    }


def _simulated(
    mine: Candidate, split: Split, settings: Measure, device: torch.device, measured: dict
) -> dict:
    """That of the PyTorch network which the artifact was made from, and how often both name the
    same class (0..1): on all images of the test set, or on as many as its time allows, evenly
    spaced, since test sets may be sorted by class."""
    network, test = mine.state.network.to(device), split.test
    _some(network, test, PROBE, device)  # what is set up at the first run counts for no image
    began = time.perf_counter()
    _some(network, test, PROBE, device)
    image_s = (time.perf_counter() - began) / min(PROBE, len(test.labels))
    most = max(PROBE, int(SIMULATED_ACCURACY * settings.simulated_seconds / image_s))
    index = spaced(len(test.labels), most)
    simulated = _some(network, test, most, device)
    own, labels = measured["predictions"][index], test.labels.numpy()[index]
    fewer = {"simulated_images": len(index)} if len(index) < len(test.labels) else {}
    return {
        "simulated_accuracy": float(np.mean(simulated == labels)),
        "simulated_agreement": float(np.mean(simulated == own)),
        **fewer,
    }


def _some(network: torch.nn.Module, test: Images, most: int, device: torch.device) -> np.ndarray:
    index = torch.from_numpy(spaced(len(test.labels), most))
    return predict(network, Images(test.at(index), test.labels[index]), device).numpy()


def _held_out(mine: Candidate, base: Candidate, split: Split, device: torch.device) -> dict:
    """On images that were neither trained on nor are the test set's: the network's accuracy, by
    which settings are chosen, and how alike its layers and the base's are."""
    images = split.held_out
    alike = similarity.of_networks(mine.state, base.state, images, device)
    if not len(images.labels):
        return dict(alike)
    right = predict(mine.state.network, images, device) == images.labels
    return {"held_out_accuracy": float(right.double().mean()), **alike}


def _elsewhere(mine: Candidate, split: Split, settings: Measure, measured: dict) -> dict:
    """The artifact on the other runtimes that the sweep names: accuracy, and agreement with its own
    predictions on the default runtime (0..1)."""
    images, labels = split.test.array(), split.test.labels.numpy()
    values: dict[str, float] = {}
    for runtime in runtimes.on_cpu(settings.runtimes)[1:]:
        scores, seconds = inference.timed_logits(mine.artifact, images, runtime)
        classes = scores.argmax(1)
        share = runtimes.kernels(mine.artifact, runtime).integer_share
        values |= {
            f"runtimes/{runtime}/accuracy": float(np.mean(classes == labels)),
            f"runtimes/{runtime}/agreement": float(np.mean(classes == measured["predictions"])),
            f"runtimes/{runtime}/integer_share": share,
            f"runtimes/{runtime}/test_set_seconds": seconds,
        }
    return values


def _differing(own: np.ndarray, base: np.ndarray, images: np.ndarray, labels: np.ndarray) -> dict:
    """The images [K] on which the two name different classes, those first on which their class
    probabilities are farthest apart (total variation, 0..1), at most DIFFERING; none: no entry."""
    own_shares, base_shares = (softmax(scores.astype(np.float64)) for scores in (own, base))
    distance = np.abs(own_shares - base_shares).sum(1) / 2
    differ = np.flatnonzero(own.argmax(1) != base.argmax(1))
    most = min(DIFFERING, max(1, DIFFERING_BYTES // images[0].nbytes))
    index = differ[np.argsort(-distance[differ], kind="stable")][:most]
    if not len(index):
        return {}
    return {
        "differing/index": index.astype(np.int64),
        "differing/pixels": images[index],
        "differing/own": own[index].argmax(1).astype(np.uint16),
        "differing/base": base[index].argmax(1).astype(np.uint16),
        "differing/label": labels[index].astype(np.uint16),
        "differing/distance": distance[index].astype(np.float32),
    }


@torch.no_grad()
def predict(network: torch.nn.Module, images: Images, device: torch.device) -> torch.Tensor:
    """The classes int64 [N] that a float32 network names: no autocast, this is for comparison."""
    network.eval()
    # TF32, which cuDNN takes for float32 unless told otherwise, has 10 bits of mantissa. What is
    # not named here is off within, cuDNN itself as well.
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        classes = [network(batch).argmax(1).cpu() for batch, _ in evaluated(images.to(device))]
    return torch.cat(classes)


def _latency(
    mine: Candidate, base: Candidate, settings: Measure, threads: Threads, budget: latency.Budget
) -> dict:
    """Samples in ms by the name of their series. The deployed artifacts race each other and then,
    in the same rounds, what is timed beside them: other runtimes, and in PyTorch (float32, eager)
    the base and the simulated network, within ``budget``."""
    deployed, beside = _sessions(mine, base, settings, inference.thread_count(threads))
    samples: dict[str, object] = {}
    for i, batch in enumerate(BATCHES):
        images = inference.any_images(mine.artifact.shape, batch)
        runs = {key: inference.run_of(s, images) for key, s in (deployed | beside).items()}
        budget.begin((len(THREADS) - THREADS.index(threads)) * len(BATCHES) - i)
        for key in [key for key in runs if key[0] == runtimes.REFERENCE]:
            runs[key] = latency.Limited(runs[key], budget)
        timed = latency.interleaved(runs, settings.repeats, settings.seconds, spinning=beside)
        samples |= {
            Series(runtime, model, threads, batch).name: ms
            for (runtime, model), ms in timed.items()
        }
        if threads == "all":
            samples |= _energy({key: runs[key] for key in deployed}, batch, settings)
    return samples


def _energy(
    runs: dict[tuple[str, Model], latency.Run], batch: int, settings: Measure
) -> dict[str, float]:
    """Joules an image of calls back to back on all threads; nothing where it is not reported."""
    meter, values = energy.of_cpu(), {}
    for (runtime, model), run in runs.items() if meter else ():
        steady = energy.steady(run, batch, min(gpu.WINDOW_S, settings.seconds), meter)
        if steady.joules_per_image is not None:
            series = Series(runtime, model, "all", batch)
            values[series.named(ENERGY)] = steady.joules_per_image
    return values


def _on_gpu(
    mine: Candidate,
    base: Candidate,
    split: Split,
    settings: Measure,
    measured: dict,
    tick: Callable[[str], None],
) -> dict:
    """Both on the runtimes of a GPU that the sweep names, where there is one."""
    pixels, labels = split.test.array(), split.test.labels.numpy()
    test = gpu.Test(pixels, labels, measured["predictions"])
    contenders: dict[Model, gpu.Contender] = {"artifact": gpu.Contender(mine.artifact, mine.state)}
    if base is not mine:
        contenders["base"] = gpu.Contender(base.artifact, base.state)
    return gpu.measured(contenders, settings, test, tick)


def _sessions(
    mine: Candidate, base: Candidate, settings: Measure, threads: int
) -> tuple[Sessions, Sessions]:
    """Those of the default runtime, and all others, whose threads may spin after a call."""
    deployed: Sessions = {}
    beside: Sessions = {}
    artifacts: tuple[tuple[Model, Candidate], ...] = (("artifact", mine), ("base", base))
    for runtime in runtimes.on_cpu(settings.runtimes):
        group = deployed if runtime == runtimes.DEFAULT else beside
        for model, candidate in artifacts:
            group[runtime, model] = runtimes.session(candidate.artifact, threads, runtime)
    networks: tuple[tuple[Model, Candidate], ...] = (("simulated", mine), ("base", base))
    for model, candidate in networks:
        beside[runtimes.REFERENCE, model] = runtimes.reference(candidate.state, threads)
    return deployed, beside
