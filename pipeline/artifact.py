"""The deployable model: written from a trained network, loaded and run without one.

A folder with ``model.onnx`` (uint8 images [N, C, H, W] as they come from a file, in; float32 logits
[N, classes], out; normalization is inside) and ``manifest.json`` (class names, shape, SHA-256).
It runs on plain ONNX Runtime.

A quantized model is written as the float network with ONNX Runtime's own quantizer around it: QDQ,
weights int8 a scale a filter, activations uint8, and the scales that training ended with. Since
normalization is one zero point and one scale, the image itself is the first quantized tensor.
Large convolutions over small maps become matrix products; see ``im2col.py``.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import store
from pipeline.errors import Corrupt, UserError

if TYPE_CHECKING:
    import onnx

    from pipeline.models.network import ModelState

FORMAT = 1
MODEL, MANIFEST = "model.onnx", "manifest.json"
INPUT, OUTPUT = "images", "logits"
OPSET = 20
# These hand on the numbers that they get, so what leaves them has the scale of what entered.
PASSING = {"MaxPool", "Reshape", "Flatten", "Squeeze", "Identity"}


# --- writing -------------------------------------------------------------------------------------


def write(
    state: ModelState, folder: Path, facts: dict, calibration: np.ndarray, classes: tuple[str, ...]
) -> None:
    """Publishes the artifact of ``state`` as ``folder``.

    ``facts`` go into the manifest as they are; on ``calibration`` (uint8 [n, C, H, W], training
    images) ONNX Runtime finds ranges for those tensors that training gave no scale of their own.
    """
    model = _quantized(state, calibration) if state.spec.quantization else _float(state)
    data = model.SerializeToString()
    manifest = {
        "format": FORMAT,
        "kind": "int8" if state.spec.quantization else "float32",
        "classes": list(classes),
        "shape": list(state.spec.shape),
        "network": state.spec.to_json(),
        "files": {MODEL: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}},
        **facts,
    }

    def fill(new: Path) -> None:
        (new / MODEL).write_bytes(data)
        (new / MANIFEST).write_bytes(store.json_bytes(manifest))

    store.publish_folder(folder, fill)


def _float(state: ModelState) -> onnx.ModelProto:
    from pipeline.models.network import fold

    return _exported(fold(state))


def _exported(state: ModelState) -> onnx.ModelProto:
    """The float graph, without the file names and stack traces that the exporter leaves in it."""
    import copy

    import torch

    network = copy.deepcopy(state.network).cpu().float().eval()
    network = network.to(memory_format=torch.contiguous_format)
    images = torch.zeros((2, *state.spec.shape), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        program = torch.onnx.export(
            network,
            (images,),
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    model = program.model_proto
    _anonymous(model)
    return model


def _anonymous(model: onnx.ModelProto) -> None:
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        item.doc_string = ""
        del item.metadata_props[:]
    for tensor in graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]


def _quantized(state: ModelState, calibration: np.ndarray) -> onnx.ModelProto:
    import onnx
    from onnxruntime import quantization as ort

    from pipeline import im2col

    plain = _exported(_without_simulation(state))
    # The exporter has folded constants and inferred shapes already, which is what ONNX Runtime's
    # pre-processing would do; this is its own sign that it need not warn.
    plain.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    with tempfile.TemporaryDirectory() as folder:  # ONNX Runtime's quantizer wants files
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(plain, source)
        ort.quantize_static(
            source,
            target,
            _Reader(calibration),
            quant_format=ort.QuantFormat.QDQ,
            op_types_to_quantize=[
                "Conv",
                "Gemm",
                "MatMul",
                "MaxPool",
                "Relu",
                "Reshape",
                "Flatten",
                "Add",
                "GlobalAveragePool",
                "AveragePool",
                "ReduceMean",
            ],
            per_channel=True,
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
            reduce_range=state.spec.quantization.weight_bits == 7,
            extra_options={"TensorQuantOverrides": _overrides(plain, state)},
        )
        model = onnx.load(target)
    _feed_integers(model)
    _leave_as_floats(model)
    model = im2col.rewritten(model)
    _anonymous(model)
    onnx.checker.check_model(model)
    return model


class _Reader:
    """Calibration images as ONNX Runtime's quantizer asks for them, one batch after the other."""

    def __init__(self, images: np.ndarray):
        self._batches = iter([{INPUT: images[i : i + 16]} for i in range(0, len(images), 16)])

    def get_next(self):
        return next(self._batches, None)


def _without_simulation(state: ModelState) -> ModelState:
    """The float network with the rounded weights of a fake-quantized one: rounded again at the same
    scale, as integers, they are the same, also where the simulation cut them off at its range."""
    import copy
    from dataclasses import replace

    from pipeline.models import fakequant
    from pipeline.models.network import restore

    spec = replace(state.spec, quantization=None)
    network = copy.deepcopy(state.network).cpu().eval()
    tensors = network.state_dict()
    for name, layer in fakequant.layers(network).items():
        tensors[f"{name}.weight"] = layer.quantized_weight()
    scales = {n for n in tensors if n.rsplit(".", 1)[1].startswith(("input_", "weight_scale"))}
    return restore(spec, {n: t for n, t in tensors.items() if n not in scales})


