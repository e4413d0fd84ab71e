"""Publishing an artifact: the exported model and its manifest, whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import store
from pipeline.artifact import saturation
from pipeline.artifact.coded import CODECS
from pipeline.artifact.float import float_model
from pipeline.artifact.format import FORMAT, MANIFEST, MODEL, Artifact

if TYPE_CHECKING:
    import onnx

    from pipeline.models.network import ModelState


# The first release of ONNX Runtime that reads them: its table of versions.
RUNTIME_OF_OPSET = {20: "1.17", 21: "1.18", 22: "1.20"}
RUNTIME_OF_IR = {9: "1.17", 10: "1.18", 11: "1.20"}


def needs(model: onnx.ModelProto) -> dict[str, Any]:
    """What running the model right takes: CPU features (`vnni`: on x86, since 8-bit products would
    saturate without it), operator set, and the least version of ONNX Runtime."""
    opset = next(o.version for o in model.opset_import if o.domain == "")
    least = max(
        (RUNTIME_OF_OPSET[opset], RUNTIME_OF_IR[model.ir_version]),
        key=lambda version: tuple(map(int, version.split("."))),
    )
    cpu = ["vnni"] if saturation.overflows(model) else []
    return {"cpu": cpu, "opset": opset, "onnxruntime": least}


def write(
    state: ModelState,
    folder: Path,
    facts: dict[str, str],
    calibration: np.ndarray,
    classes: tuple[str, ...],
) -> None:
    """Publishes the artifact of ``state`` as ``folder``.

    ``facts`` go into the manifest as they are; on ``calibration`` (uint8 [n, C, H, W], training
    images) ONNX Runtime finds ranges for those tensors that training gave no scale of their own.
    """
    # Here, since looking at an artifact or running one does without the library that edits graphs.
    from pipeline.artifact.int8 import int8_model
    from pipeline.models import network

    integers = network.integers(state)
    model = int8_model(state, integers, calibration) if integers else float_model(state)
    described = {
        "kind": "int8" if integers else "float32",
        "classes": list(classes),
        "shape": list(state.spec.shape),
        "network": state.spec.to_json(),
        "needs": needs(model),
        **facts,
    }
    files = forms(model.SerializeToString(), described, network.codec(state))

    def fill(new: Path) -> None:
        for name, content in files.items():
            (new / name).write_bytes(content)

    store.publish_folder(folder, fill)


def forms(model: bytes, described: dict[str, Any], codec: str | None) -> dict[str, bytes]:
    """The files of an artifact whose stored form has this codec: name -> content."""
    runnable = _fingerprint(model)
    name = MODEL if codec is None else MODEL + CODECS[codec].suffix
    stored = model if codec is None else CODECS[codec].encode(model)
    manifest = {
        **described,
        "format": FORMAT,
        "codec": codec,
        "runnable": runnable,
        "files": {name: _fingerprint(stored)},
    }
    return {name: stored, MANIFEST: store.sealed_json(manifest)}


def write_runnable(artifact: Artifact, folder: Path) -> None:
    """The same artifact into an empty folder, stored as it runs."""
    own = ("format", "codec", "runnable", "files", "seal")
    described = {key: value for key, value in artifact.manifest.items() if key not in own}
    for name, content in forms(artifact.model, described, None).items():
        (folder / name).write_bytes(content)


def _fingerprint(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
