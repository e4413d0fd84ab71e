"""int8 artifacts are right on every CPU: no 16-bit sum can overflow, whatever the image."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pipeline import artifact, hardware, runtimes
from pipeline.artifact import saturation
from pipeline.cli import main
from tests import integers
from tests.test_techniques import deployed, made, split_of

PORTABLE = ("ptq-int8", "qat-int8", "small-and-int8")


def model_of(loaded) -> onnx.ModelProto:
    return onnx.load_model_from_string(loaded.model)


@pytest.mark.parametrize("name", PORTABLE)
def test_no_sum_of_two_products_overflows_by_default(bench, name):
    loaded = deployed(bench, name)
    assert 0 < saturation.largest_sum(model_of(loaded)) <= 2**15 - 1
    assert loaded.manifest["needs"]["cpu"] == [] and not loaded.needs_vnni


@pytest.mark.parametrize("name", PORTABLE)
def test_every_runtime_gives_the_classes_of_exact_integers(bench, name):
    loaded, pixels = deployed(bench, name), split_of(bench).test.pixels.numpy()
    exact = integers.logits(model_of(loaded), pixels).argmax(1)
    assert len(set(exact)) == 10
    for runtime in ("onnxruntime", "openvino"):
        session = runtimes.session(loaded, 1, runtime)
        own = np.concatenate(list(runtimes.logits(session, pixels))).argmax(1)
        assert np.mean(own == exact) >= 0.999, runtime


def test_the_reference_evaluator_gives_them_too(bench):
    from onnx.reference import ReferenceEvaluator

    loaded, pixels = deployed(bench, "small-and-int8"), split_of(bench).test.pixels.numpy()[:100]
    exact = integers.logits(model_of(loaded), pixels)
    [own] = ReferenceEvaluator(model_of(loaded)).run(None, {artifact.format.INPUT: pixels})
    assert np.array_equal(own.argmax(1), exact.argmax(1))


# --- the proof itself --------------------------------------------------------------------------


def product(weight: np.ndarray, kind: str) -> onnx.ModelProto:
    """One product of this int8 weight, in QDQ form."""
    scale = numpy_helper.from_array(np.float32(1), "scale")
    zero = numpy_helper.from_array(np.uint8(0), "zero")
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "scale"], ["wf"]),
        helper.make_node(kind, ["xf", "wf"], ["y"], **({"transB": 1} if kind == "Gemm" else {})),
    ]
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w"), scale, zero],
    )
    return helper.make_model(graph)


def saturating(weight: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """[K]: a filter's sum as ``vpmaddubsw`` and ``vpaddd`` give it, taps after taps."""
    terms = pixels.astype(np.int64) * weight.astype(np.int64)
    if terms.shape[1] % 2:
        terms = np.pad(terms, ((0, 0), (0, 1)))
    pairs = terms[:, 0::2] + terms[:, 1::2]
    return np.clip(pairs, -(2**15), 2**15 - 1).sum(1)


weights = st.integers(1, 3).flatmap(
    lambda filters: st.integers(1, 9).flatmap(
        lambda taps: st.lists(
            st.integers(-127, 127), min_size=filters * taps, max_size=filters * taps
        ).map(lambda values: np.array(values, np.int8).reshape(filters, taps))
    )
)


@given(weights, st.integers(0, 2**32 - 1))
def test_what_is_proved_never_saturates_and_what_is_not_can(weight, seed):
    proved = not saturation.overflows(product(weight, "Gemm"))
    generator = np.random.default_rng(seed)
    images = [generator.integers(0, 256, weight.shape[1]) for _ in range(8)]
    # The worst images: brightest where weights are positive, and where they are negative.
    images += [255 * (row > 0) for row in weight] + [255 * (row < 0) for row in weight]
    right = all(np.array_equal(saturating(weight, x), weight.astype(np.int64) @ x) for x in images)
    assert right == proved


def test_pairs_are_those_of_channels_at_one_tap():
    weight = np.zeros((1, 2, 1, 2), np.int8)
    weight[0, :, 0, 0] = 100, 20  # both channels of one tap: neighbours
    assert saturation.largest_sum(product(weight, "Conv")) == 255 * 120
    weight[0, :, 0, 0] = 100, 0
    weight[0, 0, 0, 1] = 100  # the same channel of the next tap: none
    assert saturation.largest_sum(product(weight, "Conv")) == 255 * 100
    odd = np.full((1, 1, 1, 2), 100, np.int8)  # one channel: kernels may go on with the next tap
    assert saturation.largest_sum(product(odd, "Conv")) == 255 * 200
    opposite = np.array([[127, -127]], np.int8)
    assert saturation.largest_sum(product(opposite, "Gemm")) == 255 * 127


def test_floats_cannot_saturate(bench):
    assert saturation.largest_sum(model_of(deployed(bench, "base"))) == 0


# --- what needs VNNI says so -------------------------------------------------------------------


@pytest.fixture(scope="module")
def unconstrained(bench, tmp_path_factory):
    """An artifact with any 8-bit weights, and an image to classify."""
    from PIL import Image

    from pipeline.models import network
    from pipeline.models.transforms.calibration import calibrate
    from pipeline.models.transforms.fakequant import FakeQuantized

    folder = tmp_path_factory.mktemp("unconstrained")
    split, base = split_of(bench), network.fold(made(bench, "base").state)
    state = network.with_transform(base, FakeQuantized())
    batches = [state.network.normalize(split.train.pixels[:64])]
    calibrate(state.network.module, batches, "minmax", (split.zero_point, split.scale))
    pixels = split.train.pixels[:16].numpy()
    artifact.write(state, folder / "model", {}, pixels, split.classes)
    Image.fromarray(split.test.pixels[0, 0].numpy()).save(folder / "image.png")
    return folder / "model", folder / "image.png"


def test_the_manifest_says_what_it_needs(unconstrained):
    needs = json.loads((unconstrained[0] / "manifest.json").read_text())["needs"]
    assert needs == {"cpu": ["vnni"], "opset": 20, "onnxruntime": "1.18"}
    assert artifact.load(unconstrained[0]).needs_vnni


def test_predict_refuses_where_the_cpu_lacks_it(unconstrained, monkeypatch, capsys):
    command = ["predict", *map(str, unconstrained)]
    monkeypatch.setattr(hardware, "saturates", lambda: True)
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert out == "" and "no VNNI" in err and "--anyway" in err and err.count("\n") == 1
    assert main([*command, "--anyway"]) == 0 and "%" in capsys.readouterr().out
    monkeypatch.setattr(hardware, "saturates", lambda: False)
    assert main(command) == 0


def test_predict_does_not_where_the_model_is_portable(bench, unconstrained, monkeypatch, capsys):
    monkeypatch.setattr(hardware, "saturates", lambda: True)
    portable = deployed(bench, "ptq-int8").folder
    assert main(["predict", str(portable), str(unconstrained[1])]) == 0
