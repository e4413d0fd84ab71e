"""The deployable model: written from a trained network, loaded and run without one.

A folder with ``model.onnx`` (uint8 images [N, C, H, W] as they come from a file, in; float32 logits
[N, classes], out; normalization is inside) and ``manifest.json`` (class names, shape, SHA-256).
It runs on plain ONNX Runtime.

``format``: the folder, and reading it. ``float`` and ``int8``: the two exports. ``coded``: how the
model may be stored otherwise than it runs. ``saturation``: on which CPUs it is right. ``write``:
publishing. torch and onnx are loaded when they are needed; ``pipeline.runtimes`` runs artifacts.
"""

from pipeline.artifact.format import (
    FORMAT,
    INPUT,
    MANIFEST,
    MODEL,
    OUTPUT,
    Artifact,
    load,
    softmax,
)
from pipeline.artifact.write import write, write_runnable

__all__ = [
    "FORMAT",
    "INPUT",
    "MANIFEST",
    "MODEL",
    "OUTPUT",
    "Artifact",
    "load",
    "softmax",
    "write",
    "write_runnable",
]
