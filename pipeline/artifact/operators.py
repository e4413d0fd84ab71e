"""The operators that PyTorch's ONNX exporter knows, collected once a process.

It collects them anew for each export, which takes longer than the export of a small network. Its
names are private ones: where another version lacks them, exports are slower and nothing else.
"""

from __future__ import annotations

import contextlib
import functools

OPSET = 20  # of ONNX, which artifacts have


@functools.cache
def kept() -> None:
    """From now on, in this process, they are collected once for each opset."""
    with contextlib.suppress(ImportError, AttributeError):
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        # Nothing adds to a registry but a translation table of one's own, which netpress has not.
        collected = functools.cache(ONNXRegistry.from_torchlib)
        ONNXRegistry.from_torchlib = staticmethod(collected)  # type: ignore[method-assign]


def collect() -> None:
    """Collect them now, for exports to come; in what is forked afterwards, too."""
    kept()
    with contextlib.suppress(ImportError, AttributeError):
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        ONNXRegistry().from_torchlib(opset_version=OPSET)
