"""What is deployed on a GPU: `env/run pytest -n 0 -m gpu tests/gpu/test_gpu_runtime.py`; skipped
without one."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from pipeline import hardware, nvml, runtimes
from pipeline.measure import energy, inference
from pipeline.models import module_of, network
from pipeline.models.network import ModelState, plain
from pipeline.runtimes.pytorch_cuda import Cuda

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


@pytest.fixture(scope="module")
def vgg() -> ModelState:
    return state_of("vgg11_bn", 0.25)


def expected(state: ModelState, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return plain(state).network.eval()(torch.from_numpy(images)).numpy()


@pytest.mark.parametrize("precision", NEAR)
@pytest.mark.parametrize("model", ["vgg11_bn", "resnet18", "mobilenetv2"])
def test_it_computes_the_network_compiled_and_in_one_graph(model, precision):
    state, images = state_of(model, 0.25), pixels(70)
    loaded = Cuda(precision).load(state, 1)
    wanted = expected(state, images)
    for count in (1, 64, 70):
        found = loaded.run(images[:count])
        assert found.shape == (count, 10) and found.dtype == np.float32
        assert np.abs(found - wanted[:count]).max() <= NEAR[precision] * np.abs(wanted).max()
    assert loaded.not_compiled is None
    assert all(loaded.call(count).graph is not None for count in (1, 64, 70))


def test_any_number_of_images_of_any_layout_in_memory(vgg):
    loaded, images = Cuda("fp16").load(vgg, 1), pixels(1_100)
    whole = loaded.run(images)
    assert whole.shape == (1_100, 10)
    assert np.array_equal(whole, loaded.run(images))  # the same algorithms, in the same order
    near = {"rtol": 0.02, "atol": 0.01 * np.abs(whole).max()}
    assert np.allclose(loaded.run(images[::20]), whole[::20], **near)
    assert np.allclose(loaded.run(np.asfortranarray(images[:3])), whole[:3], **near)


def test_two_networks_in_turns_do_not_disturb_each_other(vgg):
    other, images = state_of("resnet18", 0.25), pixels(64)
    first, second = (Cuda("bf16").load(state, 1) for state in (vgg, other))
    one, two = first.run(images), second.run(images)
    kept = one.copy()
    for _ in range(3):
        assert np.array_equal(first.run(images), one)
        assert np.array_equal(second.run(images), two)
    assert np.array_equal(one, kept)  # what was given is not written over later


def test_what_is_left_of_training_does_not_decide_the_algorithms(vgg):
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        Cuda("bf16").load(vgg, 1).run(pixels(1))
        assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.enabled
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


def test_a_graph_answers_sooner_than_the_network_step_by_step(vgg):
    images = pixels(1)
    runs = inference.run_of(Cuda("bf16").load(vgg, 1), images)
    net = plain(vgg).network.eval().cuda()

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
def test_it_is_a_runtime_by_its_name(name, vgg):
    runtime = runtimes.get(name)
    assert runtime.available() is None and not runtime.READS_ARTIFACTS
    assert runtime.kernels(vgg, SHAPE).integer_share == 0


def test_energy_is_that_of_a_card(vgg):
    meter = energy.of_gpu()
    if meter is None:
        pytest.skip("the driver does not tell this card's energy")
    loaded = Cuda("bf16").load(vgg, 1)
    run = inference.run_of(loaded, pixels(1024))
    loaded.run(pixels(1024))
    steady = energy.steady(run, 1024, 1.0, meter)
    assert steady.joules_per_image is not None
    watts = steady.joules_per_image * steady.images_per_s
    assert 10 < watts < 1500


def test_the_hardware_names_the_card():
    assert hardware.describe()["gpu"] == torch.cuda.get_device_name(0)
    driver = nvml.driver()
    assert driver is None or driver.split(".")[0].isdecimal()
