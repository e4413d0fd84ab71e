"""What runs a model: one file a runtime, and the one place that makes sessions.

A session takes uint8 images [N, C, H, W] and gives float32 logits [N, classes]; whatever a
library makes of a stranger's model is one sentence. The libraries are loaded when they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from pipeline import hardware, registry
from pipeline.errors import Corrupt, UserError
from pipeline.runtimes.contract import Kernels, Runtime, Session
from pipeline.strict_yaml import nearest, shown

if TYPE_CHECKING:
    import numpy as np

    from pipeline.artifact import Artifact
    from pipeline.models.network import ModelState

__all__ = [
    "DEFAULT",
    "REFERENCE",
    "RUNTIMES",
    "Checked",
    "Kernels",
    "Session",
    "device",
    "get",
    "kernels",
    "logits",
    "of_artifacts",
    "on_cpu",
    "on_gpu",
    "packages",
    "reason",
    "reference",
    "require",
    "session",
    "versions",
]

RUNTIMES = {
    "onnxruntime": "pipeline.runtimes.onnxruntime",
    "openvino": "pipeline.runtimes.openvino",
    "pytorch": "pipeline.runtimes.pytorch",
    "pytorch-cuda-bf16": "pipeline.runtimes.pytorch_cuda:BF16",
    "pytorch-cuda-fp16": "pipeline.runtimes.pytorch_cuda:FP16",
    "onnxruntime-gpu": "pipeline.runtimes.onnxruntime_gpu",
    "tensorrt": "pipeline.runtimes.tensorrt",
}
DEFAULT = "onnxruntime"
REFERENCE = "pytorch"
BATCH = 64
CPU = "cpu"


def get(name: str) -> Runtime:
    """The runtime of this name; UserError where there is none, or where this machine lacks it."""
    if name not in names():
        raise UserError(f"unknown runtime {shown(name)}, {nearest(name, names())}")
    runtime = _module(name)
    if reason := runtime.available():
        raise UserError(f"runtime {name}: {reason}")
    return runtime


def of_artifacts(name: str) -> Runtime:
    """As `get`, for one that reads artifacts."""
    runtime = get(name)
    if not runtime.READS_ARTIFACTS:
        reading = ", ".join(n for n in names() if _module(n).READS_ARTIFACTS)
        raise UserError(
            f"runtime {name}: runs networks of PyTorch, not artifacts; expected one of: {reading}"
        )
    return runtime


def device(name: str) -> str:
    """What it computes on: "cpu", or "cuda"."""
    return getattr(_module(name), "DEVICE", CPU)


def on_cpu(names: Iterable[str]) -> list[str]:
    return [name for name in names if device(name) == CPU]


def on_gpu(names: Iterable[str]) -> list[str]:
    return [name for name in names if device(name) != CPU]


def require(names: Iterable[str]) -> None:
    """Raises UserError where this machine lacks a runtime of the CPU: those of a GPU are measured
    where there is one."""
    for name in on_cpu(names):
        of_artifacts(name)


def session(
    artifact: Artifact,
    threads: int | None = None,
    runtime: str = DEFAULT,
    network: ModelState | None = None,
) -> Checked:
    """The artifact, ready to run; `threads` None: one a core. `network`: what it was made from, for
    a runtime that reads no artifacts. Raises Corrupt where it cannot be loaded; so does `run` where
    it cannot be run, or does not give what its manifest says."""
    chosen, where = get(runtime), str(artifact.model_path)
    model = _model(runtime, artifact, network)
    inner = _loaded(chosen, model, threads, where)
    classes, batches = len(artifact.classes), artifact.check_batch
    return Checked(inner, chosen.LABEL, where, classes, artifact.cost.images, batches)


def _model(runtime: str, artifact: Artifact, network: ModelState | None) -> object:
    """What this runtime reads."""
    if network is None or get(runtime).READS_ARTIFACTS:
        of_artifacts(runtime)
        return artifact.model
    return network


def reference(state: ModelState, threads: int | None = None) -> Session:
    """The network itself in float32, fake quantization included; raises as `session`."""
    chosen, where = get(REFERENCE), state.spec.model
    inner = _loaded(chosen, state, threads, where)
    return Checked(inner, chosen.LABEL, where, state.spec.classes)


def kernels(
    artifact: Artifact, runtime: str = DEFAULT, network: ModelState | None = None
) -> Kernels:
    """What the runtime executes for one image; raises as `session`."""
    chosen, model = get(runtime), _model(runtime, artifact, network)
    try:
        return chosen.kernels(model, artifact.shape)
    except MemoryError:
        raise
    except Exception as error:
        raise _failure(artifact.model_path, chosen.LABEL, "run", error) from error


def logits(session: Session, images: np.ndarray, batch: int = BATCH) -> Iterator[np.ndarray]:
    """uint8 [N, C, H, W] -> float32 logits, a batch at a time, or less where these are large."""
    batch = min(batch, getattr(session, "images", batch))
    for start in range(0, len(images), batch):
        yield session.run(images[start : start + batch])


def versions(names: Iterable[str]) -> dict[str, str]:
    """Package of each runtime -> its version here."""
    return {package: _version(package) for package in (get(name).PACKAGE for name in names)}


def _version(package: str) -> str:
    """Of an importable package; the module of another distribution, such as that of
    onnxruntime-gpu, has its own."""
    try:
        return version(package)
    except PackageNotFoundError:
        return str(getattr(import_module(package), "__version__", "unknown"))


def packages() -> list[str]:
    """The packages of all runtimes that this machine has; none is imported for that."""
    return [package for package in _packages() if _installed(package)]


def _packages() -> list[str]:
    return list(dict.fromkeys(_module(name).PACKAGE for name in names()))


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _module(name: str) -> Runtime:
    return registry.resolved(registry.row("runtimes", RUNTIMES, name))


def names() -> list[str]:
    """All that there are: built-in, and of the plug-ins of this sweep."""
    return registry.names("runtimes", RUNTIMES)


def _loaded(runtime: Runtime, model: object, threads: int | None, where: str) -> Session:
    try:
        return runtime.load(model, threads or hardware.cores())
    except MemoryError:
        raise
    except Exception as error:  # these libraries have no error that all others are of
        raise _failure(where, runtime.LABEL, "load", error) from error


@dataclass(frozen=True)
class Checked:
    """A session whose errors are sentences, and whose output is what it should be."""

    inner: Session
    label: str
    where: str
    classes: int
    images: int = BATCH  # at a time, as memory allows
    check_batch: Callable[[int], None] = lambda _: None

    def run(self, images: np.ndarray) -> np.ndarray:
        self.check_batch(len(images))
        try:
            scores = self.inner.run(images)
        except MemoryError:
            raise
        except Exception as error:
            raise _failure(self.where, self.label, "run", error) from error
        kind, shape = getattr(scores, "dtype", type(scores)), getattr(scores, "shape", ())
        if (kind, shape) != ("float32", (len(images), self.classes)):
            raise Corrupt(
                f"{self.where}: gives {list(shape)} of {kind} for {len(images)} images, "
                f"expected {[len(images), self.classes]} of float32"
            )
        return scores


def _failure(where: object, label: str, what: str, error: Exception) -> Corrupt:
    return Corrupt(f"{where}: {label} cannot {what} it ({reason(error)})")


# OpenVINO begins with lines about where in its source code it was.
_WHERE = ("Exception from ", "Check '", "FrontEnd API failed", "Model wasn't fully", "Summary:")


def reason(error: BaseException) -> str:
    """The first line that says what is wrong."""
    lines = [line.strip("- ") for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(_WHERE)] or lines
    return (telling or [type(error).__name__])[0][:200]
