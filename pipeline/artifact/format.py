"""What an artifact is on disk, and reading one: nothing in its folder is trusted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import Corrupt, UserError

if TYPE_CHECKING:
    import onnx

FORMAT = 1
MODEL, MANIFEST = "model.onnx", "manifest.json"
INPUT, OUTPUT = "images", "logits"


@dataclass(frozen=True)
class Artifact:
    """A checked artifact: its manifest, and its model as bytes."""

    folder: Path
    manifest: dict
    model: bytes

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.manifest["classes"])

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.manifest["shape"])

    @property
    def quantized(self) -> bool:
        return self.manifest["kind"] == "int8"

    @property
    def runnable_bytes(self) -> int:
        """Bytes of the files that run; ``stored_bytes`` differs where they are stored encoded."""
        return len(self.model) + (self.folder / MANIFEST).stat().st_size

    @property
    def stored_bytes(self) -> int:
        return sum(p.stat().st_size for p in self.folder.iterdir())

    def session(self, threads: int | None = None, profile: Path | None = None):
        """An ONNX Runtime session on the CPU; ``threads`` None: one a core."""
        import onnxruntime

        from pipeline import hardware

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or hardware.cores()
        options.inter_op_num_threads = 1
        # Threads that spin after a run would take the core from the model that is timed next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3
        if profile is not None:
            # Weights that a kernel has packed for itself would be missing in the profile.
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        try:
            return onnxruntime.InferenceSession(
                self.model, options, providers=["CPUExecutionProvider"]
            )
        except MemoryError:
            raise
        except Exception as error:  # ONNX Runtime's errors have no base of their own
            raise Corrupt(
                f"{self.folder / MODEL}: ONNX Runtime cannot load it ({_first_line(error)})"
            ) from error


def load(folder: Path) -> Artifact:
    """Reads an artifact; Corrupt where its bytes are not those that its manifest names, UserError
    where there is none."""
    manifest = _manifest(folder)
    model = _read(folder / MODEL)
    if hashlib.sha256(model).hexdigest() != manifest["files"][MODEL]["sha256"]:
        raise Corrupt(f"{folder / MODEL}: changed since it was written (its SHA-256 differs)")
    _check_model(folder / MODEL, model, manifest)
    return Artifact(folder, manifest, model)


def _manifest(folder: Path) -> dict:
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder}: not an artifact; expected a folder with {MANIFEST} and {MODEL}")
    try:
        manifest = json.loads(_read(path))
        version = manifest["format"]
        valid = version != FORMAT or _well_formed(manifest)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        valid = False
    if not valid:
        raise Corrupt(f"{path}: not a manifest that netpress wrote")
    if version != FORMAT:
        raise UserError(f"{path}: format {str(version)[:20]}, this netpress reads {FORMAT}")
    return manifest


def _well_formed(manifest: dict) -> bool:
    """Everything that is read later is there and of its type; whatever it raises means no."""
    shape, classes = manifest["shape"], manifest["classes"]
    return (
        isinstance(manifest["files"][MODEL]["sha256"], str)
        and isinstance(shape, list)
        and len(shape) == 3
        and all(type(n) is int and n > 0 for n in shape)
        and isinstance(classes, list)
        and all(isinstance(c, str) for c in classes)
        and manifest["kind"] in ("int8", "float32")
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Corrupt(f"{path}: cannot be read ({error.strerror})") from error


def _check_model(path: Path, data: bytes, manifest: dict) -> None:
    """It is an ONNX model whole in itself, and takes and gives what the manifest says."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise Corrupt(f"{path}: not an ONNX model ({_first_line(error)})") from error
    if any(t.external_data or t.data_location == t.EXTERNAL for t in _tensors(model)):
        raise Corrupt(f"{path}: refers to data outside of itself")
    takes = [_dimensions(value) for value in model.graph.input]
    gives = [_dimensions(value) for value in model.graph.output]
    expected = (INPUT, None, *manifest["shape"]), (OUTPUT, None, len(manifest["classes"]))
    if (takes, gives) != ([expected[0]], [expected[1]]):
        raise Corrupt(f"{path}: takes or gives another shape than its {MANIFEST} says")


def _tensors(message) -> Iterator[onnx.TensorProto]:
    """Every tensor in a message, however deep: in attributes, subgraphs and functions as well."""
    import onnx

    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(part)


def _dimensions(value: onnx.ValueInfoProto) -> tuple:
    """(name, size of each dimension); None for one that is free."""
    sizes = (
        d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim
    )
    return (value.name, *sizes)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
