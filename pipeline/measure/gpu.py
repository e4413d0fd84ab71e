"""An artifact and its base on the runtimes of a GPU: in turns, in batches of up to 1,024 images.

A runtime that is missing here, or that cannot run this model, costs a line and nothing else
(`runtimes/NAME/skipped`): most machines that measure have no GPU. Batches for which there is no
room are left out (`runtimes/NAME/left_out`). Calls are from host to host. Images are uint8
[N, C, H, W].
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from pipeline import runtimes
from pipeline.artifact import Artifact
from pipeline.errors import Corrupt, UserError
from pipeline.measure import energy, inference, latency
from pipeline.measure.series import ENERGY, GPU_BATCHES, THROUGHPUT, Model, Series
from pipeline.models.network import ModelState
from pipeline.sweep import Measure

WINDOW_S = 1.0  # of calls back to back, at most


class Contender(NamedTuple):
    """`state`: the network that the artifact was made from, for runtimes that read no artifacts;
    None where there is none, as in a report."""

    artifact: Artifact
    state: ModelState | None


class Test(NamedTuple):
    """Images [N, C, H, W], their classes [N], and those that the artifact names on the default
    runtime."""

    images: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray


Contenders = Mapping[Model, Contender]


def measured(
    contenders: Contenders,
    settings: Measure,
    test: Test | None,
    tick: Callable[[str], None] = lambda what: None,
) -> dict[str, object]:
    """Of each runtime of the settings that is for a GPU; `contenders` has the artifact and, where
    it is another one, its base. `test` None: no accuracy."""
    values: dict[str, object] = {}
    for name in runtimes.on_gpu(settings.runtimes):
        tick(name)
        try:
            values |= _of_runtime(name, contenders, settings, test)
        except (UserError, Corrupt) as error:
            values[skipped_name(name)] = _why(error)
            tick(f"{name}: skipped, {values[skipped_name(name)]}")
        _leave_room()
    return values


def _leave_room() -> None:
    """What PyTorch keeps of a GPU's memory would be missing to the next runtime. Sessions are
    parts of reference cycles, so that they have to be collected first."""
    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def skipped_name(runtime: str) -> str:
    """Of the reason for which a runtime was skipped, under /measure."""
    return f"runtimes/{runtime}/skipped"


def ran(names: tuple[str, ...], values: Mapping[str, object]) -> list[str]:
    """Of these runtimes those that ran, by what was measured."""
    return [name for name in names if skipped_name(name) not in values]


def _of_runtime(
    name: str, contenders: Contenders, settings: Measure, test: Test | None
) -> dict[str, object]:
    sessions = {
        model: runtimes.session(one.artifact, None, name, one.state)
        for model, one in contenders.items()
    }
    values = _accuracy(name, contenders["artifact"], sessions["artifact"], test)
    for batch in GPU_BATCHES:
        try:
            values |= _timed(name, sessions, settings, contenders["artifact"].artifact, batch)
        except Corrupt as error:
            if batch == GPU_BATCHES[0]:
                raise
            values[f"runtimes/{name}/left_out"] = f"batches of {batch} and more: {_why(error)}"
            break
    if note := getattr(sessions["artifact"].inner, "note", None):
        values[f"runtimes/{name}/note"] = note
    return values


def _accuracy(
    name: str, mine: Contender, session: runtimes.Checked, test: Test | None
) -> dict[str, object]:
    """As of the other runtimes that a sweep names: accuracy, agreement with the default runtime."""
    share = runtimes.kernels(mine.artifact, name, mine.state).integer_share
    values: dict[str, object] = {f"runtimes/{name}/integer_share": share}
    if test is not None:
        scores, seconds = inference.timed(session, test.images)
        classes = scores.argmax(1)
        values |= {
            f"runtimes/{name}/accuracy": float(np.mean(classes == test.labels)),
            f"runtimes/{name}/agreement": float(np.mean(classes == test.predictions)),
            f"runtimes/{name}/test_set_seconds": seconds,
        }
    return values


def _timed(
    name: str,
    sessions: Mapping[Model, runtimes.Checked],
    settings: Measure,
    artifact: Artifact,
    batch: int,
) -> dict[str, object]:
    """Samples in ms of single calls, in turns; then images a second and joules an image of calls
    back to back, one contender after the other."""
    images, meter = inference.any_images(artifact.shape, batch), energy.of_gpu()
    values: dict[str, object] = {}
    runs = {model: inference.run_of(session, images) for model, session in sessions.items()}
    for model, ms in latency.interleaved(runs, settings.repeats, settings.seconds).items():
        series = Series(name, model, "all", batch, runtimes.device(name))
        steady = energy.steady(runs[model], batch, min(WINDOW_S, settings.seconds), meter)
        values[series.name] = ms
        values[series.named(THROUGHPUT)] = steady.images_per_s
        if steady.joules_per_image is not None:
            values[series.named(ENERGY)] = steady.joules_per_image
    return values


def _why(error: Exception) -> str:
    """One line without the path of the model, since a report is passed on."""
    return runtimes.reason(error.__cause__ or error)
