"""The deployable model: runs without this project, holds the trained numbers, trusts no file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from pipeline import artifact, runtimes, store
from pipeline.errors import Corrupt, UserError
from pipeline.models import module_of, network
from pipeline.models.transforms import calibration, fakequant
from pipeline.models.transforms.fakequant import FakeQuantized
from pipeline.paths import CODE
from pipeline.predict import predict
from tests import strangers
from tests.test_models import images, lively
from tests.test_techniques import deployed, made, split_of

INT8 = ["ptq-int8", "qat-int8", "learned", "seven-bits"]
FEW = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


def graph_of(loaded: artifact.Artifact):
    return onnx.load_model_from_string(loaded.model).graph


@pytest.fixture
def copied(bench, tmp_path):
    """An artifact in a folder of its own, to be spoiled."""
    shutil.copytree(deployed(bench, "ptq-int8").folder, tmp_path / "artifact")
    return tmp_path / "artifact"


# --- it runs without us ----------------------------------------------------------------------

PLAIN = """
import importlib.util, json, sys
import numpy as np, onnxruntime
assert importlib.util.find_spec("pipeline") is None
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
[image], [logits] = session.get_inputs(), session.get_outputs()
pixels = np.load(sys.argv[2])
found = [session.run([logits.name], {image.name: pixels[:n]})[0].argmax(1).tolist()
         for n in (1, 3, 64, len(pixels))]
