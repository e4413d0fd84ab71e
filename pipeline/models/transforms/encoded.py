"""How a network's artifact is stored: coded, without loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from pipeline.models.transforms import Transform

if TYPE_CHECKING:
    from pipeline.models.spec import Graph


@dataclass(frozen=True)
class Encoded(Transform):
    """``codec``: a name in ``artifact.coded.CODECS``. The network itself stays as it is."""

    name: ClassVar[str] = "encoded"

    codec: str = "xz"

    def insert(self, module: nn.Module, graph: Graph) -> None:
        pass

    def codec_of_artifact(self) -> str:
        return self.codec
