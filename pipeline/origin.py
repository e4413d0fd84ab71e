"""What makes a result: this code, at its commit, and the packages that it stands on.

All of it may change while a cell is made, for days: somebody checks out another branch, or updates
a package. What runs is what was there when the process started.
"""

from __future__ import annotations

import functools
import hashlib
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline import checkout, runtimes
from pipeline.checkout import commit
from pipeline.paths import CODE

PACKAGES = ("torchvision", "onnx", "numpy", "h5py")
SOURCES = ("pipeline", "jobs")


@dataclass(frozen=True)
class Origin:
    """`code`: SHA-256 of the sources, which says more than a commit with a +."""

    versions: dict[str, str]
    commit: str | None
    code: str

    def facts(self) -> dict[str, Any]:
        """For a result that is published now. `changed_meanwhile`: what is not any more as it was;
        modules that were loaded late may be of either."""
        then, now = vars(self), vars(_now())
        return {
            "versions": self.versions,
            "commit": self.commit,
            "snapshot": checkout.snapshot_id(),
            "code_sha256": self.code,
            "changed_meanwhile": [name for name in then if then[name] != now[name]],
        }


@functools.cache
def loaded() -> Origin:
    """As it was when this process first called this; its modules were loaded just before."""
    return _now()


def _now() -> Origin:
    return Origin(versions(), commit(), code_sha256())


def versions() -> dict[str, str]:
    packages = (*PACKAGES, *runtimes.packages())
    return {"python": platform.python_version(), **{p: _version(p) for p in packages}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # away since it was imported: no reason to lose a trained cell
        return "not installed"


def code_sha256() -> str:
    digest = hashlib.sha256()
    for path in sorted(path for folder in SOURCES for path in (CODE / folder).rglob("*.py")):
        try:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        except FileNotFoundError:  # removed, or replaced, at this moment
            content = "gone"
        digest.update(f"{path.relative_to(CODE)} {content}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
