"""What the graph of an artifact may be made of, and what one image costs in it.

A stranger may have written the model, so this is decided before a runtime sees it: operators that
compute a tensor from tensors, no control flow, no functions, no domain but ONNX's own; every shape
is known, and their sizes bound the memory and the arithmetic. A kilobyte of nodes that double a
tensor each is refused here, not by the machine's memory.

Shapes are those for one image where nothing else is stated; N images, C channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import first_line

if TYPE_CHECKING:
    import onnx

# All that the exporter makes of image classifiers, users' own ones included.
_NAMES = """
Abs Add And AveragePool BatchNormalization Cast CastLike Ceil Celu Clip Concat Constant
ConstantOfShape Conv ConvTranspose DepthToSpace DequantizeLinear Div Dropout Elu Equal Erf Exp
Expand Flatten Floor Gather Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual
GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization LayerNormalization
LeakyRelu Less LessOrEqual Log LogSoftmax MatMul Max MaxPool Min Mish Mul Neg Not Or PRelu Pad Pow
QuantizeLinear Range Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape
Resize Round Selu Shape Sigmoid Sign Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt
Squeeze Sub Sum Tanh Transpose Unsqueeze Where
"""
OPERATORS = frozenset(_NAMES.split())
PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
MOST_NODES = 20_000
MOST_MACS = 10**12  # of one image; VGG-16 on 224x224 pixels needs 1.5e10
MOST_BYTES = 1 << 29  # of the tensors that images need at a time
OF_CONSTANTS = 16  # times the bytes of the model: what can be computed before there is an image
SMALL_BYTES = 1024  # of a constant whose values may decide a shape
LARGEST = 1 << 24  # of a number in an attribute


class Cost(NamedTuple):
    """Of one image: multiply-accumulates, and bytes of all tensors that are needed at a time;
    `constant_bytes`: of what does not depend on the image, and is there once."""

    macs: int
    image_bytes: int
    constant_bytes: int

    @property
    def images(self) -> int:
        """As many as fit into MOST_BYTES, at least one."""
        return max(1, MOST_BYTES // max(1, self.image_bytes))


Sizes = dict[str, tuple[int, ...]]


def cost(model: onnx.ModelProto, shape: tuple[int, int, int]) -> Cost:
    """Of a model that takes images of this shape; ValueError, a short reason, for a model that
    netpress does not write or that costs more than its limits."""
    _check_parts(model)
    total = _cost(model, shape, 1)
    if total.image_bytes > MOST_BYTES:
        needs = f"{total.image_bytes:,} bytes of memory an image"
        raise ValueError(f"it needs {needs}, at most {MOST_BYTES:,}")
    if total.macs > MOST_MACS:
        raise ValueError(f"it needs {total.macs:,} operations an image, at most {MOST_MACS:,}")
    if total.constant_bytes > OF_CONSTANTS * model.ByteSize():
        raise ValueError(f"its constants become {total.constant_bytes:,} bytes")
    check_batch(model, shape, total, 2)
    return total


def check_batch(
    model: onnx.ModelProto, shape: tuple[int, int, int], one: Cost, images: int
) -> None:
    """ValueError where so many images at a time need more than each of them, which is ``one``: a
    tensor may have a side for each image, and several of them."""
    all_of_them = _cost(model, shape, images)
    linear = Cost(images * one.macs, images * one.image_bytes, one.constant_bytes)
    if any(needed > most for needed, most in zip(all_of_them, linear, strict=True)):
        raise ValueError(
            f"{images} images at a time need more than {images} times what one does: "
            f"{all_of_them.image_bytes:,} bytes of memory and {all_of_them.macs:,} operations"
        )


def _cost(model: onnx.ModelProto, shape: tuple[int, int, int], images: int) -> Cost:
    """Of so many images together."""
    sizes, item_bytes = _inferred(model, shape, images)
    for value in model.graph.output:
        dims = [d.dim_value if d.HasField("dim_value") else images for d in _dims(value)]
        if list(sizes.get(value.name, ())) != dims:
            gives, of = list(sizes.get(value.name, ())), _of(images)
            raise ValueError(f"it gives {gives} numbers {of}, and says {dims}")
    constants = {tensor.name for tensor in model.graph.initializer}
    macs = sum(_macs(node, sizes) for node in model.graph.node)
    return Cost(macs, *_bytes(model, sizes, item_bytes, constants))


def _of(images: int) -> str:
    return "an image" if images == 1 else f"for {images} images"


# --- parts -----------------------------------------------------------------------------------


def _check_parts(model: onnx.ModelProto) -> None:
    graph = model.graph
    domains = {entry.domain for entry in model.opset_import}
    if domains - {"", "ai.onnx"} or model.functions or model.training_info:
        raise ValueError("it has functions, or operators that are not ONNX's own")
    if graph.sparse_initializer or len(graph.node) > MOST_NODES:
        raise ValueError(f"it has sparse constants, or more than {MOST_NODES:,} operators")
    for node in graph.node:
        if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
            name = f"{node.domain}.{node.op_type}".strip(".")
            raise ValueError(f"the operator {name[:60]!r} is none that netpress writes")
        for attribute in node.attribute:
            _check_attribute(node, attribute)
    for tensor in graph.initializer:
        _check_tensor(tensor)
    names = [name for node in graph.node for name in node.output if name]
    names += [tensor.name for tensor in graph.initializer]
    if len(set(names)) < len(names):
        raise ValueError("two of its tensors have the same name")


def _check_attribute(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> None:
    import onnx

    kind = onnx.AttributeProto
    if attribute.type in (kind.GRAPH, kind.GRAPHS, kind.SPARSE_TENSOR, kind.SPARSE_TENSORS):
        raise ValueError(f"its operator {node.op_type} has a graph in it")
    if attribute.g.ByteSize() or attribute.graphs or attribute.ref_attr_name:
        raise ValueError(f"its operator {node.op_type} has a graph in it")
    numbers = (*attribute.ints, *([attribute.i] if attribute.type == kind.INT else []))
    least = 1 if attribute.name in ("strides", "dilations", "kernel_shape", "group") else -LARGEST
    if any(not least <= number <= LARGEST for number in numbers):
        raise ValueError(f"its operator {node.op_type} has {attribute.name} of a size beyond use")
    for tensor in ([attribute.t] if attribute.HasField("t") else []) + list(attribute.tensors):
        _check_tensor(tensor)


def _check_tensor(tensor: onnx.TensorProto) -> None:
    """A small tensor cannot stand for a large one: no number takes less than half a byte."""
    if any(size < 0 for size in tensor.dims) or tensor.string_data:
        raise ValueError("one of its constants is no array of numbers")
    if math.prod(tensor.dims) > 2 * tensor.ByteSize():
        raise ValueError("one of its constants has fewer numbers than its shape")


# --- shapes ----------------------------------------------------------------------------------


def _inferred(
    model: onnx.ModelProto, shape: tuple[int, int, int], images: int
) -> tuple[Sizes, dict[str, float]]:
    """Of every tensor the sizes, and the bytes of a number of it."""
    import onnx

    skeleton = _skeleton(model, (images, *shape))
    try:
        known = onnx.shape_inference.infer_shapes(skeleton, strict_mode=True, data_prop=True)
    except Exception as error:  # of several types, by what is wrong
        of = "" if images == 1 else f" {_of(images)}"
        raise ValueError(f"its shapes do not fit together{of} ({first_line(error)})") from error
    values = [*known.graph.input, *known.graph.value_info, *known.graph.output]
    sizes: Sizes = {}
    item_bytes: dict[str, float] = {}
    for value in values:
        tensor = value.type.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else None for d in _dims(value)]
        if tensor.HasField("shape") and all(size is not None and size >= 0 for size in dims):
            sizes[value.name] = tuple(size for size in dims if size is not None)
            item_bytes[value.name] = 8.0 if tensor.elem_type in _WIDE else 4.0
    for tensor in skeleton.graph.initializer:
        sizes[tensor.name], item_bytes[tensor.name] = tuple(tensor.dims), 8.0
    for node in model.graph.node:
        for name in node.output:
            if name and name not in sizes:
                raise ValueError(f"the shape that its operator {node.op_type} gives is not known")
    return sizes, item_bytes


_WIDE = {7, 11, 13, 14, 15}  # int64, double, uint64, and complex numbers; others count as float32


def _dims(value: onnx.ValueInfoProto) -> Iterable[onnx.TensorShapeProto.Dimension]:
    return value.type.tensor_type.shape.dim


def _skeleton(model: onnx.ModelProto, shape: tuple[int, ...]) -> onnx.ModelProto:
    """The model without its large constants, for images of ``shape`` [N, C, H, W]: shapes are
    inferred in milliseconds."""
    import onnx

    graph = onnx.GraphProto(name="shapes", node=model.graph.node)
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= SMALL_BYTES:
            graph.initializer.append(tensor)
        else:
            dims = list(tensor.dims)
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, dims)
            )
    for value in model.graph.input:
        kind = value.type.tensor_type.elem_type
        graph.input.append(onnx.helper.make_tensor_value_info(value.name, kind, shape))
    graph.output.extend(
        onnx.ValueInfoProto(name=value.name, type=_free(value)) for value in model.graph.output
    )
    return onnx.ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, graph=graph
    )


def _free(value: onnx.ValueInfoProto) -> onnx.TypeProto:
    """The type of an output without its shape, which is to be inferred."""
    import onnx

    return onnx.helper.make_tensor_type_proto(value.type.tensor_type.elem_type, None)


# --- cost ------------------------------------------------------------------------------------


def _macs(node: onnx.NodeProto, sizes: Sizes) -> int:
    """Multiply-accumulates of products; of others the numbers that they read for each they give."""
    made = sum(math.prod(sizes[name]) for name in node.output if name)
    if node.op_type in PRODUCTS:
        first, second = (sizes.get(name, ()) for name in node.input[:2])
        if node.op_type == "Conv":
            return made * math.prod(second[1:])
        if node.op_type == "ConvTranspose":
            return math.prod(first) * math.prod(second[1:])
        if node.op_type == "Gemm":  # either may be transposed
            return math.prod(sizes[node.output[0]][:1]) * math.prod(second)
        return made * max(1, *first[-1:])
    read = sum(math.prod(sizes.get(name, ())) for name in node.input if name)
    return read + made * math.prod(_ints(node, "kernel_shape"))


def _ints(node: onnx.NodeProto, name: str) -> Iterator[int]:
    for attribute in node.attribute:
        if attribute.name == name:
            yield from attribute.ints


def _bytes(
    model: onnx.ModelProto, sizes: Sizes, item_bytes: dict[str, float], constants: set[str]
) -> tuple[int, int]:
    """The most that an image needs at a time, each tensor being kept from its maker to its last
    reader; and what is made of constants, which is kept as long as the model."""
    last = {name: i for i, node in enumerate(model.graph.node) for name in node.input}
    last |= dict.fromkeys((value.name for value in model.graph.output), len(model.graph.node))
    constant = set(constants)
    alive: dict[str, float] = {}
    peak = kept = 0.0
    for i, node in enumerate(model.graph.node):
        made = {n: math.prod(sizes[n]) * item_bytes[n] for n in node.output if n}
        if all(name in constant for name in node.input):
            constant |= set(made)
            kept += sum(made.values())
        else:
            alive |= made
        peak = max(peak, sum(alive.values()))
        for name in (*node.input, *node.output):
            if last.get(name, -1) <= i:
                alive.pop(name, None)
    return int(peak), int(kept)
