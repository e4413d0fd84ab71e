"""Artifacts that somebody else may have made: small ONNX models written by hand."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

SHAPE = (1, 8, 8)
CLASSES = tuple("abcdefghij")


def model(
    outputs: int = len(CLASSES),
    said: int = len(CLASSES),
    kind: int = TensorProto.FLOAT,
    last: tuple[onnx.NodeProto, ...] = (),
) -> onnx.ModelProto:
    """One matrix product [64, outputs]; the graph says that it gives `said` numbers of `kind`.
    `last`: nodes from "product" to "logits"."""
    weight = np.random.default_rng(0).normal(0, 0.01, (64, outputs)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["product" if last else "logits"]),
        *last,
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", *SHAPE])
    logits = helper.make_tensor_value_info("logits", kind, ["batch", said])
    constants = [
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(np.array([7, 7], np.int64), "wrong"),
    ]
    graph = helper.make_graph(nodes, "g", [images], [logits], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def fails_while_running() -> onnx.ModelProto:
    """It loads, and no number of images fits what it does with them."""
    reshape = helper.make_node("Reshape", ["product", "wrong"], ["odd"])
    back = helper.make_node("Reshape", ["odd", "kept"], ["logits"])
    made = model(last=(reshape, back))
    made.graph.initializer.append(numpy_helper.from_array(np.array([-1, 10], np.int64), "kept"))
    return made


def not_a_number() -> onnx.ModelProto:
    minus = helper.make_node("Sub", ["product", "product"], ["zero"])
    return model(last=(minus, helper.make_node("Div", ["zero", "zero"], ["logits"])))


def write(folder: Path, content: bytes | onnx.ModelProto, classes=CLASSES, **changed) -> Path:
    """An artifact, its checksum right."""
    data = content if isinstance(content, bytes) else content.SerializeToString()
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {
        "format": 1,
        "kind": "float32",
        "classes": list(classes),
        "shape": list(SHAPE),
        "files": {"model.onnx": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}},
    }
    (folder / "model.onnx").write_bytes(data)
    (folder / "manifest.json").write_text(json.dumps(manifest | changed))
    return folder


def image(path: Path) -> Path:
    pixels = np.random.default_rng(1).integers(0, 256, SHAPE[1:], np.uint8)
    Image.fromarray(pixels).save(path)
    return path
