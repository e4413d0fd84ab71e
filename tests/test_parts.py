"""Parts of one tensor are rounded alike, so that the whole is rounded once."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from pipeline import registry
from pipeline.models import network
from tests.test_artifact import quantized
from tests.test_clipping import logits_and_simulated
from tests.test_models import images, lively
from tests.test_own import known

HALVES = '''
import torch.nn.functional as F
from torch import nn


class Halves(nn.Module):
    """The sum of a convolution's two halves, one by a chunk or a slice."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.stem, self.wide = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 32, 3, 2, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.wide(F.relu(self.stem(x)))
        first, second = x.chunk(2, 1) if self.how == "chunk" else (x[:, :16], x[:, 16:])
        return self.head(F.relu(first + second).mean((2, 3)))


def build(how):
    return Halves(how)
'''


@pytest.fixture(autouse=True)
def only_built_in():
    yield
    registry.fill({})


@pytest.mark.parametrize("how", ["chunk", "slice"])
def test_halves_that_are_summed(tmp_path, how):
    (tmp_path / "nets.py").write_text(HALVES)
    state, pixels = lively(known(tmp_path, how=how)), images((1, 32, 32), 32)
    [together] = network.graph_of(state.spec).shared
    assert sorted(name.rpartition(":")[2] for name in together) == ["0", "1"]
    simulated = quantized(state, pixels, pairs=True)
    loaded, logits, expected = logits_and_simulated(simulated, pixels, tmp_path / "x")
    graph = onnx.load_model_from_string(loaded.model).graph
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    scales = {
        (float(values[n.input[1]]), int(values[n.input[2]]))
        for n in graph.node
        if n.op_type == "QuantizeLinear" and ("plit" in n.input[0] or n.input[0] == "conv2d_1")
    }
    assert len(scales) == 1
    assert np.abs(logits - expected).max() < 1e-3 * np.ptp(expected)
