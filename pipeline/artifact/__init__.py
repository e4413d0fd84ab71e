"""The deployable model: written from a trained network, loaded and run without one.

A folder with ``model.onnx`` (uint8 images [N, C, H, W] as they come from a file, in; float32 logits
[N, classes], out; normalization is inside) and ``manifest.json`` (class names, shape, SHA-256).
It runs on plain ONNX Runtime.

``format``: the folder, and reading it. ``float`` and ``int8``: the two exports. ``write``:
publishing. ``predict``: running. torch, onnx and onnxruntime are loaded when they are needed.
"""

from pipeline.artifact.format import FORMAT, INPUT, MANIFEST, MODEL, OUTPUT, Artifact, load
from pipeline.artifact.predict import logits, predict, softmax
from pipeline.artifact.write import write

__all__ = [
    "FORMAT",
    "INPUT",
    "MANIFEST",
    "MODEL",
    "OUTPUT",
    "Artifact",
    "load",
    "logits",
    "predict",
    "softmax",
    "write",
]
