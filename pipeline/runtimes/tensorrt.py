"""TensorRT on a GPU: float artifacts in fp16, their weights rounded to half precision; quantized
ones in int8, with activations that are symmetric around zero, as TensorRT needs them.

An engine is built for each artifact at loading, which takes a while; each call is one CUDA graph.
N images, C channels, H x W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.artifact.format import INPUT, OUTPUT
from pipeline.runtimes.contract import Kernels, Shape, share, why_not_importable
from pipeline.runtimes.graphs import SIZES, Call, Calls

if TYPE_CHECKING:
    import onnx
    import torch

LABEL, PACKAGE, READS_ARTIFACTS = "TensorRT", "tensorrt", True
DEVICE = "cuda"
PRODUCTS = {"Conv", "Gemm", "MatMul"}
SYMMETRIC = "int8 with symmetric activations: 7 to 8 bits where the artifact has 8"
HALF = "_half"  # of the name of the logits before they are float32 again


def available() -> str | None:
    if reason := why_not_importable(PACKAGE):
        return reason
    import torch

    return None if torch.cuda.is_available() else "there is no GPU that CUDA can use"


def load(model: bytes, threads: int) -> Loaded:
    """`threads` is of CPUs, and not used."""
    parsed, note = given(model)
    shape, classes = _sizes(parsed)
    return Loaded(_engine(parsed.SerializeToString(), shape), shape, classes, note)


def kernels(model: bytes, shape: Shape) -> Kernels:
    """By its graph: TensorRT computes a product on integers where both of its inputs are."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(given(model)[0]).graph
    makers = {name: node for node in graph.node for name in node.output}
    sizes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.output)
    } | {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    products = []
    for node in graph.node:
        if node.op_type not in PRODUCTS:
            continue
        rounded = [name in makers and _dequantizes(makers[name]) for name in node.input[:2]]
        weight = sizes[node.input[1]]
        # Without images and channels.
        places = (
            sizes[node.output[0]][2:] if node.op_type == "Conv" else sizes[node.output[0]][1:-1]
        )
        products.append((all(rounded), math.prod(places) * math.prod(weight)))
    return share(products)


def _dequantizes(node: onnx.NodeProto) -> bool:
    return node.op_type == "DequantizeLinear"


def given(model: bytes) -> tuple[onnx.ModelProto, str | None]:
    """What TensorRT is given of an artifact, and in which way it is another model than that.
    Raises ValueError for one that is quantized in another way than artifacts are."""
    import onnx

    from pipeline.artifact.symmetric import symmetric

    parsed = onnx.load_model_from_string(model)
    if any("Integer" in n.op_type or "DynamicQuantize" in n.op_type for n in parsed.graph.node):
        raise ValueError("it has integer operators that are not between rounding and back")
    if not any("Quantize" in n.op_type or _dequantizes(n) for n in parsed.graph.node):
        return in_half(parsed), None
    return symmetric(parsed), SYMMETRIC


def in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph on float16, logits float32 as before. Since TensorRT 11 the types of the
    graph define what is computed in which precision."""
    import onnx

    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    del graph.value_info[:]  # they declare float32
    tensors = [*graph.initializer]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == single:
                attribute.i = half
            elif attribute.type == onnx.AttributeProto.TENSOR:
                tensors.append(attribute.t)
        for outputs in (node.input, node.output):
            outputs[:] = [name + HALF if name == OUTPUT else name for name in outputs]
    for tensor in tensors:
        if tensor.data_type == single:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    graph.node.append(onnx.helper.make_node("Cast", [OUTPUT + HALF], [OUTPUT], to=single))
    return made


def _sizes(model: onnx.ModelProto) -> tuple[Shape, int]:
    """((C, H, W), classes)."""
    [given], [gives] = model.graph.input, model.graph.output
    _, channels, height, width = (d.dim_value for d in given.type.tensor_type.shape.dim)
    return (channels, height, width), gives.type.tensor_type.shape.dim[1].dim_value


def _engine(model: bytes, shape: Shape) -> Any:
    """With a profile for each of SIZES; raises ValueError where TensorRT makes none of it."""
    trt = import_module(PACKAGE)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    # From 11 on that is the only kind there is.
    typed = int(trt.__version__.partition(".")[0]) < 11
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if typed else 0
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        raise ValueError(parser.get_error(0).desc())
    config = builder.create_builder_config()
    for size in SIZES:
        profile = builder.create_optimization_profile()
        profile.set_shape(INPUT, *[(size, *shape)] * 3)  # least, usual and most
        config.add_optimization_profile(profile)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise ValueError("no engine can be built of it here")
    return trt.Runtime(logger).deserialize_cuda_engine(built)


@dataclass
class Loaded:
    engine: Any
    shape: Shape
    classes: int
    note: str | None = None

    def __post_init__(self) -> None:
        self.calls = Calls(self._prepared)

    def run(self, images: np.ndarray) -> np.ndarray:
        return self.calls.run(images)

    def _prepared(self, size: int) -> Call:
        import torch

        device = torch.device("cuda")
        context = self.engine.create_execution_context()
        stream = torch.cuda.current_stream()
        context.set_optimization_profile_async(SIZES.index(size), stream.cuda_stream)
        stream.synchronize()
        context.set_input_shape(INPUT, (size, *self.shape))
        logits = torch.empty((size, self.classes), device=device)

        def forward(pixels: torch.Tensor) -> torch.Tensor:
            context.set_tensor_address(INPUT, pixels.data_ptr())
            context.set_tensor_address(OUTPUT, logits.data_ptr())
            if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
                raise RuntimeError("TensorRT cannot run its engine")
            return logits

        return Call(forward, (size, *self.shape), device)
