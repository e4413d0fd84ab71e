"""The quantized graph with activations that are symmetric around zero, as TensorRT needs it."""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pipeline import artifact, registry, runtimes
from pipeline.artifact import im2col
from pipeline.artifact.format import OUTPUT
from pipeline.artifact.symmetric import symmetric
from pipeline.models import module_of
from pipeline.models.transforms import fakequant
from pipeline.runtimes import onnxruntime, tensorrt
from tests.test_artifact import quantized
from tests.test_clipping import JOINED
from tests.test_im2col import Layer, qdq
from tests.test_models import images, lively
from tests.test_own import known

SHAPE = (3, 32, 32)


@pytest.fixture(autouse=True)
def only_built_in():
    yield
    registry.fill({})


def network(name, folder):
    if name == "joined":
        (folder / "nets.py").write_text(JOINED)
        return lively(known(folder)), images((1, 32, 32), 64)
    spec = module_of(name).spec(name, 0.25, SHAPE, 10, 120, 1 / 16)
    return lively(spec), images(SHAPE, 64)


def run(model: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    return onnxruntime.load(model.SerializeToString(), 1).run(pixels)


def constants(graph) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in graph.initializer}


@pytest.mark.parametrize("name", ["vgg11", "resnet20", "mobilenetv2", "joined"])
def test_every_network_in_eight_bits_has_a_symmetric_form(name, tmp_path, monkeypatch):
    monkeypatch.setattr(im2col, "LEAST", 1)
    state, pixels = network(name, tmp_path)
    simulated = quantized(state, pixels, pairs=True)
    artifact.write(simulated, tmp_path / "x", {}, pixels.numpy(), tuple("0123456789"))
    loaded = artifact.load(tmp_path / "x")
    before = onnx.load_model_from_string(loaded.model)
    kinds = Counter(node.op_type for node in before.graph.node)
    assert (kinds["Gather"] > 0) == (name != "joined")  # whose maps are large
    after = symmetric(before)
    onnx.checker.check_model(after, full_check=True)
    values = constants(after.graph)
    made = {name: node for node in after.graph.node for name in node.output}
    assert not {"Gather", "Transpose", "Pad"} & {node.op_type for node in after.graph.node}
    assert {v.dtype for v in values.values()} <= {np.dtype(t) for t in ("i1", "f4", "i8")}
    for node in after.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = values[node.input[2]]
            assert zero.dtype == np.int8 and not zero.any()
    products = [node for node in after.graph.node if node.op_type in tensorrt.PRODUCTS]
    rounded = [
        [n in made and made[n].op_type == "DequantizeLinear" for n in node.input[:2]]
        for node in products
    ]
    first, *others = rounded  # it reads the image
    assert first == [False, False] and all(both == [True, True] for both in others)
    [share, whole] = [tensorrt.kernels(loaded.model, loaded.shape), runtimes.kernels(loaded)]
    assert (share.integer, share.total) == (whole.total - 1, whole.total)
    assert 0.5 < share.integer_share < 1.0
    logits, wanted = run(after, pixels.numpy()), run(before, pixels.numpy())
    assert np.corrcoef(logits.ravel(), wanted.ravel())[0, 1] > 0.97
    expected = simulate(simulated.network, pixels)
    gaps = np.abs(literally(after, pixels.numpy()) - expected)
    assert np.median(gaps) < 1e-3 * np.ptp(expected)  # halves are rounded to either side
    assert np.median(np.abs(wanted - expected)) > 2 * np.median(gaps)  # which is another model


def literally(model: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    """By floats, as the operators say: optimized, ONNX Runtime would also round the biases."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"images": pixels})[0]


def simulate(module: torch.nn.Module, pixels: torch.Tensor) -> np.ndarray:
    """Logits of the simulated network whose points round as the docstring of ``symmetric`` says."""
    points = fakequant.points(module.module)
    for point in {id(q): q for q in points.values() if not q.exact}.values():
        point.forward = partial(rounded, float(point.scale), int(point.zero_point))
    with torch.inference_mode():
        return module.eval()(pixels).numpy()


def rounded(scale: float, zero: int, x: torch.Tensor) -> torch.Tensor:
    inside = x.clamp(-zero * scale, (255 - zero) * scale)
    step = scale if zero == 128 else scale * max(zero, 255 - zero) / 127
    return (inside / step).round().clamp(-128, 127) * step


@pytest.mark.parametrize("zero_point", [0, 3, 128, 255])
@pytest.mark.parametrize("pooled", [False, True])
def test_a_zero_point_in_the_middle_changes_nothing_and_others_half_a_step(zero_point, pooled):
    model = as_floats(qdq([Layer(8, zero_point=zero_point, pooled=pooled)], 3, (12, 12)))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 12, 12), dtype=np.uint8)
    after, before = literally(symmetric(model), pixels), literally(model, pixels)
    step = 0.05 * (1 if zero_point == 128 else max(zero_point, 255 - zero_point) / 127)
    assert np.abs(after / step - np.rint(after / step)).max() < 1e-3
    worst = np.abs(after - before).max()
    if zero_point == 128:
        assert np.mean(after == before) > 0.999 and worst <= 1.001 * step  # halves
    else:
        assert 0 < worst <= 1.001 * (step + 0.05) / 2
    limits = -zero_point * 0.05, (255 - zero_point) * 0.05
    assert np.isclose(before.min(), limits[0]) or np.isclose(before.max(), limits[1])
    assert limits[0] - step / 2 <= after.min() and after.max() <= limits[1] + step / 2


def as_floats(model: onnx.ModelProto) -> onnx.ModelProto:
    """Its integers [N, K, P, Q] read as floats."""
    graph = model.graph
    of = {n.output[0]: n for n in graph.node}[graph.output[0].name]
    graph.node.append(helper.make_node("DequantizeLinear", [of.output[0], *of.input[1:]], [OUTPUT]))
    del graph.output[:]
    shape = ["batch", None, None, None]
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, shape))
    return model


def test_an_operator_on_integers_that_artifacts_lack_is_refused():
    model = as_floats(qdq([Layer(8)], 3, (12, 12)))
    last = model.graph.node[-1]
    model.graph.node.insert(
        len(model.graph.node) - 1, helper.make_node("Identity", [last.input[0]], ["same"])
    )
    last.input[0] = "same"
    with pytest.raises(ValueError, match="it has the operator Identity on integers"):
        symmetric(model)