print(json.dumps([image.name, image.type, image.shape, logits.type, found]))
"""


@pytest.mark.parametrize("name", ["base", "qat-int8"])
def test_plain_onnx_runtime_runs_it_on_bytes_of_any_number_of_images(bench, name, tmp_path):
    loaded, pixels = deployed(bench, name), split_of(bench).test.pixels.numpy()
    np.save(tmp_path / "pixels.npy", pixels)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-c", PLAIN, str(loaded.folder / "model.onnx"), "pixels.npy"]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    image, kind, shape, gives, classes = json.loads(ran.stdout)
    assert (image, kind, gives) == ("images", "tensor(uint8)", "tensor(float)")
    assert shape[1:] == [1, 32, 32] and isinstance(shape[0], str)
    expected = np.concatenate(
        [s.argmax(1) for s in runtimes.logits(runtimes.session(loaded, 1), pixels)]
    )
    assert [len(c) for c in classes] == [1, 3, 64, len(pixels)]
    assert classes[3] == expected.tolist() and classes[2] == classes[3][:64]


def test_its_opset_and_operators_are_those_of_the_standard(bench):
    model = onnx.load_model_from_string(deployed(bench, "qat-int8").model)
    onnx.checker.check_model(model, full_check=True)
    assert {o.domain for o in model.opset_import} <= {"", "ai.onnx"} and not model.functions
    assert {node.domain for node in model.graph.node} == {""}


def test_normalization_is_inside(bench):
    state, pixels = made(bench, "base").state, split_of(bench).test.pixels[:32]
    normalized = (pixels.numpy().astype(np.float64) - state.spec.zero_point) * state.spec.scale
    inner = network.restore(state.spec, state.network.state_dict()).network.module.eval()
    with torch.inference_mode():
        expected = inner(torch.from_numpy(normalized).float()).numpy()
    [logits] = runtimes.logits(runtimes.session(deployed(bench, "base"), 1), pixels.numpy())
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


def test_batches_do_not_change_what_is_said(bench):
    session = runtimes.session(deployed(bench, "qat-int8"), 1)
    pixels = split_of(bench).test.pixels.numpy()[:70]
    at_once, one_by_one = (
        np.concatenate(list(runtimes.logits(session, pixels, n))) for n in (70, 1)
    )
    assert np.array_equal(at_once, one_by_one)


# --- it says nothing about where it was made -------------------------------------------------


@pytest.mark.parametrize("name", ["base", "ptq-int8"])
def test_nothing_of_this_machine_is_in_it(bench, name):
    loaded = deployed(bench, name)
    content = loaded.model + (loaded.folder / "manifest.json").read_bytes()
    here = {str(CODE), str(Path.home()), sys.prefix, str(bench.folder)}
    for trace in [*here, "site-packages", ".py", "Traceback", "/tmp/"]:
        assert trace.encode() not in content, trace
    model = onnx.load_model_from_string(loaded.model)
    graph = model.graph
    assert not model.metadata_props and not model.doc_string and not graph.doc_string
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        assert not part.doc_string and not part.metadata_props


def test_the_same_network_gives_the_same_bytes_quietly_and_over_what_was_there(
    bench, tmp_path, capfd, caplog
):
    state, split = made(bench, "qat-int8").state, split_of(bench)
    sample = split.train.pixels[:64].numpy()
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "old").write_text("of another model")
    artifact.write(state, folder, {"technique": "x"}, sample, split.classes)
    again = artifact.load(folder)
    assert again.model == deployed_with(bench, sample).model
    assert sorted(os.listdir(folder)) == ["manifest.json", "model.onnx"]
    assert again.manifest["technique"] == "x" and again.classes == split.classes
    assert capfd.readouterr() == ("", "")
    assert [r.message for r in caplog.records if r.levelname != "DEBUG"] == []


def deployed_with(bench, sample) -> artifact.Artifact:
    folder = bench.folder / "artifacts" / "again"
    artifact.write(made(bench, "qat-int8").state, folder, {}, sample, split_of(bench).classes)
    return artifact.load(folder)


def test_writing_leaves_the_network_as_it_was(bench):
    state = made(bench, "qat-int8").state
    deployed(bench, "qat-int8")
    assert state.spec.has("fake-quantized") and len(fakequant.layers(state.network)) == 9
    assert all(p.requires_grad for p in state.network.parameters())


# --- its numbers are the trained ones --------------------------------------------------------


def constants(graph) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in graph.initializer}


def products(graph):
    """(node, (image scale, image zero point), (integers, scales, zero points), bias or None) of
    each convolution and matrix product, in order."""
    makers, values = {o: n for n in graph.node for o in n.output}, constants(graph)
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            data, weight, *bias = (makers[name] for name in node.input)
            assert {n.op_type for n in (data, weight, *bias)} == {"DequantizeLinear"}
            read = [[values.get(name) for name in n.input] for n in (data, weight, *bias)]
            yield node, read[0][1:], read[1], read[2] if bias else None


@pytest.mark.parametrize("name", INT8)
def test_every_scale_in_the_graph_is_the_trained_one_to_the_last_bit(bench, name):
    layers = fakequant.layers(made(bench, name).state.network)
    operators = list(products(graph_of(deployed(bench, name))))
    assert len(operators) == len(layers) == 9
    for (layer_name, layer), (_, image, weight, _) in zip(layers.items(), operators, strict=True):
        assert image[0].dtype == np.float32 and image[1].dtype == np.uint8
        assert (
            image[0] == layer.input_quantizer.scale.item()
            and image[1] == layer.input_quantizer.zero_point.item()
        )
        assert weight[0].dtype == np.int8 and not weight[2].any()
        assert np.array_equal(weight[1], layer.weight_quantizer.scale.detach().numpy()), layer_name


@pytest.mark.parametrize("name", INT8)
def test_every_integer_weight_is_the_rounded_one(bench, name):
    for layer, (_, _, (integers, scales, _), _) in zip(
        fakequant.layers(made(bench, name).state.network).values(),
        products(graph_of(deployed(bench, name))),
        strict=True,
    ):
        weight = layer.weight.detach().numpy()
        scales = scales.reshape(-1, *[1] * (weight.ndim - 1))
        most = layer.weight_quantizer.limit
        expected = np.clip(np.round(weight / scales), -most, most)
        # Halfway between two integers the simulation, which multiplies by the inverse, decides.
        halfway = np.abs(np.abs(weight / scales) % 1 - 0.5) < 1e-4
        if layer.weight_quantizer.pairs:  # who is moved depends on its neighbour
            expected, halfway = moved_apart(expected, halfway)
        assert np.array_equal(integers[~halfway], expected[~halfway])
        assert np.abs(integers.astype(int)).max() <= most
        assert most == 63 or name != "seven-bits"
        simulated = layer.eval().quantized_weight().detach().numpy() / scales
        assert np.abs(integers - simulated).max() < 1e-3


def moved_apart(weight: np.ndarray, unsure: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest integers of which no two neighbours exceed 128 together; and which of them are
    unsure since one of the two is."""
    if weight.shape[1] % 2:
        return np.clip(weight, -64, 64), unsure
    moved, unsure = weight.copy(), unsure.copy()
    first, second = moved[:, ::2], moved[:, 1::2]
    total = first + second
    excess = np.sign(total) * np.maximum(np.abs(total) - 128, 0)
    first -= np.sign(excess) * np.ceil(np.abs(excess) / 2)
    second -= np.sign(excess) * np.floor(np.abs(excess) / 2)
    both = unsure[:, ::2] | unsure[:, 1::2]
    unsure[:, ::2], unsure[:, 1::2] = both, both
    return moved, unsure


