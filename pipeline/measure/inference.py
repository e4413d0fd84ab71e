"""Running an artifact to measure it: its logits on a test set, and one batch to be timed."""

from __future__ import annotations

import time

import numpy as np

from pipeline import hardware, runtimes
from pipeline.artifact import Artifact
from pipeline.errors import UserError
from pipeline.measure.latency import Run


def timed_logits(
    artifact: Artifact, images: np.ndarray, runtime: str = runtimes.DEFAULT
) -> tuple[np.ndarray, float]:
    """(logits [N, classes], seconds for all): 64 at a time, all threads, after one warm batch."""
    return timed(runtimes.session(artifact, runtime=runtime), images)


def timed(session: runtimes.Session, images: np.ndarray) -> tuple[np.ndarray, float]:
    """The same of a session that is there already."""
    next(runtimes.logits(session, images))
    start = time.perf_counter()
    batches = list(runtimes.logits(session, images))
    return np.concatenate(batches), time.perf_counter() - start


def thread_count(threads: str) -> int:
    """Of "one" or "all"."""
    return 1 if threads == "one" else hardware.cores()


def require_threads(wanted: int | None) -> None:
    """Raises UserError where there are fewer cores than threads to measure with: these would wait
    for each other, and that would be measured."""
    if wanted is not None and wanted > (there := hardware.cores()):
        raise UserError(
            f"measure.threads: {wanted} are more than the {there} core{'s' * (there != 1)} that "
            f"this process has; expected at most {there}, or a job with {wanted} cores"
        )


def any_images(shape: tuple[int, int, int], batch: int) -> np.ndarray:
    """Any pixels do: the time that dense products take does not depend on them."""
    return np.random.default_rng(0).integers(0, 256, (batch, *shape), np.uint8)


def run_of(session: runtimes.Session, images: np.ndarray) -> Run:
    """One run of a session on these images, for `latency.interleaved`."""
    return lambda: session.run(images)
