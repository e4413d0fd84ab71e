"""What is measured is what is there: operations by hand, kernels that ran, turns taken."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from pipeline import artifact, hardware, runtimes
from pipeline.errors import UserError
from pipeline.measure import cell as measuring
from pipeline.measure import complexity, inference, latency
from pipeline.measure.series import Series, parse
from pipeline.models import module_of, network
from pipeline.models.transforms.fakequant import FakeQuantized
from pipeline.sweep import Measure
from tests import cells
from tests.test_artifact import rewrite
from tests.test_models import lively
from tests.test_techniques import deployed, made, split_of

ONCE = Measure(repeats=1, seconds=0.1)


def measured(bench, name: str, settings=ONCE, of=None) -> dict:
    mine = of or measuring.Candidate(made(bench, name).state, deployed(bench, name))
    base = measuring.Candidate(made(bench, "base").state, deployed(bench, "base"))
    device, told = torch.device("cpu"), []
    with cells.one_core():
        values = measuring.measure(mine, base, split_of(bench), settings, device, told.append)
    assert told[0] == "kernels" and "accuracy" in told and len(told) == 4
    return values


# --- parameters and operations ---------------------------------------------------------------


def by_hand(channels, shape, blocks, classes=10, batch_norm=True) -> tuple[int, int]:
    """(parameters, MACs) of a VGG, one convolution after the other."""
    inputs, height, width = shape[0], max(32, shape[1]), max(32, shape[2])  # small ones are padded
    parameters = macs = at = 0
    for convolutions in blocks:
        for _ in range(convolutions):
            parameters += 9 * inputs * channels[at] + channels[at] * (2 if batch_norm else 1)
            macs += 9 * inputs * channels[at] * height * width
            inputs, at = channels[at], at + 1
        height, width = height // 2, width // 2
    return parameters + (inputs + 1) * classes, macs + inputs * classes


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 64, 48), (1, 8, 8)])
@pytest.mark.parametrize("name", ["vgg11_bn", "vgg16", "vgg16_bn"])
def test_parameters_and_operations_are_those_of_a_hand_computation(name, shape):
    spec = module_of(name).spec(name, 0.25, shape, 10, 0, 1.0)
    blocks = (1, 1, 2, 2, 2) if name == "vgg11_bn" else (2, 2, 3, 3, 3)
    expected = by_hand(spec.channels, shape, blocks, batch_norm=name.endswith("_bn"))
    assert complexity.count(spec) == expected
    assert complexity.count(spec.with_transform(FakeQuantized(learned=True))) == expected


def test_a_pruned_network_is_counted_as_it_is():
    spec = module_of("vgg11_bn").spec("vgg11_bn", 0.25, (3, 32, 32), 10, 0, 1.0)
    spec = replace(spec, channels=(8, 24, 16, 8, 40, 8, 16, 8))
    assert complexity.count(spec) == by_hand(spec.channels, (3, 32, 32), (1, 1, 2, 2, 2))


def test_subnormal_numbers_of_the_deployed_model_are_counted(bench):
    loaded = deployed(bench, "base")
    assert complexity.subnormals(loaded.model) == 0
    model = onnx.load_model_from_string(loaded.model)
    weight = next(t for t in model.graph.initializer if len(t.dims) == 4)
    values = numpy_helper.to_array(weight).copy()
    values.flat[:7] = [1e-40, -1e-39, 1e-45, 0.0, -0.0, 1e-37, 2e-38]
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    assert complexity.subnormals(model.SerializeToString()) == 3


def test_a_network_whose_scales_shrank_to_nothing_is_deployed_without_subnormals(tmp_path):
    state = lively(module_of("vgg11_bn").spec("vgg11_bn", 0.125, (1, 32, 32), 10, 120, 1 / 64))
    state.network.module.features[3].norm.weight.data[::2] = 1e-38
    artifact.write(state, tmp_path / "x", {}, np.empty(0), tuple("0123456789"))
    assert complexity.subnormals(artifact.load(tmp_path / "x").model) == 0


# --- kernels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name, share", [("base", 0.0), ("ptq-int8", 1.0)])
def test_kernels_are_read_from_what_the_runtime_ran(bench, name, share, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = runtimes.kernels(deployed(bench, name))
    assert ran.total == 9 and ran.integer == 9 * share and ran.integer_share == share
    assert os.listdir(tmp_path) == []  # no profile is left where the user is


def test_the_share_is_of_operations_and_not_of_layers(bench, tmp_path):
    """The last product of a quantized model made one of floats: a ninth of the kernels, but less
    than a thousandth of the work."""
    shutil.copytree(deployed(bench, "ptq-int8").folder, tmp_path / "x")
    model = onnx.load(tmp_path / "x" / "model.onnx")
    [last] = [node for node in model.graph.node if "logits" in node.output]
    makers = {o: n for n in model.graph.node for o in n.output}
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for i in (1, 2):  # weight and bias, back to floats
        numbers, scales, _ = (values[name] for name in makers[last.input[i]].input)
        scales = scales.reshape(-1, *[1] * (numbers.ndim - 1))
        plain = numpy_helper.from_array((numbers * scales).astype(np.float32), f"plain{i}")
        model.graph.initializer.append(plain)
        last.input[i] = plain.name
    rewrite(tmp_path / "x", model.SerializeToString())
    ran = runtimes.kernels(artifact.load(tmp_path / "x"))
    macs = complexity.count(made(bench, "base").state.spec)[1]
    assert (ran.integer, ran.total) == (8, 9)
    assert ran.integer_share == pytest.approx(1 - 640 / macs)


def test_a_model_that_only_says_that_it_is_quantized_is_a_failure(bench, tmp_path):
    """The float model under the manifest of an int8 one: nothing of it runs on integers."""
    shutil.copytree(deployed(bench, "base").folder, tmp_path / "x")
    rewrite(tmp_path / "x", kind="int8")
    liar = measuring.Candidate(made(bench, "ptq-int8").state, artifact.load(tmp_path / "x"))
    with pytest.raises(measuring.NotInteger, match="computed all its products in floats"):
        measured(bench, "ptq-int8", of=liar)


# --- a whole cell ----------------------------------------------------------------------------


def test_everything_is_measured_beside_the_base(bench):
    values = measured(bench, "ptq-int8", Measure(repeats=3, seconds=5))
    test = split_of(bench).test
    for name in ("stored_bytes", "runnable_bytes", "parameters", "macs", "test_set_seconds"):
        assert values[name] > 0 and values[f"base_{name}"] > 0
    assert values["stored_bytes"] < 0.5 * values["base_stored_bytes"]
    labels = test.labels.numpy()
    assert values["accuracy"] == np.mean(values["predictions"] == labels)
    assert values["base_accuracy"] == np.mean(values["base_predictions"] == labels)
    assert values["accuracy_drop"] == values["base_accuracy"] - values["accuracy"]
    assert values["agreement"] == np.mean(values["predictions"] == values["base_predictions"])
    assert values["simulated_agreement"] >= 0.999 and len(values["predictions"]) == len(labels)
    assert np.array_equal(values["labels"], labels) and values["labels"].dtype == np.uint16
    assert (values["integer_kernels"], values["integer_share"], values["subnormals"]) == (9, 1.0, 0)
    assert tuple(values["channels"]) == made(bench, "base").state.spec.channels
    series = {name: samples for name, samples in values.items() if name.startswith("latency/")}
    expected = {
        f"latency/{who}/{threads}/{batch}"
        for who in ("onnxruntime/artifact", "onnxruntime/base", "pytorch/simulated", "pytorch/base")
        for threads in ("one", "all")
        for batch in ("batch1", "batch64")
    }
    assert series.keys() == expected
    assert all(len(ms) == 3 and (ms > 0).all() for ms in series.values())


@pytest.mark.parametrize(
    ("series", "name"),
    [
        (Series("onnxruntime", "artifact", "all", 64), "latency/onnxruntime/artifact/all/batch64"),
        (Series("pytorch", "simulated", "one", 1), "latency/pytorch/simulated/one/batch1"),
        (Series("mine", "base", "all", 8, "cuda"), "latency/mine@cuda/base/all/batch8"),
    ],
)
def test_a_series_has_one_name_which_gives_it_back(series, name):
    assert series.name == name and parse(name) == series


@pytest.mark.parametrize(
    "name",
    [
        "accuracy",
        "latency/onnxruntime",
        "latency/onnxruntime/artifact/two/batch1",
        "latency/onnxruntime/artifact/all/batch01",
        "latency/onnxruntime@cpu/artifact/all/batch1",
        "latency/a/b/artifact/all/batch1",
        "latency/onnxruntime/artifact/all/batch1/p50",
        "latency/onnxruntime/artifact/all/batch1\n",
    ],
)
def test_no_other_name_is_that_of_a_series(name):
    assert parse(name) is None


def test_a_base_is_measured_against_itself(bench):
    values = measured(bench, "base")
    assert values["agreement"] == 1.0 and values["accuracy_drop"] == 0.0
    assert values["simulated_agreement"] == 1.0 and values["integer_kernels"] == 0
    assert values["stored_bytes"] == values["base_stored_bytes"]


def test_measuring_leaves_the_number_of_threads_as_it_was(bench):
    before = torch.get_num_threads()
    measured(bench, "base")
    assert torch.get_num_threads() == before


def test_what_is_timed_in_pytorch_is_a_copy_in_float32(bench):
    state = made(bench, "ptq-int8").state
    state.network.train()
    network_ = runtimes.reference(state).inner.network
    assert all(p.dtype == torch.float32 for p in network_.parameters())
    assert network_ is not state.network and not network_.training and state.network.training
    state.network.eval()


# --- latency ---------------------------------------------------------------------------------


def recorded(log: list, name: str, seconds: float = 0.0):
    def run():
        log.append(name)
        time.sleep(seconds)

    return run


def test_contenders_take_turns_each_after_runs_that_are_not_timed():
    log: list[str] = []
    samples = latency.interleaved({n: recorded(log, n) for n in "abs"}, 3, 60, spinning={"s"})
    warm = [n for n in "abs" for _ in range(latency.WARM_UP)]
    turns = [n for order in ("abs", "bas", "abs") for n in order]  # who spins is always last
    assert log == warm + [n for n in turns for _ in range(latency.UNTIMED + 1)]
    assert {name: len(ms) for name, ms in samples.items()} == {"a": 3, "b": 3, "s": 3}


def test_what_is_slow_is_warm_after_one_run():
    log: list[str] = []
    latency.interleaved({"slow": recorded(log, "slow", 0.05)}, repeats=2, seconds=60)
    assert len(log) == latency.WARM_UP + 2 * (1 + 1)


def test_what_has_a_budget_stays_within_it_and_the_others_are_timed_as_ever():
    log: list[str] = []
    budget = latency.Budget(0.3)
    runs = {"quick": recorded(log, "quick"), "slow": recorded(log, "slow", 0.1)}
    budget.begin(1)
    runs["slow"] = latency.Limited(runs["slow"], budget)
    samples = latency.interleaved(runs, repeats=12, seconds=60, spinning={"slow"})
    assert len(samples["quick"]) == 12 and log.count("slow") <= 3
    assert budget.left_s < 0.1 and len(samples.get("slow", ())) == 0
    budget.begin(2)  # nothing is left for it: it is not even begun
    assert "slow" not in latency.interleaved(runs, repeats=1, seconds=1) and log.count("slow") <= 3


def test_a_long_run_of_a_budget_is_timed_without_runs_before(monkeypatch):
    monkeypatch.setattr(latency, "LONG_S", 0.02)
    log: list[str] = []
    budget = latency.Budget(0.22)
    runs = {"slow": latency.Limited(recorded(log, "slow", 0.04), budget)}
    samples = latency.interleaved(runs, repeats=100, seconds=60)
    assert len(samples["slow"]) == log.count("slow") - 1 >= 1  # one to warm up, all others timed


def test_the_simulated_network_is_evaluated_on_as_many_images_as_there_is_time_for(bench):
    own = split_of(bench)
    mine = measuring.Candidate(made(bench, "base").state, deployed(bench, "base"))
    measured = {"predictions": own.test.labels.numpy()}
    device = torch.device("cpu")

    def simulated(seconds: float) -> dict:
        settings = Measure(simulated_seconds=seconds)
        return measuring._simulated(mine, own, settings, device, measured)

    few, every = simulated(1e-9), simulated(1000)
    assert few["simulated_images"] == measuring.PROBE and "simulated_images" not in every
    whole = cells.result(bench.work.cell(bench.base.id)).measured
    assert every["simulated_accuracy"] == whole["simulated_accuracy"]


def test_a_sample_is_the_time_of_one_run_in_milliseconds():
    samples = latency.interleaved(
        {"slow": recorded([], "slow", 0.02), "fast": recorded([], "fast")}, repeats=5, seconds=60
    )
    assert 20 <= np.median(samples["slow"]) < 200 and samples["slow"].min() >= 20
    assert np.median(samples["fast"]) < np.median(samples["slow"]) / 4


@pytest.mark.parametrize(
    "repeats, seconds, rounds", [(1, 60, 1), (3, 1e-9, 3), (12, 1e-9, 10), (12, 60, 12)]
)
def test_rounds_end_by_number_or_by_time_but_ten_are_made(repeats, seconds, rounds):
    samples = latency.interleaved({"a": recorded([], "a")}, repeats, seconds)
    assert len(samples["a"]) == rounds


def test_what_a_contender_raises_is_raised():
    def broken():
        raise ValueError("no answer")

    with pytest.raises(ValueError, match="no answer"):
        latency.interleaved({"a": broken}, 3, 1)


# --- hardware --------------------------------------------------------------------------------


def test_the_hardware_is_described_in_plain_json():
    description = hardware.describe()
    assert set(description) == {"cpu", "flags", "cores", "machine", "system", "gpu", "gpu_driver"}
    assert json.loads(json.dumps(description)) == description
    assert description["cpu"] and set(description["flags"]) <= set(hardware.TELLING_FLAGS)
    assert description["gpu"] is None or isinstance(description["gpu"], str)


def test_cores_are_those_that_this_process_may_use():
    before = hardware.cores()
    with cells.one_core():
        assert hardware.cores() == 1
    assert hardware.cores() == before


def test_all_threads_are_those_requested_whatever_the_machine_shows(monkeypatch):
    """Where a cluster does not bind a job to its cores, or a job has more than it measures with."""
    monkeypatch.setattr(hardware.quota, "usable", lambda: 48)
    monkeypatch.setattr(hardware, "_requested", None)
    assert inference.thread_count("all") == 48 and inference.thread_count("one") == 1
    hardware.request(24)
    assert hardware.cores() == inference.thread_count("all") == 24
    with hardware.using(4):
        assert inference.thread_count("all") == 4 and inference.thread_count("one") == 1
    with hardware.using(None):
        assert inference.thread_count("all") == 24
    inference.require_threads(24)
    with pytest.raises(UserError, match="measure.threads: 25 are more than the 24 cores"):
        inference.require_threads(25)
    monkeypatch.setattr(hardware.quota, "usable", lambda: 2)
    assert hardware.cores() == 2  # no job has what is not there
    settings = Measure(threads=4)
    assert settings.decides()["threads"] == 4 and "threads" not in Measure().decides()


def test_seven_bits_are_for_x86_without_vnni_alone(monkeypatch):
    saturating = {
        ("x86_64", ("avx2", "avx512f")): True,
        ("x86_64", ("avx2", "avx512_vnni")): False,
        ("AMD64", ("avx2", "avx_vnni")): False,
        ("aarch64", ("asimd",)): False,
    }
    for (machine, flags), expected in saturating.items():
        monkeypatch.setattr(hardware.platform, "machine", lambda machine=machine: machine)
        monkeypatch.setattr(hardware, "cpu_flags", lambda flags=flags: flags)
        assert hardware.saturates() is expected


def test_describing_hardware_reads_no_torch_until_it_is_asked_for_a_gpu():
    code = "import sys; from pipeline import hardware; hardware.cpu_flags(); "
    code += "print('torch' in sys.modules)"
    assert cells.python("-c", code).stdout == "False\n"


def test_the_images_on_which_two_differ_most_are_kept_farthest_first():
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 200)
    images = random.integers(0, 256, (200, 1, 2, 2), np.uint8)
    own, base = random.normal(0, 3, (2, 200, 3)).astype(np.float32)
    differing = measuring._differing(own, base, images, labels)
    index = differing["differing/index"]
    assert len(index) == 16 and np.array_equal(differing["differing/pixels"], images[index])
    assert np.array_equal(differing["differing/own"], own[index].argmax(1))
    assert np.array_equal(differing["differing/base"], base[index].argmax(1))
    assert np.array_equal(differing["differing/label"], labels[index])
    shares = [torch.from_numpy(x).double().softmax(1).numpy() for x in (own, base)]
    distance = np.abs(shares[0] - shares[1]).sum(1) / 2
    assert differing["differing/distance"] == pytest.approx(distance[index], abs=1e-6)
    differ = set(np.flatnonzero(own.argmax(1) != base.argmax(1)))
    rest = differ - set(index)
    assert set(index) < differ and list(distance[index]) == sorted(distance[index], reverse=True)
    assert max(distance[list(rest)]) <= min(distance[index])
    assert measuring._differing(own, own, images, labels) == {}


def test_predictions_are_made_in_float32_whatever_trained_the_network(bench):
    state, test = made(bench, "base").state, split_of(bench).test
    with torch.autocast("cpu", torch.bfloat16, enabled=False), torch.inference_mode():
        expected = network.restore(state.spec, state.network.state_dict()).network.eval()(
            test.pixels
        )
    predictions = measuring.predict(state.network, test, torch.device("cpu"))
    assert torch.equal(predictions, expected.argmax(1))
