"""Parameters and multiply-accumulates (MACs) of an image, counted on the float network's shape."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from pipeline.models.network import build
from pipeline.models.spec import NetworkSpec


def count(spec: NetworkSpec) -> tuple[int, int]:
    """(parameters, MACs an image): convolutions and linear layers, as the field counts them."""
    macs = 0

    def add(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal macs
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        outputs = output.shape[2:].numel() if output.dim() == 4 else 1
        macs += outputs * module.weight.numel()

    with torch.device("meta"):
        network = build(spec.structure).eval()
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.register_forward_hook(add)
        network(torch.zeros(1, *spec.shape))
    return sum(p.numel() for p in network.parameters()), macs


def subnormals(model: bytes) -> int:
    """Numbers in an ONNX model that are not zero but too small for fast arithmetic; see
    ``network.fold``, which leaves none."""
    import onnx

    tensors = onnx.load_model_from_string(model).graph.initializer
    floats = (onnx.numpy_helper.to_array(t) for t in tensors if t.data_type == t.FLOAT)
    tiny = np.finfo(np.float32).tiny
    return sum(int(((t != 0) & (np.abs(t) < tiny)).sum()) for t in floats)
