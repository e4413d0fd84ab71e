"""The command `predict`: what it prints while it classifies."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from pipeline import streams
from pipeline.artifact.format import not_an_artifact
from pipeline.cli_output import fail, show, show_line, warn
from pipeline.errors import UserError
from pipeline.predict import Failure, Prediction, Unfit, files, predict

ON_A_TERMINAL_S = 0.2  # between two lines of progress
ELSEWHERE_S = 10.0


def run(
    artifact: Path, given: list[Path], runtime: str, anyway: bool, top: int | None, as_json: bool
) -> int:
    """Classify, and print; 1 where an image could not be classified."""
    if not artifact.is_dir():
        raise UserError(not_an_artifact(artifact))
    images, passed = files(given)
    for line in passed:
        warn(line)
    done: list[Prediction | Failure] = []
    bad = 0
    try:
        with _progress(len(images)) as progress:
            for i, one in enumerate(predict(artifact, images, runtime, anyway, top or 1), 1):
                if as_json:
                    done.append(one)
                else:
                    progress.clear()
                    _show(one)
                bad += isinstance(one, Failure)
                progress.show(i)
    except Unfit as error:
        return fail(str(error), 1)
    if as_json:
        show(_json(done, top))
    if bad:
        return fail(f"{bad:,} of {len(images):,} images could not be classified", 1)
    return 0


def _show(one: Prediction | Failure) -> None:
    if isinstance(one, Failure):
        warn(one.reason)
        return
    classes = "  ".join(f"{name}  {confidence:.1%}" for name, confidence in one.top)
    show_line(f"{one.image}  {classes}")


def _json(done: list[Prediction | Failure], top: int | None) -> dict[str, Any]:
    predictions = []
    for one in done:
        if isinstance(one, Prediction):
            row: dict[str, Any] = {"image": str(one.image), **_pair(*one.top[0])}
            if top is not None:
                row["top"] = [_pair(*pair) for pair in one.top]
            predictions.append(row)
    failures = [
        {"image": str(one.image), "reason": one.reason} for one in done if isinstance(one, Failure)
    ]
    return {"predictions": predictions, "failures": failures}


def _pair(name: str, confidence: float) -> dict[str, Any]:
    return {"class": name, "confidence": confidence}


class _Progress:
    """How many images are done: one line that is kept up to date on a terminal, elsewhere a line
    now and then."""

    def __init__(self, total: int):
        self.total = total
        self.on_terminal = sys.stderr.isatty()
        self.every_s = ON_A_TERMINAL_S if self.on_terminal else ELSEWHERE_S
        self.last = time.monotonic()
        self.shown = False

    def show(self, done: int) -> None:
        if time.monotonic() - self.last < self.every_s or done == self.total:
            return
        self.last = time.monotonic()
        text = f"netpress: {done:,} of {self.total:,} images"
        click.echo(f"\r{text}" if self.on_terminal else text, err=True, nl=not self.on_terminal)
        self.shown = self.on_terminal

    def clear(self) -> None:
        if self.shown:
            click.echo("\r\x1b[K", err=True, nl=False)
            self.shown = False


@contextmanager
def _progress(total: int) -> Iterator[_Progress]:
    progress = _Progress(total)
    try:
        yield progress
    finally:
        with streams.at_best():
            progress.clear()
