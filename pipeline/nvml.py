"""What NVIDIA's driver tells of a GPU: its own version, and the energy that the card has used.

Calls the driver's library itself (NVML), so no package is needed. Whatever it does not tell, as on
a machine without a GPU, on a part of one (MIG), or in a container without the library, is None.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

LIBRARY = "libnvidia-ml.so.1"
VERSION_BYTES = 96  # more than NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE, 80


def driver() -> str | None:
    """The driver's version, such as 580.65.06."""
    library = _library()
    text = ctypes.create_string_buffer(VERSION_BYTES)
    if library is None or library.nvmlSystemGetDriverVersion(text, VERSION_BYTES):
        return None
    return text.value.decode(errors="replace") or None


def energy(uuid: str) -> Callable[[], float | None] | None:
    """What reads the joules that a card has used since its driver was loaded; None where the driver
    does not count them, which cards have done since Volta. `uuid`: as PyTorch has it, with or
    without `GPU-`: the numbers of devices differ where a job sees some of them only."""
    library, card = _library(), ctypes.c_void_p()
    name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
    if library is None or library.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(card)):
        return None

    def joules() -> float | None:
        millijoules = ctypes.c_ulonglong()
        failed = library.nvmlDeviceGetTotalEnergyConsumption(card, ctypes.byref(millijoules))
        return None if failed else millijoules.value / 1000

    return joules if joules() is not None else None


@cache
def _library() -> ctypes.CDLL | None:
    """Loaded and initialized; None where there is none. Never shut down: the process ends."""
    try:
        library = ctypes.CDLL(LIBRARY)
        failed = library.nvmlInit_v2()
    except (OSError, AttributeError):  # not there, or older than NVML 5
        return None
    return None if failed else library