@pytest.mark.parametrize("name", INT8)
def test_no_pair_of_weights_overflows_16_bits(bench, name):
    """Beside each other in a kernel's memory: channels 2i and 2i + 1 of a tap. On a CPU without
    VNNI 255 times both must fit."""
    for node, _, (integers, _, _), _ in products(graph_of(deployed(bench, name))):
        weight = integers.astype(int)
        if weight.shape[1] % 2:
            pairs = 2 * np.abs(weight)
        else:
            positive, negative = np.maximum(weight, 0), np.maximum(-weight, 0)
            pairs = np.maximum(*(w[:, ::2] + w[:, 1::2] for w in (positive, negative)))
        assert 255 * pairs.max() < 2**15, node.name


@pytest.mark.parametrize("name", INT8)
def test_every_bias_is_in_steps_of_both_scales(bench, name):
    for layer, (_, image, weight, bias) in zip(
        fakequant.layers(made(bench, name).state.network).values(),
        products(graph_of(deployed(bench, name))),
        strict=True,
    ):
        steps = image[0] * weight[1]
        assert bias[0].dtype == np.int32 and np.array_equal(bias[1], steps)
        simulated = layer.eval().quantized_bias().detach().numpy()
        assert np.abs(bias[0] * steps.astype(np.float64) - simulated).max() <= steps.max()


@pytest.mark.parametrize("name", INT8)
def test_the_first_quantized_tensor_is_the_image_itself(bench, name):
    graph, spec = graph_of(deployed(bench, name)), made(bench, name).state.spec
    [reader] = [node for node in graph.node if "images" in node.input]
    assert reader.op_type == "DequantizeLinear"
    values = constants(graph)
    assert values[reader.input[1]] == np.float32(spec.scale)
    assert values[reader.input[2]] == spec.zero_point
    assert not {"Cast", "Sub", "Mul"} & {node.op_type for node in graph.node}


def test_the_logits_are_not_rounded(bench):
    graph = graph_of(deployed(bench, "ptq-int8"))
    [last] = [node for node in graph.node if "logits" in node.output]
    assert last.op_type == "Gemm"


def test_what_nothing_reads_is_not_stored(bench):
    for name in ("base", "qat-int8"):
        graph = graph_of(deployed(bench, name))
        read = {name for node in graph.node for name in node.input}
        assert {t.name for t in graph.initializer} <= read


def quantized(state: network.ModelState, pixels: torch.Tensor, **settings) -> network.ModelState:
    made = network.with_transform(network.fold(state), FakeQuantized(**settings))
    batches = [made.network.normalize(pixels)]
    image = made.spec.zero_point, made.spec.scale
    calibration.calibrate(made.network.module, batches, "mse", image)
    return made


@pytest.mark.parametrize(
    "model, width, shape", [("vgg11", 0.125, (1, 28, 28)), ("vgg13_bn", 0.0625, (3, 48, 64))]
)
def test_other_shapes_without_normalization_and_with_an_average_at_the_end(
    tmp_path, model, width, shape
):
    """And with filters that are dead, or nearly: their bias is all that they give."""
    state, pixels = (
        lively(module_of(model).spec(model, width, shape, 10, 120, 1 / 64)),
        images(shape, 64),
    )
    spoil_filters(state)
    simulated = quantized(state, pixels, pairs=True)  # as artifacts are, right on every CPU
    artifact.write(simulated, tmp_path / "x", {}, pixels.numpy(), tuple("0123456789"))
    loaded = artifact.load(tmp_path / "x")
    ran = runtimes.kernels(loaded)
    assert ran.integer_share == 1.0 and ran.integer == ran.total
    [logits] = runtimes.logits(runtimes.session(loaded, 1), pixels.numpy())
    with torch.inference_mode():
        expected = simulated.network.eval()(pixels).numpy()
        plain = network.fold(state).network.eval()(pixels).numpy()
    spread = np.abs(plain - plain.mean()).max()
    assert np.abs(logits - expected).max() < 0.05 * spread
    assert np.abs(logits - plain).max() < 0.25 * spread


def spoil_filters(state) -> None:
    """In the second layer: one filter of zeros, one of next to nothing, one that is all bias."""
    layer = state.network.module.features[1]
    with torch.no_grad():
        layer.conv.weight[0] = 0
        layer.conv.weight[1] *= 1e-30
        layer.conv.weight[2] *= 1e-6
        bias = layer.conv.bias if layer.norm is None else layer.norm.bias
        bias[:3] = torch.tensor([0.4, 0.3, 0.2])