def _overrides(model: onnx.ModelProto, state: ModelState) -> dict[str, list[dict]]:
    """What training decided, in the words of ONNX Runtime: for each weight its filters' scales, for
    each layer's input one scale and zero point, handed back through what only passes numbers on."""
    from onnxruntime.quantization import QuantType

    from pipeline.models import fakequant

    makers = {name: node for node in model.graph.node for name in node.output}
    found: dict[str, list[dict]] = {}
    for name, layer in fakequant.layers(state.network).items():
        node = next(n for n in model.graph.node if f"{name}.weight" in n.input)
        scales = layer.weight_scale.detach().cpu().numpy()
        assert (scales > 0).all(), f"{name}: a weight scale is not positive"
        found[f"{name}.weight"] = [
            {"quant_type": QuantType.QInt8, "axis": 0, "scale": _f32(s), "zero_point": _i8(0)}
            for s in scales
        ]
        tensor = node.input[0]
        while True:
            found[tensor] = [
                {
                    "quant_type": QuantType.QUInt8,
                    "scale": _f32(layer.input_scale.item()),
                    "zero_point": _u8(layer.input_zero_point.item()),
                }
            ]
            if tensor not in makers or makers[tensor].op_type not in PASSING:
                break
            tensor = makers[tensor].input[0]
    return found


def _f32(value: float) -> np.ndarray:
    return np.array(value, dtype=np.float32)


def _i8(value: int) -> np.ndarray:
    return np.array(value, dtype=np.int8)


def _u8(value: int) -> np.ndarray:
    return np.array(value, dtype=np.uint8)


def _feed_integers(model: onnx.ModelProto) -> None:
    """Cuts the normalization out of a quantized graph: what it and the quantizer behind it computed
    is the image again, so the image goes straight to where the integers are read."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    for node in [n for n in graph.node if n.op_type == "QuantizeLinear"]:
        chain, tensor = [node], node.input[0]
        while tensor in makers and makers[tensor].op_type in ("Mul", "Sub", "Cast"):
            chain.append(makers[tensor])
            tensor = makers[tensor].input[0]
        if tensor != INPUT:
            continue
        for reader in graph.node:
            for i, name in enumerate(reader.input):
                if name == node.output[0]:
                    reader.input[i] = INPUT
        for dead in chain:
            graph.node.remove(dead)
        _drop_unused(graph)
        return
    raise AssertionError("the quantized graph does not begin with a normalization")


def _leave_as_floats(model: onnx.ModelProto) -> None:
    """Takes the last rounding off the logits: an integer product can give floats as it ends."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    last = makers[OUTPUT]
    if last.op_type != "DequantizeLinear":
        return
    rounding = makers[last.input[0]]
    product = makers[rounding.input[0]]
    product.output[0] = OUTPUT
    graph.node.remove(last)
    graph.node.remove(rounding)
    _drop_unused(graph)


def _drop_unused(graph) -> None:
    used = {name for node in graph.node for name in node.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
    made = {name for node in graph.node for name in node.output}
    for value in [v for v in graph.value_info if v.name not in made]:
        graph.value_info.remove(value)


# --- loading -------------------------------------------------------------------------------------


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
        made = manifest["format"]
        valid = made != FORMAT or _well_formed(manifest)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        valid = False
    if not valid:
        raise Corrupt(f"{path}: not a manifest that netpress wrote")
    if made != FORMAT:
        raise UserError(f"{path}: format {str(made)[:20]}, this netpress reads {FORMAT}")
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


def logits(session, images: np.ndarray, batch: int = 64) -> Iterator[np.ndarray]:
    """uint8 [N, C, H, W] -> float32 logits, a batch at a time."""
    for start in range(0, len(images), batch):
        yield session.run([OUTPUT], {INPUT: images[start : start + batch]})[0]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Logits [N, classes] -> what of a whole each class has, in the same precision."""
    scaled = np.exp(logits - logits.max(1, keepdims=True))
    return scaled / scaled.sum(1, keepdims=True)


def predict(folder: Path, paths: list[Path]) -> list[dict]:
    """Classifies image files: [{"image", "class", "confidence"}] in the order given."""
    from pipeline import data

    try:
        artifact = load(folder)
        session = artifact.session()
    except Corrupt as error:
        raise UserError(f"{error}; take it anew with `netpress export`") from error
    images = data.images_from(paths, artifact.shape)
    rows = []
    for scores in logits(session, images):
        shares = softmax(scores)
        rows += [(int(s.argmax()), float(s.max())) for s in shares]
    return [
        {"image": str(p), "class": artifact.classes[k], "confidence": c}
        for p, (k, c) in zip(paths, rows, strict=True)
    ]
