"""What is deployed on a GPU: `env/run pytest -n 0 -m gpu tests/gpu/test_gpu_runtime.py`; skipped
without one."""

from __future__ import annotations

import functools
import time

import numpy as np
import pytest
import torch

from pipeline import artifact, execute, hardware, nvml, runtimes, store
from pipeline.measure import energy, inference, series
from pipeline.measure.series import ENERGY, THROUGHPUT, Series
from pipeline.models import module_of, network
from pipeline.models.network import ModelState, plain
from pipeline.paths import Work
from pipeline.report import gpu as reported
from pipeline.report.frames import Frames
from pipeline.report.row import identity, row
from pipeline.runtimes import onnxruntime, tensorrt
from pipeline.runtimes.pytorch_cuda import Cuda, Loaded
from tests import cells

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that CUDA can use"),
    pytest.mark.timeout(600),
]
SHAPE = (3, 32, 32)
NEAR = {"bf16": 0.08, "fp16": 0.01, "fp32": 1e-3}  # of the largest logit


def state_of(model: str, width: float) -> ModelState:
    """With statistics of its own: those of a new network are all alike."""
    state = network.new(module_of(model).spec(model, width, SHAPE, 10, 128, 1 / 74), 0)
    state.network.train()
    with torch.no_grad():
        for _ in range(5):
            state.network(torch.from_numpy(pixels(64)))
    state.network.eval()
    return state


def pixels(images: int) -> np.ndarray:
    return np.random.default_rng(images).integers(0, 256, (images, *SHAPE), np.uint8)


@functools.cache
def loaded(model: str, precision: str) -> Loaded:
    """One for all tests: compilation takes most of their time."""
    return Cuda(precision).load(made(model), 1)


@functools.cache
def made(model: str) -> ModelState:
    return state_of(model, 0.25)


