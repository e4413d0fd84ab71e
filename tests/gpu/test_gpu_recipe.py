"""The recipe in a CUDA graph: `env/run pytest -m gpu tests/gpu`; skipped without a GPU."""

from __future__ import annotations

import pytest
import torch

from pipeline.training.recipe import machine
from tests.test_recipe import ALL, fitted, recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that CUDA can use"),
    pytest.mark.timeout(600),
]


def test_with_all_settings_a_graph_gives_the_weights_of_the_eager_loop(capsys):
    ended = []
    for how in ("off", "auto"):
        settings = recipe(**ALL, compile=how, epochs=6)
        done = fitted(settings, where=machine(settings, "cuda")).state.network
        ended.append({n: t.cpu() for n, t in done.state_dict().items()})
    assert "captured" not in capsys.readouterr().err
    assert all(torch.equal(t, ended[1][n]) for n, t in ended[0].items())
