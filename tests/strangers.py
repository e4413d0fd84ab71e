"""Artifacts that somebody else may have made: small ONNX models written by hand."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from pipeline import store

SHAPE = (1, 8, 8)
CLASSES = tuple("abcdefghij")


def model(
    outputs: int = len(CLASSES),
    declared: int = len(CLASSES),
    kind: int = TensorProto.FLOAT,
    last: tuple[onnx.NodeProto, ...] = (),
) -> onnx.ModelProto:
    """One matrix product [64, outputs]; the graph declares `declared` numbers of `kind`.
    `last`: nodes from "product" to "logits"."""
    weight = np.random.default_rng(0).normal(0, 0.01, (64, outputs)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["product" if last else "logits"]),
        *last,
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", *SHAPE])
    logits = helper.make_tensor_value_info("logits", kind, ["batch", declared])
    constants = [
        numpy_helper.from_array(weight, "weight"),
    ]
    graph = helper.make_graph(nodes, "g", [images], [logits], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def fails_while_running() -> onnx.ModelProto:
    """It loads, and reads classes that are not there."""
    made = model(last=(helper.make_node("Gather", ["product", "places"], ["logits"], axis=1),))
    places = np.full(len(CLASSES), 10**6, np.int64)
    made.graph.initializer.append(numpy_helper.from_array(places, "places"))
    return made


def one_image_alone() -> onnx.ModelProto:
    """It takes one; two do not fit what it does with them."""
    made = model(last=(helper.make_node("Reshape", ["product", "one"], ["logits"]),))
    one = np.array([1, len(CLASSES)], np.int64)
    made.graph.initializer.append(numpy_helper.from_array(one, "one"))
    return made


def not_a_number() -> onnx.ModelProto:
    minus = helper.make_node("Sub", ["product", "product"], ["zero"])
    return model(last=(minus, helper.make_node("Div", ["zero", "zero"], ["logits"])))


def doubling(times: int) -> onnx.ModelProto:
    """A tensor that is twice as long `times` times, and cut to what it was."""
    nodes = [helper.make_node("Identity", ["product"], ["x0"])]
    nodes += [
        helper.make_node("Concat", [f"x{i}", f"x{i}"], [f"x{i + 1}"], axis=1) for i in range(times)
    ]
    made = model(
        last=(*nodes, helper.make_node("Slice", [f"x{times}", "0", "10", "1"], ["logits"]))
    )
    for name, value in (("0", 0), ("10", 10), ("1", 1)):
        made.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
    return made


def growing(sides: int, beyond: int = 0) -> onnx.ModelProto:
    """A tensor with so many sides, each of as many numbers as there are images, plus
    (N - 1)(N - 2) times ``beyond``."""
    make = helper.make_node
    made = model(
        last=(
            make("Shape", ["images"], ["images_of"], start=0, end=1),
            make("Sub", ["images_of", "1"], ["less1"]),
            make("Sub", ["images_of", "2"], ["less2"]),
            make("Mul", ["less1", "less2"], ["none"]),
            make("Mul", ["none", "beyond"], ["more"]),
            make("Add", ["images_of", "more"], ["side"]),
            make("Concat", ["side"] * sides, ["sides"], axis=0),
            make("ConstantOfShape", ["sides"], ["large"]),
            make("ReduceMean", ["large"], ["zero"], keepdims=0),
            make("Add", ["product", "zero"], ["logits"]),
        )
    )
    for name, value in (("1", 1), ("2", 2), ("beyond", beyond)):
        made.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
    return made


def endless() -> onnx.ModelProto:
    """A loop of 2**62 rounds."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["on"], ["still"]),
            helper.make_node("Identity", ["a"], ["b"]),
        ],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("on", TensorProto.BOOL, []),
            value("a", TensorProto.FLOAT, None),
        ],
        [value("still", TensorProto.BOOL, []), value("b", TensorProto.FLOAT, None)],
    )
    made = model(
        last=(helper.make_node("Loop", ["rounds", "yes", "product"], ["logits"], body=body),)
    )
    made.graph.initializer.append(numpy_helper.from_array(np.array(2**62), "rounds"))
    made.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    return made


def with_operator(kind: str, domain: str = "", **attributes) -> onnx.ModelProto:
    made = model(
        last=(helper.make_node(kind, ["product"], ["logits"], domain=domain, **attributes),)
    )
    if domain:
        made.opset_import.append(helper.make_opsetid(domain, 1))
    return made


def convolution(**attributes) -> onnx.ModelProto:
    """A convolution with these attributes between the image and the product."""
    made = model()
    made.graph.node[0].output[0] = "integers"
    weight = numpy_helper.from_array(np.zeros((1, 1, 1, 1), np.float32), "kernel")
    made.graph.initializer.append(weight)
    conv = helper.make_node("Conv", ["integers", "kernel"], ["floats"], **attributes)
    made.graph.node.insert(1, conv)
    return made


def huge_constant() -> onnx.ModelProto:
    """Of a terabyte, it says, and none of it is there."""
    made = model()
    made.graph.initializer[0].dims[0] = 10**11
    return made


def function() -> onnx.ModelProto:
    made = model()
    own = helper.make_function(
        "own",
        "Twice",
        ["x"],
        ["y"],
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [helper.make_opsetid("", 20)],
    )
    made.functions.append(own)
    return made


def sealed(manifest: dict) -> bytes:
    """A manifest as its file has it, whatever was changed in it, with the right checksum."""
    content = {key: value for key, value in manifest.items() if key != "seal"}
    return store.with_seal(json.dumps(content, indent=1).encode() + b"\n")


def write(folder: Path, content: bytes | onnx.ModelProto, classes=CLASSES, **changed) -> Path:
    """An artifact, its checksum right."""
    data = content if isinstance(content, bytes) else content.SerializeToString()
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {
        "format": 2,
        "kind": "float32",
        "classes": list(classes),
        "shape": list(SHAPE),
        "files": {"model.onnx": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}},
    }
    (folder / "model.onnx").write_bytes(data)
    (folder / "manifest.json").write_bytes(sealed(manifest | changed))
    return folder


def image(path: Path) -> Path:
    pixels = np.random.default_rng(1).integers(0, 256, SHAPE[1:], np.uint8)
    Image.fromarray(pixels).save(path)
    return path
