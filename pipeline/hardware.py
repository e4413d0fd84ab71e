"""What machine this is, as far as it decides speed. Imports no torch before it has to."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline import nvml, quota

# The flags that decide which kernels run; the rest of /proc/cpuinfo is noise in a report.
TELLING_FLAGS = (
    "avx2",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)

# How CPUs of one name differ, which virtual machines do ("AMD EPYC"): what is the fastest at 8-bit
# products, else the widest vectors; in a machine's name, and in a report.
INSTRUCTION_SETS = (
    {"amx_int8": ("amx", "AMX")},
    {"avx512_vnni": ("vnni", "AVX-512 VNNI"), "avx_vnni": ("avxvnni", "AVX-VNNI")},
    {"i8mm": ("i8mm", "I8MM")},
    {"asimddp": ("dotprod", "DOTPROD")},
    {"avx512f": ("avx512", "AVX-512")},
    {"avx2": ("avx2", "AVX2")},
    {"asimd": ("asimd", "ASIMD")},
)
NAME_LENGTH = 64  # of a machine's name, which files have


@cache
def _cpuinfo() -> dict[str, str]:
    """The first processor's entry; empty where there is no /proc (macOS)."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().split("\n\n")[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def cpu_flags() -> tuple[str, ...]:
    info = _cpuinfo()
    present = set((info.get("flags") or info.get("Features") or "").split())
    return tuple(f for f in TELLING_FLAGS if f in present)


def cpu_name() -> str:
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


_requested: int | None = None


def request(cores: int | None) -> None:
    """The cores that this process was given by its job or its command; None: all that there are.
    Not every cluster binds a job to its cores, and what a node shows beside them is not its own."""
    global _requested
    _requested = cores


@contextlib.contextmanager
def using(cores: int | None) -> Iterator[None]:
    """As if that many were requested; None: as many as were."""
    before = _requested
    request(before if cores is None else cores)
    try:
        yield
    finally:
        request(before)


def cores() -> int:
    """Those this process may use, not those of the machine: a SLURM job, or a container with a CPU
    quota, has a part of it. A part of a processor counts for nothing: what a quota stops in the
    middle of a batch would be measured as its latency."""
    visible = quota.usable()
    return visible if _requested is None else min(_requested, visible)


def training_cores() -> int:
    """The same, but at most OMP_NUM_THREADS, which limits what libraries for arithmetic use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(cores(), int(wanted)) if wanted.isdecimal() and int(wanted) else cores()


def has_bf16() -> bool:
    """Whether bf16 products have instructions of their own; emulated, they are slower than fp32."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(cpu_flags()))


def saturates() -> bool:
    """Whether 8 x 8-bit products overflow 16-bit sums: x86 without VNNI. 7-bit weights fit."""
    x86 = platform.machine() in ("x86_64", "AMD64", "i686")
    return x86 and not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(cpu_flags())


def machine_name(
    cpu: str | None,
    cores: int | None,
    gpu: str | None = None,
    flags: Iterable[str] | str | None = None,
) -> str:
    """What a machine is called that measured: after its kind, since nodes of one kind measure the
    same; fit for a file name and for a report that is passed on. `gpu`: where it was measured on,
    too; `flags`: of the CPU, as `cpu_flags`."""
    kinds = [name for name, _ in instruction_sets(flags)]
    rest = [*([f"{cores}c"] if cores else []), *kinds, *([_as_name(gpu, 24)] if gpu else [])]
    most = min(30 if gpu else 50, NAME_LENGTH - len("-".join(["", *rest])))
    return "-".join([_as_name(cpu, most), *rest])


def instruction_sets(flags: Iterable[str] | str | None) -> list[tuple[str, str]]:
    """(in a machine's name, in a report) of those that tell CPUs of one name apart."""
    present = set(flags.split() if isinstance(flags, str) else flags or ())
    for kinds in INSTRUCTION_SETS:
        if known := [names for flag, names in kinds.items() if flag in present]:
            return known
    return []


def name_of(facts: Mapping[str, Any]) -> str:
    """What the machine is called that measured, of the facts of a measurement."""
    described = facts.get("hardware") or {}
    cpu, cores, gpu, flags = (described.get(key) for key in ("cpu", "cores", "gpu", "flags"))
    name = facts.get("machine") or machine_name(cpu, cores)
    for measured_on in (None, gpu):
        if name == machine_name(cpu, cores, measured_on):  # of an earlier version
            return machine_name(cpu, cores, measured_on, flags)
    return name


def _as_name(words: str | None, most: int) -> str:
    plain = re.sub(r"\((R|TM|C)\)", "", words or "unknown", flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9.]+", "-", plain).strip("-.")[:most].rstrip("-.") or "unknown"


def machine(on_gpu: bool = False) -> dict:
    """What a measurement says of the machine that made it. `on_gpu`: whether its GPU was measured
    on, and not only there."""
    described = describe()
    gpu = described["gpu"] if on_gpu else None
    return {
        "machine": machine_name(described["cpu"], described["cores"], gpu, described["flags"]),
        "hardware": described,
        "threads": described["cores"],
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def describe() -> dict:
    """cpu (name), flags, cores, machine, system, gpu (name, or None) and its driver's version."""
    return {
        "cpu": cpu_name(),
        "flags": list(cpu_flags()),
        "cores": cores(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "gpu": (gpu := _gpu()),
        "gpu_driver": nvml.driver() if gpu else None,
    }


def _gpu() -> str | None:
    import torch  # here: only a worker asks, and it has torch loaded anyway

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
