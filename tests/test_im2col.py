"""Products in place of convolutions: the same integers come out, and only where it pays."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pipeline import artifact, runtimes
from pipeline.artifact import convolutions, im2col
from pipeline.models.transforms import pairs as pairs_of_weights
from tests import integers
from tests.test_techniques import made, split_of


@dataclasses.dataclass(frozen=True)
class Layer:
    """One quantized convolution, and whether a pooling follows."""

    filters: int
    window: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (1, 1, 1, 1)
    zero_point: int = 0
    bias: bool = True
    pooled: bool = False


def qdq(layers, channels, size, seed=0, group=1) -> onnx.ModelProto:
    """The graph that ONNX Runtime's quantizer writes: uint8 [N, C, H, W] in, uint8 out."""
    shape_in = ["batch", channels, *size]
    random, nodes, tensors = np.random.default_rng(seed), [], []

    def tensor(name, values):
        tensors.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(kind, inputs, output, **attributes):
        named = f"{kind}_{output}"
        nodes.append(helper.make_node(kind, inputs, [output], name=named, **attributes))
        return output

    at, about = "images", (tensor("s", np.float32(0.02)), tensor("z", np.uint8(7)))
    for i, layer in enumerate(layers):
        shape = (layer.filters, channels // group, *layer.window)
        weight = tensor(f"w{i}", safe(random.integers(-127, 128, shape)))
        scales = (random.random(layer.filters) / 100 + 0.001).astype(np.float32)
        zeros = tensor(f"wz{i}", np.zeros(layer.filters, np.int8))
        scale = tensor(f"ws{i}", scales)
        inputs = [
            node("DequantizeLinear", [at, *about], f"x{i}"),
            node("DequantizeLinear", [weight, scale, zeros], f"wd{i}", axis=0),
        ]
        if layer.bias:
            [of_input] = (numpy_helper.to_array(t) for t in tensors if t.name == about[0])
            bias = tensor(f"b{i}", random.integers(-2000, 2000, layer.filters).astype(np.int32))
            both = tensor(f"bs{i}", (scales * of_input).astype(np.float32))
            nothing = tensor(f"bz{i}", np.zeros(layer.filters, np.int32))
            inputs.append(node("DequantizeLinear", [bias, both, nothing], f"bd{i}", axis=0))
        about = (
            tensor(f"s{i}", np.float32(0.05)),
            tensor(f"z{i}", np.uint8(layer.zero_point)),
        )
        node(
            "Conv",
            inputs,
            f"c{i}",
            kernel_shape=layer.window,
            strides=layer.strides,
            dilations=layer.dilations,
            pads=layer.pads,
            group=group,
        )
        at = node("QuantizeLinear", [f"c{i}", *about], f"q{i}")
        if layer.pooled:
            node("DequantizeLinear", [at, *about], f"p{i}")
            node("MaxPool", [f"p{i}"], f"m{i}", kernel_shape=[2, 2], strides=[2, 2])
            at = node("QuantizeLinear", [f"m{i}", *about], f"mq{i}")
        channels = layer.filters
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, shape_in)],
        [helper.make_tensor_value_info(at, TensorProto.UINT8, ["batch", channels, None, None])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def safe(weight: np.ndarray) -> np.ndarray:
    """int8 weights that artifacts can have: whose products saturate on no CPU."""
    return pairs_of_weights.projected(torch.from_numpy(weight).float()).numpy().astype(np.int8)


def kinds(model) -> list[str]:
    return [n.op_type for n in model.graph.node]


def outputs(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"images": images})[0]


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch):
    """Networks of tests are small; what keeps small convolutions is tested by itself."""
    monkeypatch.setattr(im2col, "LEAST", 1)


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
drawn = st.builds(
    Layer,
    filters=st.integers(1, 9),
    window=pairs,
    strides=pairs,
    dilations=pairs,
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    zero_point=st.sampled_from([0, 3, 255]),
    bias=st.booleans(),
)


