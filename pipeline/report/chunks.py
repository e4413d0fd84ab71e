"""Much to read, by a few processes, in order.

Chunks do not depend on the number of processes, so neither do the bytes of what is made from them.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from typing import TypeVar

from pipeline import garbage, hardware

CHUNK = 50
# Starting a process costs as much as reading some hundred results.
WORTH_PROCESSES = 300
# Each needs 150 MB, and beyond four the parent, which merges, cannot keep up.
MOST_PROCESSES = 4

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def in_chunks(read: Callable[[Sequence[Item]], Answer], items: list[Item]) -> Iterator[Answer]:
    """`read` of each CHUNK of items, in order; by other processes where there is much to do."""
    chunks = [items[i : i + CHUNK] for i in range(0, len(items), CHUNK)]
    processes = min(hardware.cores(), MOST_PROCESSES)
    if len(items) < WORTH_PROCESSES or processes < 2:
        yield from map(read, chunks)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), _quietly) as pool:
        waiting: deque[Future[Answer]] = deque()
        for chunk in chunks:
            waiting.append(pool.submit(read, chunk))
            if len(waiting) > 2 * processes:  # no more in memory than keeps all of them busy
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _quietly() -> None:
    """Ctrl-C is the parent's to answer; and a parent that was killed leaves none behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    garbage.seldom()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is None:  # this is no child
        return
    parent.join()
    os._exit(1)
