"""What a result may hold, checked once where it is read: whoever uses it checks no type again.

A report is passed on, and a checksum is no signature. What is too large, of another type, or no
text raises ValueError here, which `results.open_hdf5` makes the one sentence of. JSON is parsed by
pydantic, which refuses lone surrogates, and infinities where a number is expected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

JSON_BYTES = 1 << 27
PARSED_BYTES = 1 << 29
MOST_ITEMS = 20_000_000  # images
MOST_SAMPLES = 200_000  # of a latency series: twice what a sweep can set
MOST_EPOCHS = 1_000_000
MOST_NAMES = 10_000  # of what is measured in one result
LONGEST_NAME = 200
LONGEST_TEXT = 10_000

Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
Id = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Amount = Annotated[float, Field(ge=0, le=1e18)]
Positive = Annotated[float, Field(gt=0, le=1e18)]
FileName = Annotated[str, Field(min_length=1, max_length=1000)]
Machine = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Typed(BaseModel):
    """What else there is may be of another version, and is not read."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore", defer_build=True)


class _Hardware(Typed):
    cpu: Text | None = None
    flags: list[Text] | Text | None = None
    cores: Amount | None = None
    gpu: Text | None = None
    gpu_driver: Text | None = None


class _Needs(Typed):
    cpu: list[Text] | None = None


class _Facts(Typed):
    """Of a result, as far as anything is made of them."""

    hardware: _Hardware | None = None
    needs: _Needs | None = None
    versions: dict[str, Text] | None = None
    commit: Text | None = None
    snapshot: Text | None = None
    changed_meanwhile: list[Text] | None = None
    image_notes: list[Text] | None = None
    device: Text | None = None
    precision: Text | None = None
    started: Text | None = None
    dataset_fingerprint: Text | None = None
    seconds: Amount | None = None
    peak_memory_bytes: Amount | None = None
    machine: Machine | None = None
    runtimes: list[Text] | None = None
    threads: Amount | None = None
    measured_at: Text | None = None
    phases: dict[Text, Amount] | None = None
    accuracy_of: Text | None = None


class _Requested(Typed):
    cores: Positive
    memory_bytes: Positive
    gpus: Amount | None = None
    charge: Amount | None = None
    minutes: Amount | None = None


class _Used(Typed):
    memory_bytes: Amount
    cores: Amount
    gpu_memory_bytes: Amount
    gpu_busy: Amount | None = None


class _All(Typed):
    attempts: Amount | None = None
    wall_s: Amount | None = None
    gpu_s: Amount | None = None
    cpu_s: Amount | None = None
    training_s: Amount | None = None
    training_gpu_s: Amount | None = None
    charge: Amount | None = None


class _Usage(Typed):
    """The record of a cell's job; see `pipeline.usage`."""

    job: Annotated[Text, Field(min_length=1)]
    wall_s: Amount | None = None
    training_s: Amount | None = None
    request: _Requested | None = None
    asked: _Requested | None = None  # earlier versions' name
    used: _Used
    all: _All | None = None

    @model_validator(mode="after")
    def _has_a_request(self) -> _Usage:
        if (self.request if "request" in self.model_fields_set else self.asked) is None:
            raise ValueError("it does not say what was requested")
        return self


class _Gap(Typed):
    cell: dict[str, Any]
    reason: Text


class File(Typed):
    bytes: int = Field(ge=0, lt=2**40)
    sha256: Sha256


_KINDS: dict[str, Any] = {
    "facts": _Facts,
    "usage": dict[Id, _Usage],
    "gaps": list[_Gap],
    "order": list[Id],
    "tuned": dict[Text, Text],
    "artifact": dict[FileName, File],
    "cell": dict[str, Any],
}


@cache
def _adapter(kind: str) -> TypeAdapter[Any]:
    return TypeAdapter(_KINDS[kind])


def parsed(kind: str, text: str) -> Any:
    """The JSON value in `text`, a `kind` of those above; ValueError for anything else."""
    import json

    check_json(kind, text)
    try:
        _adapter(kind).validate_json(text)
    except ValidationError as error:
        raise ValueError(f"{kind}: {problem(error)}") from error
    return json.loads(text)


