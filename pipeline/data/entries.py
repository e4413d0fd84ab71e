"""Where the cache keeps a decoded data set, and what is known of it without reading a pixel.

Imports no numpy: `netpress status` compares images with those of the results by these alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FORMAT = 1  # of the cache's files


def source_key(*parts: object) -> str:
    """A key from all that decides the decoded pixels."""
    from pipeline.data import VERSION

    return hashlib.sha256(json.dumps([FORMAT, VERSION, *parts]).encode()).hexdigest()


def arrays(home: Path, name: str, key: str) -> Path:
    return Path(home) / "data" / f"{name}-{key[:16]}" / "arrays"


def fingerprint_of(classes: Sequence[str], digests: Mapping[str, str]) -> str:
    """SHA-256 over class names, shapes, pixels and labels."""
    return hashlib.sha256(json.dumps([classes, digests], sort_keys=True).encode()).hexdigest()


def fingerprint(home: Path, name: str, key: str) -> str | None:
    """Of the data set in the cache, as its manifest has it; None where there is none, or where it
    is damaged."""
    try:
        manifest = _manifest(home, name, key)
        if manifest is None:
            return None
        return fingerprint_of(manifest["classes"], manifest["sha256"])
    except (LookupError, TypeError):
        return None


def notes(home: Path, name: str, key: str) -> list[str]:
    """Lines for the user about the images of a data set; none where it is not in the cache."""
    noted = (_manifest(home, name, key) or {}).get("notes", [])
    return [str(line) for line in noted] if isinstance(noted, list) else []


def _manifest(home: Path, name: str, key: str) -> dict[str, Any] | None:
    try:
        manifest = json.loads((arrays(home, name, key) / "manifest.json").read_bytes())
        return manifest if manifest["key"] == key else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
