"""What NNCodec (ISO/IEC 15938-17, DeepCABAC) makes of integer tensors: bytes of its payload.

    PYTHON nncodec_bytes.py TENSORS.npz

Runs in an environment of its own, which has NNCodec's extension and NumPy (see bench_nncodec.py).
Prints the sum over all tensors, each decoded and compared. Per tensor the best of what its encoder
may choose is taken (length of the unary part, adaptation of the models' rates, skipped rows); what
says which was chosen, names and shapes are not counted.
"""

import importlib.util
import itertools
import sys
from pathlib import Path

import numpy as np

ROW_BY_ROW, PROFILE = 0, 1


def extension():
    """The compiled coder alone: the package around it imports PyTorch and more."""
    [place] = importlib.util.find_spec("nncodec").submodule_search_locations
    [path] = Path(place, "extensions").glob("deepCABAC*.so")
    spec = importlib.util.spec_from_file_location("deepCABAC", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def smallest(coder, values) -> int:
    """Bytes of one tensor; ValueError where it does not come back as it was."""
    off = (coder.HdspMode.AlwaysOff, np.zeros(0, np.int8))
    rows = values.reshape(values.shape[0], -1)
    empty = np.array([not row.any() for row in rows], np.int32)
    sizes = []
    for unary, adapt, skip in itertools.product((4, 10, 16, 32), (0, 1), (0, 1)):
        encoder = coder.Encoder()
        encoder.initCtxModels(unary, adapt)
        encoder.encodeLayer(rows, 0, ROW_BY_ROW, PROFILE, 0, skip, empty, *off, 0, 0)
        coded = encoder.finish()
        decoder, back = coder.Decoder(), np.zeros_like(rows)
        decoder.setStream(coded)
        decoder.initCtxModels(unary)
        decoder.decodeLayer(back, 0, ROW_BY_ROW, PROFILE, 0, *off, 0, 0)
        if not np.array_equal(back, rows):
            raise ValueError(f"unary {unary}, adapt {adapt}, skip {skip}: not what was coded")
        sizes.append(len(coded))
    return min(sizes)


if __name__ == "__main__":
    with np.load(sys.argv[1]) as tensors:
        coder = extension()
        print(sum(smallest(coder, tensors[name].astype(np.int32)) for name in tensors.files))
