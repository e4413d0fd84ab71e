"""What the keys of a sweep file stand for: one frozen model each.

`decides()` of a model is its part in a cell's id: what decides weights, and nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    model_serializer,
    model_validator,
)

from pipeline import registry
from pipeline.sweep import recipes

if TYPE_CHECKING:
    from typing_extensions import Self  # typing's own from Python 3.11 on

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$")]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


RECORDED = "recorded"  # context: what a plug-in added is not known here
# What a sweep can measure on, the first always; and several that one name stands for.
RUNTIMES = (
    "onnxruntime",
    "openvino",
    "pytorch-cuda-bf16",
    "pytorch-cuda-fp16",
    "onnxruntime-gpu",
    "tensorrt",
)
GROUPS = {"pytorch-cuda": ("pytorch-cuda-bf16", "pytorch-cuda-fp16")}


def _runtimes(value: Any, info: ValidationInfo) -> tuple[str, ...]:
    """In the order of RUNTIMES, so that the same request is the same cell."""
    if info.context == RECORDED:
        return tuple(value)
    known = registry.names("runtimes", RUNTIMES)
    meant = [name for given in value for name in GROUPS.get(given, (given,))]
    wrong = [name for name in meant if name not in known]
    if wrong or known[0] not in meant or len(set(meant)) < len(meant):
        others = ", ".join([*known[1:], *GROUPS])
        raise ValueError(f"expected {known[0]}, and what else of {others}")
    return tuple(name for name in known if name in meant)


Runtimes = Annotated[tuple[str, ...], AfterValidator(_runtimes)]


class Frozen(BaseModel):
    """A frozen part of a cell: no unknown keys, no coercion, no infinities."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True
    )

    def decides(self) -> dict[str, Any]:
        """What of it decides a cell's weights, every default filled in, as plain JSON data."""
        return self.model_dump(mode="json")

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Without what is cached: the copy decides something else."""
        copied = super().model_copy(update=update, deep=deep)
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied

    @cached_property
    def canonical(self) -> str:
        """The one spelling of `decides()`; made once, since thousands of cells share a part."""
        return canonical_json(self.decides())

    @cached_property
    def whole(self) -> str:
        """The one spelling of all of it."""
        return canonical_json(self.model_dump(mode="json"))


COLOUR = re.compile("white|black|#[0-9a-f]{6}")


def _colour(value: str) -> str:
    if not COLOUR.fullmatch(value):
        raise ValueError(f"expected white, black or a colour such as '#c0c0c0', got {value[:20]!r}")
    return value


class Dataset(Frozen):
    """A data set: one that netpress knows by name, or a folder of images.

    `folder` has the ImageFolder layout, train/CLASS/* and test/CLASS/*; `size`: images are resized
    to size x size pixels; `flip`: mirror images in training (None: as the data set's kind says).
    Of folders of images only: `channels`: 1 reads all as grey, 3 as colour (None: as most of them
    are); `background`: what transparent parts are laid on; `on_error`: what becomes of a run with
    an image that cannot be read.
    """

    name: Name
    folder: str | None = None
    size: int | None = Field(None, ge=4, le=1024)
    flip: bool | None = None
    channels: Literal[1, 3] | None = None
    background: Annotated[str, AfterValidator(_colour)] = "white"
    on_error: Literal["refuse", "skip"] = "refuse"

    def decides(self) -> dict[str, Any]:
        # Where the images lie differs between a laptop and a cluster; the result does not.
        return {"name": self.name, "size": self.size, "flip": self.flip, **self.of_images}

    @property
    def of_images(self) -> dict[str, Any]:
        """What differs from the defaults of the settings that only folders of images have. They
        are younger than many results, whose ids and cell.json lack them."""
        fields = type(self).model_fields
        return {
            name: value
            for name in OF_IMAGES
            if (value := getattr(self, name)) != fields[name].default
        }

    @model_serializer(mode="wrap")
    def _dumped(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        kept = self.of_images
        return {k: v for k, v in dump(self).items() if k not in OF_IMAGES or k in kept}


OF_IMAGES = ("channels", "background", "on_error")


class Pixels(Frozen):
    """A pixel p (0..255) enters an own network as (p - zero_point) * scale."""

    zero_point: int = Field(0, ge=0, le=255)
    scale: float = Field(1 / 255, gt=0, le=1000)


class Own(Frozen):
    """Where a user's own network comes from: `function` of a file (`source` is where it lay) or of
    a module, called with `arguments`. `sha256`: of the file; `version`: of the distribution that
    the module is of. `weights`: trained ones, with their own SHA-256; `pixels`: what they expect,
    where that is not the data set's own range."""

    source: str
    function: str
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    version: str | None = None
    arguments: dict[str, Any] = {}
    weights: str | None = None
    weights_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    pixels: Pixels | None = None

    @property
    def label(self) -> str:
        return f"{self.source.rpartition('/')[2]}:{self.function}"

    def decides(self) -> dict[str, Any]:
        """Where files lie, and what they are called, decides nothing."""
        data = self.model_dump(mode="json", exclude={"weights"}, exclude_none=True)
        if self.sha256 is not None:
            del data["source"]
        return data


class Start(Frozen):
    """Weights that a base starts from in place of fresh ones: those of another base (`cell` is its
    id), or of a file (`source` is where it lay, `sha256` of its bytes). `label`: a word for them.
    `source` of a cell is how the sweep file names it."""

    source: str
    label: Name
    cell: str | None = Field(None, pattern="^[0-9a-f]{16}$")
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _one(self) -> Start:
        if self.cell is not None and self.sha256 is not None:
            raise ValueError("starts from a cell and from a file; expected one of them")
        return self

    def decides(self) -> dict[str, Any]:
        """What the weights are, whatever they are called."""
        return {"sha256": self.sha256} if self.cell is None else {"cell": self.cell}


class Model(Frozen):
    """A network by name; `width` multiplies its channels. `own`: of a user's own; `start`: what
    its bases start from, where that is no fresh weights."""

    name: Name
    width: float = Field(1.0, gt=0, le=4)
    own: Own | None = Field(None, exclude_if=lambda value: value is None)
    start: Start | None = Field(None, exclude_if=lambda value: value is None)

    def decides(self) -> dict[str, Any]:
        own = {} if self.own is None else {"own": self.own.decides()}
        start = {} if self.start is None else {"start": self.start.decides()}
        return {"name": self.name, "width": self.width, **own, **start}

    @property
    def label(self) -> str:
        """`vgg16_bn`; `vgg16_bn-w0.25` where the width is not 1, `vgg16_bn-from-mnist` where it
        starts from other weights."""
        return self.anew if self.start is None else f"{self.anew}-from-{self.start.label}"

    @property
    def anew(self) -> str:
        """The label of the same network from fresh weights."""
        return self.name if self.width == 1 else f"{self.name}-w{self.width}"

    @property
    def names(self) -> frozenset[str]:
        """What an entry of `overrides` or `exclude` may call it: `vgg16_bn` stands for each of its
        widths, `vgg16_bn-w1` for the full one alone, whose label has no width."""
        full = {f"{self.name}-w1"} if self.label == self.name else set()
        return frozenset({self.name, self.label, *full})


def young(default: Any, **bounds: Any) -> Any:
    """A setting that is younger than many results: at its default no id and no cell.json has it."""
    return Field(default, exclude_if=lambda value: value == default, **bounds)


class Recipe(Frozen):
    """How networks are trained in this sweep, the base and (unless a stage differs) all after it.

    `warmup` and `holdout` are fractions: of all steps, and of the training set (held out,
    stratified, for every choice). `crop` is pixels of padding, 0: no cropping. `train_images` and
    `test_images` take a stratified sliver of the sets, for rehearsals and tests.

    `flips`: each image is mirrored by chance, or (`alternating`) in every other epoch. `cutout`:
    side in pixels of a square that is blanked. `resized_crop`: in place of `crop`, boxes of this
    least part of an image's area to all of it, enlarged to its size; 0: none. The others are for
    trainings from fresh weights, see `continued`. `whitening`: the first convolution starts as
    whitening filters, and stays so for this fraction of all steps (0: neither). `dirac`: other
    convolutions start by handing on what they read. `bias_rate`: learning rate of batch
    normalization's biases, a multiple of that of all. `lookahead`: every few steps the network goes
    back to a running average of its weights. `mixup`: where labels alone are learned, images are
    blended, in parts drawn from Beta(mixup, mixup).
    """

    ALSO: ClassVar[tuple[str, ...]] = ("recipe",)  # keys that stand for others

    epochs: int = Field(60, ge=1, le=100_000)
    batch_size: int = Field(128, ge=1, le=65_536)
    learning_rate: float = Field(0.1, gt=0, le=100)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0, le=1)
    warmup: float = Field(0.15, ge=0, lt=1)
    schedule: Literal["linear", "cosine"] = "linear"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    crop: int = Field(4, ge=0, le=64)
    flip: bool | None = None
    holdout: float = Field(0.1, gt=0, lt=1)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    train_images: int | None = Field(None, ge=1)
    test_images: int | None = Field(None, ge=1)
    flips: Literal["random", "alternating"] = young("random")
    cutout: int = young(0, ge=0, le=1024)
    resized_crop: float = young(0.0, ge=0, le=1)
    whitening: float = young(0.0, ge=0, le=1)
    dirac: bool = young(False)
    bias_rate: float = young(1.0, gt=0, le=1000)
    lookahead: bool = young(False)
    mixup: float = young(0.0, ge=0, le=100)

    _named = model_validator(mode="before")(recipes.expanded)

    def decides(self) -> dict[str, Any]:
        """Without `test_images`: no weight depends on the test set."""
        return self.model_dump(mode="json", exclude={"test_images"})

    def continued(self) -> Recipe:
        """For a training that goes on from weights that are there."""
        return self.model_copy(update=_OF_FRESH_WEIGHTS)


_OF_FRESH_WEIGHTS = {
    name: Recipe.model_fields[name].default
    for name in ("whitening", "dirac", "bias_rate", "lookahead", "mixup")
}


SIMULATED_S = 30.0


class Measure(Frozen):
    """Each latency series takes at most `repeats` rounds and at most `seconds`. `runtimes`: what
    runs the artifact; the first is the one that a report's columns are of. `simulated_seconds`: for
    all that is run in PyTorch, the reference. `threads`: what "all threads" means; None: as many as
    the cores that were requested. No part of a cell's id: the record of a measurement has them
    (`pipeline.done`)."""

    repeats: int = Field(100, ge=1, le=100_000)
    seconds: float = Field(3.0, gt=0, le=3600)
    runtimes: Runtimes = ("onnxruntime",)
    simulated_seconds: float = Field(SIMULATED_S, gt=0, le=3600)
    threads: int | None = Field(None, ge=1, le=4096)

    def decides(self) -> dict[str, Any]:
        """Without the defaults of what is younger than many results."""
        data = self.model_dump(mode="json")
        if len(self.runtimes) == 1:
            del data["runtimes"]
        if self.threads is None:
            del data["threads"]
        if self.simulated_seconds == SIMULATED_S:
            del data["simulated_seconds"]
        return data


class Pack(Frozen):
    """On a cluster, short cells share a job until their estimate fills `minutes`; 0: none does."""

    minutes: float = Field(ge=0, le=10_080)


class Plugin(Frozen):
    """What adds to what netpress has: a file (`source` is where it lay, `sha256` of its bytes), or
    an installed distribution (`source` is its name) of this `version`."""

    source: str
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    version: str | None = None

    def decides(self) -> dict[str, Any]:
        """Where a file lies, and what it is called, decides nothing."""
        if self.sha256 is not None:
            return {"sha256": self.sha256}
        return {"distribution": self.source, "version": self.version}

    @property
    def label(self) -> str:
        return self.source.rpartition("/")[2] if self.sha256 else f"{self.source} {self.version}"


Plugins = tuple[Plugin, ...]


def strictly(model: type[BaseModel], data: Any, context: Any = None) -> Any:
    """`data` as this model, without coercion; pydantic's ValidationError where it is not."""
    return model.model_validate_json(json.dumps(data), strict=True, context=context)


def canonical_json(data: Any) -> str:
    """The one JSON text of `data`: sorted keys, no blanks, ASCII."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