def problem(error: ValidationError) -> str:
    """The first of pydantic's errors in one line, with where it is and without the value."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}{': ' if where else ''}{' '.join(first['msg'].split())}"


def check_json(kind: str, text: str) -> None:
    """Raises ValueError where parsing it would take more memory than there has to be."""
    needed = 64 * text.count("[") + 240 * text.count("{") + 80 * text.count(",")
    if len(text) > JSON_BYTES or needed > PARSED_BYTES:
        raise ValueError(f"{kind} has more JSON in it than can be read ({len(text)} bytes)")


# --- arrays ----------------------------------------------------------------------------------

# Of arrays whose numbers are used as they are: the kinds of dtype, bytes of a number, dimensions,
# and the greatest length.
_CLASSES = ("u", 2, 1, MOST_ITEMS)
_ARRAYS: dict[str, tuple[str, int, int, int]] = {
    "predictions": _CLASSES,
    "base_predictions": _CLASSES,
    "labels": _CLASSES,
    "channels": ("iu", 8, 1, MOST_NAMES),
    "differing/pixels": ("u", 1, 4, MOST_NAMES),
    "differing/index": ("iu", 8, 1, MOST_NAMES),
    "differing/own": _CLASSES,
    "differing/base": _CLASSES,
    "differing/label": _CLASSES,
    "differing/distance": ("f", 8, 1, MOST_NAMES),
    "similarity/cka": ("f", 8, 1, MOST_NAMES),
    "similarity/svcca": ("f", 8, 1, MOST_NAMES),
    "similarity/cka_pairs": ("f", 8, 2, MOST_NAMES),
}
_SERIES = ("f", 8, 1, MOST_SAMPLES)


def check_measured(measured: Mapping[str, Any]) -> None:
    """What is measured in a result; raises ValueError."""
    if len(measured) > MOST_NAMES:
        raise ValueError(f"{len(measured)} measured values, expected at most {MOST_NAMES}")
    for name, value in measured.items():
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise ValueError(f"{name[:LONGEST_NAME]!r} is not the name of a measured value")
        wanted = _SERIES if name.startswith("latency/") else _ARRAYS.get(name)
        if wanted is not None:
            _check_array(name, value, *wanted)
        elif isinstance(value, str) and len(value) > LONGEST_TEXT:
            raise ValueError(f"{name} is a text of {len(value)} characters")


def _check_array(
    name: str, array: Any, kinds: str, item_bytes: int, dimensions: int, most: int
) -> None:
    kind = getattr(array, "dtype", None)
    shape: tuple[int, ...] = getattr(array, "shape", ())
    if kind is None or kind.kind not in kinds or kind.itemsize > item_bytes:
        raise ValueError(f"{name} is of the type {kind or type(array).__name__}")
    if len(shape) != dimensions or shape[0] > most:
        raise ValueError(f"{name} is an array of shape {list(shape)}")


def name(text: bytes) -> str:
    """The name of a measurement; ValueError for anything else."""
    if not re.fullmatch(rb"[A-Za-z0-9][A-Za-z0-9._-]{0,73}", text):
        raise ValueError(f"{text[:LONGEST_NAME]!r} is not the name of a measurement")
    return text.decode()


def number(text: bytes) -> int:
    """N of `MACHINE-N`; ValueError for the name of anything else."""
    digits = name(text).rpartition("-")[2]
    if not digits.isascii() or not digits.isdecimal():
        raise ValueError(f"{text.decode()!r} is not the name of a measurement")
    return int(digits)


def column(stage: str, name: str, value: Any, length: int | None) -> list[float]:
    """A column of a history: as many numbers as its others have; ValueError for anything else."""
    shape: tuple[int, ...] = getattr(value, "shape", ())
    if len(shape) != 1 or value.dtype.kind != "f" or shape[0] > MOST_EPOCHS:
        raise ValueError(f"the column {name} of stage {stage} is not a list of numbers")
    if length is not None and shape[0] != length:
        raise ValueError(f"the columns of stage {stage} differ in length")
    return value.tolist()
