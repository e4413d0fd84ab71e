"""Under its earlier name; what it holds is in `pipeline.gaps`, below all that reads it."""

from pipeline.gaps import in_one_line as said
from pipeline.gaps import reason

__all__ = ["reason", "said"]
