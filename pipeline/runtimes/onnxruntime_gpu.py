"""ONNX Runtime on a GPU (its CUDA execution provider): the artifact's own bytes, in float32.

It comes as another distribution of the same module, so it needs an environment of its own. There
are no integer convolutions for CUDA in it: those of a quantized model are computed in floats,
between rounding to 8 bits and back. N images, C channels, H x W pixels.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline.runtimes import onnxruntime as on_cpu
from pipeline.runtimes.contract import Kernels, Shape, why_not_importable

LABEL, PACKAGE, READS_ARTIFACTS = "ONNX Runtime on a GPU", "onnxruntime-gpu", True
DEVICE = "cuda"
PROVIDER = "CUDAExecutionProvider"
# TF32 would be another precision than the CPU's; algorithms are chosen once a size, by trying them.
SETTINGS = {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}


def available() -> str | None:
    try:
        version(PACKAGE)
    except PackageNotFoundError:
        return (
            f"the Python package {PACKAGE} is not installed; it takes the place of onnxruntime, in "
            f"an environment of its own: `pip uninstall onnxruntime; pip install {PACKAGE}`"
        )
    if reason := why_not_importable("onnxruntime"):
        return reason
    import onnxruntime
    import torch

    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # CUDA's and cuDNN's libraries as pip installed them
    if PROVIDER not in onnxruntime.get_available_providers():
        return f"this onnxruntime has no {PROVIDER}"
    return None if torch.cuda.is_available() else "there is no GPU that CUDA can use"


def load(model: bytes, threads: int) -> on_cpu.Loaded:
    """Raises RuntimeError where CUDA's libraries do not fit: all of it would run on the CPU."""
    loaded, wanted = on_cpu.load(model, threads, providers()), on_cpu.name_of(providers()[0])
    if wanted not in loaded.session.get_providers():
        raise RuntimeError(f"{wanted} could not be loaded")
    return loaded


def kernels(model: bytes, shape: Shape) -> Kernels:
    return on_cpu.kernels(model, shape, providers())


def providers() -> list[Any]:
    """Operators that CUDA lacks run on the CPU."""
    return [(PROVIDER, SETTINGS), on_cpu.PROVIDER]
