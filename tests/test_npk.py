"""The codec of integer weights: every model back byte for byte, in few bytes, and nothing else."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.artifact.npk import decode as npk
from pipeline.artifact.npk import plans
from pipeline.artifact.npk.encode import _described, encode
from pipeline.artifact.npk.known import bits
from pipeline.artifact.npk.spans import initializers
from tests.benchmarks import fuzz_npk
from tests.benchmarks.fuzz_npk import onnx_bytes


def entropy_bytes(values: np.ndarray) -> float:
    """What coding each value by how often it occurs takes, without saying how often that is."""
    counts = np.unique(values, return_counts=True)[1]
    return float(counts @ np.log2(values.size / counts)) / 8


def size_of(values: np.ndarray) -> int:
    """Coded bytes of a model with these weights; it is decoded, too."""
    model = onnx_bytes(weights=values)
    coded = encode(model)
    assert npk.decode(coded, len(model)) == model
    return len(coded)


@st.composite
def weights(draw):
    """int8 or uint8 of some shape: sparse or not, of one value or all."""
    shape = draw(
        st.one_of(
            st.tuples(st.integers(0, 700)),
            st.tuples(st.integers(1, 40), st.integers(1, 60)),
            st.tuples(*[st.integers(1, 24)] * 2, *[st.integers(1, 3)] * 2),
        )
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    least, most = sorted(draw(st.tuples(*[st.integers(-128, 127)] * 2)))
    values = rng.integers(least, most, shape, np.int8, endpoint=True)
    kept = rng.random(shape) < draw(st.sampled_from([0.0, 0.03, 0.5, 1.0]))
    return np.where(kept, values, 0).astype(draw(st.sampled_from([np.int8, np.uint8])))


@settings(max_examples=25, deadline=None)
@given(st.lists(weights(), max_size=2), st.integers(0, 70), st.integers(0, 40))
def test_every_model_comes_back_byte_for_byte(arrays, floats, integers):
    rng = np.random.default_rng(0)
    named = {f"w{i}": array for i, array in enumerate(arrays)}
    model = onnx_bytes(
        **named,
        f=rng.normal(size=floats).astype(np.float32),
        i=rng.integers(-(2**31), 2**31, integers).astype(np.int32),
    )
    coded = encode(model)
    assert npk.decode(coded, len(model)) == model
    assert len(coded) < len(model) + 100


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=400))
def test_what_is_no_model_comes_back_as_well(data):
    assert npk.decode(encode(data), len(data)) == data


def normal(rng, shape, scale=12.0) -> np.ndarray:
    return np.clip(np.rint(rng.normal(0, scale, shape)), -127, 127).astype(np.int8)


def related(rng) -> np.ndarray:
    """Filters that lie near few directions of their channels."""
    of_channels = rng.normal(size=(64 * 9, 4)) @ rng.normal(size=(4, 64)) * 12
    values = of_channels + rng.normal(size=of_channels.shape) * 4
    return np.clip(values.reshape(64, 3, 3, 64), -127, 127).astype(np.int8).transpose(0, 3, 1, 2)


def smooth(rng) -> np.ndarray:
    """Kernels whose positions are alike."""
    values = rng.normal(size=(64, 32, 1, 1)) * 12 + rng.normal(size=(64, 32, 3, 3)) * 6
    return np.clip(values, -127, 127).astype(np.int8)


def scaled(rng) -> np.ndarray:
    """Filters and channels of other sizes."""
    scale = np.exp(rng.normal(size=(64, 1)) + rng.normal(size=(1, 256)))
    return normal(rng, (64, 256), scale * 6)


def pruned(rng) -> np.ndarray:
    """Some channels are hardly used."""
    used = rng.choice([0.02, 0.3], (1, 64, 1, 1))
    return normal(rng, (64, 64, 3, 3)) * (rng.random((64, 64, 3, 3)) < used)


@pytest.mark.parametrize(
    "made, share", [(related, 0.9), (smooth, 0.95), (scaled, 0.95), (pruned, 0.98)]
)
def test_what_neighbours_say_is_used(made, share):
    values = np.ascontiguousarray(made(np.random.default_rng(0)))
    assert size_of(values) < share * entropy_bytes(values)


@pytest.mark.parametrize("values", [[-5, 0, 5], [*range(-7, 8)], [*range(-127, 128)]])
def test_noise_takes_little_more_than_its_entropy(values):
    noise = np.random.default_rng(0).choice(np.array(values, np.int8), (64, 64, 3, 3))
    assert size_of(noise) < 1.01 * entropy_bytes(noise) + 300


def test_a_matrix_of_a_small_map_is_seen_as_the_convolution_that_it_was():
    kernels = related(np.random.default_rng(0))
    matrix = np.ascontiguousarray(kernels.transpose(2, 3, 1, 0).reshape(9 * 64, 64))
    assert size_of(matrix) < 1.01 * size_of(np.ascontiguousarray(kernels))


def test_the_scale_of_a_bias_is_stored_as_a_product():
    rng = np.random.default_rng(0)
    one, scale = np.array([0.3], np.float32), rng.random(4000, np.float32)
    alone = len(encode(onnx_bytes(one=one, scale=scale)))
    both = encode(onnx_bytes(one=one, scale=scale, product=one * scale))
    assert len(both) < alone + 200
    near = np.nextafter(one * scale, np.float32(1))  # in one bit: no product, and not made one
    model = onnx_bytes(one=one, scale=scale, product=near)
    assert npk.decode(encode(model), len(model)) == model


def test_the_numbers_of_a_model_are_found_where_they_are():
    arrays = {
        "i": np.arange(6, dtype=np.int8).reshape(2, 3),
        "u": np.arange(4, dtype=np.uint8),
        "f": np.arange(5, dtype=np.float32),
        "n": np.arange(3, dtype=np.int32),
        "l": np.arange(3),  # int64: stays
    }
    model = onnx_bytes(**arrays)
    spans = initializers(model)
    assert [model[n.start : n.stop] for n in spans] == [a.tobytes() for a in arrays.values()][:4]
    assert [n.dims for n in spans] == [(2, 3), (4,), (5,), (3,)]
    as_floats = onnx.load_model_from_string(model)
    tensor = as_floats.graph.initializer[2]
    tensor.ClearField("raw_data")
    tensor.float_data.extend(arrays["f"])
    again = as_floats.SerializeToString()
    assert arrays["f"].tobytes() in [again[n.start : n.stop] for n in initializers(again)]


# --- the decoder -----------------------------------------------------------------------------


def test_one_file_decodes_without_netpress(tmp_path):
    model = fuzz_npk.small_model()
    shutil.copy(npk.__file__, tmp_path / "decode.py")
    (tmp_path / "x.npk").write_bytes(encode(model))
    (tmp_path / "broken.npk").write_bytes(encode(model)[:-4])
    hidden = "import sys; sys.modules['pipeline'] = sys.modules['torch'] = None; "
    program = hidden + "import runpy; runpy.run_path('decode.py', run_name='__main__')"

    def decoded(name: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-I", "-c", program, name, "x.onnx"]
        return subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True)

    assert decoded("broken.npk").stderr == "broken.npk: it is cut off, or more follows\n"
    assert not (tmp_path / "x.onnx").exists()
    done = decoded("x.npk")
    assert (done.returncode, done.stderr) == (0, "")
    digest = hashlib.sha256((tmp_path / "x.onnx").read_bytes()).digest()
    assert digest == hashlib.sha256(model).digest() == npk.HEAD.unpack_from(encode(model))[3]


def test_the_probabilities_are_those_that_they_were():
    """A decoder that computes others cannot read what is stored: raise VERSION, and go on reading
    the files of before."""
    assert npk.LOG_ODD[[0, 1, 2, 4095]].tolist() == [0, 50, 74, 415]
    assert npk.log2(np.array([1, 2, 3, 1000, 2**40])).tolist() == [0, 32, 50, 318, 1280]
    assert npk.power(np.array([-33, 0, 1, 100])).tolist() == [513053, 1048576, 1071536, 9147840]
    model = fuzz_npk.small_model()
    known = hashlib.sha256(b"".join(table(plan).tobytes() for plan in all_plans(model)))
    assert known.hexdigest()[:16] == "a17859e5f7f4acf7"


def all_plans(model):
    data = memoryview(encode(model))
    head = npk.HEAD.unpack_from(data)
    start = npk.HEAD.size + npk.CHECK.size
    reader = npk.Reader(npk.unpack(data[start : start + head[4]], npk.PLANS_BYTES))
    return [plan for stream in npk.read_streams(reader) for plan in stream.plans]


def table(plan):
    return npk.distributions(plan)


def test_the_sums_of_matrix_products_are_exact_so_their_order_is_of_no_matter():
    rng = np.random.default_rng(0)
    plan = npk.Plan(64, 64, 9, groups=2, predictors=32, ridge=1)
    channels = npk.Channels(plan)
    extreme = rng.choice(np.array([-128, 127], np.int8), (64, 9, 64))
    channels.learn(extreme)
    rows = extreme.reshape(-1, 64).astype(np.int64)
    assert np.array_equal(channels.products, rows[:, :32].T @ rows)
    channels.factors = [None, np.full((32, 32), 1023, np.float32)]
    sums = rows[:, :32].reshape(64, 9, 32).sum(2) * 1023 * npk.TAP // npk.FACTOR
    assert np.array_equal(channels.guess(extreme, 1).reshape(9, 64, 32)[:, :, 0], sums.T)


def test_damaged_and_hostile_files_are_one_sentence_and_take_no_memory():
    told = fuzz_npk.run(200, seed=1)
    assert sum(told.values()) == 200 and len(told) > 10


def test_invented_descriptions_take_no_memory_either():
    told = fuzz_npk.run_invented(12, seed=3, most=1 << 17)
    assert sum(told.values()) == 12 and "the model" not in told


def test_planes_of_numbers_are_decoded_one_after_the_other():
    rng = np.random.default_rng(0)
    size = 24 << 20
    plan = npk.Plan(size // 4, 1, first=1 << 16, alphabet=(0,), layout=1)
    stream = npk.Stream(npk.FLOATS, (plan,) * 4)
    words = npk.Words(memoryview(rng.bytes(4)))
    tracemalloc.start()
    npk.filled(b"", [stream], [npk.Span(0, size, 1)], size, words)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * size


def test_a_tensor_that_is_said_to_be_large_is_refused_before_it_is_made():
    model = onnx_bytes(w=normal(np.random.default_rng(0), (64, 16, 3, 3)))
    data = memoryview(encode(model))
    plan = all_plans(model)[0]
    huge = replace(plan, filters=1 << 30, channels=1)
    with pytest.raises(ValueError, match="other sizes than its bytes"):
        npk.filled(b"", [npk.Stream(0, (huge,))], [npk.Span(0, 16, 1)], 16, npk.Words(data[:0]))


def read_again(plan: npk.Plan) -> npk.Plan:
    """As a file has a plan, whatever it says."""
    [stream] = npk.read_streams(npk.Reader(_described([npk.Stream(0, (plan,))], [])))
    return stream.plans[0]


@pytest.mark.parametrize(
    "hostile",
    [
        {"residual": 1, "alphabet": (0, 200)},  # no int8
        {"filters": 8, "channels": 1 << 16, "positions": 1 << 6, "weights": (0, 0, 1, 0)},
    ],
)
def test_a_plan_that_no_tensor_has_is_refused_where_it_is_read(hostile):
    [plan, *_] = all_plans(onnx_bytes(w=normal(np.random.default_rng(0), (64, 16, 3, 3))))
    sound = replace(plan, taps=(), predictors=0, groups=1, bias=(0,))
    assert read_again(sound) == sound
    with pytest.raises(ValueError, match="as none can be"):
        read_again(replace(sound, **hostile))


def test_tensors_that_take_longer_than_any_encoder_spends_are_refused_before_they_are_decoded():
    """A file of 200 bytes: each tensor of 8 kB predicts channels from many, block after block."""
    plan = npk.Plan(8, 1024, first=1, groups=2, predictors=128, ridge=1, alphabet=(1,))
    count = 2000
    streams = [npk.Stream(0, (plan,))] * count
    spans = [npk.Span(0, plan.size, i + 1) for i in range(count)]
    words = npk.Words(memoryview(b""))
    before = time.process_time()
    with pytest.raises(ValueError, match="take longer to decode than any"):
        npk.filled(b"", streams, spans, count * plan.size, words)
    assert time.process_time() - before < 2
    assert npk.filled(b"", streams[:1], spans[:1], plan.size, words) == b"\1" * plan.size


def test_a_model_whose_tensors_would_take_too_long_is_stored_as_a_whole(monkeypatch):
    monkeypatch.setattr(npk, "NS_AT_MOST", 0.0)
    monkeypatch.setattr(npk, "NS_PER_VALUE_AT_MOST", 1.0)
    model = onnx_bytes(w=normal(np.random.default_rng(0), (64, 16, 3, 3)))
    assert npk.decode(encode(model)) == model


def test_what_a_plan_takes_is_what_it_was_estimated_to_take():
    values = np.ascontiguousarray(related(np.random.default_rng(0)).reshape(64, 64, 9))
    true = np.ascontiguousarray(values.transpose(0, 2, 1))
    _, options = plans.of_weights(values.reshape(-1), (64, 64, 3, 3))
    assert options[0].plan.predictors and options[0].bits < options[-1].bits
    coded = size_of(values.reshape(64, 64, 3, 3))
    assert coded == pytest.approx(bits(options[0].plan, true) / 8, rel=0.02)
