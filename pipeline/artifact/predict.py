"""Running an artifact: logits, class probabilities, and classes of image files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.artifact.format import INPUT, OUTPUT, load
from pipeline.errors import Corrupt, UserError


def logits(session, images: np.ndarray, batch: int = 64) -> Iterator[np.ndarray]:
    """uint8 [N, C, H, W] -> float32 logits, a batch at a time."""
    for start in range(0, len(images), batch):
        yield session.run([OUTPUT], {INPUT: images[start : start + batch]})[0]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Logits [N, classes] -> what of a whole each class has, in the same precision."""
    scaled = np.exp(logits - logits.max(1, keepdims=True))
    return scaled / scaled.sum(1, keepdims=True)


def predict(folder: Path, paths: list[Path]) -> list[dict]:
    """Classifies image files: [{"image", "class", "confidence"}] in the order given."""
    from pipeline import data

    try:
        artifact = load(folder)
        session = artifact.session()
    except Corrupt as error:
        raise UserError(f"{error}; take it anew with `netpress export`") from error
    images = data.images_from(paths, artifact.shape)
    rows = []
    for scores in logits(session, images):
        shares = softmax(scores)
        rows += [(int(s.argmax()), float(s.max())) for s in shares]
    return [
        {"image": str(p), "class": artifact.classes[k], "confidence": c}
        for p, (k, c) in zip(paths, rows, strict=True)
    ]
