"""Integers end where a clipped activation does, though ONNX Runtime's quantizer takes it out."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from pipeline import artifact, registry, runtimes
from pipeline.artifact import clipping
from pipeline.artifact.clipping import Limits
from pipeline.models import mobilenet, module_of
from pipeline.models.transforms import fakequant
from tests.test_artifact import quantized
from tests.test_models import images, lively
from tests.test_own import known

JOINED = '''
import torch
import torch.nn.functional as F
from torch import nn


class Joined(nn.Module):
    """A concatenation that a ReLU, a clamp and a plain convolution share a zero point in."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, 2, 1)
        self.one, self.other = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1)
        self.third, self.head = nn.Conv2d(16, 8, 3, 1, 1), nn.Linear(24, 10)

    def forward(self, x):
        x = F.relu(self.stem(x))
        parts = F.relu(self.one(x)), torch.clamp(self.third(x), -0.25, 0.5), self.other(x)
        return self.head(torch.cat(parts, 1).mean((2, 3)))


def build():
    return Joined()
'''


@pytest.fixture(autouse=True)
def only_built_in():
    yield
    registry.fill({})


def logits_and_simulated(state, pixels, folder):
    artifact.write(state, folder, {}, pixels.numpy(), tuple("0123456789"))
    loaded = artifact.load(folder)
    ran = runtimes.kernels(loaded)
    assert ran.integer_share == 1.0
    [logits] = runtimes.logits(runtimes.session(loaded, 1), pixels.numpy())
    with torch.inference_mode():
        simulated = state.network.eval()(pixels).numpy()
    return loaded, logits, simulated


def clips(loaded) -> dict[str, tuple[int, int]]:
    """Name -> limits of each Clip of integers."""
    graph = onnx.load_model_from_string(loaded.model).graph
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    ends = {
        n.name: [values[name] for name in n.input[1:]] for n in graph.node if n.op_type == "Clip"
    }
    assert all(value.dtype == np.uint8 for pair in ends.values() for value in pair)
    return {name: (int(low), int(high)) for name, (low, high) in ends.items()}


@pytest.mark.parametrize("reach", [1.0, 1.3])
def test_a_relu6_ends_at_six_where_its_integers_reach_further(tmp_path, monkeypatch, reach):
    """As a learned scale may. Calibrated ones end where the activation does, and need no clip."""
    monkeypatch.setattr(mobilenet, "STAGES", mobilenet.STAGES[:2])
    spec = module_of("mobilenetv2").spec("mobilenetv2", 0.25, (3, 32, 32), 10, 120, 1 / 16)
    state, pixels = lively(spec), images((3, 32, 32), 32)
    simulated = quantized(state, pixels, pairs=True)
    points = fakequant.points(simulated.network.module)
    for quantizer in {id(q): q for q in points.values() if not q.exact}.values():
        quantizer.scale.mul_(reach)
    loaded, logits, expected = logits_and_simulated(simulated, pixels, tmp_path / "x")
    limits_by_node = clips(loaded)
    assert bool(limits_by_node) == (reach > 1)
    # 6 is at 255 / 1.3 where the scale was 6 / 255: rounding may move it by one.
    assert {limits for limits in limits_by_node.values() if limits != (0, 196)} <= {
        (0, 195),
        (0, 197),
    }
    spread = np.ptp(expected)
    assert np.abs(logits - expected).max() < 0.01 * spread
    if limits_by_node:  # which the integers without limits would not be
        monkeypatch.setattr(clipping, "restore", lambda *_: None)
        unlimited = logits_and_simulated(simulated, pixels, tmp_path / "y")[1]
        assert np.abs(unlimited - expected).max() > 0.03 * spread


def test_what_is_concatenated_keeps_its_own_limits_at_a_shared_zero_point(tmp_path):
    (tmp_path / "nets.py").write_text(JOINED)
    state, pixels = lively(known(tmp_path)), images((1, 32, 32), 32)
    simulated = quantized(state, pixels, pairs=True)
    loaded, logits, expected = logits_and_simulated(simulated, pixels, tmp_path / "x")
    limits = sorted(clips(loaded).values())
    assert len(limits) == 2
    (clamped, top), (zero_point, most) = limits
    assert 0 < clamped < zero_point < top < 255 == most
    assert np.abs(logits - expected).max() < 0.01 * np.ptp(expected)


LIMITED = """
import torch.nn.functional as F
from torch import nn


class Limited(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 16, 3, 2, 1), nn.Linear(16, 10)

    def forward(self, x):
        return F.relu(self.head(F.relu(self.stem(x)).mean((2, 3)))).clamp(max=0.1)


def build():
    return Limited()
"""


def test_limited_logits_stay_limited(tmp_path):
    (tmp_path / "nets.py").write_text(LIMITED)
    state, pixels = lively(known(tmp_path)), images((1, 32, 32), 32)
    simulated = quantized(state, pixels, pairs=True)
    _, logits, expected = logits_and_simulated(simulated, pixels, tmp_path / "x")
    assert (expected.min(), expected.max()) == (0, np.float32(0.1))
    assert np.abs(logits - expected).max() < 0.01


def test_limits_of_one_activation_after_another():
    relu = Limits(0.0, np.inf)
    assert Limits(-1.0, 6.0).of(relu) == (0.0, 6.0)
    assert relu.of(Limits(-1.0, 6.0)) == (0.0, 6.0)
    assert Limits(2.0, 3.0).of(Limits(4.0, 5.0)) == (3.0, 3.0)
    assert Limits(-np.inf, np.inf).of(relu) == relu
