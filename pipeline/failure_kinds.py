"""Which kind of failure an error is: it decides what `resume` does about it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from pipeline.errors import NoGpu, UserError
from pipeline.trained import NoBase


def failure_of(error: BaseException, folder: Path | None = None) -> tuple[str, str]:
    """(kind, one line) of what ended an attempt. `folder`: that it wrote to."""
    line = (str(error).strip().splitlines() or ["no message"])[0][:500]
    named = f"{type(error).__name__}: {line}"
    if any(map(_out_of_memory, _causes(error))):
        of_gpu = any(map(_gpu_out_of_memory, _causes(error)))
        return "gpu_out_of_memory" if of_gpu else "out_of_memory", named
    if full := next(filter(_disk_full, _causes(error)), None):
        return "disk_full", _where_full(full, folder)
    if isinstance(error, NoBase):
        return "no_base", line
    if isinstance(error, NoGpu):
        return "no_gpu", line
    return "exception", line if isinstance(error, UserError) else named


def _where_full(error: BaseException, folder: Path | None) -> str:
    """`No space left on device in FOLDER`: of the file in the error, where it has one."""
    message = getattr(error, "strerror", None) or os.strerror(errno.ENOSPC)
    named = getattr(error, "filename", None)
    where = Path(os.fsdecode(named)).parent if isinstance(named, (str, bytes)) else folder
    return f"{message} in {where}" if where else message


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it was raised from: compilers and our own errors wrap others."""
    while error is not None:
        yield error
        error = error.__cause__


# How PyTorch and ONNX Runtime report it where they have no error class for it.
_NO_MEMORY = (
    "can't allocate memory",
    "Failed to allocate memory",
    "bad_alloc",
    "Cannot allocate memory",
)


# How CUDA reports it where PyTorch's allocator takes no part: a context, a kernel that is loaded.
_NO_GPU_MEMORY = (
    "ALLOC_FAILED",
    "DEVICE_ALLOCATION_FAILED",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUDA out of memory",
)
# PyTorch's convolution tries one algorithm of cuDNN after the other, and goes on where there is no
# memory for what one needs. That of none could be allocated where this little is free.
_NO_ALGORITHM = "unable to find an engine to execute this computation"
_LITTLE_BYTES = 1 << 30


def _out_of_memory(error: BaseException) -> bool:
    own = isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY)
    return own or _gpu_out_of_memory(error)


def _gpu_out_of_memory(error: BaseException) -> bool:
    """PyTorch has an error of its own for a GPU's memory; CUDA's libraries have a status."""
    own = isinstance(error, torch.OutOfMemoryError)
    by_message = any(text in str(error) for text in _NO_GPU_MEMORY)
    return own or by_message or (_NO_ALGORITHM in str(error) and _gpu_is_full())


def _gpu_is_full() -> bool:
    """Now, which is after the error: what the training had is still taken by PyTorch."""
    try:
        return torch.cuda.is_initialized() and torch.cuda.mem_get_info()[0] < _LITTLE_BYTES
    except RuntimeError:  # a GPU that answers nothing any more
        return False


def _disk_full(error: BaseException) -> bool:
    own = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return own or "No space left on device" in str(error)
