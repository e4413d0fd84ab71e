"""Tells a process for how long it was stopped: its own clock (`pipeline.clock`) leaves that out."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path

from pipeline.clock import SECONDS


class Stops:
    """Of one other process, which reads them in a file at `path`."""

    def __init__(self) -> None:
        self._file, name = tempfile.mkstemp(prefix="netpress-stops-")
        self.path = Path(name)
        self._seconds, self._since = 0.0, 0.0
        try:
            os.pwrite(self._file, SECONDS.pack(0.0), 0)
        except OSError:  # a full disk
            self.close()
            raise

    def begin(self) -> None:
        """The process was just stopped."""
        self._since = time.monotonic()

    def end(self) -> None:
        """It goes on right after this. A file that cannot be written costs only the number."""
        self._seconds += time.monotonic() - self._since
        with contextlib.suppress(OSError):
            os.pwrite(self._file, SECONDS.pack(self._seconds), 0)

    def close(self) -> None:
        os.close(self._file)
        self.path.unlink(missing_ok=True)