def fits(layers, size) -> bool:
    for layer in layers:
        reach = [(k - 1) * d + 1 for k, d in zip(layer.window, layer.dilations, strict=True)]
        padded = [n + layer.pads[i] + layer.pads[i + 2] for i, n in enumerate(size)]
        if any(p < r for p, r in zip(padded, reach, strict=True)):
            return False
        size = [(p - r) // s + 1 for p, r, s in zip(padded, reach, layer.strides, strict=True)]
    return True


@settings(max_examples=150, deadline=None)
@given(
    layers=st.lists(drawn, min_size=1, max_size=3),
    channels=st.integers(1, 5),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    batch=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_whatever_the_convolution_the_same_integers_come_out(layers, channels, size, batch, seed):
    assume(fits(layers, size))
    model = qdq(layers, channels, size, seed)
    rewritten = im2col.rewritten(model)
    onnx.checker.check_model(rewritten, full_check=True)
    images = np.random.default_rng(seed).integers(0, 256, (batch, channels, *size), dtype=np.uint8)
    assert np.array_equal(outputs(rewritten, images), outputs(model, images))
    if len(layers) == 1:  # behind a second one, a sum that is rounded up differs by its weight
        again = restored(rewritten)
        assert not {"Gemm", "Gather", "Transpose"} & {*kinds(again)}
        assert np.array_equal(outputs(again, images), outputs(model, images))
        exact = integers.logits(model, images).astype(int)
        assert np.abs(outputs(model, images) - exact).max() <= 1  # float32 rounds half-way sums


def restored(model: onnx.ModelProto) -> onnx.ModelProto:
    whole = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    convolutions.restore(whole)
    again = ir.to_proto(whole)
    del again.graph.value_info[:]
    onnx.checker.check_model(again, full_check=True)
    return again


square = st.builds(
    lambda filters, side, stride, dilation, pad: Layer(
        filters, (side,) * 2, (stride,) * 2, (dilation,) * 2, (pad,) * 4, 3
    ),
    filters=st.integers(1, 9),
    side=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    pad=st.integers(0, 2),
)


ALL_OUTSIDE = [  # a map of one row, of which each kernel reads the rows before and behind it
    Layer(3, (1, 1), (1, 1), (1, 1), (0,) * 4, 3),
    Layer(3, (2, 2), (1, 1), (2, 2), (0,) * 4, 3),
    Layer(3, (2, 2), (1, 1), (2, 2), (1,) * 4, 3),
    Layer(3, (1, 1), (1, 1), (1, 1), (0,) * 4, 3),
]


@settings(max_examples=60, deadline=None)
@given(layers=st.lists(square, min_size=2, max_size=4), size=st.tuples(*[st.integers(2, 8)] * 2))
@example(layers=ALL_OUTSIDE, size=(3, 6))
def test_products_behind_one_another_become_convolutions_again(layers, size):
    assume(fits(layers, size))
    model = qdq(layers, 3, size)
    rewritten = im2col.rewritten(model)
    again = restored(rewritten)
    assume("Gemm" in kinds(rewritten))  # maps that padding made large stay convolutions
    assert not {"Gemm", "Gather", "Transpose"} & {*kinds(again)}
    images = np.random.default_rng(0).integers(0, 256, (2, 3, *size), dtype=np.uint8)
    assert np.array_equal(outputs(again, images), outputs(model, images))


def test_a_product_that_no_convolution_gives_is_not_restored():
    rewritten = im2col.rewritten(qdq([Layer(8)], 3, (4, 4)))
    [table] = [t for t in rewritten.graph.initializer if t.name.endswith("_table")]
    pixels = numpy_helper.to_array(table).copy()
    pixels[[4, 40]] = pixels[[40, 4]]
    table.CopyFrom(numpy_helper.from_array(pixels, table.name))
    with pytest.raises(ValueError, match="reads pixels as no convolution does"):
        restored(rewritten)


def test_between_two_products_nothing_is_moved_and_a_pooling_still_fits():
    model = qdq([Layer(8), Layer(16, pooled=True), Layer(8), Layer(4)], 3, (8, 8))
    rewritten = im2col.rewritten(model)
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8)
    assert np.array_equal(outputs(rewritten, images), outputs(model, images))
    assert kinds(rewritten).count("Gemm") == 4 and "Conv" not in kinds(rewritten)
    assert kinds(rewritten).count("Transpose") == 4  # into each block, and out of it
    assert kinds(rewritten).count("Pad") == 4


def test_a_window_that_never_leaves_the_map_needs_no_zeros():
    rewritten = im2col.rewritten(qdq([Layer(8, (1, 1), pads=(0, 0, 0, 0))], 3, (4, 4)))
    assert "Gemm" in kinds(rewritten) and "Pad" not in kinds(rewritten)


@pytest.mark.parametrize("size, products", [((8, 8), 1), ((9, 8), 0)])
def test_maps_that_are_not_small_stay_convolutions(size, products):
    rewritten = im2col.rewritten(qdq([Layer(8)], 3, size))
    assert (
        kinds(rewritten).count("Gemm") == products
        and kinds(rewritten).count("Conv") == 1 - products
    )


def test_a_convolution_with_few_weights_stays_one(monkeypatch):
    monkeypatch.setattr(im2col, "LEAST", 3 * 3 * 8 * 8)
    rewritten = im2col.rewritten(qdq([Layer(8), Layer(8)], 3, (4, 4)))
    assert kinds(rewritten).count("Conv") == 1 and kinds(rewritten).count("Gemm") == 1


def test_groups_and_sizes_that_are_not_known_stay_as_they_are():
    assert "Gemm" not in kinds(im2col.rewritten(qdq([Layer(8)], 4, (4, 4), group=2)))
    unknown = qdq([Layer(8)], 3, (4, 4))
    shape = unknown.graph.input[0].type.tensor_type.shape
    for i in (2, 3):
        shape.dim[i].dim_param = "side"
    assert "Gemm" not in kinds(im2col.rewritten(unknown))


def test_what_reads_a_convolution_unrounded_keeps_it():
    model = qdq([Layer(8)], 3, (4, 4))
    model.graph.output.append(helper.make_tensor_value_info("c0", TensorProto.FLOAT, None))
    assert "Gemm" not in kinds(im2col.rewritten(model))


def test_an_artifact_with_large_convolutions_says_the_same_and_counts_the_same(
    bench, tmp_path, monkeypatch
):
    """The whole way: written with products and without them, by the same network."""
    state, split = made(bench, "qat-int8").state, split_of(bench)
    sample, pixels = split.train.pixels[:64].numpy(), split.test.pixels.numpy()
    logits, shares = {}, {}
    for least in (1, 10**9):
        monkeypatch.setattr(im2col, "LEAST", least)
        folder = tmp_path / str(least)
        artifact.write(state, folder, {"technique": "x"}, sample, split.classes)
        loaded = artifact.load(folder)
        logits[least] = np.concatenate(list(runtimes.logits(runtimes.session(loaded, 1), pixels)))
        shares[least] = runtimes.kernels(loaded)
        model = onnx.load_model_from_string(loaded.model)
        assert kinds(model).count("Gemm") == (7 if least == 1 else 1)
    assert np.array_equal(logits[1], logits[10**9])
    assert shares[1] == shares[10**9] and shares[1].integer == shares[1].total == 9