def expected(state: ModelState, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return plain(state).network.eval()(torch.from_numpy(images)).numpy()


@pytest.mark.parametrize(
    "model, precision",
    [
        ("vgg11_bn", "bf16"),
        ("vgg11_bn", "fp16"),
        ("vgg11_bn", "fp32"),
        ("resnet18", "bf16"),
        ("mobilenetv2", "fp16"),
    ],
)
def test_it_computes_the_network_compiled_and_in_one_graph(model, precision):
    images, one = pixels(64), loaded(model, precision)
    wanted = expected(made(model), images)
    for count in (1, 40, 64):
        logits = one.run(images[:count])
        assert logits.shape == (count, 10) and logits.dtype == np.float32
        assert np.abs(logits - wanted[:count]).max() <= NEAR[precision] * np.abs(wanted).max()
    assert one.note is None
    assert all(one.calls.of(count).graph is not None for count in (1, 64))


def test_any_number_of_images_of_any_layout_in_memory():
    one, images = loaded("vgg11_bn", "fp16"), pixels(1_100)
    whole = one.run(images)
    assert whole.shape == (1_100, 10)
    assert np.array_equal(whole, one.run(images))  # the same algorithms, in the same order
    near = {"rtol": 0.02, "atol": 0.01 * np.abs(whole).max()}
    assert np.allclose(one.run(images[::20]), whole[::20], **near)
    assert np.allclose(one.run(np.asfortranarray(images[:3])), whole[:3], **near)


def test_two_networks_in_turns_do_not_disturb_each_other():
    images = pixels(64)
    first, second = loaded("vgg11_bn", "bf16"), loaded("resnet18", "bf16")
    one, two = first.run(images), second.run(images)
    kept = one.copy()
    for _ in range(3):
        assert np.array_equal(first.run(images), one)
        assert np.array_equal(second.run(images), two)
    assert np.array_equal(one, kept)  # what was given is not written over later


def test_what_is_left_of_training_stays_as_it_was():
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        Cuda("bf16", None).load(made("vgg11_bn"), 1).run(pixels(1))
        assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.enabled
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


def test_a_graph_answers_sooner_than_the_network_step_by_step():
    images = pixels(1)
    runs = inference.run_of(loaded("vgg11_bn", "bf16"), images)
    net = plain(made("vgg11_bn")).network.eval().cuda()

    @torch.inference_mode()
    def eager() -> None:
        net(torch.from_numpy(images).cuda()).cpu()

    def median_s(run) -> float:
        for _ in range(20):
            run()
        times = []
        for _ in range(200):
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
        return float(np.median(times))

    assert median_s(eager) > 1.3 * median_s(runs)


@pytest.mark.parametrize("name", ["pytorch-cuda-bf16", "pytorch-cuda-fp16"])
def test_it_is_a_runtime_by_its_name(name):
    runtime = runtimes.get(name)
    assert runtime.available() is None and not runtime.READS_ARTIFACTS
    assert runtime.kernels(made("vgg11_bn"), SHAPE).integer_share == 0


@pytest.mark.parametrize("technique, near", [("base", 0.02), ("ptq-int8", 0.05)])
def test_tensorrt_computes_the_graph_that_it_is_given(tmp_path, technique, near):
    """Of int8 in a kernel of its own each half may be rounded to the other side."""
    pytest.importorskip("tensorrt")
    of_base = cells.cells(tmp_path, [*dict.fromkeys(["base", technique])])
    work = Work(tmp_path / "work")
    for cell in of_base.values():
        with store.lock_cell(work.cell(cell.id)):
            execute.run_cell(cell, work, work.root, device="cuda")
    model = artifact.load(work.cell(of_base[technique].id).artifact)
    given, note = tensorrt.given(model.model)
    images = np.random.default_rng(0).integers(0, 256, (64, *model.shape), np.uint8)
    wanted = onnxruntime.load(given.SerializeToString(), 1).run(images)
    one = tensorrt.load(model.model, 1)
    for count in (1, 40, 64):
        logits = one.run(images[:count])
        assert logits.shape == (count, len(model.classes)) and logits.dtype == np.float32
        assert np.abs(logits - wanted[:count]).max() <= near * np.ptp(wanted)
    assert one.note == note and (note is None) == (technique == "base")


def test_energy_is_that_of_a_card():
    meter = energy.of_gpu()
    if meter is None:
        pytest.skip("the driver does not tell this card's energy")
    run = inference.run_of(loaded("vgg11_bn", "bf16"), pixels(1024))
    run()
    steady = energy.steady(run, 1024, 1.0, meter)
    assert steady.joules_per_image is not None
    watts = steady.joules_per_image * steady.images_per_s
    assert 10 < watts < 1500


def test_the_hardware_names_the_card():
    assert hardware.describe()["gpu"] == torch.cuda.get_device_name(0)
    driver = nvml.driver()
    assert driver is None or driver.split(".")[0].isdecimal()


def test_a_cell_is_measured_on_the_gpu_beside_its_base(tmp_path):
    told = {"measure": cells.MEASURE | {"runtimes": ["onnxruntime", "pytorch-cuda-bf16"]}}
    made_of = cells.cells(tmp_path, ["base", "ptq-int8"], **told)
    work, results = Work(tmp_path / "work"), {}
    for name, cell in made_of.items():
        with store.lock_cell(work.cell(cell.id)):
            execute.run_cell(cell, work, work.root, device="cuda")
        results[name] = cells.result(work.cell(cell.id))
    measured, facts = results["ptq-int8"].measured, results["ptq-int8"].facts
    assert "runtimes/pytorch-cuda-bf16/skipped" not in measured
    assert measured["runtimes/pytorch-cuda-bf16/agreement"] >= 0.95
    timed = [one for one in map(series.parse, measured) if one and one.device == "cuda"]
    assert {(one.model, one.batch) for one in timed} == {
        (model, batch) for model in ("artifact", "base") for batch in (1, 64, 1024)
    }
    largest = Series("pytorch-cuda-bf16", "artifact", "all", 1024, "cuda")
    assert measured[largest.named(THROUGHPUT)] > 0
    assert (largest.named(ENERGY) in measured) == (energy.of_gpu() is not None)
    assert facts["hardware"]["gpu"] == torch.cuda.get_device_name(0)
    assert facts["machine"].endswith(hardware.machine_name(facts["hardware"]["gpu"], None)[:24])
    rows = [row(identity(made_of[name]), result) for name, result in results.items()]
    [table] = reported.section(Frames.of(rows, ())).tables
    assert [line[0].text for line in table.lines] == ["base", "ptq-int8"]
