"""Publishing an artifact: the exported model and its manifest, whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import store
from pipeline.artifact.float import float_model
from pipeline.artifact.format import FORMAT, MANIFEST, MODEL
from pipeline.artifact.int8 import int8_model

if TYPE_CHECKING:
    from pipeline.models.network import ModelState


def write(
    state: ModelState, folder: Path, facts: dict, calibration: np.ndarray, classes: tuple[str, ...]
) -> None:
    """Publishes the artifact of ``state`` as ``folder``.

    ``facts`` go into the manifest as they are; on ``calibration`` (uint8 [n, C, H, W], training
    images) ONNX Runtime finds ranges for those tensors that training gave no scale of their own.
    """
    from pipeline.models import network

    integers = network.integers(state)
    model = int8_model(state, integers, calibration) if integers else float_model(state)
    data = model.SerializeToString()
    manifest = {
        "format": FORMAT,
        "kind": "int8" if integers else "float32",
        "classes": list(classes),
        "shape": list(state.spec.shape),
        "network": state.spec.to_json(),
        "files": {MODEL: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}},
        **facts,
    }

    def fill(new: Path) -> None:
        (new / MODEL).write_bytes(data)
        (new / MANIFEST).write_bytes(store.json_bytes(manifest))

    store.publish_folder(folder, fill)
