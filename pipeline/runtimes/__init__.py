"""What runs a model: one file a runtime, and the one place that makes sessions.

A session takes uint8 images [N, C, H, W] and gives float32 logits [N, classes]; whatever a
library makes of a stranger's model is one sentence. The libraries are loaded when they are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
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
    "Kernels",
    "Session",
    "get",
    "kernels",
    "logits",
    "of_artifacts",
    "packages",
    "reference",
    "session",
    "versions",
]

RUNTIMES = {
    "onnxruntime": "pipeline.runtimes.onnxruntime",
    "openvino": "pipeline.runtimes.openvino",
    "pytorch": "pipeline.runtimes.pytorch",
    "pytorch-cuda-bf16": "pipeline.runtimes.pytorch_cuda:BF16",
    "pytorch-cuda-fp16": "pipeline.runtimes.pytorch_cuda:FP16",
}
DEFAULT = "onnxruntime"
REFERENCE = "pytorch"
BATCH = 64


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
            f"runtime {name}: runs networks in training, not artifacts; expected one of: {reading}"
        )
    return runtime


def session(artifact: Artifact, threads: int | None = None, runtime: str = DEFAULT) -> Session:
    """The artifact, ready to run; `threads` None: one a core. Raises Corrupt where it cannot be
    loaded; so does `run` where it cannot be run, or does not give what its manifest says."""
    chosen, where = of_artifacts(runtime), str(artifact.model_path)
    inner = _loaded(chosen, artifact.model, threads, where)
    return _Checked(inner, chosen.LABEL, where, len(artifact.classes), artifact.cost.images)


def reference(state: ModelState, threads: int | None = None) -> Session:
    """The network itself in float32, fake quantization included; raises as `session`."""
    chosen, where = get(REFERENCE), state.spec.model
    inner = _loaded(chosen, state, threads, where)
    return _Checked(inner, chosen.LABEL, where, state.spec.classes)


def kernels(artifact: Artifact, runtime: str = DEFAULT) -> Kernels:
    """What the runtime executes for one image; raises as `session`."""
    chosen = of_artifacts(runtime)
    try:
        return chosen.kernels(artifact.model, artifact.shape)
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
    return {package: version(package) for package in (get(name).PACKAGE for name in names)}


def packages() -> list[str]:
    """The packages of all runtimes that this machine has; none is imported for that."""
    every = (_module(name).PACKAGE for name in names())
    return [package for package in every if find_spec(package) is not None]


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
class _Checked:
    """A session whose errors are sentences, and whose output is what it should be."""

    inner: Session
    label: str
    where: str
    classes: int
    images: int = BATCH  # at a time, as memory allows

    def run(self, images: np.ndarray) -> np.ndarray:
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
    return Corrupt(f"{where}: {label} cannot {what} it ({_reason(error)})")


# OpenVINO begins with lines about where in its source code it was.
_WHERE = ("Exception from ", "Check '", "FrontEnd API failed", "Model wasn't fully", "Summary:")


def _reason(error: Exception) -> str:
    """The first line that says what is wrong."""
    lines = [line.strip("- ") for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(_WHERE)] or lines
    return (told or [type(error).__name__])[0][:200]
