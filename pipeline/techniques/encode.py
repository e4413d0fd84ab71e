"""Lossless coding of what is stored; it can end any technique. What runs is decoded from it, byte
for byte the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.errors import UserError
from pipeline.sweep import Frozen

if TYPE_CHECKING:
    from pipeline.models.network import ModelState
    from pipeline.techniques.context import Context


VERSION = 2  # since 2, `npk` by default


class Settings(Frozen):
    codec: Literal["npk", "xz"] = Field(
        "npk", description="npk: weights by what is known of their neighbours; xz: LZMA2"
    )


def apply(state: ModelState, settings: Settings, context: Context) -> ModelState:
    from pipeline.models import network
    from pipeline.models.transforms.encoded import Encoded

    if state.spec.has(Encoded.name):
        raise UserError("encode: the artifact is coded already; expected one such stage")
    return network.with_transform(state, Encoded(settings.codec))
