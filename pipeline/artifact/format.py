"""What an artifact is on disk, and reading one: nothing in its folder is trusted."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import hardware, store
from pipeline.artifact import bounds
from pipeline.artifact.bounds import Cost
from pipeline.artifact.coded import CODECS, decoded
from pipeline.errors import Corrupt, UserError, first_line
from pipeline.sweep.settings import COLOUR

if TYPE_CHECKING:
    import onnx
    from google.protobuf.message import Message

FORMAT = 2  # in 1, a manifest has no checksum of its own
UNSEALED = 1
MODEL, MANIFEST = "model.onnx", "manifest.json"
INPUT, OUTPUT = "images", "logits"
MODEL_BYTES = 2**31 - 1  # what a message of protobuf, which ONNX is, can have at most
MANIFEST_BYTES = 16 << 20
DECODED_BYTES, DECODED_RATIO = 128 << 20, 32  # a small file stands for no gigabytes
CHANNELS = (1, 3)
PIXELS = 1 << 24  # of an image (4096x4096): a manifest may ask for any
_NOT_RUN = "is no model that netpress runs"


@dataclass(frozen=True)
class Artifact:
    """A checked artifact: its manifest, and its model as bytes."""

    folder: Path
    manifest: dict
    model: bytes
    cost: Cost

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.manifest["classes"])

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.manifest["shape"])

    @property
    def background(self) -> str:
        """The colour on which transparent parts of images are laid."""
        return self.manifest.get("background", "white")

    @property
    def model_path(self) -> Path:
        return self.folder / _stored_name(self.manifest)

    @property
    def quantized(self) -> bool:
        return self.manifest["kind"] == "int8"

    @cached_property
    def needs_vnni(self) -> bool:
        """Whether its 8-bit products can saturate on x86 without VNNI. Proved from its weights:
        what a manifest says may be missing, or wrong."""
        import onnx

        from pipeline.artifact import saturation

        return saturation.overflows(onnx.load_model_from_string(self.model))

    def unfit(self) -> str | None:
        """Why this machine computes other numbers than those meant; None where it does not."""
        if not (self.quantized and hardware.saturates() and self.needs_vnni):
            return None
        return (
            "its 8-bit products saturate on this CPU, which has no VNNI: classes may be wrong; "
            "expected a CPU with VNNI, or a model made with quantize.reduce_range: auto"
        )

    @cached_property
    def _batches(self) -> set[int]:
        """Numbers of images that were found to need no more than each of them does."""
        return {1, 2}

    def check_batch(self, images: int) -> None:
        """Corrupt where so many images at a time need more than each of them, which may be so for
        one number of images alone."""
        import onnx

        if images in self._batches:
            return
        try:
            model = onnx.load_model_from_string(self.model)
            bounds.check_batch(model, self.shape, self.cost, images)
        except ValueError as error:
            raise Corrupt(f"{self.model_path}: {_NOT_RUN}: {error}") from error
        self._batches.add(images)

    @property
    def runnable_bytes(self) -> int:
        """Of the decoded model and its manifest; ``stored_bytes``: of the files as they are."""
        return len(self.model) + (self.folder / MANIFEST).stat().st_size

    @property
    def stored_bytes(self) -> int:
        return sum(p.stat().st_size for p in self.folder.iterdir())


def softmax(logits: np.ndarray) -> np.ndarray:
    """Logits [N, classes] -> what of a whole each class has, in the same precision."""
    scaled = np.exp(logits - logits.max(1, keepdims=True))
    return scaled / scaled.sum(1, keepdims=True)


def load(folder: Path) -> Artifact:
    """Reads an artifact; Corrupt where its bytes are not those that its manifest names, UserError
    where there is none."""
    manifest = _manifest(folder)
    path = folder / _stored_name(manifest)
    written, runnable = manifest["files"][path.name], _runnable(manifest)
    with _readable(path):
        stored = store.read_checked(path, written["bytes"], written["sha256"])
    if len(stored) * DECODED_RATIO + DECODED_BYTES < runnable["bytes"]:
        raise Corrupt(f"{path}: {len(stored):,} bytes that are to become {runnable['bytes']:,}")
    model = decoded(stored, manifest.get("codec"), runnable["bytes"], str(path))
    if hashlib.sha256(model).hexdigest() != runnable["sha256"]:
        raise Corrupt(f"{path}: what it is decoded to has another SHA-256 than recorded")
    return Artifact(folder, manifest, model, _check_model(path, model, manifest))


def not_an_artifact(folder: Path) -> str:
    return f"{folder}: not an artifact; expected a folder with {MANIFEST} and {MODEL}"


def _stored_name(manifest: dict) -> str:
    """Manifests before codecs name the model alone; KeyError for a codec that is not known."""
    codec = manifest.get("codec")
    return MODEL if codec is None else MODEL + CODECS[codec].suffix


def _runnable(manifest: dict) -> dict:
    return manifest.get("runnable") or manifest["files"][MODEL]


def _manifest(folder: Path) -> dict:
    path = folder / MANIFEST
    if not os.path.lexists(path):
        raise UserError(not_an_artifact(folder))
    with _readable(path):
        content = store.read_regular(path, MANIFEST_BYTES)
    try:
        manifest = json.loads(content)
        version = manifest["format"]
        sealed = version == UNSEALED or store.is_sealed(content)
        valid = version not in (UNSEALED, FORMAT) or (sealed and _well_formed(manifest))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        valid = False
    if not valid:
        raise Corrupt(f"{path}: not a manifest that netpress wrote")
    if version not in (UNSEALED, FORMAT):
        expected = f"this netpress reads {UNSEALED} and {FORMAT}"
        raise UserError(f"{path}: format {str(version)[:20]!r}, {expected}")
    return manifest


def _well_formed(manifest: dict) -> bool:
    """Everything that is read later is there and of its type; whatever it raises means no."""
    shape, classes = manifest["shape"], manifest["classes"]
    written = manifest["files"][_stored_name(manifest)]
    return (
        all(
            isinstance(form["sha256"], str)
            and type(form["bytes"]) is int
            and 0 <= form["bytes"] <= MODEL_BYTES
            for form in (written, _runnable(manifest))
        )
        and isinstance(shape, list)
        and len(shape) == 3
        and all(type(n) is int and n > 0 for n in shape)
        and isinstance(classes, list)
        and len(classes) > 0
        and all(isinstance(c, str) for c in classes)
        and manifest["kind"] in ("int8", "float32")
        and COLOUR.fullmatch(manifest.get("background", "white")) is not None
    )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Corrupt(f"{path}: cannot be read ({error.strerror})") from error


def _check_model(path: Path, data: bytes, manifest: dict) -> Cost:
    """It is an ONNX model whole in itself, takes and gives what the manifest says, and is made of
    what netpress writes; what an image costs in it."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise Corrupt(f"{path}: not an ONNX model ({first_line(error)})") from error
    if any(t.external_data or t.data_location == t.EXTERNAL for t in _tensors(model)):
        raise Corrupt(f"{path}: refers to data outside of itself")
    channels, height, width = manifest["shape"]
    takes = [_described(value) for value in model.graph.input]
    gives = [_described(value) for value in model.graph.output]
    images = (INPUT, onnx.TensorProto.UINT8, None, *manifest["shape"])
    logits = (OUTPUT, onnx.TensorProto.FLOAT, None, len(manifest["classes"]))
    if (takes, gives) != ([images], [logits]):
        raise Corrupt(f"{path}: takes or gives another shape or type than its {MANIFEST} says")
    if channels not in CHANNELS or height * width > PIXELS:
        raise Corrupt(
            f"{path}: takes images of {channels} channels and {height}x{width} pixels, "
            f"expected 1 or 3 channels and at most {PIXELS:,} pixels"
        )
    try:
        return bounds.cost(model, (channels, height, width))
    except ValueError as error:
        raise Corrupt(f"{path}: {_NOT_RUN}: {error}") from error


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Every tensor in a message, however deep: in attributes, subgraphs and functions as well."""
    import onnx

    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(part)


def _described(value: onnx.ValueInfoProto) -> tuple:
    """(name, type, size of each dimension); None for one that is free."""
    tensor = value.type.tensor_type
    sizes = (d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    return (value.name, tensor.elem_type, *sizes)