def test_at_full_width_int8_takes_a_quarter_of_the_bytes(tmp_path):
    state = lively(module_of("vgg11_bn").spec("vgg11_bn", 1, (3, 32, 32), 10, 120, 1 / 64))
    pixels = images((3, 32, 32), 8)
    sizes = []
    for made_of in (state, quantized(state, pixels)):
        artifact.write(made_of, tmp_path / "x", {}, pixels.numpy(), tuple("0123456789"))
        sizes.append(artifact.load(tmp_path / "x").stored_bytes)
    assert sizes[0] == pytest.approx(4 * network.parameter_count(state.spec), rel=0.01)
    assert 0.25 <= sizes[1] / sizes[0] < 0.256


# --- loading trusts nothing ------------------------------------------------------------------


def rewrite(folder: Path, model: bytes | None = None, **changed) -> None:
    """The artifact with another model and its own checksum right: changed with intent."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    if model is not None:
        (folder / "model.onnx").write_bytes(model)
        digest = store.sha256(folder / "model.onnx")
        written = {"bytes": len(model), "sha256": digest}
        manifest |= {"files": {"model.onnx": written}, "runnable": written}
    (folder / "manifest.json").write_bytes(strangers.sealed(manifest | changed))


def test_a_flipped_bit_anywhere_in_the_manifest_is_found(copied):
    """A class with another name, say, is no less wrong than another weight."""
    path = copied / "manifest.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        bit = 1 << place % 8
        path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        with pytest.raises((Corrupt, UserError)):
            artifact.load(copied)


def test_a_manifest_of_before_it_had_a_checksum_is_read(copied):
    path = copied / "manifest.json"
    manifest = json.loads(path.read_bytes())
    seal = manifest.pop("seal")
    path.write_text(json.dumps(manifest | {"format": 1}))
    assert artifact.load(copied).classes == tuple(manifest["classes"])
    for changed in ({"format": 2}, {"format": 2, "seal": seal}):
        path.write_text(json.dumps(manifest | changed))
        with pytest.raises(Corrupt, match="not a manifest that netpress wrote"):
            artifact.load(copied)


def test_a_flipped_byte_anywhere_in_the_model_is_found(copied):
    path = copied / "model.onnx"
    sound = path.read_bytes()
    for at in (0, 100, len(sound) // 2, len(sound) - 1):
        spoiled = bytearray(sound)
        spoiled[at] ^= 1
        path.write_bytes(spoiled)
        with pytest.raises(Corrupt, match=r"model\.onnx: changed since it was written"):
            artifact.load(copied)
    path.write_bytes(sound[:-1])
    with pytest.raises(Corrupt, match="changed since"):
        artifact.load(copied)


def test_a_changed_artifact_is_one_sentence_for_who_predicts_with_it(copied, tmp_path):
    with open(copied / "model.onnx", "ab") as file:
        file.write(b"\0")
    with pytest.raises(UserError, match=r"changed since .*; take it anew with `netpress export`"):
        list(predict(copied, [tmp_path / "image.png"]))


@pytest.mark.parametrize("missing", ["model.onnx", "manifest.json"])
def test_a_missing_file_is_a_sentence(copied, missing):
    (copied / missing).unlink()
    with pytest.raises((Corrupt, UserError), match=r"cannot be read|not an artifact; expected"):
        artifact.load(copied)


def test_a_folder_that_is_none_is_a_sentence(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match=r"not an artifact; expected a folder with manifest"):
            artifact.load(path)


def test_another_format_is_named(copied):
    for other in (3, "new", None, []):
        rewrite(copied, format=other)
        with pytest.raises(UserError, match=r"this netpress reads 1 and 2"):
            artifact.load(copied)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["model.onnx", "sha256", "a"]), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = ["format", "kind", "classes", "shape", "files"]


@given(st.sampled_from(KEYS), JSON)
@FEW
def test_no_nonsense_in_a_manifest_is_more_than_a_sentence(copied, key, value):
    spoiled = copied.with_name("spoiled")
    shutil.copytree(copied, spoiled, dirs_exist_ok=True)
    rewrite(spoiled, **{key: value})
    try:
        loaded = artifact.load(spoiled)
    except (Corrupt, UserError) as error:
        assert "\n" not in str(error)
    else:  # such as other names for the ten classes
        assert (
            loaded.shape == (1, 32, 32)
            and len(loaded.classes) == 10
            and runtimes.session(loaded, 1)
        )


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"7", b"null", b"\xff", b"[" * 100_000, b'{"format": 1}']
)
def test_a_manifest_that_is_none_is_corrupt(copied, content):
    (copied / "manifest.json").write_bytes(content)
    with pytest.raises(Corrupt, match="not a manifest that netpress wrote"):
        artifact.load(copied)


@pytest.mark.parametrize(
    "changed",
    [
        {"classes": list("0123456789a")},
        {"shape": [3, 32, 32]},
        {"shape": [1, 10**6, 10**6]},
    ],
)
def test_a_manifest_that_does_not_fit_its_model_is_corrupt(copied, changed):
    rewrite(copied, **changed)
    with pytest.raises(
        Corrupt, match="takes or gives another shape or type than its manifest.json says"
    ):
        artifact.load(copied)


def external(name: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")
    return tensor


def with_initializer(model):
    model.graph.initializer.append(external("stolen"))


def with_constant(model):
    model.graph.node.append(helper.make_node("Constant", [], ["stolen"], value=external("v")))


def with_sparse(model):
    model.graph.sparse_initializer.add().values.CopyFrom(external("stolen"))


def with_subgraph(model):
    inner = helper.make_graph([], "inner", [], [], [external("stolen")])
    model.graph.node.append(
        helper.make_node("If", ["c"], ["o"], then_branch=inner, else_branch=inner)
    )


def with_function(model):
    node = helper.make_node("Constant", [], ["stolen"], value=external("v"))
    model.functions.append(
        helper.make_function("own", "f", [], ["stolen"], [node], [helper.make_opsetid("", 20)])
    )


@pytest.mark.parametrize(
    "spoil", [with_initializer, with_constant, with_sparse, with_subgraph, with_function]
)
def test_data_outside_of_the_file_is_refused_however_deep_it_hides(copied, spoil):
    model = onnx.load(copied / "model.onnx")
    spoil(model)
    rewrite(copied, model.SerializeToString())
    with pytest.raises(Corrupt, match="refers to data outside of itself"):
        artifact.load(copied)


@pytest.mark.parametrize("content", [b"", b"\x08", b"not an ONNX model", b"\0" * 100])
def test_what_is_no_model_is_corrupt_whatever_its_checksum(copied, content):
    rewrite(copied, content)
    with pytest.raises(Corrupt, match=r"not an ONNX model|another shape"):
        artifact.load(copied)


def test_a_model_that_the_runtime_refuses_is_corrupt(copied, tmp_path):
    model = onnx.load(copied / "model.onnx")
    model.ir_version = 99
    rewrite(copied, model.SerializeToString())
    with pytest.raises(Corrupt, match=r"ONNX Runtime cannot load it") as told:
        runtimes.session(artifact.load(copied))
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match="take it anew"):
        list(predict(copied, [tmp_path / "image.png"]))


# --- predicting ------------------------------------------------------------------------------


def test_image_files_are_classified_by_name_with_a_confidence(bench, tmp_path):
    split, loaded = split_of(bench), deployed(bench, "base")
    paths = []
    for i in range(5):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(split.test.pixels[i, 0].numpy()).save(paths[-1])
    rows = list(predict(loaded.folder, paths))
    [scores] = runtimes.logits(runtimes.session(loaded, 1), split.test.pixels[:5].numpy())
    shares = torch.softmax(torch.from_numpy(scores), 1).max(1)
    assert [row.image for row in rows] == paths
    assert [row.top[0][0] for row in rows] == [split.classes[k] for k in shares.indices]
    confidences = [row.top[0][1] for row in rows]
    assert confidences == pytest.approx(shares.values.tolist(), rel=1e-5)


def test_sessions_use_the_threads_that_they_are_told(bench):
    session = runtimes.session(deployed(bench, "base"), 1)
    own = session.inner.session
    assert isinstance(own, onnxruntime.InferenceSession)
    assert own.get_session_options().intra_op_num_threads == 1
    assert own.get_providers() == ["CPUExecutionProvider"]


def test_classifying_loads_neither_torch_nor_what_edits_graphs():
    code = "import sys, pipeline.predict\n"
    code += "print(sorted({'torch', 'onnx_ir', 'sympy'} & set(sys.modules)))"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=CODE, capture_output=True, text=True, check=True
    )
    assert ended.stdout == "[]\n"
