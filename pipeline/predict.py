"""Image files -> classes, by an artifact that a stranger may have made."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline import artifact, data, runtimes
from pipeline.errors import Corrupt, UserError


class Unfit(Exception):
    """This machine computes other classes than those meant; `anyway` asks for them all the same."""


def predict(
    folder: Path,
    paths: list[Path],
    runtime: str = runtimes.DEFAULT,
    anyway: bool = False,
) -> list[dict]:
    """Classifies image files: [{"image", "class", "confidence"}] in the order given. Raises
    UserError, one sentence, for whatever is wrong with the artifact, an image or the runtime, and
    Unfit where the model needs what this CPU lacks, unless `anyway`."""
    runtimes.of_artifacts(runtime)
    try:
        model = artifact.load(folder)
        if (reason := model.unfit()) and not anyway:
            raise Unfit(f"{folder}: {reason}; `--anyway` classifies all the same")
        session = runtimes.session(model, runtime=runtime)
        images = data.images_from(paths, model.shape)
        shares = [_shares(scores, folder) for scores in runtimes.logits(session, images)]
    except Corrupt as error:
        raise UserError(f"{error}; take it anew with `netpress export`") from error
    best = [(int(s.argmax()), float(s.max())) for batch in shares for s in batch]
    return [
        {"image": str(path), "class": model.classes[k], "confidence": confidence}
        for path, (k, confidence) in zip(paths, best, strict=True)
    ]


def _shares(scores: np.ndarray, folder: Path) -> np.ndarray:
    if not np.isfinite(scores).all():
        raise Corrupt(f"{folder}: what it gives for an image is no finite number")
    return artifact.softmax(scores)
