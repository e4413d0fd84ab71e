"""CIFAR-10 as JPEG files: DATA_ROOT/cifar10-jpeg/{train,test}/CLASS/*.jpg, 32x32, colour.

Compression changed its pixels a little, so what is measured on it is never called `cifar10`.
"""

from __future__ import annotations

from pipeline.data.cifar10 import CLASSES  # which are in alphabetical order there, too
from pipeline.data.folder import decode, facts, fetch, is_there, key, sizes, unread, verify

__all__ = [
    "CLASSES",
    "FLIP",
    "decode",
    "facts",
    "fetch",
    "is_there",
    "key",
    "sizes",
    "unread",
    "verify",
]

FLIP = True
