"""TensorBoard: event files under WORK/tracking/tensorboard/; `tensorboard --logdir` reads them.

The writer of the package itself is used, not PyTorch's, which would load all of PyTorch.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from typing import Any

from pipeline.tracking import Run

PACKAGE = "tensorboard"


def start(run: Run) -> TensorBoard:
    return TensorBoard(run)


class TensorBoard:
    def __init__(self, run: Run):
        event, summary, writer = (
            importlib.import_module(f"tensorboard.{name}")
            for name in (
                "compat.proto.event_pb2",
                "compat.proto.summary_pb2",
                "summary.writer.event_file_writer",
            )
        )
        self.event, self.summary = event.Event, summary.Summary
        self.writer: Any = writer.EventFileWriter(str(run.folder))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        listed = [self.summary.Value(tag=key, simple_value=v) for key, v in values.items()]
        summary = self.summary(value=listed)
        self.writer.add_event(self.event(wall_time=time.time(), step=step, summary=summary))
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
