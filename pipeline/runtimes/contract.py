"""What a runtime gives: a file of this folder each, with the functions of `Runtime`.

N images, C channels, H x W pixels.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np

Shape = tuple[int, int, int]  # C, H, W


class Kernels(NamedTuple):
    """Convolutions and matrix products of one run: how many on integers, and their part of all
    multiply-accumulates (0..1)."""

    integer: int
    total: int
    integer_share: float


class Session(Protocol):
    """A model that is ready to run."""

    def run(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, C, H, W] -> logits float32 [N, classes]."""


class Runtime(Protocol):
    """A module of this folder. What `load`, `run` and `kernels` raise is any error of its library:
    `pipeline.runtimes` makes one sentence of it."""

    LABEL: str  # its name in sentences
    PACKAGE: str  # the distribution that it is installed from
    READS_ARTIFACTS: bool  # `model` is the bytes of an ONNX file; else a ModelState
    # May be missing: a module without DEVICE is for the CPU.
    DEVICE: str  # "cpu"; "cuda" is timed in larger batches, and skipped on a machine without it

    def available(self) -> str | None:
        """Why it cannot be used here; None where it can."""

    def load(self, model: Any, threads: int) -> Session:
        """On its device; with this many threads, where it computes on the CPU."""

    def kernels(self, model: Any, shape: Shape) -> Kernels:
        """What is executed for one image."""


def share(products: list[tuple[bool, int]]) -> Kernels:
    """Of (whether it computes on integers, its multiply-accumulates) of every product."""
    integer = [macs for on_integers, macs in products if on_integers]
    whole = sum(macs for _, macs in products)
    return Kernels(len(integer), len(products), sum(integer) / max(1, whole))


def why_not_importable(package: str) -> str | None:
    """None where it can be imported: an installation can also be broken."""
    try:
        import_module(package)
    except ImportError as error:
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else f"fails: {error}"
        return f"the Python package {package} {reason}; `pip install {package}` brings it"
    return None
